//! Mending an image, in steps that a power cut may end anywhere.
//!
//! ```text
//!   1  header: features nobody knows off, damaged bitmaps off    ---- sync ----
//!   2  entries that cannot be: mended, or given up               ---- sync ----    all is counted anew
//!   3  refcounts raised                                          ---- sync ----    or, where their structure is broken: a new one
//!   4  COPIED cleared where there are more references than one   ---- sync ----    beyond all that is referred to, sync, header, sync
//!   5  refcounts lowered                                         ---- sync ----
//!   6  COPIED set where there is one reference                   ---- sync ----
//!   7  a check that finds nothing: DIRTY and CORRUPT off         ---- sync ----
//! ```
//!
//! Every entry, and the header's fields, lie in one sector: after a power cut each has its old value or its new one. No step needs that a later one
//! is done: an entry mended refers to nothing that it did not refer to before, so references only become fewer; refcounts are raised before
//! anything trusts them and lowered when nothing is there any more; COPIED promises no more than the refcounts hold. So the image is never worse
//! than it was. Started again, a repair takes up where it was stopped; started once more, it does nothing.
//!
//! What it does not decide: data and L2 table in the same cluster, a snapshot whose tables are not where they should be, more references than a
//! refcount can say. There nothing is written at all.

use super::counts::Counts;
use super::entries::{COPIED, Raw};
use super::read::{each_piece, index, pieces_of, tables_in, write_bytes};
use super::refcounts::{Layout, each_refcount, write_header};
use super::survey::{Survey, each_raw, survey};
use super::{CheckReport, Fix, Level, Owner, PROBLEMS_MAX, Place, Plan, ProblemKind};
use crate::qcow2::header::{BITMAPS_CONSISTENT, CORRUPT, DIRTY, Header};
use crate::{Error, ErrorKind, HostNode, Result};

/// What a repair has found and left.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What a check found before.
    pub before: Box<CheckReport>,
    /// What one finds now.
    pub after: Box<CheckReport>,
    /// Changes that were told of.
    pub fixes: u64,
}

/// Which refcounts are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Raise,
    Lower,
}

/// What [`repair`] would do. Nothing is written.
///
/// # Errors
///
/// As [`repair`], without its own.
pub async fn plan(host: &HostNode, level: Level) -> Result<Plan> {
    // Boxed, as all here, so that a task can hold it.
    Box::pin(plan_all(host, level)).await
}

async fn plan_all(host: &HostNode, level: Level) -> Result<Plan> {
    let mut survey = survey(host, |_, _| ()).await?;
    refuse(host, level, &survey)?;
    let mut plan = Plan { fixes: Vec::new(), is_complete: !survey.has_more_fixes };
    if survey.report.is_clean() {
        return Ok(plan);
    }
    let mut told = |fix: &Fix| match plan.fixes.len() < PROBLEMS_MAX {
        true => plan.fixes.push(*fix),
        false => plan.is_complete = false,
    };
    header_fixes(&survey).iter().for_each(&mut told);
    let has_subclusters = survey.rules.has_subclusters;
    survey.fixes.values().for_each(|fix| told(&fix.fix(has_subclusters)));
    let mut mender = Mender { host, writes: false, told };
    mender.refcounts(&mut survey).await?;
    if survey.header().incompatible & (DIRTY | CORRUPT) != 0 {
        (mender.told)(&Fix::MarkClean);
    }
    Ok(plan)
}

/// Mends the image in `host`, which nobody may be using. `told` hears of each change before it is made.
///
/// # Errors
///
/// As [`super::check`]; `Corrupt` if there is what cannot be mended, or if there are errors and only leaks are to be mended: with nothing changed.
/// The host's: with the image no worse than before.
pub async fn repair(host: &HostNode, level: Level, told: impl FnMut(&Fix)) -> Result<Outcome> {
    Box::pin(repair_all(host, level, told)).await
}

