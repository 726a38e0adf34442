//! Going over an image: all references counted, all entries judged, refcounts and COPIED flags compared.
//!
//! ```text
//!   1  areas        header, L1, refcount table and blocks, snapshots, bitmaps, encryption      each claims its clusters
//!   2  L1 entries   of the disk and of the snapshots                                           --> the list of L2 tables, each once
//!   3  L2 tables    in the order of the file, each read once and counted as often as it is referred to
//!   4  overlaps     an area or table counted more often than it should be: whose entry is it?  a second look at the tables, if there is any
//!   5  refcounts    stored and counted
//!   6  COPIED       where one does not agree with the refcount: which?                         a second look, if there is any
//! ```
//!
//! Memory: [`Counts`], 24 bytes for each L2 table, 8 for each entry of the refcount table, a tree of the areas, and bounded lists of what is wrong.

use super::counts::{Counts, Flag};
use super::entries::{COPIED, Judged, Raw, Rules, Use};
use super::read::{each_piece, index, pieces_of, tables_in};
use super::refcounts::{Blocks, Compared, each_refcount};
use super::{Area, CheckReport, Fix, Owner, PROBLEMS_MAX, Place, Problem, ProblemKind};
use crate::qcow2::header::Header;
use crate::qcow2::refcount;
use crate::{Error, ErrorKind, FileOffset, HostNode, Result};
use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes read for the header: the largest cluster.
const START_BYTES: u64 = 2 << 20;
/// Clusters of which it is remembered that a COPIED flag does not agree with their refcount; of more, only the number.
const SUSPECTS_MAX: usize = 1 << 20;
/// Clusters of areas that are longer than one: a sparse file may claim any number. Real ones are few: 65536 snapshots of 1 TiB have 2^17.
const CLAIMED_MAX: u64 = 1 << 26;
/// References to L2 tables that are kept apart before those to the same table become one.
const TABLES_UNMERGED: usize = 1 << 16;

/// An L2 table that is referred to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// Where it is.
    pub cluster: u64,
    /// References to it.
    pub refs: u32,
    /// Of these, from the active L1 table.
    pub active: u32,
    /// Of one of them, from the active table if there is any: the number of the L1 entry, and that of the snapshot.
    entry: u32,
    snapshot: u32,
}

/// Stands for the active table where a snapshot has its number, and comes before them.
const ACTIVE: u32 = 0;

/// An entry that must be changed.
#[derive(Clone, Debug)]
pub(super) struct EntryFix {
    pub place: Place,
    pub from: Raw,
    pub to: Raw,
    pub kind: ProblemKind,
    pub is_lost: bool,
    /// What was counted of it, and is not to be: clusters, and how often.
    uncount: (Range<u64>, u64),
}

impl EntryFix {
    /// In words.
    pub fn fix(&self, has_subclusters: bool) -> Fix {
        let is_l2 = matches!(self.place, Place::L2 { .. });
        let subclusters = (self.from.subclusters, self.to.subclusters);
        Fix::Entry {
            place: self.place,
            from: self.from.value,
            to: self.to.value,
            subclusters: (has_subclusters && is_l2).then_some(subclusters),
            kind: self.kind,
            is_lost: self.is_lost,
        }
    }
}

/// All that is known of an image.
#[derive(Debug)]
pub(super) struct Survey {
    pub report: CheckReport,
    pub rules: Rules,
    pub counts: Counts,
    /// By their place in the file, each once.
    pub tables: Vec<Table>,
    pub blocks: Blocks,
    /// By the place of the entry in the file.
    pub fixes: BTreeMap<u64, EntryFix>,
    /// There are more than could be kept.
    pub has_more_fixes: bool,
    /// Some bitmap is damaged.
    pub drop_bitmaps: bool,
    /// Something that is not ours to decide.
    pub refused: Option<Problem>,
    /// First cluster to the one after the last, and what it is.
    pub(super) areas: BTreeMap<u64, (u64, Area)>,
    /// Clusters counted for the refcount table and blocks; for the bitmaps.
    structure: Vec<Range<u64>>,
    bitmaps: Vec<Range<u64>>,
    /// Clusters of areas of more than one.
    claimed: u64,
}

