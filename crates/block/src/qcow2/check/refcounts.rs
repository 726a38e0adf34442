//! Stored refcounts: read and compared with what was counted, set, and laid out anew.
//!
//! ```text
//!   refcount table --> refcount block: | n | n | n | ...      1 to 64 bits each: see `refcount`
//!       | 0 |          counts the clusters [index x per block, ...)
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`, "Host cluster management". A cluster of which no block tells has a refcount of 0.

use super::counts::{CHUNK_LEN, Cell, Counts};
use super::read::{Piece, each_piece, index, write_bytes};
use crate::qcow2::header::{Header, REFCOUNT_TABLE_BYTES_MAX};
use crate::qcow2::refcount;
use crate::{Error, ErrorKind, FileOffset, HostNode, Result};
use std::ops::Range;

/// Bytes written at a time, of new refcount blocks.
const BATCH_BYTES: u64 = 4 << 20;

/// Where the usable refcount blocks are.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks {
    /// Number and first byte, by ascending number. No block is there twice.
    pub list: Vec<(u64, u64)>,
    /// Some entry of the refcount table is no use: the structure is to be built anew.
    pub is_broken: bool,
}

/// A cluster's refcount and references.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Compared {
    pub cluster: u64,
    pub stored: u64,
    pub cell: Cell,
    /// There is a block that tells.
    pub is_covered: bool,
}

/// Calls `look` with each cluster that has a refcount or references, in order; it may give a refcount to be stored instead, where a block tells.
pub(super) async fn each_refcount(
    host: &HostNode,
    header: &Header,
    blocks: &Blocks,
    counts: &Counts,
    mut look: impl FnMut(Compared) -> Option<u64>,
) -> Result<()> {
    let (per_block, len) = (header.refcounts_per_block(), header.cluster_bytes());
    let clusters_of = |number: u64| number * per_block..(number + 1) * per_block;
    // A block in a hole is all zeroes. That matters only where there are references.
    let matters = |(number, at): &&(u64, u64)| {
        let in_hole = || host.file().next_data(*at).is_none_or(|data| data >= at + len);
        counts.has_any(clusters_of(*number)) || !in_hole()
    };
    let pieces = blocks.list.iter().filter(matters);
    let pieces = pieces.map(|(number, at)| Piece { tag: *number, at: *at, len });
    let mut next = 0;
    let step = CHUNK_LEN.min(index(per_block));
    let mut words = [0; CHUNK_LEN];
    each_piece(host, pieces, |piece, bytes| {
        let clusters = clusters_of(piece.tag);
        each_uncovered(counts, next..clusters.start, &mut look);
        next = clusters.end;
        let mut changed: Option<Range<usize>> = None;
        for first in clusters.step_by(step) {
            let n = index(first - piece.tag * per_block);
            let words = &mut words[..step];
            let range = compare(header, bytes, (n, first), counts, words, &mut look);
            changed = match (changed, range) {
                (Some(old), Some(new)) => Some(old.start.min(new.start)..old.end.max(new.end)),
                (old, new) => old.or(new),
            };
        }
        Ok(changed)
    })
    .await?;
    each_uncovered(counts, next..counts.end(), &mut look);
    Ok(())
}

fn each_uncovered(
    counts: &Counts,
    clusters: Range<u64>,
    look: &mut impl FnMut(Compared) -> Option<u64>,
) {
    counts.each(clusters, |cluster, cell| {
        look(Compared { cluster, stored: 0, cell, is_covered: false });
    });
}

/// Compares as many refcounts as there are `words`; `start`: the number of the first in its block, and its cluster. Gives the bytes changed.
fn compare(
    header: &Header,
    bytes: &mut [u8],
    (n, first): (usize, u64),
    counts: &Counts,
    words: &mut [u32],
    look: &mut impl FnMut(Compared) -> Option<u64>,
) -> Option<Range<usize>> {
    let order = header.refcount_order;
    if !counts.words(first, words) {
        let bits = n << order..(n + words.len()) << order;
        if bytes[bits.start >> 3..bits.end.div_ceil(8)].iter().all(|byte| *byte == 0) {
            return None;
        }
        words.fill(0);
    }
    let mut changed: Option<Range<usize>> = None;
    for (i, word) in words.iter().enumerate() {
        let stored = refcount::get(bytes, n + i, order);
        if stored == 0 && *word == 0 {
            continue;
        }
        let compared =
            Compared { cluster: first + i as u64, stored, cell: Cell::of(*word), is_covered: true };
        if let Some(value) = look(compared) {
            let range = refcount::set(bytes, n + i, order, value);
            changed = Some(changed.map_or(range.start, |old| old.start)..range.end);
        }
    }
    changed
}

/// A new refcount structure: the table, and behind it the blocks, in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// First cluster.
    pub start: u64,
    /// Clusters of the table.
    pub table_clusters: u64,
    /// The numbers of the blocks, in their order.
    pub blocks: Vec<u64>,
}

impl Layout {
    /// Lays out refcounts for all that `counts` knows of and for themselves, from the cluster `start` on, behind which nothing may be.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the table would be larger than QEMU opens.
    pub fn new(header: &Header, counts: &Counts, start: u64) -> Result<Layout> {
        let per_block = header.refcounts_per_block();
        let mut needed: Vec<u64> = Vec::new();
        counts.each(0..counts.end(), |cluster, _| {
            if needed.last() != Some(&(cluster / per_block)) {
                needed.push(cluster / per_block);
            }
        });
        let mut layout = Layout { start, table_clusters: 1, blocks: Vec::new() };
        loop {
            // What the structure needs for itself; with each round more, until it is enough. Blocks have many refcounts, so that is soon.
            let last = (layout.end() - 1) / per_block;
            let blocks: Vec<u64> = match needed.last() {
                Some(end) if *end >= start / per_block => {
                    needed.iter().copied().chain(end + 1..=last).collect()
                }
                _ => needed.iter().copied().chain(start / per_block..=last).collect(),
            };
            let table_bytes = (last.max(needed.last().copied().unwrap_or(0)) + 1) * 8;
            if table_bytes > REFCOUNT_TABLE_BYTES_MAX {
                let what = "repairing: refcounts for clusters so far apart need a larger refcount table than there may be";
                return Err(Error::new(ErrorKind::Unsupported, what));
            }
            let table_clusters = table_bytes.div_ceil(header.cluster_bytes());
            if (table_clusters, blocks.len()) == (layout.table_clusters, layout.blocks.len()) {
                layout.blocks = blocks;
                return Ok(layout);
            }
            layout.table_clusters = table_clusters.max(layout.table_clusters);
            layout.blocks = blocks;
        }
    }

    /// The cluster behind it.
    pub fn end(&self) -> u64 {
        self.start + self.table_clusters + self.blocks.len() as u64
    }

    /// Where the blocks are: number and first byte.
    pub fn places(&self, cluster_bits: u32) -> Vec<(u64, u64)> {
        let first = self.start + self.table_clusters;
        (first..).zip(&self.blocks).map(|(at, number)| (*number, at << cluster_bits)).collect()
    }

    /// Writes it, with the refcounts that `counts` has. Nothing refers to it yet.
    pub async fn write(&self, host: &HostNode, header: &Header, counts: &Counts) -> Result<()> {
        let cluster = header.cluster_bytes();
        let per_block = header.refcounts_per_block();
        let table_bytes = self.table_clusters * cluster;
        let mut table = vec![0; index(table_bytes)];
        let places = self.places(header.cluster_bits);
        for (number, at) in &places {
            let entry = index(number * 8);
            table[entry..entry + 8].copy_from_slice(&at.to_be_bytes());
        }
        write_bytes(host, self.start << header.cluster_bits, &table).await?;
        let batch = index(BATCH_BYTES.div_ceil(cluster));
        for blocks in places.chunks(batch) {
            let mut bytes = vec![0; blocks.len() << header.cluster_bits];
            for (block, (number, _)) in bytes.chunks_mut(index(cluster)).zip(blocks) {
                counts.each(number * per_block..(number + 1) * per_block, |n, cell| {
                    let n = index(n - number * per_block);
                    refcount::set(block, n, header.refcount_order, cell.count);
                });
            }
            write_bytes(host, blocks[0].1, &bytes).await?;
        }
        host.flush().await
    }
}

/// Writes the header's fields: one write of the sector that holds them.
pub(super) async fn write_header(host: &HostNode, header: &Header) -> Result<()> {
    let unit = host.align().max(crate::SECTOR);
    let mut buf = host.read_owned(FileOffset(0), unit).await?;
    header.patch(buf.as_mut_slice());
    host.write_owned(FileOffset(0), buf).await?;
    host.flush().await
}
