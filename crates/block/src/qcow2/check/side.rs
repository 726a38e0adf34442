//! Snapshots and bitmaps: their tables, and where the clusters are that those claim.
//!
//! ```text
//!   snapshot table:    | L1 at | entries | id, name lengths | ... 40 bytes | extra | id | name | pad |  next ...
//!   bitmap directory:  | table at | entries | flags | name, extra lengths 24 | extra | name | pad |     next ...
//!   bitmap table:      | cluster | 0 | 1 | cluster | ...                    0, 1: all zeroes, all ones
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`, "Snapshots" and "Bitmaps". All lengths are the image's word: each is judged before it is used.

use super::read::index;
use super::survey::{Survey, each_entry};
use super::{Area, Place, ProblemKind};
use crate::qcow2::header::{BITMAPS_CONSISTENT, EXTERNAL_DATA, L1_BYTES_MAX};
use crate::{FileOffset, HostNode, Result};

/// Bytes of an entry of the snapshot table, before what is of variable length.
const SNAPSHOT_BYTES: u64 = 40;
/// Longest unknown part of an entry, and largest table, that QEMU reads.
const EXTRA_BYTES_MAX: u64 = 1024;
const SNAPSHOTS_BYTES_MAX: u64 = 64 << 20;
/// Bytes of an entry of the bitmap directory, before what is of variable length.
const BITMAP_BYTES: u64 = 24;
/// Largest bitmap that QEMU reads, in bytes of data.
const BITMAP_DATA_MAX: u64 = 512 << 20;
/// Bytes read at a time.
const WINDOW_BYTES: u64 = 64 << 10;

/// A part of the file that is read from its start to its end.
#[derive(Debug)]
struct Window<'a> {
    host: &'a HostNode,
    at: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// The bytes at some place: few, and within 2^63.
    async fn get(&mut self, at: u64, len: u64) -> Result<&[u8]> {
        let end = self.at + self.bytes.len() as u64;
        if at < self.at || at + len > end {
            self.at = at;
            self.bytes.resize(index(WINDOW_BYTES), 0);
            self.host.read_to(FileOffset(at), &mut self.bytes).await?;
        }
        let start = index(at - self.at);
        Ok(&self.bytes[start..start + index(len)])
    }
}

fn be(raw: &[u8], at: usize, len: usize) -> u64 {
    raw[at..at + len].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

impl Survey {
    /// Claims the snapshot table and the L1 tables that it tells of. Gives those: number of the snapshot, place and entries.
    pub(super) async fn read_snapshots(&mut self, host: &HostNode) -> Result<Vec<(u32, u64, u32)>> {
        let header = self.header().clone();
        let mut tables = Vec::new();
        if header.snapshots == 0 {
            return Ok(tables);
        }
        if header.has(EXTERNAL_DATA) {
            self.bad_snapshot(0, 0);
        }
        let mut window = Window { host, at: 0, bytes: Vec::new() };
        let mut at = header.snapshot_table;
        for number in 0..header.snapshots {
            if !self.rules.is_within(at, SNAPSHOT_BYTES) {
                self.bad_snapshot(number, at);
                break;
            }
            let raw = window.get(at, SNAPSHOT_BYTES).await?;
            let (l1, entries) = (be(raw, 0, 8), be(raw, 8, 4));
            let extra = be(raw, 36, 4);
            let bytes = SNAPSHOT_BYTES + be(raw, 12, 2) + be(raw, 14, 2) + extra;
            let is_good = extra <= EXTRA_BYTES_MAX
                && at + bytes - header.snapshot_table <= SNAPSHOTS_BYTES_MAX
                && self.rules.is_within(at, bytes);
            if !is_good {
                self.bad_snapshot(number, at);
                break;
            }
            at = (at + bytes).next_multiple_of(8);
            tables.push((number, l1, u32::try_from(entries).expect("it has 4 bytes")));
        }
        self.claim(Area::SnapshotTable, header.snapshot_table, at - header.snapshot_table);
        tables.retain(|(number, l1, entries)| {
            let bytes = u64::from(*entries) * 8;
            let is_good = l1.is_multiple_of(header.cluster_bytes())
                && bytes <= L1_BYTES_MAX
                && (bytes == 0 || self.rules.is_within(*l1, bytes));
            if !is_good {
                self.bad_snapshot(*number, *l1);
            }
            is_good && self.claim(Area::Snapshot(*number), *l1, bytes)
        });
        Ok(tables)
    }

    /// What it refers to is not known, so no count can be trusted.
    fn bad_snapshot(&mut self, number: u32, value: u64) {
        let place = Place::Area(Area::Snapshot(number));
        self.problem(place, value, ProblemKind::Snapshot);
        self.refuse(place, value, ProblemKind::Snapshot);
    }

    /// Claims the bitmaps, if they are said to be right.
    pub(super) async fn read_bitmaps(&mut self, host: &HostNode) -> Result<()> {
        let header = self.header().clone();
        let Some(bitmaps) = header.bitmaps else { return Ok(()) };
        if header.autoclear & BITMAPS_CONSISTENT == 0 {
            return Ok(());
        }
        self.claim(Area::BitmapDirectory, bitmaps.directory, bitmaps.directory_bytes);
        let mut window = Window { host, at: 0, bytes: Vec::new() };
        let end = bitmaps.directory + bitmaps.directory_bytes;
        let mut at = bitmaps.directory;
        for number in 0..bitmaps.count {
            if at + BITMAP_BYTES > end {
                self.bad_bitmap(number, at);
                return Ok(());
            }
            let raw = window.get(at, BITMAP_BYTES).await?;
            let (table, entries) = (be(raw, 0, 8), be(raw, 8, 4));
            let bytes = BITMAP_BYTES + be(raw, 18, 2) + be(raw, 20, 4);
            at = (at + bytes).next_multiple_of(8);
            let is_good = at <= end
                && table.is_multiple_of(header.cluster_bytes())
                && entries << header.cluster_bits <= BITMAP_DATA_MAX
                && self.rules.is_within(table, entries * 8);
            if !is_good {
                self.bad_bitmap(number, table);
            } else if self.claim(Area::Bitmap(number), table, entries * 8) {
                self.read_bitmap_table(host, number, table, entries).await?;
            }
        }
        if at != end {
            self.problem(Place::Area(Area::BitmapDirectory), at, ProblemKind::Bitmap);
            self.drop_bitmaps = true;
        }
        Ok(())
    }

    async fn read_bitmap_table(
        &mut self,
        host: &HostNode,
        number: u32,
        table: u64,
        entries: u64,
    ) -> Result<()> {
        let cluster_bytes = self.header().cluster_bytes();
        each_entry(host, table, entries, |_, value| match self.rules.judge_bitmap(value) {
            Ok(None) => {}
            Ok(Some(cluster)) => {
                let at = cluster << self.rules.cluster_bits;
                self.claim(Area::Bitmap(number), at, cluster_bytes);
            }
            Err(_) => self.bad_bitmap(number, value),
        })
        .await
    }

    fn bad_bitmap(&mut self, number: u32, value: u64) {
        self.problem(Place::Area(Area::Bitmap(number)), value, ProblemKind::Bitmap);
        self.drop_bitmaps = true;
    }
}