/// Reads the header of the image in `host`.
pub(super) async fn read_header(host: &HostNode) -> Result<Header> {
    let named =
        |error: Error| Error::new(error.kind(), format!("checking {}: {error}", host.path()));
    let file_bytes = host.file_bytes()?;
    let len = START_BYTES.min(file_bytes.next_multiple_of(host.align()));
    let start = host.read_owned(FileOffset(0), len).await?;
    let start = &start.as_slice()[..index(len.min(file_bytes))];
    Header::parse(start, file_bytes).map_err(named)
}

/// Goes over the image in `host`. `progress` is told how many L2 tables of how many are done.
pub(super) async fn survey(host: &HostNode, mut progress: impl FnMut(u64, u64)) -> Result<Survey> {
    let header = read_header(host).await?;
    let mut survey = Survey::new(header, host.file_bytes()?);
    survey.claim_fixed();
    let snapshots = Box::pin(survey.read_snapshots(host)).await?;
    Box::pin(survey.read_bitmaps(host)).await?;
    survey.read_refcount_table(host).await?;
    let header = survey.header().clone();
    survey.read_l1(host, ACTIVE, header.l1_table, header.l1_entries).await?;
    for (number, at, entries) in snapshots {
        survey.read_l1(host, number + 1, at, entries).await?;
    }
    survey.merge_tables();
    survey.read_tables(host, &mut progress).await?;
    survey.find_overlaps(host).await?;
    let suspects = survey.compare_refcounts(host).await?;
    if !suspects.is_empty() {
        survey.find_wrong_flags(host, &suspects).await?;
    }
    Ok(survey)
}

impl Survey {
    fn new(header: Header, file_bytes: u64) -> Survey {
        Survey {
            rules: Rules::new(&header, file_bytes),
            report: CheckReport::new(header, file_bytes),
            counts: Counts::default(),
            tables: Vec::new(),
            blocks: Blocks::default(),
            fixes: BTreeMap::new(),
            has_more_fixes: false,
            drop_bitmaps: false,
            refused: None,
            areas: BTreeMap::new(),
            structure: Vec::new(),
            bitmaps: Vec::new(),
            claimed: 0,
        }
    }

    pub fn header(&self) -> &Header {
        &self.report.header
    }

    pub(super) fn problem(&mut self, place: Place, value: u64, kind: ProblemKind) {
        self.report.add(1, Problem { place, value, kind });
    }

    /// Nothing can be mended as long as this is so.
    pub(super) fn refuse(&mut self, place: Place, value: u64, kind: ProblemKind) {
        self.refused.get_or_insert(Problem { place, value, kind });
    }

    /// Takes the clusters of an area, and counts them. `false` if one of them is another area's: then it is no area, and a problem.
    pub(super) fn claim(&mut self, area: Area, at: u64, bytes: u64) -> bool {
        let bits = self.header().cluster_bits;
        let clusters = at >> bits..(at + bytes).div_ceil(1 << bits);
        if clusters.is_empty() {
            return true;
        }
        let before = self.areas.range(..clusters.end).next_back();
        if before.is_some_and(|(_, (end, _))| *end > clusters.start) {
            self.area_in_use(area, at);
            return false;
        }
        let count = clusters.end - clusters.start;
        self.claimed += if count > 1 { count } else { 0 };
        if self.claimed > CLAIMED_MAX {
            // The next look at the memory ends it.
            return false;
        }
        clusters.clone().for_each(|cluster| self.counts.add(cluster, 1, Flag::None));
        match area {
            Area::RefcountTable | Area::RefcountBlock(_) => self.structure.push(clusters.clone()),
            Area::BitmapDirectory | Area::Bitmap(_) => self.bitmaps.push(clusters.clone()),
            _ => {}
        }
        self.areas.insert(clusters.start, (clusters.end, area));
        true
    }

    /// An area is something else too.
    fn area_in_use(&mut self, area: Area, at: u64) {
        self.problem(Place::Area(area), at, ProblemKind::Overlap);
        match area {
            Area::RefcountTable | Area::RefcountBlock(_) => self.blocks.is_broken = true,
            Area::BitmapDirectory | Area::Bitmap(_) => self.drop_bitmaps = true,
            _ => self.refuse(Place::Area(area), at, ProblemKind::Overlap),
        }
    }

