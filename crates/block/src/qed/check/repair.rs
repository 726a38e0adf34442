//! Mending an image, in steps that a power cut may end anywhere.
//!
//! ```text
//!   1  NEED_CHECK, sync
//!   2  errors:   copies at the end of the file ---- sync ---- entries: to the copy, or 0 ---- sync ----   until a check finds none
//!   3  leaks:    copies in gaps                ---- sync ---- entries: to the copy       ---- sync ----   now the old place is a gap
//!                ... until there is none ...   the file is cut ---- sync ----
//!   4  NEED_CHECK off, sync
//! ```
//!
//! An entry is 8 bytes within one sector: after a power cut it has its old value or its new one. What it refers to is durable in both cases, and
//! nothing is written over what the old value refers to before the new one is durable. So at every moment an image that was free of errors is
//! so still, with leaks at most, and a damaged one has no errors that it had not before.
//!
//! Started again, a repair takes up where it was stopped; started once more, it does nothing.

use super::compact::{Compactor, Move, Step};
use super::fix::{Fix, Object, Plan};
use super::{CheckReport, Entry, Level, PROBLEMS_MAX, Problem, ProblemKind, check};
use crate::qed::header::{Header, OFFSET_MAX};
use crate::qed::resize::each_entry;
use crate::qed::scan::Scanner;
use crate::qed::tables::ZERO;
use crate::{Error, ErrorKind, FileOffset, HostNode, Result, SECTOR};
use std::collections::BTreeMap;

/// Bytes copied at a time.
const COPY_BYTES: u64 = 1 << 20;
/// Clusters, at the first gap and at the end of the file, of which is found out whose they are; then again for the next.
const WINDOW_CLUSTERS: u64 = 65536;

/// What [`repair`] would do. Nothing is written.
///
/// # Errors
///
/// As [`check`]; `Corrupt` if there are errors and only leaks are to be mended.
pub async fn plan(host: &HostNode, level: Level) -> Result<Plan> {
    let report = check(host, |_, _| ()).await?;
    refuse_errors(host, level, &report)?;
    let mut fixes = Vec::new();
    let mut is_complete = true;
    if report.errors() + report.beyond_disk > 0 {
        fixes = mend_errors(&report)?;
        // What is dropped or copied may leave gaps, and what is copied may refer to more that needs a copy.
        is_complete = false;
    } else if report.leaked_clusters > 0 {
        let (header, file_bytes) = (report.header.clone(), report.file_bytes);
        let bits = header.cluster_bits();
        let mut compactor = Box::pin(look_around(host, report)).await?;
        let step = loop {
            match compactor.next() {
                Step::Moves(moves) if fixes.len() < PROBLEMS_MAX => {
                    fixes.extend(moves.iter().map(|one| fix_of(one, bits)));
                    compactor.done(&moves);
                }
                step => break step,
            }
        };
        is_complete = step == Step::Done;
        if is_complete {
            let to = (compactor.end() << bits).max(header.first_cluster());
            fixes.push(Fix::Truncate { from: file_bytes, to });
            fixes.push(Fix::MarkClean);
        }
    } else if !report.is_clean() {
        fixes.push(Fix::MarkClean);
    }
    Ok(Plan { fixes, is_complete })
}

/// Mends the image in `host`, which nobody may be using. `told` hears of each change before it is made. Gives what a check finds afterwards.
///
/// # Errors
///
/// As [`plan`], with nothing changed; the host's, with the image marked NEED_CHECK and no worse than before.
pub async fn repair(
    host: &HostNode,
    level: Level,
    mut told: impl FnMut(&Fix),
) -> Result<CheckReport> {
    let mut report = check(host, |_, _| ()).await?;
    refuse_errors(host, level, &report)?;
    if report.is_clean() {
        return Ok(report);
    }
    let mut surgeon = Surgeon { host, header: report.header.clone(), l2_at: BTreeMap::new() };
    surgeon.write_header(report.header.marked(true)).await?;
    host.flush().await?;
    while report.errors() + report.beyond_disk > 0 {
        surgeon.learn(&report);
        let fixes = mend_errors(&report)?;
        fixes.iter().for_each(&mut told);
        Box::pin(surgeon.mend(&fixes)).await?;
        report = check(host, |_, _| ()).await?;
    }
    while report.leaked_clusters > 0 {
        surgeon.learn(&report);
        if !Box::pin(surgeon.compact(report, &mut told)).await? {
            break;
        }
        report = check(host, |_, _| ()).await?;
    }
    told(&Fix::MarkClean);
    host.flush().await?;
    surgeon.write_header(surgeon.header.marked(false)).await?;
    host.flush().await?;
    check(host, |_, _| ()).await
}

