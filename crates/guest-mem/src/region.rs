//! One region of guest memory: a range of guest-physical addresses backed by a mapping of a file.

use crate::{GuestAddr, sigbus};
use rustix::fs::{FileType, fstat, fstatfs};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;

/// Where a region lies, as a VMM announces it (vhost-user "Memory region description").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// First guest-physical address.
    pub guest_addr: GuestAddr,
    /// Length in bytes, not 0.
    pub len: u64,
    /// The same region's first address in the VMM's own address space.
    pub user_addr: u64,
    /// Offset of the region's first byte in its file, in bytes.
    pub file_offset: u64,
}

/// A mapped region. Unmaps itself when dropped.
#[derive(Debug)]
pub struct Region {
    spec: RegionSpec,
    mapping: Mapping,
    /// Address of the region's first byte: inside `mapping`, with `spec.len` bytes behind it.
    host: NonNull<u8>,
}

// SAFETY: a `Region` is a number and a mapping that belongs to it alone until `Drop`; all accesses through it are volatile
// or atomic, or made by the kernel, so that threads cannot make a data race of Rust's kind out of it.
unsafe impl Send for Region {}
// SAFETY: as above; no method of `Region` changes it.
unsafe impl Sync for Region {}

const HUGETLBFS_MAGIC: u64 = 0x958458f6;

impl Region {
    /// Maps the region from `file`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the range is empty or wraps, or the file is not a regular one or ends before the region does.
    /// Otherwise the error of `mmap`.
    pub fn map(spec: RegionSpec, file: impl AsFd) -> io::Result<Region> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        if spec.len == 0 || spec.guest_addr.checked_add(spec.len - 1).is_none() {
            return Err(invalid("the region is empty or wraps round the guest address space"));
        }
        if spec.user_addr.checked_add(spec.len - 1).is_none() {
            return Err(invalid("the region wraps round the VMM's address space"));
        }
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(invalid(
                "guest memory must come from a regular file (a memfd, for example)",
            ));
        }
        let end = spec.file_offset.checked_add(spec.len);
        let file_len = u64::try_from(stat.st_size).unwrap_or(0);
        if end.is_none_or(|end| end > file_len) {
            return Err(invalid("the region lies beyond the end of its file"));
        }
        let page = page_bytes(&file)?;
        let lead = spec.file_offset % page;
        let bytes = (spec.len + lead)
            .checked_next_multiple_of(page)
            .and_then(|bytes| usize::try_from(bytes).ok())
            .ok_or_else(|| invalid("the region is larger than the address space"))?;
        let mapping = Mapping::new(&file, spec.file_offset - lead, bytes)?;
        let lead = usize::try_from(lead).expect("less than a page");
        // SAFETY: `lead` is less than a page, the mapping at least one page long.
        let host = unsafe { mapping.base.add(lead) };
        Ok(Region { spec, mapping, host })
    }

    /// What the region was made from.
    pub fn spec(&self) -> &RegionSpec {
        &self.spec
    }

    /// The host's pointer to `addr`, and the bytes from there to the region's end; `None` outside the region.
    pub(crate) fn at(&self, addr: GuestAddr) -> Option<(NonNull<u8>, u64)> {
        let offset = addr.0.checked_sub(self.spec.guest_addr.0)?;
        let left = self.spec.len.checked_sub(offset).filter(|left| *left > 0)?;
        let offset = usize::try_from(offset).ok()?;
        // SAFETY: `offset < spec.len`, and `host` has `spec.len` mapped bytes behind it.
        Some((unsafe { self.host.add(offset) }, left))
    }

    /// Guest address of `user_addr`, an address in the VMM's address space; `None` outside the region.
    pub fn user_to_guest(&self, user_addr: u64) -> Option<GuestAddr> {
        let offset = user_addr.checked_sub(self.spec.user_addr)?;
        (offset < self.spec.len).then(|| GuestAddr(self.spec.guest_addr.0 + offset))
    }

    /// The file under this region lost bytes that we then touched; what we see there since is not the guest's memory.
    pub fn is_broken(&self) -> bool {
        self.mapping.watch.is_broken()
    }
}

/// The size of the file's pages in bytes: what offsets and lengths of its mappings are multiples of.
fn page_bytes(file: impl AsFd) -> io::Result<u64> {
    let fs = fstatfs(file)?;
    #[allow(clippy::cast_sign_loss, reason = "a bit pattern, signed on some targets only")]
    let magic = fs.f_type as u64;
    if magic == HUGETLBFS_MAGIC {
        return Ok(u64::try_from(fs.f_bsize).unwrap_or(1 << 21));
    }
    Ok(rustix::param::page_size() as u64)
}

/// A shared, readable and writable mapping.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
    watch: sigbus::Watch,
}

impl Mapping {
    fn new(file: impl AsFd, offset: u64, bytes: usize) -> io::Result<Mapping> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing that exists.
        let base = unsafe { mmap(std::ptr::null_mut(), bytes, prot, flags, file, offset) }?;
        let base = NonNull::new(base.cast::<u8>()).expect("mmap never returns the null page");
        let watch = sigbus::Watch::new(base.as_ptr().addr(), bytes).inspect_err(|_| {
            // SAFETY: the mapping was made above and nobody else knows of it.
            let _ = unsafe { munmap(base.as_ptr().cast(), bytes) };
        })?;
        Ok(Mapping { base, bytes, watch })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // From here on a fault in this range is no longer ours to mend.
        self.watch.end();
        // SAFETY: `base` and `bytes` are those of our own mapping; everything that points into it holds an `Arc` to the
        // `Region` that owns us, so nothing does any more.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "munmap of our own mapping");
    }
}