    fn area_of(&self, cluster: u64) -> Option<Area> {
        area_of(&self.areas, cluster)
    }

    fn claim_fixed(&mut self) {
        let header = self.header().clone();
        let crypto = header.crypto.unwrap_or_default();
        self.claim(Area::Header, 0, 1);
        self.claim(Area::L1, header.l1_table, u64::from(header.l1_entries) * 8);
        self.claim(Area::RefcountTable, header.refcount_table, header.refcount_table_bytes());
        self.claim(Area::Encryption, crypto.at, crypto.bytes);
    }

    async fn read_refcount_table(&mut self, host: &HostNode) -> Result<()> {
        let (at, len) = (self.header().refcount_table, self.header().refcount_table_bytes());
        let cluster_bytes = self.header().cluster_bytes();
        each_entry(host, at, len / 8, |number, value| match self.rules.judge_block(value) {
            Ok(cluster) => {
                let at = cluster << self.rules.cluster_bits;
                if self.claim(Area::RefcountBlock(number), at, cluster_bytes) {
                    self.blocks.list.push((number, at));
                }
            }
            Err(kind) => {
                self.problem(Place::Block(number), value, kind);
                self.blocks.is_broken = true;
            }
        })
        .await?;
        self.check_memory()
    }

    /// Reads an L1 table: judges its entries, and adds to the list of L2 tables.
    async fn read_l1(
        &mut self,
        host: &HostNode,
        snapshot: u32,
        at: u64,
        entries: u32,
    ) -> Result<()> {
        let mut merged = self.tables.len();
        each_entry(host, at, u64::from(entries), |entry, value| {
            let owner = owner_of(snapshot);
            let place = Place::L1 { owner, entry };
            let (mut cluster, mut problems, mut to) = self.rules.judge_l1(value);
            let area = cluster.and_then(|cluster| self.area_of(cluster));
            // The refcounts can be built anew, and bitmaps be dropped. What else is there is a table, or the header; this is not.
            let is_other = |area| {
                !matches!(
                    area,
                    Area::RefcountTable
                        | Area::RefcountBlock(_)
                        | Area::Bitmap(_)
                        | Area::BitmapDirectory
                )
            };
            if area.is_some_and(is_other) {
                problems.push(ProblemKind::Overlap);
                (cluster, to) = (None, 0);
            }
            problems.iter().for_each(|kind| self.problem(place, value, *kind));
            if let Some(kind) = problems.first().filter(|_| to != value) {
                let raw = |value| Raw { value, subclusters: 0 };
                self.mend(at + entry * 8, place, (raw(value), raw(to)), *kind, (0..0, 0));
            }
            if let Some(cluster) = cluster {
                let is_active = snapshot == ACTIVE;
                self.counts.add(cluster, 1, flag_of(is_active, value));
                // Both fit: a table has at most 2^22 entries.
                let entry = u32::try_from(entry).unwrap_or(u32::MAX);
                let active = u32::from(is_active);
                self.tables.push(Table { cluster, refs: 1, active, entry, snapshot });
                if self.tables.len() > merged * 2 + TABLES_UNMERGED {
                    self.merge_tables();
                    merged = self.tables.len();
                }
            }
        })
        .await?;
        self.check_memory()
    }

    /// Makes one of all references to the same table.
    fn merge_tables(&mut self) {
        self.tables.sort_unstable_by_key(|table| (table.cluster, table.snapshot, table.entry));
        self.tables.dedup_by(|table, first| {
            let is_same = table.cluster == first.cluster;
            if is_same {
                first.refs = first.refs.saturating_add(table.refs);
                first.active = first.active.saturating_add(table.active);
            }
            is_same
        });
    }

    fn check_memory(&self) -> Result<()> {
        match self.counts.is_full() || self.claimed > CLAIMED_MAX {
            false => Ok(()),
            true => {
                let what = "checking: the image's references are spread over more of the file than there is memory to count";
                Err(Error::new(ErrorKind::Unsupported, what))
            }
        }
    }