async fn repair_all(host: &HostNode, level: Level, mut told: impl FnMut(&Fix)) -> Result<Outcome> {
    let mut now = survey(host, |_, _| ()).await?;
    refuse(host, level, &now)?;
    let before = Box::new(now.report.clone());
    let mut fixes = 0;
    if before.is_clean() {
        return Ok(Outcome { after: before.clone(), before, fixes });
    }
    let mut mender = Mender {
        host,
        writes: true,
        told: |fix: &Fix| {
            fixes += 1;
            told(fix);
        },
    };
    mender.header(&mut now).await?;
    while !now.fixes.is_empty() {
        let errors = now.report.errors();
        mender.entries(&now).await?;
        now = survey(host, |_, _| ()).await?;
        refuse(host, level, &now)?;
        if !now.fixes.is_empty() && now.report.errors() >= errors {
            let what = format!("repairing {}: what was mended is not", host.path());
            return Err(Error::new(ErrorKind::Io, what));
        }
    }
    mender.refcounts(&mut now).await?;
    let mut after = Box::new(survey(host, |_, _| ()).await?.report);
    if after.errors() == 0 && after.header.incompatible & (DIRTY | CORRUPT) != 0 {
        (mender.told)(&Fix::MarkClean);
        after.header.incompatible &= !(DIRTY | CORRUPT);
        write_header(host, &after.header).await?;
    }
    Ok(Outcome { before, after, fixes })
}

/// Makes the refcounts and COPIED flags of a dirty image those that its tables say, and marks it clean last. For opening it for writing.
///
/// # Errors
///
/// `Corrupt` if something else is wrong with it: with nothing changed. The host's: with the image still dirty.
pub async fn mend_dirty(host: &HostNode) -> Result<()> {
    Box::pin(mend_refcounts(host)).await
}

async fn mend_refcounts(host: &HostNode) -> Result<()> {
    let mut now = survey(host, |_, _| ()).await?;
    let is_ours = |kind| {
        matches!(
            kind,
            ProblemKind::TooLow | ProblemKind::Leak | ProblemKind::Stray | ProblemKind::Copied
        )
    };
    // An entry of the refcount table is not a problem that stays: the table is built anew.
    let of_tables = |place| {
        matches!(
            place,
            Place::Block(_)
                | Place::Area(super::Area::RefcountTable | super::Area::RefcountBlock(_))
        )
    };
    let problems = &now.report.problems;
    let first = now.refused.as_ref().or_else(|| {
        problems.iter().find(|problem| !is_ours(problem.kind) && !of_tables(problem.place))
    });
    if let Some(first) = first {
        let what = format!(
            "opening {} for writing: it was not closed, and its tables are corrupt ({first}): repair it first",
            host.path()
        );
        return Err(Error::new(ErrorKind::Corrupt, what));
    }
    let mut mender = Mender { host, writes: true, told: |_: &Fix| () };
    mender.header(&mut now).await?;
    mender.entries(&now).await?;
    mender.refcounts(&mut now).await?;
    let mut header = now.header().clone();
    header.incompatible &= !DIRTY;
    write_header(host, &header).await
}

fn refuse(host: &HostNode, level: Level, survey: &Survey) -> Result<()> {
    let report = &survey.report;
    if let Some(problem) = &survey.refused {
        let what = format!(
            "repairing {}: this cannot be mended without a guess: {problem}; nothing was changed",
            host.path()
        );
        return Err(Error::new(ErrorKind::Corrupt, what));
    }
    let errors = report.errors() - report.count(ProblemKind::Copied);
    if level == Level::All || errors == 0 {
        return Ok(());
    }
    let is_one = |kind: ProblemKind| kind.is_error() && kind != ProblemKind::Copied;
    let first = report.problems.iter().find(|problem| is_one(problem.kind));
    let first = first.map_or(String::new(), |first| format!(" (first: {first})"));
    let what = format!(
        "repairing {}: it has {errors} errors, which must be repaired first{first}",
        host.path()
    );
    Err(Error::new(ErrorKind::Corrupt, what))
}

