//! The buffers of a verb: memory that requests of the block layer take as they take a guest's.

use block::{Error, Result};
use guest_mem::{GuestAddr, GuestMemory, IoVecs, MemHandle};
use std::sync::Arc;

/// Buffers of one size.
#[derive(Debug)]
pub(crate) struct Pool {
    memory: MemHandle,
    bytes: u64,
}

impl Pool {
    /// `count` buffers of `bytes` bytes each, a multiple of the page size. They are zeroes at first.
    pub fn new(count: u64, bytes: u64) -> Result<Pool> {
        let made = GuestMemory::memfd(count * bytes);
        let (memory, _) = made.map_err(|error| Error::io("making buffers", error))?;
        Ok(Pool { memory: MemHandle::new(Arc::new(memory)), bytes })
    }

    /// Buffer number `index`, or the start of it.
    pub fn buffer(&self, index: u64, len: u64) -> IoVecs {
        assert!(len <= self.bytes, "a buffer has {} bytes", self.bytes);
        let mut data = IoVecs::new(&self.memory);
        data.push(GuestAddr(index * self.bytes), len).expect("as many buffers as were asked for");
        data
    }
}