    /// An entry is to be changed. Of two changes to the same, the later one counts.
    fn mend(
        &mut self,
        at: u64,
        place: Place,
        (from, to): (Raw, Raw),
        kind: ProblemKind,
        uncount: (Range<u64>, u64),
    ) {
        if self.fixes.len() >= PROBLEMS_MAX && !self.fixes.contains_key(&at) {
            self.has_more_fixes = true;
            return;
        }
        let is_lost = matches!(
            kind,
            ProblemKind::Unaligned
                | ProblemKind::BeyondFile
                | ProblemKind::Overlap
                | ProblemKind::Compressed
        );
        let is_lost = is_lost || matches!(place, Place::L1 { .. }) && to.value == 0;
        self.fixes.insert(at, EntryFix { place, from, to, kind, is_lost, uncount });
    }

    async fn read_tables(
        &mut self,
        host: &HostNode,
        progress: &mut impl FnMut(u64, u64),
    ) -> Result<()> {
        let of = self.tables.len() as u64;
        let bytes = self.header().cluster_bytes();
        let tables = std::mem::take(&mut self.tables);
        let bits = self.rules.cluster_bits;
        let pieces = tables_in(host, tables.len(), bytes, |n| tables[n].cluster << bits);
        each_piece(host, pieces, |piece, raw| {
            progress(piece.tag.start as u64, of);
            for (table, raw) in tables[piece.tag.clone()].iter().zip(raw.chunks(index(bytes))) {
                self.count_table(table, raw);
            }
            self.check_memory().map(|()| None)
        })
        .await?;
        self.tables = tables;
        progress(of, of);
        Ok(())
    }

    /// Counts what one L2 table refers to.
    fn count_table(&mut self, table: &Table, raw: &[u8]) {
        let refs = u64::from(table.refs);
        let active = u64::from(table.active);
        let cluster_bytes = self.header().cluster_bytes();
        // Where the next cluster would not be fragmented.
        let mut expected = None;
        let (mut allocated, mut fragmented) = (0, 0);
        each_raw(raw, self.rules.has_subclusters, |n, raw| {
            let both = raw.subclusters & (raw.subclusters >> 32);
            let cluster = self.rules.usual(raw.value).filter(|_| both == 0);
            let offset = match cluster {
                Some(cluster) => {
                    self.counts.add(cluster, refs, flag_of(active > 0, raw.value));
                    Some(cluster << self.rules.cluster_bits)
                }
                None => self.count_unusual(table, n, raw),
            };
            if let Some(offset) = offset {
                allocated += 1;
                fragmented += u64::from(expected.is_some_and(|expected| expected != offset));
                expected = Some(offset.wrapping_add(cluster_bytes));
            }
        });
        self.report.allocated_clusters += allocated * active;
        self.report.fragmented_clusters += fragmented * active;
    }

    /// An entry that is not simply a cluster of data. Gives where it says that the data is, unless that is compressed.
    #[cold]
    fn count_unusual(&mut self, table: &Table, n: u64, raw: Raw) -> Option<u64> {
        let (place, at) = self.place_of(table, n);
        let mut judged = self.rules.judge_l2(raw, self.disk_cluster(table, n));
        let is_active = table.active > 0;
        let lacks_flag = judged.mended.value & COPIED == 0 && judged.offset.is_some();
        if self.rules.has_data_file && is_active && lacks_flag {
            // What is in the data file is nobody else's, so the flag must be there.
            judged.problems.push(ProblemKind::Copied);
            judged.mended.value |= COPIED;
        }
        judged.problems.iter().for_each(|kind| self.problem(place, raw.value, *kind));
        if let Some(kind) = judged.problems.iter().max_by_key(|kind| weight(**kind)) {
            self.mend(at, place, (raw, judged.mended), *kind, (0..0, 0));
        }
        let flag = match judged.uses {
            Use::Cluster(_) => flag_of(is_active, raw.value),
            _ => Flag::None,
        };
        for cluster in judged.uses.clusters() {
            self.counts.add(cluster, u64::from(table.refs), flag);
        }
        let has_contradiction = judged.problems.contains(&ProblemKind::Subclusters);
        if judged.is_compressed && !self.rules.has_data_file && !has_contradiction {
            let active = u64::from(table.active);
            self.report.allocated_clusters += active;
            self.report.compressed_clusters += active;
            self.report.fragmented_clusters += active;
        }
        judged.offset
    }

    fn disk_cluster(&self, table: &Table, n: u64) -> u64 {
        u64::from(table.entry) * self.header().l2_entries() + n
    }

