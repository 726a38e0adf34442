//! All of a guest's memory: an immutable list of regions.

use crate::{BadAddr, GuestAddr, GuestSlice, Region, RegionSpec, SharedSlice};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

/// A guest's memory map. Never changes: adding or removing a region makes a new map that shares the other regions.
#[derive(Clone, Debug, Default)]
pub struct GuestMemory {
    /// Sorted by guest address, without overlap.
    regions: Vec<Arc<Region>>,
}

impl GuestMemory {
    /// Memory of one region at guest address 0, in a new sealed-off memfd: for drivers, tests and benchmarks. Also returns the memfd.
    pub fn memfd(bytes: u64) -> io::Result<(GuestMemory, OwnedFd)> {
        let fd = memfd_create(c"ferroblk-guest-memory", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, bytes)?;
        let spec =
            RegionSpec { guest_addr: GuestAddr(0), len: bytes, user_addr: 0, file_offset: 0 };
        let memory = GuestMemory::default().with_region(Region::map(spec, &fd)?)?;
        Ok((memory, fd))
    }

    /// This map and one more region.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the region overlaps another, in the guest's or in the VMM's address space.
    pub fn with_region(&self, region: Region) -> io::Result<GuestMemory> {
        let overlap =
            |a: u64, a_len: u64, b: u64, b_len: u64| a <= b + (b_len - 1) && b <= a + (a_len - 1);
        let new = *region.spec();
        for old in self.regions.iter().map(|r| r.spec()) {
            if overlap(old.guest_addr.0, old.len, new.guest_addr.0, new.len)
                || overlap(old.user_addr, old.len, new.user_addr, new.len)
            {
                let what = format!(
                    "memory region at guest address {:#x} overlaps another",
                    new.guest_addr.0
                );
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
        }
        let mut regions = self.regions.clone();
        let at = regions.partition_point(|r| r.spec().guest_addr < new.guest_addr);
        regions.insert(at, Arc::new(region));
        Ok(GuestMemory { regions })
    }

    /// This map without the region that has the given guest address, VMM address and length; `None` if there is no such region.
    pub fn without_region(
        &self,
        guest_addr: GuestAddr,
        user_addr: u64,
        len: u64,
    ) -> Option<GuestMemory> {
        let at = self.regions.iter().position(|r| {
            let spec = r.spec();
            spec.guest_addr == guest_addr && spec.user_addr == user_addr && spec.len == len
        })?;
        let mut regions = self.regions.clone();
        regions.remove(at);
        Some(GuestMemory { regions })
    }

    /// The regions, sorted by guest address.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// Guest address of an address in the VMM's address space.
    pub fn user_to_guest(&self, user_addr: u64) -> Option<GuestAddr> {
        self.regions.iter().find_map(|r| r.user_to_guest(user_addr))
    }

    /// A contiguous area within one region, for any thread.
    ///
    /// # Errors
    ///
    /// As [`MemHandle::slice`].
    pub fn shared_slice(
        self: &Arc<GuestMemory>,
        addr: GuestAddr,
        len: u64,
    ) -> Result<SharedSlice, BadAddr> {
        let (ptr, bytes) = self.area(addr, len)?;
        // SAFETY: `area` vouches for `bytes` bytes at `ptr`, mapped as long as the memory given lives.
        Ok(unsafe { GuestSlice::new(ptr, bytes, Arc::clone(self)) })
    }

    /// The host's pointer to `addr`, and `len` as bytes that are mapped from there on.
    fn area(&self, addr: GuestAddr, len: u64) -> Result<(NonNull<u8>, usize), BadAddr> {
        let (ptr, left) = self.at(addr).ok_or(BadAddr { addr, len })?;
        match usize::try_from(len) {
            Ok(bytes) if bytes > 0 && len <= left => Ok((ptr, bytes)),
            _ => Err(BadAddr { addr, len }),
        }
    }

    /// Some region's file was shrunk, and we noticed.
    pub fn is_broken(&self) -> bool {
        self.regions.iter().any(|r| r.is_broken())
    }

    /// The host's pointer to `addr`, and the bytes from there to the end of its region.
    #[inline]
    pub(crate) fn at(&self, addr: GuestAddr) -> Option<(NonNull<u8>, u64)> {
        // A handful of regions: a scan beats a search.
        self.regions.iter().find_map(|r| r.at(addr))
    }
}

/// One thread's reference to a [`GuestMemory`]. Requests clone it, so cloning must not be an atomic operation.
#[derive(Clone, Debug)]
#[allow(
    clippy::redundant_allocation,
    reason = "the outer count is this thread's, the inner one everybody's"
)]
pub struct MemHandle(Rc<Arc<GuestMemory>>);

impl MemHandle {
    /// A reference for this thread.
    pub fn new(memory: Arc<GuestMemory>) -> MemHandle {
        MemHandle(Rc::new(memory))
    }

    /// A contiguous area within one region.
    ///
    /// # Errors
    ///
    /// [`BadAddr`] if the area is empty, not wholly in memory, or crosses from one region into another.
    pub fn slice(&self, addr: GuestAddr, len: u64) -> Result<GuestSlice, BadAddr> {
        let (ptr, bytes) = self.area(addr, len)?;
        // SAFETY: `area` vouches for `bytes` bytes at `ptr`, mapped as long as the handle given lives.
        Ok(unsafe { GuestSlice::new(ptr, bytes, self.clone()) })
    }

    /// The memory, for other threads.
    pub fn to_shared(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.0)
    }
}

impl Deref for MemHandle {
    type Target = GuestMemory;

    fn deref(&self) -> &GuestMemory {
        &self.0
    }
}
