//! Internal snapshots: made, listed, gone back to, deleted.
//!
//! ```text
//!   header --> L1 table ----------------------------,--> L2 tables --> clusters
//!      `-----> snapshot table --> L1 table of each -'                                 what several lead to is counted as often, and nobody writes there
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`, "Snapshots". Identifiers, and what is counted how often, are as QEMU has them.
//!
//! # What a crash may leave
//!
//! Each of the three runs while no request is under way, and begins when all that was written before is in the file. What makes the difference
//! is one sector of the header; before it is written nothing leads to what is new, and after it nothing to what is old:
//!
//! ```text
//!   create                              apply                                delete
//!   1  the dirty bit                    1  counts up: all that the           1  the new snapshot table, counted
//!   ---- sync ----                         snapshot leads to; no COPIED      ---- sync ----
//!   2  counts up: all that the disk's      in its tables; the new L1         2  the header: new table, dirty bit
//!      L1 leads to; no COPIED there        table, a copy of its own          ---- sync ----
//!   3  the snapshot's L1 table, the     ---- sync ----                       3  counts down: all that the snapshot
//!      new snapshot table               2  the header: the new L1               led to, and its tables
//!   ---- sync ----                         table, the disk's size            ---- sync ----
//!   4  the header: new table, clean     ---- sync ----                       4  COPIED for what is the disk's alone
//!   ---- sync ----                      3  counts down: all that the old     ---- sync ----
//!   5  the old table let go                L1 led to, and itself             5  the header: clean
//! ```
//!
//! Counts go up before, and down after (rules Q1, Q4 and Q9 of `reliability.md` 2.3): so a cut leaves leaks. COPIED (Q8) is never on what two lead
//! to: when the header changes, it is durably off. But it may be off where the count is 1, or on where the count alone is 2; a write copies
//! what it need not, or goes where only the disk leads, and both are harmless. Checkers call it an error all the same, and so an image of version 3
//! says that it is dirty meanwhile: whoever opens it next counts anew. Version 2 has no such bit, and keeps the flags until a check mends them.
//! With apply the flags are right throughout: all that the disk has then, the snapshot has as well.
//!
//! If something fails before the header is written, the snapshots are as before, and what was counted up stays so until a check. If it fails
//! after that, they are as asked for, and what was to be let go is lost until a check.

mod reach;
mod table;

pub(super) use reach::Step;
pub(super) use table::Table;
pub use table::{NewSnapshot, Snapshot};

use super::entry::{OFFSET, table_of};
use super::header::{self, Header, L1_BYTES_MAX};
use super::open::{mark, read_words};
use super::{Qcow2, commit};
use crate::mapped::Mapping;
use crate::space::Run;
use crate::used::UsedMap;
use crate::{DiskOffset, Error, ErrorKind, FileOffset, HostNode, Result};
use reach::Writes;
use std::collections::BTreeSet;

/// Bytes of the snapshots' L1 tables of which the L2 tables are marked when an image is opened: as many as one L1 table may have.
const MARKED_L1_BYTES_MAX: u64 = L1_BYTES_MAX;
/// Most bytes of all snapshots' L1 tables together, for the image to be written.
const L1_BYTES_TOGETHER_MAX: u64 = 1 << 30;

/// The snapshots of the image in `host`, in the order of their table, for a look at it: nothing else of the image is opened.
///
/// # Errors
///
/// `Corrupt` or `Unsupported` if the image, or its table, cannot be read; the host's.
pub async fn snapshots_in(host: &HostNode) -> Result<Vec<Snapshot>> {
    let (header, _) = super::open::read_header(host).await?;
    let file_end = host.file_bytes()?.next_multiple_of(header.cluster_bytes());
    Ok(Table::read(host, &header, file_end).await?.snapshots)
}

