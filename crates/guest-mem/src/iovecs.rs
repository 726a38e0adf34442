//! The data segments of a request, as a system call takes them.

use crate::access::before_read;
use crate::{BadAddr, GuestAddr, MemHandle, StatusByte};
use std::ptr::NonNull;

/// Host segments of guest memory, in the order of a request's data.
///
/// Holds its [`MemHandle`]: whoever owns an `IoVecs` (an engine's op slot, until the kernel is done) keeps the memory mapped.
#[derive(Debug)]
pub struct IoVecs {
    /// Each lies within one region of `mem` and is not empty.
    segs: Vec<libc::iovec>,
    bytes: u64,
    mem: MemHandle,
}

/// The emptied storage of an [`IoVecs`], kept for the next one so that requests do not allocate. Holds no memory.
#[derive(Debug, Default)]
pub struct SegStorage(Vec<libc::iovec>);

impl SegStorage {
    /// Whether it has room for a segment: one that never held any saves nobody an allocation.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.0.capacity() > 0
    }
}

impl IoVecs {
    /// No segments yet.
    pub fn new(mem: &MemHandle) -> IoVecs {
        IoVecs::with_storage(mem, SegStorage::default())
    }

    /// As [`IoVecs::new`], in used storage.
    #[inline]
    pub fn with_storage(mem: &MemHandle, storage: SegStorage) -> IoVecs {
        IoVecs { segs: storage.0, bytes: 0, mem: mem.clone() }
    }

    /// Gives the storage back.
    #[inline]
    pub fn into_storage(mut self) -> SegStorage {
        self.segs.clear();
        SegStorage(self.segs)
    }

    /// Appends `len` bytes at `addr`; a range over adjacent regions becomes several segments, an empty one none.
    ///
    /// # Errors
    ///
    /// [`BadAddr`] if the range is not all in memory; then nothing was appended.
    #[inline]
    pub fn push(&mut self, addr: GuestAddr, len: u64) -> Result<(), BadAddr> {
        let segs_before = self.segs.len();
        let (mut at, mut left) = (addr, len);
        while left > 0 {
            let Some((ptr, here)) = self.mem.at(at) else {
                self.segs.truncate(segs_before);
                return Err(BadAddr { addr, len });
            };
            let take = left.min(here);
            let iov_len = usize::try_from(take).expect("a mapped range fits the address space");
            self.segs.push(libc::iovec { iov_base: ptr.as_ptr().cast(), iov_len });
            left -= take;
            // `push` of a range up to the very end of the address space stops here with `left == 0`.
            at = GuestAddr(at.0.wrapping_add(take));
            if left > 0 && at.0 == 0 {
                self.segs.truncate(segs_before);
                return Err(BadAddr { addr, len });
            }
        }
        self.bytes += len;
        Ok(())
    }

    /// Length of all segments together, in bytes.
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The segments as the kernel takes them. They stay valid while this value lives and is not changed.
    #[inline]
    pub fn as_raw(&self) -> &[libc::iovec] {
        &self.segs
    }

    /// The memory the segments lie in.
    pub fn memory(&self) -> &MemHandle {
        &self.mem
    }

    /// Drops the first `bytes` bytes, or all there are.
    #[inline]
    pub fn trim_front(&mut self, bytes: u64) {
        let mut left = bytes.min(self.bytes);
        self.bytes -= left;
        let mut gone = 0;
        for seg in &mut self.segs {
            if seg.iov_len as u64 > left {
                let cut = usize::try_from(left).expect("less than a segment's length");
                seg.iov_base = seg.iov_base.wrapping_byte_add(cut);
                seg.iov_len -= cut;
                break;
            }
            left -= seg.iov_len as u64;
            gone += 1;
        }
        self.segs.drain(..gone);
    }