    /// The place of an L2 entry, in words and in the file.
    pub fn place_of(&self, table: &Table, n: u64) -> (Place, u64) {
        let at = (table.cluster << self.rules.cluster_bits) + n * self.header().l2_entry_bytes();
        let owner = owner_of(table.snapshot);
        (Place::L2 { owner, cluster: self.disk_cluster(table, n), at }, at)
    }

    /// What is in use as more than one thing, though it is metadata.
    async fn find_overlaps(&mut self, host: &HostNode) -> Result<()> {
        // Whether who refers to it there is known to be wrong.
        let mut doubled: BTreeMap<u64, bool> = BTreeMap::new();
        let mut broken = Vec::new();
        for (first, (end, area)) in &self.areas {
            self.counts.each(*first..*end, |cluster, cell| {
                if cell.count > 1 {
                    match area {
                        Area::RefcountTable
                        | Area::RefcountBlock(_)
                        | Area::BitmapDirectory
                        | Area::Bitmap(_) => broken.push((*area, cluster)),
                        _ => drop(doubled.insert(cluster, true)),
                    }
                }
            });
        }
        broken.dedup_by_key(|(area, _)| *area);
        for (area, cluster) in broken {
            self.area_in_use(area, cluster << self.rules.cluster_bits);
        }
        for table in &self.tables {
            let shared = u64::from(self.area_of(table.cluster).is_some());
            if self.counts.get(table.cluster).count > u64::from(table.refs) + shared {
                doubled.insert(table.cluster, false);
            }
        }
        if doubled.is_empty() {
            return Ok(());
        }
        let mut found = Vec::new();
        self.each_table_entry(host, |survey, table, n, raw| {
            let judged = survey.rules.judge_l2(raw, survey.disk_cluster(table, n));
            let mut hits =
                judged.uses.clusters().filter_map(|cluster| doubled.get(&cluster)).peekable();
            if hits.peek().is_some() && found.len() < PROBLEMS_MAX {
                let is_wrong = hits.all(|is_wrong| *is_wrong);
                found.push((*table, n, raw, judged, is_wrong));
            }
        })
        .await?;
        for (table, n, raw, judged, is_wrong) in found {
            self.in_use_already(&table, n, raw, &judged, is_wrong);
        }
        Ok(())
    }

    /// An L2 entry refers to metadata.
    fn in_use_already(&mut self, table: &Table, n: u64, raw: Raw, judged: &Judged, is_wrong: bool) {
        let (place, at) = self.place_of(table, n);
        self.problem(place, raw.value, ProblemKind::Overlap);
        if !is_wrong {
            // Data and L2 table at once: which of the two it is, nobody can tell.
            return self.refuse(place, raw.value, ProblemKind::Overlap);
        }
        let to = self.rules.dropped(judged.mended);
        let uncount = (judged.uses.clusters(), u64::from(table.refs));
        self.mend(at, place, (raw, to), ProblemKind::Overlap, uncount);
    }

    /// Calls `f` with each entry of each L2 table that is not 0.
    async fn each_table_entry(
        &self,
        host: &HostNode,
        mut f: impl FnMut(&Survey, &Table, u64, Raw),
    ) -> Result<()> {
        let bytes = self.header().cluster_bytes();
        let bits = self.rules.cluster_bits;
        let tables = &self.tables;
        let pieces = tables_in(host, tables.len(), bytes, |n| tables[n].cluster << bits);
        each_piece(host, pieces, |piece, raw| {
            for (table, raw) in tables[piece.tag.clone()].iter().zip(raw.chunks(index(bytes))) {
                each_raw(raw, self.rules.has_subclusters, |n, raw| f(self, table, n, raw));
            }
            Ok(None)
        })
        .await
    }

