//! Our own I/O memory: zeroed at first, aligned as O_DIRECT asks.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ptr::NonNull;

/// Owned bytes that start on a chosen alignment. Zeroed when made.
pub struct AlignedBuf {
    /// Valid for reads and writes of `layout.size()` initialised bytes, unless that is 0; ours alone.
    ptr: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is owned, as a `Box<[u8]>`'s is; nothing in it belongs to a thread.
unsafe impl Send for AlignedBuf {}
// SAFETY: a shared reference gives read access to plain bytes only (`as_ptr` gives a pointer, whose use is another matter).
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// `len` zero bytes at a multiple of `align`.
    ///
    /// # Panics
    ///
    /// If `align` is not a power of two, or `len` is more than the address space holds: lengths come from the caller's own limits.
    pub fn new(len: usize, align: usize) -> AlignedBuf {
        let layout =
            Layout::from_size_align(len, align).expect("a power of two, and a bounded length");
        if len == 0 {
            return AlignedBuf { ptr: NonNull::dangling(), layout };
        }
        // SAFETY: the layout's size is not 0.
        let ptr = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(ptr) else { handle_alloc_error(layout) };
        AlignedBuf { ptr, layout }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The multiple its address was chosen from.
    pub fn align(&self) -> usize {
        self.layout.align()
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `ptr` is valid for `len` initialised bytes (dangling but aligned for 0), ours while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len()) }
    }

    /// The bytes, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as for `as_slice`; `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len()) }
    }

    /// Where the bytes are, for a system call made while nobody holds a slice of them.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if !self.is_empty() {
            // SAFETY: allocated in `new` with this layout, and freed once.
            unsafe { dealloc(self.ptr.as_ptr(), self.layout) };
        }
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes at a multiple of {})", self.len(), self.align())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_zeroed_on_its_alignment() {
        for (len, align) in [(0, 1), (0, 4096), (1, 1), (513, 512), (1 << 20, 65536)] {
            let mut buf = AlignedBuf::new(len, align);
            assert_eq!((buf.len(), buf.is_empty()), (len, len == 0));
            assert!(len == 0 || buf.as_ptr().addr().is_multiple_of(align), "{len} at {align}");
            assert!(buf.as_slice().iter().all(|b| *b == 0));
            buf.as_mut_slice().fill(7);
            assert!(buf.as_slice().iter().all(|b| *b == 7));
        }
    }
}
