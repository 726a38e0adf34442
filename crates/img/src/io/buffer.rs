//! The memory of one request.
//!
//! ```text
//!   page                  sector of the disk                              sector of the disk
//!     | misaligned | head | len 0 | len 1 | ... the request's own data ... | tail |
//! ```
//!
//! Head and tail make whole sectors of a request that has none, where the image takes no others.

use block::{Error, Result, SECTOR};
use guest_mem::{GuestAddr, GuestMemory, IoVecs, MemHandle};
use std::ops::Range;
use std::sync::Arc;

/// Segments that a system call takes.
const SEGMENTS_MAX: usize = 1024 - 2;

/// Bytes looked at or filled at a time.
const PIECE_BYTES: usize = 64 << 10;

/// See the module.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: MemHandle,
    /// Where the data begins.
    start: u64,
    lens: Vec<u64>,
    len: u64,
    head: u64,
    tail: u64,
}

impl Buffer {
    /// Zeroes for a request of `lens` bytes at `at`; in whole sectors if `is_padded`; `misaligned` bytes behind the start of a page.
    pub fn new(at: u64, lens: &[u64], is_padded: bool, misaligned: u64) -> Result<Buffer> {
        let len = lens.iter().sum::<u64>();
        let (head, tail) = match is_padded && len > 0 {
            true => (at % SECTOR, (at + len).next_multiple_of(SECTOR) - (at + len)),
            false => (0, 0),
        };
        let bytes = (misaligned + head + len + tail).next_multiple_of(4096).max(4096);
        let made = GuestMemory::memfd(bytes);
        let (memory, _) = made.map_err(|error| Error::io("making a buffer", error))?;
        // All is one piece of memory: what would be too many segments is one.
        let lens = if lens.len() > SEGMENTS_MAX { vec![len] } else { lens.to_vec() };
        let memory = MemHandle::new(Arc::new(memory));
        Ok(Buffer { memory, start: misaligned + head, lens, len, head, tail })
    }

    /// Bytes of the request.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Bytes before and behind it that belong to the same sectors.
    pub fn padding(&self) -> (u64, u64) {
        (self.head, self.tail)
    }

    /// The request's data.
    pub fn data(&self) -> IoVecs {
        self.segments(self.start, &self.lens)
    }

    /// The data with head and tail.
    pub fn padded(&self) -> IoVecs {
        let lens: Vec<u64> =
            [self.head].iter().chain(&self.lens).chain([&self.tail]).copied().collect();
        self.segments(self.start - self.head, &lens)
    }

    fn segments(&self, start: u64, lens: &[u64]) -> IoVecs {
        let mut segments = IoVecs::new(&self.memory);
        let mut at = start;
        for len in lens {
            segments
                .push(GuestAddr(at), *len)
                .expect("the memory was made as large as all of them");
            at += len;
        }
        segments
    }

    /// Fills the data with `what`, over and over.
    pub fn fill(&self, what: &[u8]) {
        if what.is_empty() || self.len == 0 {
            return;
        }
        // Whole copies, so that each piece begins where the pattern does.
        let piece = what.repeat(PIECE_BYTES.div_ceil(what.len()).max(1));
        let data = self.data();
        let mut at = 0;
        while at < self.len {
            at += data.copy_from(at, &piece) as u64;
        }
    }

    /// Calls `f` for pieces of a range of the data, with where each begins, until it says `false`. Whether it never did.
    pub fn all(&self, range: Range<u64>, mut f: impl FnMut(u64, &[u8]) -> bool) -> bool {
        let (data, mut at) = (self.data(), range.start);
        let mut piece = vec![0; PIECE_BYTES];
        while at < range.end {
            let take = usize::try_from(range.end - at).map_or(PIECE_BYTES, |n| n.min(PIECE_BYTES));
            let got = data.copy_to(at, &mut piece[..take]);
            if got == 0 || !f(at, &piece[..got]) {
                return got == 0;
            }
            at += got as u64;
        }
        true
    }

    /// Whether a range of the data is nothing but `pattern`.
    pub fn is_all(&self, range: Range<u64>, pattern: u8) -> bool {
        let expected = vec![pattern; PIECE_BYTES];
        self.all(range, |_, piece| piece == &expected[..piece.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_padded_to_whole_sectors() {
        let buffer = Buffer::new(100, &[50, 0, 500], true, 16).unwrap();
        assert_eq!((buffer.len(), buffer.padding()), (550, (100, 374)));
        assert_eq!((buffer.data().bytes(), buffer.padded().bytes()), (550, 1024));
        buffer.fill(b"abc");
        assert!(!buffer.is_all(0..550, b'a') && buffer.is_all(3..4, b'a'));
        let mut around = vec![9; 1024];
        assert_eq!(buffer.padded().copy_to(0, &mut around), 1024);
        assert!(around[..100].iter().chain(&around[650..]).all(|byte| *byte == 0));
        assert_eq!(&around[100..106], b"abcabc");
        assert_eq!(Buffer::new(512, &[512], true, 0).unwrap().padding(), (0, 0));
        assert_eq!(Buffer::new(7, &[512], false, 0).unwrap().padding(), (0, 0));
        assert_eq!(Buffer::new(7, &[0], true, 0).unwrap().padded().bytes(), 0);
    }

    #[test]
    fn more_segments_than_a_system_call_takes_are_one() {
        let buffer = Buffer::new(0, &[1; 5000], false, 0).unwrap();
        buffer.fill(&[7]);
        assert!(buffer.len() == 5000 && buffer.is_all(0..5000, 7));
        assert_eq!(buffer.data().as_raw().len(), 1);
    }

    #[test]
    fn a_pattern_goes_on_over_all_of_a_buffer() {
        let buffer = Buffer::new(0, &[300_000], false, 0).unwrap();
        buffer.fill(b"abc");
        let is_next = |at: u64, byte: u8| byte == b"abc"[usize::try_from(at % 3).unwrap()];
        let is_right = buffer.all(0..300_000, |from, piece| {
            (from..).zip(piece).all(|(at, byte)| is_next(at, *byte))
        });
        assert!(is_right);
    }

    #[test]
    fn a_difference_is_found_wherever_it_is() {
        let len = 3 * PIECE_BYTES as u64 + 5;
        for at in [0, PIECE_BYTES as u64, len - 1] {
            let buffer = Buffer::new(0, &[len], false, 0).unwrap();
            buffer.fill(&[7]);
            buffer.data().copy_from(at, &[8]);
            assert!(!buffer.is_all(0..len, 7) && buffer.is_all(at + 1..len, 7), "{at}");
        }
    }
}