    /// Compares stored refcounts with what was counted. Gives the clusters, and their refcounts, of which a COPIED flag does not agree.
    async fn compare_refcounts(&mut self, host: &HostNode) -> Result<BTreeMap<u64, u64>> {
        let header = self.header().clone();
        let cluster_bytes = header.cluster_bytes();
        let limit = self.report.file_bytes.div_ceil(cluster_bytes).max(self.counts.end());
        let max = refcount::max(header.refcount_order);
        let mut suspects = BTreeMap::new();
        let (mut last, mut run, mut is_broken) = (0, None, false);
        let (report, refused, areas) = (&mut self.report, &mut self.refused, &self.areas);
        let mut not_listed = 0;
        each_refcount(host, &header, &self.blocks, &self.counts, |compared| {
            let Compared { cluster, stored, cell, is_covered } = compared;
            let is_within = cluster < limit;
            if is_within {
                last = cluster;
            }
            is_broken |= !is_covered;
            if is_within && cell.contradicts(stored) {
                match suspects.len() < SUSPECTS_MAX {
                    true => drop(suspects.insert(cluster, stored)),
                    false => not_listed += 1,
                }
            }
            // What shares an area's cluster goes, or the area.
            if cell.count > max && area_of(areas, cluster).is_none() {
                let place =
                    Place::Refcounts { first: cluster, clusters: 1, references: cell.count };
                let problem = Problem { place, value: stored, kind: ProblemKind::TooMany };
                refused.get_or_insert(problem);
            }
            let kind = match stored.cmp(&cell.count) {
                _ if cell.count > max => ProblemKind::TooMany,
                std::cmp::Ordering::Equal => return None,
                std::cmp::Ordering::Less => ProblemKind::TooLow,
                std::cmp::Ordering::Greater if is_within => ProblemKind::Leak,
                std::cmp::Ordering::Greater => ProblemKind::Stray,
            };
            extend_run(&mut run, kind, cluster, stored, cell.count, |problem| {
                report_run(report, problem)
            });
            None
        })
        .await?;
        if let Some(problem) = run {
            report_run(report, problem);
        }
        if not_listed > 0 {
            let place = Place::Area(Area::L1);
            report.add(not_listed, Problem { place, value: 0, kind: ProblemKind::Copied });
        }
        report.image_end = (last + 1) * cluster_bytes;
        report.leaked_clusters = report.count(ProblemKind::Leak);
        report.leaked_bytes = report.leaked_clusters.saturating_mul(cluster_bytes);
        self.blocks.is_broken |= is_broken;
        Ok(suspects)
    }

    /// Finds the entries whose COPIED flag does not agree with the refcount that is stored.
    async fn find_wrong_flags(
        &mut self,
        host: &HostNode,
        suspects: &BTreeMap<u64, u64>,
    ) -> Result<()> {
        let mut found = Vec::new();
        self.each_flag(host, |place, cluster, value| {
            let stored = suspects.get(&cluster);
            if stored.is_some_and(|stored| (*stored == 1) != (value & COPIED != 0)) {
                found.push((place, value));
            }
            // Of the rest it is enough that they are told by the next check.
            found.len() < SUSPECTS_MAX
        })
        .await?;
        found
            .into_iter()
            .for_each(|(place, value)| self.problem(place, value, ProblemKind::Copied));
        Ok(())
    }

    /// Calls `f` with each entry of the active tables whose COPIED flag counts, and the cluster that it refers to, as long as `f` likes.
    pub async fn each_flag(
        &self,
        host: &HostNode,
        mut f: impl FnMut(Place, u64, u64) -> bool,
    ) -> Result<()> {
        let header = self.header();
        let mut goes_on = true;
        each_entry(host, header.l1_table, u64::from(header.l1_entries), |entry, value| {
            let place = Place::L1 { owner: Owner::Active, entry };
            if let (Some(cluster), _, _) = self.rules.judge_l1(value) {
                goes_on = goes_on && f(place, cluster, value);
            }
        })
        .await?;
        self.each_table_entry(host, |survey, table, n, raw| {
            if !goes_on || table.active == 0 {
                return;
            }
            if let Some(cluster) = survey.flagged_cluster(table, n, raw) {
                goes_on = f(survey.place_of(table, n).0, cluster, raw.value);
            }
        })
        .await
    }

    /// The cluster whose refcount an L2 entry's COPIED flag tells of.
    pub fn flagged_cluster(&self, table: &Table, n: u64, raw: Raw) -> Option<u64> {
        self.rules.usual(raw.value).or_else(|| {
            match self.rules.judge_l2(raw, self.disk_cluster(table, n)).uses {
                Use::Cluster(cluster) => Some(cluster),
                _ => None,
            }
        })
    }