    /// Keeps the first `bytes` bytes and drops the rest.
    #[inline]
    pub fn truncate(&mut self, bytes: u64) {
        let mut extra = self.bytes.saturating_sub(bytes);
        self.bytes -= extra;
        while extra > 0 {
            let last = self.segs.last_mut().expect("`bytes` counts the segments");
            if last.iov_len as u64 > extra {
                last.iov_len -= usize::try_from(extra).expect("less than a segment's length");
                return;
            }
            extra -= last.iov_len as u64;
            self.segs.pop();
        }
    }

    /// The part of `len` bytes from `offset` on, as segments of its own; shorter if there are not as many.
    pub fn part(&self, offset: u64, len: u64) -> IoVecs {
        let mut part = IoVecs { segs: self.segs.clone(), bytes: self.bytes, mem: self.mem.clone() };
        part.trim_front(offset);
        part.truncate(len);
        part
    }

    /// Takes the last byte off, as the place for a status; `None` if there is no byte.
    #[inline]
    pub fn pop_last_byte(&mut self) -> Option<StatusByte> {
        let last = self.segs.last()?;
        let base = NonNull::new(last.iov_base.cast::<u8>()).expect("segments are mapped memory");
        // SAFETY: segments are not empty, so the last byte is inside the segment.
        let ptr = unsafe { base.add(last.iov_len - 1) };
        // SAFETY: the byte lies in a segment, which is mapped while the handle lives.
        let byte = unsafe { StatusByte::new(ptr, self.mem.clone()) };
        self.truncate(self.bytes - 1);
        Some(byte)
    }

    /// Whether each segment starts on, and is as long as, a multiple of `bytes`, a power of two: what O_DIRECT asks of memory.
    #[inline]
    pub fn is_aligned_to(&self, bytes: usize) -> bool {
        self.segs.iter().all(|s| (s.iov_base.addr() | s.iov_len) & (bytes - 1) == 0)
    }

    /// Copies guest bytes from `offset` on into `into`; returns how many there were.
    pub fn copy_to(&self, offset: u64, into: &mut [u8]) -> usize {
        before_read();
        let mut done = 0;
        self.for_each_part(offset, into.len(), |ptr, len| {
            // SAFETY: `for_each_part` gives parts of segments, mapped while `self.mem` lives.
            unsafe { volatile_copy_from(ptr, &mut into[done..done + len]) };
            done += len;
        });
        done
    }

    /// Copies `from` into guest memory at `offset`; returns how many bytes there was room for.
    pub fn copy_from(&self, offset: u64, from: &[u8]) -> usize {
        let mut done = 0;
        self.for_each_part(offset, from.len(), |ptr, len| {
            // SAFETY: as in `copy_to`.
            unsafe { volatile_copy_to(ptr, &from[done..done + len]) };
            done += len;
        });
        done
    }

    /// Zeroes everything from `offset` to the end.
    pub fn zero_from(&self, offset: u64) {
        const ZEROES: [u8; 4096] = [0; 4096];
        self.for_each_part(offset, usize::MAX, |ptr, len| {
            for start in (0..len).step_by(ZEROES.len()) {
                let piece = (len - start).min(ZEROES.len());
                // SAFETY: `start < len`, within the part.
                let at = unsafe { ptr.add(start) };
                // SAFETY: as in `copy_to`; `piece` bytes are left in the part.
                unsafe { volatile_copy_to(at, &ZEROES[..piece]) };
            }
        });
    }

    /// Whether every byte is zero at the moment it is looked at.
    pub fn is_zero(&self) -> bool {
        before_read();
        self.segs.iter().all(|seg| {
            let base = NonNull::new(seg.iov_base.cast::<u8>()).expect("segments are mapped memory");
            // SAFETY: the segment is mapped while `self.mem` lives.
            unsafe { volatile_is_zero(base, seg.iov_len) }
        })
    }

