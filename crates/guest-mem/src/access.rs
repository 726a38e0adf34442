//! Accesses to guest memory that the guest may race with: atomic or volatile, bounds-checked, little-endian.

use crate::iovecs::{volatile_copy_from, volatile_copy_to};
use crate::{GuestMemory, MemHandle};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

#[cfg(feature = "read-hook")]
pub use hook::{ReadHook, clear_read_hook, set_read_hook};

#[cfg(feature = "read-hook")]
mod hook {
    use std::cell::RefCell;

    /// Called before each read of guest memory on this thread.
    pub type ReadHook = Box<dyn FnMut()>;

    thread_local! {
        static HOOK: RefCell<Option<ReadHook>> = const { RefCell::new(None) };
    }

    /// Has `hook` called before each read of guest memory on this thread. The hook's own accesses do not call it again.
    pub fn set_read_hook(hook: ReadHook) {
        HOOK.with(|slot| *slot.borrow_mut() = Some(hook));
    }

    /// Ends what [`set_read_hook`] began.
    pub fn clear_read_hook() {
        HOOK.with(|slot| *slot.borrow_mut() = None);
    }

    pub(super) fn before_read() {
        HOOK.with(|slot| {
            if let Ok(mut slot) = slot.try_borrow_mut()
                && let Some(hook) = slot.as_mut()
            {
                hook();
            }
        });
    }
}

#[inline]
pub(crate) fn before_read() {
    #[cfg(feature = "read-hook")]
    hook::before_read();
}

/// A contiguous area of guest memory, such as one of a virtqueue's rings.
///
/// Offsets are in bytes from its start. An access outside the area, or a misaligned one, is a bug in the caller and panics: the
/// area's size is fixed before anything the guest wrote is looked at.
///
/// `M` is what keeps the memory mapped: one thread's handle, or for [`SharedSlice`] a count that all threads share.
#[derive(Clone, Debug)]
pub struct GuestSlice<M = MemHandle> {
    ptr: NonNull<u8>,
    len: usize,
    mem: M,
}

/// A [`GuestSlice`] that may go from thread to thread: what a driver's rings and buffers are. Cloning it is an atomic operation.
pub type SharedSlice = GuestSlice<Arc<GuestMemory>>;

// SAFETY: the pointer is all that is not `Send` by itself. What it points to stays mapped as long as `mem`, counted atomically,
// lives, on whatever thread that is; all accesses are volatile or atomic, so that threads cannot make a data race out of them.
unsafe impl Send for GuestSlice<Arc<GuestMemory>> {}

macro_rules! volatile_access {
    ($read:ident, $write:ident, $type:ty) => {
        #[doc = concat!("Reads a little-endian `", stringify!($type), "`. The guest may change it right after.")]
        #[inline]
        pub fn $read(&self, offset: usize) -> $type {
            before_read();
            let at = self.at::<$type>(offset);
            // SAFETY: `at` checked that the value lies within the area and is aligned; the area is mapped while `mem` lives, and
            // volatile, as the guest may race.
            <$type>::from_le(unsafe { at.read_volatile() })
        }

        #[doc = concat!("Writes a little-endian `", stringify!($type), "`.")]
        #[inline]
        pub fn $write(&self, offset: usize, value: $type) {
            let at = self.at::<$type>(offset);
            // SAFETY: as for reading.
            unsafe { at.write_volatile(value.to_le()) };
        }
    };
}

impl<M> GuestSlice<M> {
    /// # Safety
    ///
    /// `len` bytes at `ptr` are mapped, readable and writable, for as long as `mem` lives.
    pub(crate) unsafe fn new(ptr: NonNull<u8>, len: usize, mem: M) -> GuestSlice<M> {
        GuestSlice { ptr, len, mem }
    }

    /// Length in bytes, never 0.
    #[allow(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether its first byte lies on a multiple of `bytes`, a power of two, in the host's memory.
    pub fn is_aligned_to(&self, bytes: usize) -> bool {
        self.ptr.as_ptr().addr() & (bytes - 1) == 0
    }

    /// The memory it lies in.
    pub fn memory(&self) -> &M {
        &self.mem
    }

    #[inline]
    fn at<T>(&self, offset: usize) -> NonNull<T> {
        let inside = offset < self.len && self.len - offset >= size_of::<T>();
        assert!(inside, "access at {offset} of a guest area of {} bytes", self.len);
        // SAFETY: `offset` lies within the area.
        let at = unsafe { self.ptr.add(offset) }.cast::<T>();
        assert!(at.is_aligned(), "misaligned access at {offset} of a guest area");
        at
    }

    volatile_access!(read_u16, write_u16, u16);
    volatile_access!(read_u32, write_u32, u32);
    volatile_access!(read_u64, write_u64, u64);

    /// Reads a little-endian index that the other side publishes: what it wrote before is visible after this.
    #[inline]
    pub fn load_index(&self, offset: usize) -> u16 {
        before_read();
        let at = self.at::<AtomicU16>(offset);
        // SAFETY: inside the area, aligned and mapped (see `at`); accessed atomically by this method and `store_index`.
        u16::from_le(unsafe { at.as_ref() }.load(Ordering::Acquire))
    }

    /// Publishes a little-endian index: who sees it also sees what was written before.
    #[inline]
    pub fn store_index(&self, offset: usize, value: u16) {
        let at = self.at::<AtomicU16>(offset);
        // SAFETY: as for `load_index`.
        unsafe { at.as_ref() }.store(value.to_le(), Ordering::Release);
    }

    /// Copies the bytes from `offset` on into `into`.
    pub fn copy_to(&self, offset: usize, into: &mut [u8]) {
        before_read();
        let at = self.part(offset, into.len());
        // SAFETY: `part` checked that the bytes lie within the area, which is mapped while `mem` lives.
        unsafe { volatile_copy_from(at, into) };
    }

    /// Copies `from` into the area at `offset`.
    pub fn copy_from(&self, offset: usize, from: &[u8]) {
        let at = self.part(offset, from.len());
        // SAFETY: as in `copy_to`.
        unsafe { volatile_copy_to(at, from) };
    }

    #[inline]
    fn part(&self, offset: usize, len: usize) -> NonNull<u8> {
        let inside = offset <= self.len && self.len - offset >= len;
        assert!(inside, "{len} bytes at {offset} of a guest area of {} bytes", self.len);
        // SAFETY: `offset` lies within the area, or at its end.
        unsafe { self.ptr.add(offset) }
    }
}

/// The byte of guest memory that a request's status goes to.
#[derive(Debug)]
pub struct StatusByte {
    ptr: NonNull<u8>,
    _mem: MemHandle,
}

impl StatusByte {
    /// # Safety
    ///
    /// The byte at `ptr` is mapped and writable for as long as `mem` lives.
    pub(crate) unsafe fn new(ptr: NonNull<u8>, mem: MemHandle) -> StatusByte {
        StatusByte { ptr, _mem: mem }
    }

    /// Stores the status.
    #[inline]
    pub fn write(self, status: u8) {
        // SAFETY: by `new`'s contract the byte is mapped while `_mem` lives; volatile, as the guest may race.
        unsafe { self.ptr.write_volatile(status) };
    }
}
