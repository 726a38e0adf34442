//! Reading many pieces of the file, a few of them ahead, and writing back what is changed.
//!
//! ```text
//!   tables, in the order of the file:  | a | b | hole | c |  d | e |
//!   pieces:                            [ a b ]        [ c ]  [ d e ]       up to 1 MiB each; holes are not read
//!                                        ^ looked at    ^ being read ...
//! ```

use crate::{FileOffset, HostNode, Result, SECTOR};
use io_engine::AlignedBuf;
use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::task::Poll;

/// Bytes of a piece, if what is read does not ask for more.
pub(super) const PIECE_BYTES: u64 = 1 << 20;
/// Pieces that are being read while one is looked at.
const AHEAD: usize = 4;

/// A part of the file to be read.
#[derive(Clone, Debug)]
pub(super) struct Piece<T> {
    /// What it is, for who asked for it.
    pub tag: T,
    /// Where it is.
    pub at: u64,
    /// Its bytes.
    pub len: u64,
}

/// A read under way. Boxed: it is moved while it runs.
type Reading<'a> = Pin<Box<dyn Future<Output = Result<AlignedBuf>> + 'a>>;

/// A piece, how many bytes too many are read before it, and the read.
struct Slot<'a, T> {
    piece: Piece<T>,
    skip: usize,
    reading: Reading<'a>,
    done: Option<Result<AlignedBuf>>,
}

/// Gives each piece to `look`, in their order. What it returns is the range of the piece that it changed, which is written back.
pub(super) async fn each_piece<T>(
    host: &HostNode,
    pieces: impl IntoIterator<Item = Piece<T>>,
    mut look: impl FnMut(&Piece<T>, &mut [u8]) -> Result<Option<Range<usize>>>,
) -> Result<()> {
    let mut pieces = pieces.into_iter();
    let mut slots: VecDeque<Slot<'_, T>> = VecDeque::with_capacity(AHEAD);
    loop {
        while slots.len() < AHEAD {
            let Some(piece) = pieces.next() else { break };
            let from = piece.at / host.align() * host.align();
            let to = (piece.at + piece.len).next_multiple_of(host.align());
            let skip = index(piece.at - from);
            let reading: Reading<'_> = Box::pin(host.read_owned(FileOffset(from), to - from));
            slots.push_back(Slot { piece, skip, reading, done: None });
        }
        if slots.is_empty() {
            return Ok(());
        }
        let first = std::future::poll_fn(|cx| {
            for slot in slots.iter_mut().filter(|slot| slot.done.is_none()) {
                if let Poll::Ready(result) = slot.reading.as_mut().poll(cx) {
                    slot.done = Some(result);
                }
            }
            match slots.front_mut().and_then(|slot| slot.done.take()) {
                Some(result) => Poll::Ready(result),
                None => Poll::Pending,
            }
        });
        let result = first.await;
        let slot = slots.pop_front().expect("it was waited for");
        let mut buf = result?;
        let bytes = &mut buf.as_mut_slice()[slot.skip..][..index(slot.piece.len)];
        if let Some(changed) = look(&slot.piece, bytes)? {
            let at = slot.piece.at + changed.start as u64;
            write_bytes(host, at, &bytes[changed]).await?;
        }
    }
}

/// Writes bytes at any place: the sectors around them are read first, now and not ahead, so that what was changed there meanwhile stays.
pub(super) async fn write_bytes(host: &HostNode, at: u64, bytes: &[u8]) -> Result<()> {
    let unit = host.align().max(SECTOR);
    let (from, to) = (at / unit * unit, (at + bytes.len() as u64).next_multiple_of(unit));
    let mut buf = host.read_owned(FileOffset(from), to - from).await?;
    buf.as_mut_slice()[index(at - from)..][..bytes.len()].copy_from_slice(bytes);
    host.write_owned(FileOffset(from), buf).await
}

/// Pieces that cover tables of `bytes` bytes each, of which `places` gives where they are, in ascending order. What is tagged is the range of
/// their indices. Tables in holes are left out: they are zeroes.
pub(super) fn tables_in<'a>(
    host: &'a HostNode,
    count: usize,
    bytes: u64,
    place: impl Fn(usize) -> u64 + 'a,
) -> impl Iterator<Item = Piece<Range<usize>>> + 'a {
    let mut next = 0;
    // No hole from here to there.
    let mut data = 0..0;
    std::iter::from_fn(move || {
        loop {
            if next >= count {
                return None;
            }
            let at = place(next);
            if !data.contains(&at) {
                let start = host.file().next_data(at)?;
                data = start..host.file().next_hole(start);
            }
            if at + bytes <= data.start {
                next += 1;
                continue;
            }
            let first = next;
            next += 1;
            while next < count
                && place(next) == place(next - 1) + bytes
                && place(next) < data.end
                && place(next) + bytes - at <= PIECE_BYTES
            {
                next += 1;
            }
            let len = place(next - 1) + bytes - at;
            return Some(Piece { tag: first..next, at, len });
        }
    })
}

/// Pieces of one long area, without its holes; tagged with their places in it.
pub(super) fn pieces_of(host: &HostNode, at: u64, bytes: u64) -> impl Iterator<Item = Piece<u64>> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= bytes {
            return None;
        }
        let data = host.file().next_data(at + done)?.max(at + done);
        // Whole entries, whatever they are.
        let start = (data - at) / SECTOR * SECTOR;
        if start >= bytes {
            return None;
        }
        let len = PIECE_BYTES.min(bytes - start);
        done = start + len;
        Some(Piece { tag: start, at: at + start, len })
    })
}

/// A length within a piece.
pub(super) fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a piece is small")
}