    /// What an entry will be when all entries are mended.
    pub fn mended(&self, at: u64, raw: Raw) -> Raw {
        self.fixes.get(&at).map_or(raw, |fix| fix.to)
    }

    /// Takes out of the counts what will not be there when all is done that is to be done to entries, bitmaps and the refcount structure.
    pub fn forget_mended(&mut self) {
        for fix in self.fixes.values_mut() {
            let (clusters, times) = std::mem::take(&mut fix.uncount);
            clusters.for_each(|cluster| self.counts.sub(cluster, times));
        }
        let bitmaps =
            if self.drop_bitmaps { std::mem::take(&mut self.bitmaps) } else { Vec::new() };
        let structure =
            if self.blocks.is_broken { std::mem::take(&mut self.structure) } else { Vec::new() };
        for cluster in bitmaps.into_iter().chain(structure).flatten() {
            self.counts.sub(cluster, 1);
        }
    }
}

fn area_of(areas: &BTreeMap<u64, (u64, Area)>, cluster: u64) -> Option<Area> {
    let (_, (end, area)) = areas.range(..=cluster).next_back()?;
    (cluster < *end).then_some(*area)
}

/// Reads an area of 8-byte entries, and calls `f` with each that is not 0.
pub(super) async fn each_entry(
    host: &HostNode,
    at: u64,
    entries: u64,
    mut f: impl FnMut(u64, u64),
) -> Result<()> {
    each_piece(host, pieces_of(host, at, entries * 8), |piece, bytes| {
        for (n, raw) in (piece.tag / 8..).zip(bytes.as_chunks::<8>().0) {
            if *raw != [0; 8] {
                f(n, u64::from_be_bytes(*raw));
            }
        }
        Ok(None)
    })
    .await
}

/// Calls `f` with each entry of an L2 table that is not 0.
#[inline]
pub(super) fn each_raw(bytes: &[u8], has_subclusters: bool, mut f: impl FnMut(u64, Raw)) {
    if has_subclusters {
        for (n, raw) in (0..).zip(bytes.as_chunks::<16>().0) {
            let (value, subclusters) = raw.split_at(8);
            let word = |raw: &[u8]| raw.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
            let raw = Raw { value: word(value), subclusters: word(subclusters) };
            if raw != Raw::default() {
                f(n, raw);
            }
        }
        return;
    }
    for (n, raw) in (0..).zip(bytes.as_chunks::<8>().0) {
        let value = u64::from_be_bytes(*raw);
        if value != 0 {
            f(n, Raw { value, subclusters: 0 });
        }
    }
}

/// Adds to a run of refcounts that differ in the same way, or ends it and begins another.
fn extend_run(
    run: &mut Option<Problem>,
    kind: ProblemKind,
    cluster: u64,
    stored: u64,
    counted: u64,
    end: impl FnOnce(Problem),
) {
    if let Some(Problem {
        place: Place::Refcounts { first, clusters, references },
        value,
        kind: old,
    }) = run
        && (*first + *clusters, *references, *value, *old) == (cluster, counted, stored, kind)
    {
        *clusters += 1;
        return;
    }
    let place = Place::Refcounts { first: cluster, clusters: 1, references: counted };
    if let Some(old) = run.replace(Problem { place, value: stored, kind }) {
        end(old);
    }
}

fn report_run(report: &mut CheckReport, problem: Problem) {
    let clusters = match problem.place {
        Place::Refcounts { clusters, .. } => clusters,
        _ => 1,
    };
    report.add(clusters, problem);
}

/// Of several problems of one entry, the one that says most is told when it is mended.
fn weight(kind: ProblemKind) -> u8 {
    match kind {
        ProblemKind::Unaligned | ProblemKind::BeyondFile | ProblemKind::Compressed => 2,
        ProblemKind::Copied => 0,
        _ => 1,
    }
}

fn owner_of(snapshot: u32) -> Owner {
    match snapshot {
        ACTIVE => Owner::Active,
        number => Owner::Snapshot(number - 1),
    }
}

fn flag_of(is_active: bool, value: u64) -> Flag {
    match (is_active, value & COPIED != 0) {
        (false, _) => Flag::None,
        (true, true) => Flag::Copied,
        (true, false) => Flag::Uncopied,
    }
}