impl Qcow2 {
    /// The snapshots, in the order of their table.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the table contradicts the specification; the host's.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>> {
        Ok(self.snapshot_table().await?.snapshots)
    }

    /// Makes a snapshot of the disk as it is. Gives its identifier. No request may be under way, and none may come before this has ended.
    ///
    /// # Errors
    ///
    /// `BadRequest` or `Unsupported` with the reason, `Corrupt` if the disk's tables are, and nothing changed. The host's; see "What a crash may leave".
    pub async fn create_snapshot(&self, new: &NewSnapshot<'_>) -> Result<Vec<u8>> {
        // Boxed, here and below, as the future of a request is made of these.
        Box::pin(self.alone("making a snapshot of", self.add_snapshot(new))).await
    }

    /// Makes the disk what it was when a snapshot was made, its size included; what it is now is lost. As [`Qcow2::create_snapshot`] otherwise.
    ///
    /// # Errors
    ///
    /// As [`Qcow2::create_snapshot`].
    pub async fn apply_snapshot(&self, id_or_name: &[u8]) -> Result<()> {
        Box::pin(self.alone("going back to a snapshot of", self.go_back(id_or_name))).await
    }

    /// Deletes a snapshot. As [`Qcow2::create_snapshot`] otherwise.
    ///
    /// # Errors
    ///
    /// As [`Qcow2::create_snapshot`].
    pub async fn delete_snapshot(&self, id_or_name: &[u8]) -> Result<()> {
        Box::pin(self.alone("deleting a snapshot of", self.remove_snapshot(id_or_name))).await
    }

    /// Shows the disk as it was when a snapshot was made, in an image that is open for reading only. The file says nothing of it.
    ///
    /// # Errors
    ///
    /// `BadRequest` with the reason, `Corrupt` if the snapshot's tables cannot be right; the host's.
    pub async fn show_snapshot(&self, id_or_name: &[u8]) -> Result<()> {
        let doing = "showing a snapshot of";
        if !self.options.read_only {
            return self.refuse(ErrorKind::BadRequest, doing, "it is not open for reading only");
        }
        let table = Box::pin(self.snapshot_table()).await?;
        let Some(number) = table.find(id_or_name) else { return self.no_snapshot(id_or_name) };
        let snapshot = &table.snapshots[number];
        let bytes = snapshot.disk_bytes.unwrap_or(self.disk_bytes());
        let needed = self.header.borrow().l1_entries_needed(bytes);
        if needed * 8 > L1_BYTES_MAX {
            return self.refuse(ErrorKind::Corrupt, doing, "its disk is larger than can be");
        }
        let mut l1 = read_words(&self.file, snapshot.l1_table, snapshot.l1_entries.into()).await?;
        l1.resize(l1.len().max(usize::try_from(needed).expect("at most 32 MiB")), 0);
        self.adopt_l1(l1, |_, entry| self.l2_place(entry).is_err());
        self.header.borrow_mut().disk_bytes = bytes;
        Ok(())
    }

    /// The snapshot table, as it is in the file.
    pub(super) async fn snapshot_table(&self) -> Result<Table> {
        let header = self.header();
        let file_end = self.file.file_bytes()?.next_multiple_of(header.cluster_bytes());
        Table::read(&self.file, &header, file_end).await
    }

    pub(super) fn refuse<T>(&self, kind: ErrorKind, doing: &str, why: &str) -> Result<T> {
        Err(Error::new(kind, format!("{doing} {}: {why}", self.file.path())))
    }

    /// Does `work` when all that was written before is in the file, and nothing else is under way; and settles what it let go.
    async fn alone<T>(&self, doing: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        if self.options.read_only {
            return self.refuse(ErrorKind::BadRequest, doing, "it is open for reading only");
        }
        if self.options.health.is_poisoned() {
            return self.refuse(ErrorKind::Poisoned, doing, "an earlier flush failed");
        }
        if self.layout.is_external {
            return self.refuse(ErrorKind::Unsupported, doing, "its data is in another file");
        }
        self.settle().await?;
        let exclusive = self.exclusive.lock(&self.context, 0..1).await;
        let done = work.await?;
        drop(exclusive);
        self.settle().await?;
        Ok(done)
    }

    async fn add_snapshot(&self, new: &NewSnapshot<'_>) -> Result<Vec<u8>> {
        let mut table = self.snapshot_table().await?;
        let old = table.clone();
        let l1 = self.good_l1("making a snapshot of")?;
        let id = table.new_id();
        let entries = u32::try_from(l1.len()).expect("an L1 table has 2^22 entries at most");
        let make = |at| Snapshot::new(&id, new, at, entries, self.disk_bytes());
        table.snapshots.push(make(0)?);
        Table::encode(&table.snapshots)?;
        self.check_reach(&l1, Step::Up).await?;

        let l1_at = self.new_room(l1.len() as u64 * 8).await?;
        table.snapshots.pop();
        table.snapshots.push(make(l1_at)?);
        let bytes = Table::encode(&table.snapshots)?;
        let give_back = |_: &Error| self.release_bytes(l1_at, l1.len() as u64 * 8);
        let table_at = self.new_room(bytes.len() as u64).await.inspect_err(give_back)?;
        // Blocks that count them, before there is anything that a lack of space could leave half done.
        self.put_counts().await.inspect_err(|error| {
            give_back(error);
            self.release_bytes(table_at, bytes.len() as u64);
        })?;
        let was_clean = self.mark_dirty().await?;
        self.count_reach(&l1, Step::Up, true).await?;
        let shared: Vec<u64> = l1.iter().map(|entry| entry & OFFSET).collect();
        self.rewrite(self.header().l1_table, &l1, &shared).await?;
        let copy = (FileOffset(l1_at), commit::big_endian(&shared));
        self.file.write_pieces(vec![copy, (FileOffset(table_at), bytes)]).await?;
        // From here on no write goes to what the snapshot has, whatever becomes of the header.
        self.adopt_l1(shared, |_, _| false);
        self.sync().await?;

        let change = |header: &mut Header| {
            header.snapshots += 1;
            header.snapshot_table = table_at;
            if was_clean {
                header.incompatible &= !header::DIRTY;
            }
        };
        self.switch_header(change).await?;
        self.release_bytes(old.at, old.bytes);
        Ok(id)
    }

    async fn go_back(&self, id_or_name: &[u8]) -> Result<()> {
        let doing = "going back to a snapshot of";
        let table = self.snapshot_table().await?;
        let Some(number) = table.find(id_or_name) else { return self.no_snapshot(id_or_name) };
        let snapshot = &table.snapshots[number];
        let old = self.good_l1(doing)?;
        let header = self.header();
        let (old_at, old_bytes) = (header.l1_table, u64::from(header.l1_entries) * 8);
        let other_size = snapshot.disk_bytes.filter(|bytes| *bytes != self.disk_bytes());
        let disk_bytes = other_size.unwrap_or(header.disk_bytes);
        let entries = header.l1_entries_needed(disk_bytes).max(snapshot.l1_entries.into());
        if entries * 8 > L1_BYTES_MAX {
            return self.refuse(ErrorKind::Corrupt, doing, "its disk is larger than can be");
        }
        if other_size.is_some() {
            self.check_bitmaps(doing)?;
        }
        let mut l1 = read_words(&self.file, snapshot.l1_table, snapshot.l1_entries.into()).await?;
        self.check_reach(&l1, Step::Up).await?;
        self.check_reach(&old, Step::Down).await?;

        let at = self.new_room(entries * 8).await?;
        self.put_counts().await.inspect_err(|_| self.release_bytes(at, entries * 8))?;
        self.count_reach(&l1, Step::Up, true).await?;
        l1.iter_mut().for_each(|entry| *entry &= OFFSET);
        l1.resize(usize::try_from(entries).expect("at most 32 MiB"), 0);
        self.file.write_pieces(vec![(FileOffset(at), commit::big_endian(&l1))]).await?;
        self.sync().await?;
        let change = |header: &mut Header| {
            header.l1_table = at;
            header.l1_entries = u32::try_from(entries).expect("at most 32 MiB");
            header.disk_bytes = disk_bytes;
        };
        // All of the disk may read otherwise from here on. Recorded before it does: a bit too many is harmless.
        self.written(DiskOffset(0), self.disk_bytes().max(disk_bytes));
        self.switch_header(change).await?;
        for entry in l1.iter().filter(|entry| **entry != 0) {
            self.metadata.borrow_mut().mark(entry >> self.layout.cluster_bits);
        }
        self.adopt_l1(l1, |_, _| false);

        self.release_bytes(old_at, old_bytes);
        self.count_reach(&old, Step::Down, false).await
    }

    async fn remove_snapshot(&self, id_or_name: &[u8]) -> Result<()> {
        let mut table = self.snapshot_table().await?;
        let old = (table.at, table.bytes);
        let Some(number) = table.find(id_or_name) else { return self.no_snapshot(id_or_name) };
        let gone = table.snapshots.remove(number);
        let l1 = read_words(&self.file, gone.l1_table, gone.l1_entries.into()).await?;
        self.check_reach(&l1, Step::Down).await?;

        let bytes = Table::encode(&table.snapshots)?;
        let (at, len) = (self.new_room(bytes.len() as u64).await?, bytes.len() as u64);
        self.put_counts().await.inspect_err(|_| self.release_bytes(at, len))?;
        self.file.write_pieces(vec![(FileOffset(at), bytes)]).await?;
        self.sync().await?;
        let was_clean = !self.header.borrow().has(header::DIRTY);
        let change = |header: &mut Header| {
            header.snapshots -= 1;
            header.snapshot_table = at;
            if header.version >= 3 {
                header.incompatible |= header::DIRTY;
            }
        };
        self.switch_header(change).await?;

        self.release_bytes(old.0, old.1);
        self.release_bytes(gone.l1_table, gone.l1_bytes());
        self.count_reach(&l1, Step::Down, false).await?;
        let before: Vec<u64> = self.tables.borrow().l1().collect();
        let after = self.mend_copied().await?;
        self.rewrite(self.header().l1_table, &before, &after).await?;
        self.sync().await?;
        let bad: BTreeSet<usize> = {
            let tables = self.tables.borrow();
            (0..tables.l1_entries()).filter(|table| tables.is_bad_table(*table)).collect()
        };
        self.adopt_l1(after, |table, _| bad.contains(&table));
        self.mark_clean(was_clean).await
    }

    fn no_snapshot(&self, id_or_name: &[u8]) -> Result<()> {
        let why = format!("there is none called '{}'", id_or_name.escape_ascii());
        self.refuse(ErrorKind::BadRequest, "looking for a snapshot of", &why)
    }

    /// The disk's L1 table, if all of it can be right.
    pub(super) fn good_l1(&self, doing: &str) -> Result<Vec<u64>> {
        let tables = self.tables.borrow();
        if (0..tables.l1_entries()).any(|table| tables.is_bad_table(table)) {
            let why = "its L1 table is corrupt: it has to be repaired";
            return self.refuse(ErrorKind::Corrupt, doing, why);
        }
        Ok(tables.l1().collect())
    }

    /// The disk's tables are what the file has now, and this its L1 table.
    pub(super) fn adopt_l1(&self, l1: Vec<u64>, is_bad: impl Fn(usize, u64) -> bool) {
        let mut tables = self.tables.borrow_mut();
        tables.forget();
        tables.set_l1(l1, is_bad);
        *self.inflated.borrow_mut() = None;
    }

    /// Clusters for so many bytes, reading as zeroes; 0 if there is no need for any.
    pub(super) async fn new_room(&self, bytes: u64) -> Result<u64> {
        match bytes {
            0 => Ok(0),
            bytes => self.new_table(bytes.div_ceil(self.layout.cluster_bytes())).await,
        }
    }

    /// Lets a table go, to which nothing durable leads any more.
    pub(super) fn release_bytes(&self, at: u64, bytes: u64) {
        let clusters = bytes.div_ceil(self.layout.cluster_bytes());
        if clusters > 0 {
            self.counts.borrow_mut().release(Run { at, clusters }, self.commits.begun());
        }
    }

    /// Where resizing the disk would make bitmaps wrong, it is refused.
    pub(super) fn check_bitmaps(&self, doing: &str) -> Result<()> {
        let header = self.header.borrow();
        match header.bitmaps.is_some() && header.autoclear & header::BITMAPS_CONSISTENT != 0 {
            true => {
                self.refuse(ErrorKind::BadRequest, doing, "its size changes, and it has bitmaps")
            }
            false => Ok(()),
        }
    }

    /// Notes durably that counts and flags may disagree. Tells whether that was not noted before.
    async fn mark_dirty(&self) -> Result<bool> {
        if self.header.borrow().version < 3 || self.header.borrow().has(header::DIRTY) {
            return Ok(false);
        }
        self.switch_header(|header| header.incompatible |= header::DIRTY).await?;
        Ok(true)
    }

    /// Counts and flags agree, in an image that `was_clean`.
    async fn mark_clean(&self, was_clean: bool) -> Result<()> {
        if !was_clean || !self.header.borrow().has(header::DIRTY) {
            return Ok(());
        }
        self.switch_header(|header| header.incompatible &= !header::DIRTY).await
    }

    /// Writes the words of a table that change.
    pub(super) async fn rewrite(&self, at: u64, before: &[u64], after: &[u64]) -> Result<()> {
        let mut writes = Writes::default();
        self.replace(&mut writes, at, before, after);
        self.put(&mut writes, 0).await
    }

    /// Changes the header, all of it in one sector, durably. (The header as it is now: whatever needs space may have changed it.)
    pub(super) async fn switch_header(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        let before = self.header();
        let mut header = before.clone();
        change(&mut header);
        let written = async |header| {
            self.write_header(header).await?;
            self.sync().await
        };
        let result = written(header).await;

        if result.is_err() && !self.options.health.is_poisoned() && written(before).await.is_err() {
            // Nobody knows which of the two the file has, and what is written next depends on it.
            self.options.health.poison();
        }
        result
    }
}

