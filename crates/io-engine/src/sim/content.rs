//! A simulated disk's bytes: a durable image under a cache of versions that are not durable yet.
//!
//! ```text
//!   sector 7:   durable --> version of op 12 --> version of op 15 (what is read now)
//!   length:     4096    --> 8192 (op 12)     --> 8704 (op 15)
//! ```
//!
//! A version is the whole sector as it was after an op, so a durable version takes with it what earlier ops had written to the same
//! sector: as a page cache does. A flush moves `durable` along the chain; a crash picks any place on each chain.

use super::disk::Unwritten;
use super::image::{Image, SECTOR, SECTOR_LEN, Sector, SectorBytes};
use std::collections::BTreeMap;

/// A sector's or the length's value after an op.
#[derive(Clone, Debug)]
pub(super) struct Version<T> {
    pub(super) op: u64,
    pub(super) value: T,
    /// When the op completed; `u64::MAX` if it has not.
    pub(super) done_at: u64,
    /// A failed flush has forgotten it.
    lost: bool,
}

/// The bytes and the length of a disk, durable and cached. A `None` sector is unwritten.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub(super) unwritten: Unwritten,
    pub(super) durable: Image,
    pub(super) durable_len: u64,
    pub(super) cached: BTreeMap<u64, Vec<Version<Option<Sector>>>>,
    pub(super) cached_lens: Vec<Version<u64>>,
}

impl Content {
    pub(super) fn new(unwritten: Unwritten, len: u64) -> Content {
        Content {
            unwritten,
            durable: Image::default(),
            durable_len: len,
            cached: BTreeMap::new(),
            cached_lens: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.cached_lens.last().map_or(self.durable_len, |version| version.value)
    }

    /// What is read from a sector now.
    pub(super) fn sector(&self, sector: u64) -> Option<Sector> {
        match self.cached.get(&sector).and_then(|versions| versions.last()) {
            Some(version) => version.value.clone(),
            None => self.durable.get(sector).cloned(),
        }
    }

    /// The bytes of a sector, unwritten or not.
    pub(super) fn bytes_of(&self, sector: Option<&Sector>) -> [u8; SECTOR_LEN] {
        match sector {
            Some(bytes) => ***bytes,
            None => [self.unwritten.byte(); SECTOR_LEN],
        }
    }

    /// Reads up to `len` bytes at `at`; fewer at the end.
    pub(super) fn read(&self, at: u64, len: u64) -> Vec<u8> {
        let len = len.min(self.len().saturating_sub(at));
        let mut bytes = vec![0; usize::try_from(len).expect("no more than memory holds")];
        self.read_into(at, &mut bytes);
        bytes
    }

    /// Reads as many bytes as there are; what lies beyond the end are zeroes.
    pub(super) fn read_into(&self, at: u64, mut into: &mut [u8]) {
        let mut at = at;
        let end = self.len();
        let mut durable = self.durable.reader();
        while let Some(left) = end.checked_sub(at).filter(|left| *left > 0 && !into.is_empty()) {
            let (sector, from) = (at / SECTOR, at % SECTOR);
            let take = index((SECTOR - from).min(left)).min(into.len());
            let (here, rest) = into.split_at_mut(take);
            let cached = self.cached.get(&sector).and_then(|versions| versions.last());
            match cached.map_or_else(|| durable.get(sector), |version| version.value.as_ref()) {
                Some(bytes) => here.copy_from_slice(&bytes[index(from)..][..take]),
                None => here.fill(self.unwritten.byte()),
            }
            (at, into) = (at + take as u64, rest);
        }
        into.fill(0);
    }

    /// Adds the versions that a write of `data` makes, and the longer length if it ends beyond the present one.
    pub(super) fn write(&mut self, op: u64, done_at: u64, at: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let here = at + done as u64;
            let from = index(here % SECTOR);
            let take = (SECTOR_LEN - from).min(data.len() - done);
            let mut bytes = self.bytes_of(self.sector(here / SECTOR).as_ref());
            bytes[from..from + take].copy_from_slice(&data[done..done + take]);
            self.push(op, done_at, here / SECTOR, Some(SectorBytes::new(bytes)));
            done += take;
        }
        let end = at + data.len() as u64;
        if end > self.len() {
            self.push_len(op, done_at, end);
        }
    }