fn refuse_errors(host: &HostNode, level: Level, report: &CheckReport) -> Result<()> {
    match report.problems.iter().find(|problem| problem.kind != ProblemKind::BeyondDisk) {
        Some(first) if level == Level::Leaks => {
            let n = report.errors();
            let what = format!(
                "repairing {}: it has {n} errors, which must be repaired first (first: {first})",
                host.path()
            );
            Err(Error::new(ErrorKind::Corrupt, what))
        }
        _ => Ok(()),
    }
}

/// What is to be done about the problems found.
fn mend_errors(report: &CheckReport) -> Result<Vec<Fix>> {
    let header = &report.header;
    let mut fixes = Vec::new();
    if report.cut_off > 0 {
        fixes.push(Fix::Lengthen { from: report.file_bytes, to: report.image_end });
    }
    let cluster = header.cluster_bytes();
    let full = || Error::new(ErrorKind::NoSpace, "repairing: the file cannot be longer");
    let end = report.file_bytes.checked_next_multiple_of(cluster).ok_or_else(full)?;
    let mut end = end.max(report.image_end);
    for problem in &report.problems {
        let Problem { entry, value, kind } = *problem;
        let (bytes, unseen) = match entry {
            Entry::L1(table) => (header.table_bytes(), table >= header.l1_entries()),
            Entry::L2(disk) => (cluster, disk >= header.image_clusters()),
        };
        fixes.push(match kind {
            ProblemKind::CutOff => continue,
            ProblemKind::Doubled if !unseen => {
                let to = end;
                end = end.checked_add(bytes).filter(|end| *end <= OFFSET_MAX).ok_or_else(full)?;
                Fix::Copy { entry, from: value, to }
            }
            _ => Fix::Drop(*problem),
        });
    }
    Ok(fixes)
}

fn fix_of(one: &Move, bits: u32) -> Fix {
    Fix::Move { what: one.what, from: one.from << bits, to: one.to << bits }
}

/// Finds out whose the clusters are that will be moved first.
async fn look_around(host: &HostNode, report: CheckReport) -> Result<Compactor> {
    let windows = Compactor::windows(&report, WINDOW_CLUSTERS);
    let header = &report.header;
    let bits = header.cluster_bits();
    let scanner = Scanner { file: host, header, file_bytes: report.file_bytes, drop_beyond: false };
    let mut data = BTreeMap::new();
    for (at, table) in &report.tables {
        each_entry(&scanner, at << bits, 0, |entry, value| {
            let cluster = value >> bits;
            if value != ZERO && windows.iter().any(|window| window.contains(&cluster)) {
                data.insert(cluster, table * header.table_entries() + entry);
            }
        })
        .await?;
    }
    Ok(Compactor::new(report, data))
}

/// Who changes the image.
#[derive(Debug)]
struct Surgeon<'a> {
    host: &'a HostNode,
    header: Header,
    /// Where the L2 tables are, by number.
    l2_at: BTreeMap<u64, u64>,
}

