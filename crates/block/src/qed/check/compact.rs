//! Which move comes next, to make a file as short as its clusters in use: RAM only, no I/O.
//!
//! ```text
//!   | in use | gap | in use ... gap ... | last |          data:   last --> gap
//!               ^------------------------'
//!   | in use | gap | a | b | ...  | table | <-- a, b      table:  what follows the gap goes to the end until the gap
//!               ^---------------------'                           is as long as a table; then table --> gap
//! ```
//!
//! Each object that is placed fills the first gap from its start on, and nothing before the first gap is ever moved again: so it ends. A table costs
//! at most as many moves as it has clusters besides its own.
//!
//! A move's source stays in use until [`Compactor::done`] is told that the move is durable, so nothing is written over what may be needed.

use super::CheckReport;
use super::fix::Object;
use crate::used::UsedMap;
use std::collections::BTreeMap;
use std::ops::Range;

/// Moves of data that are made durable together, if they are no more than ...
const BATCH_MOVES: usize = 256;
/// ... so many bytes.
const BATCH_BYTES: u64 = 64 << 20;

/// Something goes from one place to another; places are cluster numbers in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub what: Object,
    pub from: u64,
    pub to: u64,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// These; no target is another's source.
    Moves(Vec<Move>),
    /// There is no gap.
    Done,
    /// A cluster comes next of which it is not known whose it is: look at the tables again.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Compactor {
    used: UsedMap,
    table_clusters: u64,
    batch: usize,
    /// Whose a cluster of the file is, as far as known: cluster of the disk.
    data: BTreeMap<u64, u64>,
    /// Tables by their first cluster.
    tables: BTreeMap<u64, Object>,
    /// No gap lies before this cluster.
    gap: u64,
    /// The table that the first gap is being made larger for.
    placing: Option<u64>,
}

impl Compactor {
    /// Starts from what a check found; there must be no errors. `data` says whose clusters of the file are, and may be incomplete.
    pub fn new(report: CheckReport, data: BTreeMap<u64, u64>) -> Compactor {
        let header = &report.header;
        let bits = header.cluster_bits();
        let mut tables: BTreeMap<u64, Object> =
            report.tables.iter().map(|(at, table)| (*at, Object::Table(*table))).collect();
        tables.insert(header.l1_table() >> bits, Object::L1);
        let batch = usize::try_from(BATCH_BYTES >> bits).unwrap_or(BATCH_MOVES);
        Compactor {
            table_clusters: header.table_clusters(),
            batch: batch.clamp(1, BATCH_MOVES),
            gap: header.first_cluster() >> bits,
            used: report.used,
            data,
            tables,
            placing: None,
        }
    }

    /// Where it is good to know whose clusters are: around the first gap, and at the end; `clusters` of each.
    pub fn windows(report: &CheckReport, clusters: u64) -> [Range<u64>; 2] {
        let first = report.header.first_cluster() >> report.header.cluster_bits();
        let gap = report.used.next_unused(first);
        let end = report.used.end();
        [gap..gap + clusters, end.saturating_sub(clusters)..end]
    }

    /// Cluster after the last one in use.
    pub fn end(&self) -> u64 {
        self.used.end()
    }

    pub fn next(&mut self) -> Step {
        self.gap = self.used.next_unused(self.gap);
        if let Some(at) = self.placing {
            return self.place_table(at);
        }
        let mut moves = Vec::new();
        let mut limit = self.used.end();
        while moves.len() < self.batch {
            self.gap = self.used.next_unused(self.gap);
            let last = self.used.last_before(limit).filter(|last| *last > self.gap);
            let Some(last) = last else { break };
            match self.object(last) {
                Some((what @ Object::Data(_), from)) => {
                    moves.push(Move { what, from, to: self.gap });
                    self.used.mark(self.gap);
                    limit = last;
                }
                Some((_, at)) if moves.is_empty() => {
                    self.placing = Some(at);
                    return self.place_table(at);
                }
                None if moves.is_empty() => return Step::Unknown,
                _ => break,
            }
        }
        if moves.is_empty() { Step::Done } else { Step::Moves(moves) }
    }

    /// The table at `at` goes to the first gap, or something else out of its way.
    fn place_table(&mut self, at: u64) -> Step {
        let wanted = self.gap..self.gap + self.table_clusters;
        let blocked = wanted.clone().find(|cluster| self.used.contains(*cluster));
        let (from, to) = match blocked {
            None => (at, self.gap),
            Some(cluster) => (cluster, self.used.end()),
        };
        let Some((what, from)) = self.object(from) else { return Step::Unknown };
        let clusters = self.clusters(what);
        (to..to + clusters).for_each(|cluster| {
            self.used.mark(cluster);
        });
        self.placing = match (blocked, from == at) {
            (None, _) => None,
            (Some(_), true) => Some(to),
            (Some(_), false) => Some(at),
        };
        Step::Moves(vec![Move { what, from, to }])
    }

    /// What a cluster in use is a part of, and where that begins.
    fn object(&self, cluster: u64) -> Option<(Object, u64)> {
        let table = self.tables.range(..=cluster).next_back();
        match table.filter(|(at, _)| cluster < **at + self.table_clusters) {
            Some((at, what)) => Some((*what, *at)),
            None => self.data.get(&cluster).map(|disk| (Object::Data(*disk), cluster)),
        }
    }

    /// Clusters that something takes.
    pub fn clusters(&self, what: Object) -> u64 {
        if matches!(what, Object::Data(_)) { 1 } else { self.table_clusters }
    }

    /// The moves are durable.
    pub fn done(&mut self, moves: &[Move]) {
        for Move { what, from, to } in moves {
            for cluster in *from..from + self.clusters(*what) {
                self.used.clear(cluster);
            }
            match what {
                Object::Data(disk) => {
                    self.data.remove(from);
                    self.data.insert(*to, *disk);
                }
                _ => {
                    self.tables.remove(from);
                    self.tables.insert(*to, *what);
                }
            }
        }
    }
}