    fn for_each_part(&self, offset: u64, len: usize, mut f: impl FnMut(NonNull<u8>, usize)) {
        let (mut skip, mut left) = (offset, len);
        for seg in &self.segs {
            if left == 0 {
                return;
            }
            if seg.iov_len as u64 <= skip {
                skip -= seg.iov_len as u64;
                continue;
            }
            let start = usize::try_from(skip).expect("less than a segment's length");
            let part = (seg.iov_len - start).min(left);
            let base = NonNull::new(seg.iov_base.cast::<u8>()).expect("segments are mapped memory");
            // SAFETY: `start < iov_len`.
            f(unsafe { base.add(start) }, part);
            skip = 0;
            left -= part;
        }
    }
}

/// # Safety
///
/// `into.len()` bytes at `ptr` are mapped and readable.
pub(crate) unsafe fn volatile_copy_from(ptr: NonNull<u8>, into: &mut [u8]) {
    let head = ptr.align_offset(8).min(into.len());
    let (start, rest) = into.split_at_mut(head);
    for (i, byte) in start.iter_mut().enumerate() {
        // SAFETY: `i < into.len()`.
        let at = unsafe { ptr.add(i) };
        // SAFETY: mapped by contract; volatile, as the guest may race.
        *byte = unsafe { at.read_volatile() };
    }
    let mut offset = head;
    let mut words = rest.chunks_exact_mut(8);
    for word in &mut words {
        // SAFETY: `offset + 8 <= into.len()`.
        let at = unsafe { ptr.add(offset) }.cast::<[u8; 8]>().cast::<u64>();
        // SAFETY: mapped by contract, aligned as `offset` starts at an aligned address and grows by 8.
        let value = unsafe { at.read_volatile() };
        word.copy_from_slice(&value.to_le_bytes());
        offset += 8;
    }
    for byte in words.into_remainder() {
        // SAFETY: `offset < into.len()`.
        let at = unsafe { ptr.add(offset) };
        // SAFETY: mapped by contract.
        *byte = unsafe { at.read_volatile() };
        offset += 1;
    }
}

/// # Safety
///
/// `from.len()` bytes at `ptr` are mapped and writable.
pub(crate) unsafe fn volatile_copy_to(ptr: NonNull<u8>, from: &[u8]) {
    let head = ptr.align_offset(8).min(from.len());
    let (start, rest) = from.split_at(head);
    for (i, byte) in start.iter().enumerate() {
        // SAFETY: `i < from.len()`.
        let at = unsafe { ptr.add(i) };
        // SAFETY: mapped by contract; volatile, as the guest may race.
        unsafe { at.write_volatile(*byte) };
    }
    let (words, tail) = rest.as_chunks::<8>();
    let mut offset = head;
    for word in words {
        // SAFETY: `offset + 8 <= from.len()`.
        let at = unsafe { ptr.add(offset) }.cast::<u64>();
        // SAFETY: mapped by contract, aligned as `offset` starts at an aligned address and grows by 8.
        unsafe { at.write_volatile(u64::from_le_bytes(*word)) };
        offset += 8;
    }
    for byte in tail {
        // SAFETY: `offset < from.len()`.
        let at = unsafe { ptr.add(offset) };
        // SAFETY: mapped by contract.
        unsafe { at.write_volatile(*byte) };
        offset += 1;
    }
}

/// # Safety
///
/// `len` bytes at `ptr` are mapped and readable.
unsafe fn volatile_is_zero(ptr: NonNull<u8>, len: usize) -> bool {
    let mut block = [0u8; 512];
    let mut offset = 0;
    while offset < len {
        let piece = (len - offset).min(block.len());
        // SAFETY: `offset < len`.
        let at = unsafe { ptr.add(offset) };
        // SAFETY: `piece` bytes are left of the `len` that the caller vouches for.
        unsafe { volatile_copy_from(at, &mut block[..piece]) };
        // A private copy: the compiler may look at it 32 bytes at a time.
        if block[..piece].iter().fold(0, |all, byte| all | byte) != 0 {
            return false;
        }
        offset += piece;
    }
    true
}