impl Surgeon<'_> {
    fn learn(&mut self, report: &CheckReport) {
        let bits = report.header.cluster_bits();
        self.l2_at = report.tables.iter().map(|(at, table)| (*table, at << bits)).collect();
    }

    async fn write_header(&mut self, header: Header) -> Result<()> {
        let mut buf = self.host.read_owned(FileOffset(0), self.unit()).await?;
        buf.as_mut_slice()[..Header::LEN].copy_from_slice(&header.encode());
        self.host.write_owned(FileOffset(0), buf).await?;
        self.header = header;
        Ok(())
    }

    /// Bytes that metadata is written in.
    fn unit(&self) -> u64 {
        self.host.align().max(SECTOR)
    }

    /// Where an entry is in the file.
    fn place(&self, entry: Entry) -> Result<u64> {
        let entries = self.header.table_entries();
        match entry {
            Entry::L1(table) => Ok(self.header.l1_table() + table * 8),
            Entry::L2(cluster) => {
                let at = self.l2_at.get(&(cluster / entries)).ok_or_else(|| {
                    Error::new(ErrorKind::Corrupt, format!("repairing: {entry} has no table"))
                })?;
                Ok(at + cluster % entries * 8)
            }
        }
    }

    /// Carries out what [`mend_errors`] says.
    async fn mend(&mut self, fixes: &[Fix]) -> Result<()> {
        let mut entries = Vec::new();
        for fix in fixes {
            match *fix {
                Fix::Lengthen { to, .. } => self.host.truncate(to).await?,
                Fix::Drop(problem) => entries.push((self.place(problem.entry)?, 0)),
                Fix::Copy { entry, from, to } => {
                    let bytes = match entry {
                        Entry::L1(_) => self.header.table_bytes(),
                        Entry::L2(_) => self.header.cluster_bytes(),
                    };
                    self.copy(from, to, bytes).await?;
                    entries.push((self.place(entry)?, to));
                }
                Fix::Move { .. } | Fix::Truncate { .. } | Fix::MarkClean => {}
            }
        }
        self.host.flush().await?;
        self.write_entries(entries).await?;
        self.host.flush().await
    }

    /// Moves what is at the end of the file into gaps, as far as is known whose it is, and then cuts the file. Whether anything was changed.
    async fn compact(&mut self, report: CheckReport, told: &mut impl FnMut(&Fix)) -> Result<bool> {
        let (bits, from) = (self.header.cluster_bits(), report.file_bytes);
        let mut compactor = Box::pin(look_around(self.host, report)).await?;
        let mut changed = false;
        while let Step::Moves(moves) = compactor.next() {
            moves.iter().for_each(|one| told(&fix_of(one, bits)));
            self.carry_out(&compactor, &moves).await?;
            compactor.done(&moves);
            changed = true;
        }
        let to = (compactor.end() << bits).max(self.header.first_cluster());
        if !self.host.file().facts().is_block_device && (changed || to != from) {
            told(&Fix::Truncate { from, to });
            self.host.truncate(to).await?;
            self.host.flush().await?;
            changed = true;
        }
        Ok(changed)
    }

    async fn carry_out(&mut self, compactor: &Compactor, moves: &[Move]) -> Result<()> {
        let bits = self.header.cluster_bits();
        for Move { what, from, to } in moves {
            let bytes = compactor.clusters(*what) << bits;
            self.copy(from << bits, to << bits, bytes).await?;
        }
        self.host.flush().await?;
        let mut entries = Vec::new();
        for Move { what, to, .. } in moves {
            let to = to << bits;
            match what {
                Object::L1 => self.write_header(self.header.with_l1_table(to)).await?,
                Object::Table(table) => {
                    entries.push((self.place(Entry::L1(*table))?, to));
                    self.l2_at.insert(*table, to);
                }
                Object::Data(cluster) => entries.push((self.place(Entry::L2(*cluster))?, to)),
            }
        }
        self.write_entries(entries).await?;
        self.host.flush().await
    }

    async fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<()> {
        for done in (0..bytes).step_by(usize::try_from(COPY_BYTES).expect("1 MiB")) {
            let len = COPY_BYTES.min(bytes - done);
            let buf = self.host.read_owned(FileOffset(from + done), len).await?;
            self.host.write_owned(FileOffset(to + done), buf).await?;
        }
        Ok(())
    }

    /// Writes entries of tables: their places in the file, and values.
    async fn write_entries(&self, mut entries: Vec<(u64, u64)>) -> Result<()> {
        let unit = self.unit();
        entries.sort_unstable();
        for group in entries.chunk_by(|a, b| a.0 / unit == b.0 / unit) {
            let start = group[0].0 / unit * unit;
            let mut buf = self.host.read_owned(FileOffset(start), unit).await?;
            for (at, value) in group {
                let within = usize::try_from(at - start).expect("within the unit");
                buf.as_mut_slice()[within..within + 8].copy_from_slice(&value.to_le_bytes());
            }
            self.host.write_owned(FileOffset(start), buf).await?;
        }
        Ok(())
    }
}