    /// Makes the part of a range that lies before the end read as zeroes; or, with `forget`, as unwritten.
    pub(super) fn clear(&mut self, op: u64, done_at: u64, at: u64, len: u64, forget: bool) {
        let end = at.saturating_add(len).min(self.len());
        let plain = forget || self.unwritten == Unwritten::Zero;
        for sector in self.touched(at, end, plain) {
            let (start, stop) = (sector * SECTOR, (sector + 1) * SECTOR);
            if plain && at <= start && (stop <= end || end == self.len()) {
                self.push(op, done_at, sector, None);
                continue;
            }
            let mut bytes = self.bytes_of(self.sector(sector).as_ref());
            let fill = if forget { self.unwritten.byte() } else { 0 };
            bytes[index(at.max(start) - start)..index(end.min(stop) - start)].fill(fill);
            self.push(op, done_at, sector, Some(SectorBytes::new(bytes)));
        }
    }

    /// The sectors of a range; with `written_only` those that have content, so that a hole costs nothing.
    fn touched(&self, at: u64, end: u64, written_only: bool) -> Vec<u64> {
        if at >= end {
            return Vec::new();
        }
        let range = at / SECTOR..end.div_ceil(SECTOR);
        if !written_only {
            return range.collect();
        }
        let durable = self.durable.written(range.clone());
        let mut touched: Vec<u64> =
            durable.chain(self.cached.range(range).map(|(sector, _)| *sector)).collect();
        touched.sort_unstable();
        touched.dedup();
        touched.retain(|sector| self.sector(*sector).is_some());
        touched
    }

    /// Changes the length; what is cut off is unwritten if it comes back.
    pub(super) fn truncate(&mut self, op: u64, done_at: u64, len: u64) {
        if len < self.len() {
            self.clear(op, done_at, len, self.len() - len, false);
        }
        self.push_len(op, done_at, len);
    }

    fn push(&mut self, op: u64, done_at: u64, sector: u64, value: Option<Sector>) {
        let versions = self.cached.entry(sector).or_default();
        versions.push(Version { op, value, done_at, lost: false });
    }

    fn push_len(&mut self, op: u64, done_at: u64, len: u64) {
        self.cached_lens.push(Version { op, value: len, done_at, lost: false });
    }

    /// Makes durable what completed before `time`; what a failed flush lost stays lost.
    pub(super) fn persist_before(&mut self, time: u64) {
        let durable = &mut self.durable;
        self.cached.retain(|sector, versions| {
            if let Some(value) = take_persisted(versions, time) {
                durable.set(*sector, value);
            }
            !versions.is_empty()
        });
        if let Some(len) = take_persisted(&mut self.cached_lens, time) {
            self.durable_len = len;
        }
    }

    /// Makes durable what a range's sectors hold now, with a length that reaches it.
    pub(super) fn persist_range(&mut self, at: u64, len: u64) {
        for sector in at / SECTOR..(at + len).div_ceil(SECTOR) {
            if let Some(version) = self.cached.remove(&sector).and_then(|mut v| v.pop()) {
                self.durable.set(sector, version.value);
            }
        }
        if at + len > self.durable_len {
            self.durable_len = self.len();
            self.cached_lens.clear();
        }
    }

    /// A flush failed: what it should have covered will not be tried again.
    pub(super) fn lose_before(&mut self, time: u64) {
        let sectors = self.cached.values_mut().flatten();
        sectors.filter(|version| version.done_at < time).for_each(|version| version.lost = true);
        let lens = self.cached_lens.iter_mut();
        lens.filter(|version| version.done_at < time).for_each(|version| version.lost = true);
    }
}

/// Takes the versions up to the last that a flush at `time` covers; gives that one's value.
fn take_persisted<T>(versions: &mut Vec<Version<T>>, time: u64) -> Option<T> {
    let last = versions.iter().rposition(|version| version.done_at < time && !version.lost)?;
    versions.drain(..=last).next_back().map(|version| version.value)
}

/// An offset within a sector, or a sector's length.
pub(super) fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("no more than a sector")
}