/// Marks the snapshot table and the snapshots' L1 tables as metadata; says why the image cannot be written if they are not where they could be.
pub(super) fn mark_tables(table: &Table, header: &Header, metadata: &mut UsedMap) -> Result<()> {
    let bits = header.cluster_bits;
    let l1_tables = table.snapshots.iter().map(|one| (one.l1_table, one.l1_bytes()));
    if l1_tables.clone().map(|(_, bytes)| bytes).sum::<u64>() > L1_BYTES_TOGETHER_MAX {
        let what = "its snapshots' L1 tables are larger than 1 GiB: it can be opened read-only";
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    for (at, bytes) in std::iter::once((table.at, table.bytes)).chain(l1_tables) {
        let clusters = at >> bits..(at >> bits) + bytes.div_ceil(header.cluster_bytes());
        let mut is_free = true;
        for cluster in clusters {
            is_free &= mark(metadata, cluster)?;
        }
        if !is_free {
            let what = format!(
                "a table of its snapshots, at {at:#x}, overlaps other metadata: it can be opened read-only, or repaired"
            );
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
    }
    Ok(())
}

/// Marks the snapshots' L2 tables, as far as their L1 tables, in sequence, are no larger together than one may be: a bound on time and memory.
/// Entries that cannot be right are left alone, and found when the snapshot is used.
pub(super) async fn mark_l2_tables(
    table: &Table,
    file: &HostNode,
    header: &Header,
    file_end: u64,
    metadata: &mut UsedMap,
) -> Result<()> {
    let mut left = MARKED_L1_BYTES_MAX;
    for snapshot in &table.snapshots {
        let Some(rest) = left.checked_sub(snapshot.l1_bytes()) else { break };
        left = rest;
        for entry in read_words(file, snapshot.l1_table, snapshot.l1_entries.into()).await? {
            let at = table_of(entry, header.cluster_bits);
            if let Some(at) = at.filter(|at| *at != 0 && *at < file_end) {
                mark(metadata, at >> header.cluster_bits)?;
            }
        }
    }
    Ok(())
}