/// What is to be done to the header first.
fn header_fixes(survey: &Survey) -> Vec<Fix> {
    let mut fixes = Vec::new();
    let bits = survey.header().unknown_autoclear();
    if bits != 0 {
        fixes.push(Fix::Autoclear { bits });
    }
    if survey.drop_bitmaps {
        fixes.push(Fix::DropBitmaps);
    }
    fixes
}

/// Who changes the image, or says what would be changed.
struct Mender<'a, F> {
    host: &'a HostNode,
    writes: bool,
    told: F,
}

impl<F: FnMut(&Fix)> Mender<'_, F> {
    async fn header(&mut self, survey: &mut Survey) -> Result<()> {
        let fixes = header_fixes(survey);
        if fixes.is_empty() {
            return Ok(());
        }
        fixes.iter().for_each(&mut self.told);
        let drop_bitmaps = survey.drop_bitmaps;
        let header = &mut survey.report.header;
        header.autoclear &= !header.unknown_autoclear();
        if drop_bitmaps {
            header.autoclear &= !BITMAPS_CONSISTENT;
        }
        write_header(self.host, header).await
    }

    /// Writes the entries that are to be others.
    async fn entries(&mut self, survey: &Survey) -> Result<()> {
        for (at, fix) in &survey.fixes {
            (self.told)(&fix.fix(survey.rules.has_subclusters));
            let Raw { value, subclusters } = fix.to;
            let raw = [value.to_be_bytes(), subclusters.to_be_bytes()].concat();
            let is_long = survey.rules.has_subclusters && matches!(fix.place, Place::L2 { .. });
            write_bytes(self.host, *at, &raw[..if is_long { 16 } else { 8 }]).await?;
        }
        match survey.fixes.is_empty() {
            true => Ok(()),
            false => self.host.flush().await,
        }
    }

    /// Makes refcounts and COPIED flags what the references say.
    async fn refcounts(&mut self, survey: &mut Survey) -> Result<()> {
        survey.forget_mended();
        if survey.blocks.is_broken {
            self.rebuild(survey).await?;
        } else {
            self.set_refcounts(survey, Direction::Raise).await?;
        }
        let (clear, set) = wrong_flags(&survey.counts);
        if clear {
            self.set_flags(survey, false).await?;
        }
        if !survey.blocks.is_broken {
            self.set_refcounts(survey, Direction::Lower).await?;
        }
        if set {
            self.set_flags(survey, true).await?;
        }
        Ok(())
    }

    /// Writes a whole new refcount structure behind everything, and then lets the header refer to it.
    async fn rebuild(&mut self, survey: &mut Survey) -> Result<()> {
        let mut header = survey.header().clone();
        let bits = header.cluster_bits;
        let end = match self.host.file().facts().is_block_device {
            true => survey.report.image_end >> bits,
            false => survey.report.file_bytes.div_ceil(1 << bits),
        };
        let layout = Layout::new(&header, &survey.counts, end.max(survey.counts.end()))?;
        let at = layout.start << bits;
        (self.told)(&Fix::Rebuild { at, clusters: layout.end() - layout.start });
        if !self.writes {
            return Ok(());
        }
        for cluster in layout.start..layout.end() {
            survey.counts.add(cluster, 1, super::counts::Flag::None);
        }
        layout.write(self.host, &header, &survey.counts).await?;
        header.refcount_table = at;
        header.refcount_table_clusters =
            u32::try_from(layout.table_clusters).expect("the table has at most 8 MiB");
        write_header(self.host, &header).await?;
        survey.report.header = header;
        Ok(())
    }

    /// Raises all refcounts that are too low, or lowers all that are too high.
    async fn set_refcounts(&mut self, survey: &Survey, direction: Direction) -> Result<()> {
        let (told, writes) = (&mut self.told, self.writes);
        let mut run: Option<Fix> = None;
        let mut end_run = |run: Option<Fix>| run.iter().for_each(&mut *told);
        let header: &Header = survey.header();
        let mut any = false;
        each_refcount(self.host, header, &survey.blocks, &survey.counts, |compared| {
            let (stored, counted) = (compared.stored, compared.cell.count);
            let is_ours = match direction {
                Direction::Raise => stored < counted,
                Direction::Lower => stored > counted,
            };
            if !is_ours {
                return None;
            }
            any = true;
            match &mut run {
                Some(Fix::Refcounts { first, clusters, from, to })
                    if (*first + *clusters, *from, *to) == (compared.cluster, stored, counted) =>
                {
                    *clusters += 1;
                }
                _ => {
                    let first = compared.cluster;
                    let next = Fix::Refcounts { first, clusters: 1, from: stored, to: counted };
                    end_run(run.replace(next));
                }
            }
            writes.then_some(counted)
        })
        .await?;
        end_run(run);
        if any && writes { self.host.flush().await } else { Ok(()) }
    }

    /// Sets COPIED where there is one reference, or clears it where there are more.
    async fn set_flags(&mut self, survey: &Survey, flag: bool) -> Result<()> {
        let host = self.host;
        let (told, writes) = (&mut self.told, self.writes);
        let header = survey.header();
        let mut any = false;
        // The new value, if it is another.
        let mut flagged = |place: Place, cluster: u64, from: u64| {
            let is_one = survey.counts.get(cluster).count == 1;
            let to = from & !COPIED | if is_one { COPIED } else { 0 };
            if is_one != flag || to == from {
                return None;
            }
            told(&Fix::Copied { place, from, to });
            any = true;
            Some(to).filter(|_| writes)
        };
        let l1_bytes = u64::from(header.l1_entries) * 8;
        each_piece(host, pieces_of(host, header.l1_table, l1_bytes), |piece, bytes| {
            let mut changed = None;
            for (n, raw) in (0..).zip(bytes.as_chunks_mut::<8>().0) {
                let at = piece.at + n * 8;
                let value =
                    survey.mended(at, Raw { value: u64::from_be_bytes(*raw), subclusters: 0 });
                let value = value.value;
                let place = Place::L1 { owner: Owner::Active, entry: piece.tag / 8 + n };
                let (Some(cluster), _, _) = survey.rules.judge_l1(value) else { continue };
                if let Some(to) = flagged(place, cluster, value) {
                    *raw = to.to_be_bytes();
                    extend(&mut changed, index(n) * 8);
                }
            }
            Ok(changed)
        })
        .await?;
        let tables = &survey.tables;
        let cluster_bytes = header.cluster_bytes();
        let pieces = tables_in(host, tables.len(), cluster_bytes, |n| {
            tables[n].cluster << header.cluster_bits
        });
        let mut values = Vec::new();
        each_piece(host, pieces, |piece, bytes| {
            let mut changed = None;
            for (i, table) in tables[piece.tag.clone()].iter().enumerate() {
                if table.active == 0 {
                    continue;
                }
                let start = i << header.cluster_bits;
                let raw = &mut bytes[start..start + index(cluster_bytes)];
                each_raw(raw, survey.rules.has_subclusters, |n, raw| {
                    let (place, at) = survey.place_of(table, n);
                    let raw = survey.mended(at, raw);
                    let Some(cluster) = survey.flagged_cluster(table, n, raw) else { return };
                    if let Some(to) = flagged(place, cluster, raw.value) {
                        values.push((index(n * header.l2_entry_bytes()), to));
                    }
                });
                for (at, value) in values.drain(..) {
                    raw[at..at + 8].copy_from_slice(&value.to_be_bytes());
                    extend(&mut changed, start + at);
                }
            }
            Ok(changed)
        })
        .await?;
        if any && writes { host.flush().await } else { Ok(()) }
    }
}

/// A range that covers one more entry, which comes after all before.
fn extend(changed: &mut Option<std::ops::Range<usize>>, at: usize) {
    *changed = Some(changed.as_ref().map_or(at, |range| range.start)..at + 8);
}

/// Whether there are COPIED flags to be cleared; to be set.
fn wrong_flags(counts: &Counts) -> (bool, bool) {
    let (mut clear, mut set) = (false, false);
    counts.each(0..counts.end(), |_, cell| {
        clear |= cell.copied && cell.count > 1;
        set |= cell.uncopied && cell.count == 1;
    });
    (clear, set)
}
