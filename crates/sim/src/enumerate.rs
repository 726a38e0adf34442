//! Every state that a power cut may leave of a disk, at every moment of a run.
//!
//! ```text
//!   log:    W1 W2 W3 [flush] W4 W5 [flush] W6 end
//!   cuts:            ^             ^          ^       at each: the sectors and lengths not durable yet
//!                    |                                        are the atoms; a state is a choice of them
//!                    `-- {}, {1}, {2}, {1,2}, {3}, ... judged by the visitor, each once
//! ```
//!
//! **Where to cut.** As a run goes on, what a crash may leave only grows, until something takes possibilities away. So it is enough to
//! cut just before each event that does, and at the end. These are, with the disk model of `io_engine::sim`:
//!
//! - a flush that succeeds and a FUA write, on completion: what they make durable cannot be lost any more;
//! - a change that fails or comes short: while it was in flight, all of it might have been done;
//! - a change that completes before one that was issued earlier and touches the same sectors, or if both move the end of the file: the
//!   two change places in their sector's chain of versions, and what the earlier one would have been by itself is gone.
//!
//! A cut at position `k` has seen `log[..k]`. The judge must take for promised what had been acknowledged by then, even if the state
//! could also have come about before that acknowledgement: a state that remains possible after it must honour it. (That judges a state
//! that was possible earlier too by the later, stricter promise, which is right, as it was still possible then. What is lost is only
//! the chance to object to bytes that somebody wrote there later on, which stamps of their own tell apart.)
//!
//! **What to choose.** Metadata sectors are independent of each other, each with all its versions. Of the data sectors of an op only
//! these are told apart: none, all, the first half, the last half. The length is one more choice. If the product of all that is no
//! more than 2^`exhaustive_bits`, all are built; if only that of metadata and length is, these are, each with data all old, all new and
//! as the seed says; else: nothing, everything, each choice by itself and everything but it, samples from the seed, and
//! each pair and everything but it.
//!
//! States are told apart by a 128-bit digest. A state is new again when [`Options::promise`] says that more has been promised: what was
//! fine before may be a loss now.

use io_engine::sim::{Change, CrashPick, LogEvent, Remains};
use io_engine::{Rng, SimDisk};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

#[cfg(test)]
mod tests;

const SECTOR: u64 = 512;

/// How much to enumerate.
#[expect(missing_debug_implementations, reason = "it holds closures")]
pub struct Options<'a> {
    /// Up to this many choices (as a power of two), all are made.
    pub exhaustive_bits: u32,
    /// Seeded samples at a cut with more.
    pub samples: usize,
    /// States at most; each of the cuts yet to come has an equal share in what is left, and samples if it needs more.
    pub states_max: u64,
    /// Of the samples.
    pub seed: u64,
    /// Whether the sector at this offset of the file holds metadata.
    pub is_metadata: &'a dyn Fn(u64) -> bool,
    /// A name for what is promised at a position in the log. Of two positions with the same name, whatever is legal at the
    /// first is legal at the second.
    pub promise: &'a dyn Fn(usize) -> u64,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            exhaustive_bits: 16,
            samples: 4096,
            states_max: u64::MAX,
            seed: 0,
            is_metadata: &|_| true,
            promise: &|position| position as u64,
        }
    }
}

/// What a power cut left.
#[derive(Debug)]
pub struct CrashState<'a> {
    /// The disk, switched on again: a disk of its own, to be written to at will.
    pub disk: SimDisk,
    /// The cut: how much of the log had happened.
    pub position: usize,
    /// What was chosen.
    pub pick: &'a CrashPick,
}

/// What was enumerated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Moments at which the power was cut.
    pub cuts: u64,
    /// Cuts at which all choices were made.
    pub exhaustive_cuts: u64,
    /// Cuts at which those of metadata and length were.
    pub metadata_cuts: u64,
    /// Cuts with too many choices.
    pub sampled_cuts: u64,
    /// States the visitor saw.
    pub states: u64,
    /// Choices that led to a state it had seen.
    pub duplicates: u64,
    /// The most sectors that were undecided at a cut.
    pub atoms_max: u64,
    /// Whether `states_max` was reached.
    pub ran_out: bool,
}

/// A state that the visitor refused.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What it said.
    pub message: String,
    /// The cut: `log[..position]` had happened.
    pub position: usize,
    /// The choice, for [`SimDisk::crash`].
    pub pick: CrashPick,
    /// What had been enumerated until then, the refused state included.
    pub stats: Stats,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { message, position, pick, .. } = self;
        write!(f, "power cut after {position} log events, leaving {pick:?}: {message}")
    }
}

impl std::error::Error for Failure {}

/// Calls `visit` with each state that a power cut may have left of `start`, with nothing in flight, in the course of `log`. Stops
/// at the first that it refuses; that one is then reduced: as little as possible is kept.
pub fn enumerate(
    start: &SimDisk,
    log: &[LogEvent],
    options: &Options<'_>,
    mut visit: impl FnMut(&CrashState<'_>) -> Result<(), String>,
) -> Result<Stats, Box<Failure>> {
    let cuts = cuts(start, log);
    let disk = start.fork();
    let mut run = Run { options, seen: BTreeSet::new(), promise: None, stats: Stats::default() };
    let mut done = 0;
    for (number, &position) in cuts.iter().enumerate() {
        disk.replay(&log[done..position]);
        done = position;
        let left = options.states_max - run.stats.states;
        if left == 0 {
            run.stats.ran_out = true;
            break;
        }
        let share = left.div_ceil((cuts.len() - number) as u64);
        run.cut(position, &Choices::new(disk.remains(), options), share, &mut visit)?;
    }
    Ok(run.stats)
}

/// The positions in a log at which to cut the power: see the module's text.
pub fn cuts(start: &SimDisk, log: &[LogEvent]) -> Vec<usize> {
    let disk = start.fork();
    let mut in_flight: BTreeMap<u64, &Change> = BTreeMap::new();
    let mut cuts = Vec::new();
    for (position, event) in log.iter().enumerate() {
        match event {
            LogEvent::Issue { op, change } => {
                in_flight.insert(*op, change);
            }
            LogEvent::Complete { op, result, applied, lost } => {
                let takes_away = in_flight.remove(op).is_some_and(|change| match change {
                    Change::Read { .. } => false,
                    Change::Flush => *result >= 0 && !lost,
                    Change::Write { data, dsync, .. }
                        if *dsync || *applied != data.len() as u64 =>
                    {
                        true
                    }
                    _ if *result < 0 => true,
                    _ => {
                        let mut earlier = in_flight.range(..*op).map(|(_, earlier)| *earlier);
                        earlier.any(|earlier| interferes(change, earlier, disk.len()))
                    }
                });
                if takes_away {
                    cuts.push(position);
                }
            }
        }
        disk.replay(std::slice::from_ref(event));
    }
    cuts.push(log.len());
    cuts
}

/// Whether it matters which of two changes of a disk is done first.
fn interferes(a: &Change, b: &Change, len: u64) -> bool {
    // First sector, first sector behind it, and whether it may move the end.
    let extent = |change: &Change| match change {
        Change::Read { .. } | Change::Flush => None,
        Change::Truncate { .. } => Some((0, u64::MAX, true)),
        Change::Write { at, data, .. } => {
            let end = at + data.len() as u64;
            Some((at / SECTOR, end.div_ceil(SECTOR), end > len))
        }
        Change::Fallocate { at, len, .. } => {
            Some((at / SECTOR, at.saturating_add(*len).div_ceil(SECTOR), false))
        }
    };
    let (Some(a), Some(b)) = (extent(a), extent(b)) else { return false };
    a.0 < b.1 && b.0 < a.1 || a.2 && b.2
}

/// One thing that is old or new, or something in between, after a crash.
#[derive(Debug)]
enum Unit {
    /// A metadata sector: the atoms are its versions.
    Sector(Vec<usize>),
    /// The data sectors of an op: the atoms are these sectors.
    Op(Vec<usize>),
    /// The length.
    Length(Vec<usize>),
}

impl Unit {
    /// How many ways there are; way 0 is the old one, way 1 the newest.
    fn ways(&self) -> usize {
        match self {
            Unit::Sector(versions) => 1 + versions.len(),
            Unit::Op(sectors) if sectors.len() == 1 => 2,
            Unit::Op(_) => 4,
            Unit::Length(lengths) => 1 + lengths.len(),
        }
    }

    fn is_data(&self) -> bool {
        matches!(self, Unit::Op(_))
    }

    fn choose(&self, way: usize, atoms: &mut [bool], length: &mut Option<usize>) {
        match (self, way) {
            (_, 0) => {}
            (Unit::Sector(versions), way) => atoms[versions[versions.len() - way]] = true,
            (Unit::Length(lengths), way) => *length = Some(lengths[way - 1]),
            (Unit::Op(sectors), way) => {
                let (first, last) = sectors.split_at(sectors.len() / 2);
                let chosen = [&sectors[..], first, last][way - 1];
                chosen.iter().for_each(|atom| atoms[*atom] = true);
            }
        }
    }
}

/// What is undecided at one cut.
struct Choices {
    remains: Remains,
    units: Vec<Unit>,
}

impl Choices {
    fn new(remains: Remains, options: &Options<'_>) -> Choices {
        let mut sectors: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        let mut ops: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (index, atom) in remains.atoms().iter().enumerate() {
            if (options.is_metadata)(atom.at) {
                sectors.entry(atom.at).or_default().push(index);
            } else {
                ops.entry(atom.op).or_default().push(index);
            }
        }
        let mut units: Vec<Unit> = sectors.into_values().map(Unit::Sector).collect();
        units.extend(ops.into_values().map(Unit::Op));
        let mut lengths: Vec<usize> = (0..remains.lengths().len()).collect();
        // The present length first, as it is the newest; unless it is the durable one again.
        if let Some(newest) = remains.lengths().iter().position(|len| *len == remains.len()) {
            lengths.swap(0, newest);
        }
        if !lengths.is_empty() {
            units.push(Unit::Length(lengths));
        }
        Choices { remains, units }
    }

    /// How many choices there are, of all units or of those that are not data.
    fn count(&self, with_data: bool) -> u64 {
        let units = self.units.iter().filter(|unit| with_data || !unit.is_data());
        units.fold(1, |product: u64, unit| product.saturating_mul(unit.ways() as u64))
    }

    fn pick(&self, ways: &[usize]) -> CrashPick {
        let mut atoms = vec![false; self.remains.atoms().len()];
        let mut length = None;
        for (unit, way) in self.units.iter().zip(ways) {
            unit.choose(*way, &mut atoms, &mut length);
        }
        CrashPick::Mask { atoms, length }
    }

    /// Steps to the next choice, of all units or of those that are not data; false after the last.
    fn step(&self, ways: &mut [usize], with_data: bool) -> bool {
        let units = self.units.iter().zip(ways);
        for (unit, way) in units.filter(|(unit, _)| with_data || !unit.is_data()) {
            *way += 1;
            if *way < unit.ways() {
                return true;
            }
            *way = 0;
        }
        false
    }
}

/// Why a cut ends early.
enum Stop {
    /// Its share is used up.
    Share,
    Failed(Box<Failure>),
}

struct Run<'a> {
    options: &'a Options<'a>,
    /// Digests of the states seen under the present promise.
    seen: BTreeSet<u128>,
    promise: Option<u64>,
    stats: Stats,
}

/// One cut's position, choices and what is left of its share.
struct Cut<'a> {
    position: usize,
    choices: &'a Choices,
    left: u64,
}

type Visit<'a> = &'a mut dyn FnMut(&CrashState<'_>) -> Result<(), String>;

impl Run<'_> {
    fn cut(
        &mut self,
        position: usize,
        choices: &Choices,
        share: u64,
        visit: Visit<'_>,
    ) -> Result<(), Box<Failure>> {
        let promise = Some((self.options.promise)(position));
        if self.promise != promise {
            self.seen.clear();
            self.promise = promise;
        }
        self.stats.cuts += 1;
        self.stats.atoms_max = self.stats.atoms_max.max(choices.remains.atoms().len() as u64);
        let limit = share.min(1_u64.checked_shl(self.options.exhaustive_bits).unwrap_or(u64::MAX));
        let mut cut = Cut { position, choices, left: share };
        let result = if choices.count(true) <= limit {
            self.stats.exhaustive_cuts += 1;
            self.all(&mut cut, visit)
        } else if choices.count(false).saturating_mul(3) <= limit {
            self.stats.metadata_cuts += 1;
            self.all_metadata(&mut cut, visit)
        } else {
            self.stats.sampled_cuts += 1;
            self.sample(&mut cut, visit)
        };
        match result {
            Ok(()) | Err(Stop::Share) => Ok(()),
            Err(Stop::Failed(failure)) => Err(failure),
        }
    }

    fn all(&mut self, cut: &mut Cut<'_>, visit: Visit<'_>) -> Result<(), Stop> {
        let mut ways = vec![0; cut.choices.units.len()];
        loop {
            self.state(cut, &ways, visit)?;
            if !cut.choices.step(&mut ways, true) {
                return Ok(());
            }
        }
    }

    fn all_metadata(&mut self, cut: &mut Cut<'_>, visit: Visit<'_>) -> Result<(), Stop> {
        let mut rng = self.rng(cut);
        let mut ways = vec![0; cut.choices.units.len()];
        loop {
            for data in 0..3 {
                for (unit, way) in cut.choices.units.iter().zip(&mut ways) {
                    if unit.is_data() {
                        *way = if data < 2 { data } else { rng.index(unit.ways()) };
                    }
                }
                self.state(cut, &ways, visit)?;
            }
            if !cut.choices.step(&mut ways, false) {
                return Ok(());
            }
        }
    }

    fn sample(&mut self, cut: &mut Cut<'_>, visit: Visit<'_>) -> Result<(), Stop> {
        let mut rng = self.rng(cut);
        let units = &cut.choices.units;
        let (old, new) = (vec![0; units.len()], vec![1; units.len()]);
        self.state(cut, &old, visit)?;
        self.state(cut, &new, visit)?;
        for (index, unit) in units.iter().enumerate() {
            for way in 0..unit.ways() {
                self.state(cut, &with(&old, &[(index, way)]), visit)?;
                self.state(cut, &with(&new, &[(index, way)]), visit)?;
            }
        }
        for _ in 0..self.options.samples {
            // Nearly all, nearly nothing and all between, as losses that need a rare combination lie at either end.
            let permille = [60, 250, 500, 750, 940][rng.index(5)];
            let ways = units.iter().map(|unit| match rng.chance(permille) {
                true => 1 + rng.index(unit.ways() - 1),
                false => 0,
            });
            let ways: Vec<usize> = ways.collect();
            self.state(cut, &ways, visit)?;
        }
        for a in 0..units.len() {
            for b in 0..a {
                self.state(cut, &with(&old, &[(a, 1), (b, 1)]), visit)?;
                self.state(cut, &with(&new, &[(a, 0), (b, 0)]), visit)?;
            }
        }
        Ok(())
    }

    fn rng(&self, cut: &Cut<'_>) -> Rng {
        Rng::new(self.options.seed ^ (cut.position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Builds a state and shows it to the visitor, unless it has seen it.
    fn state(&mut self, cut: &mut Cut<'_>, ways: &[usize], visit: Visit<'_>) -> Result<(), Stop> {
        let pick = cut.choices.pick(ways);
        let disk = cut.choices.remains.disk(&pick);
        if !self.seen.insert(disk.durable_digest()) {
            self.stats.duplicates += 1;
            return Ok(());
        }
        if cut.left == 0 {
            self.stats.ran_out = true;
            return Err(Stop::Share);
        }
        cut.left -= 1;
        self.stats.states += 1;
        let state = CrashState { disk, position: cut.position, pick: &pick };
        visit(&state).map_err(|message| {
            let (pick, message) = reduce(cut, ways, message, visit);
            let (position, stats) = (cut.position, self.stats);
            Stop::Failed(Box::new(Failure { message, position, pick, stats }))
        })
    }
}

/// Of a refused choice, a smaller one that is refused too: what can go back to old by itself does.
fn reduce(cut: &Cut<'_>, ways: &[usize], message: String, visit: Visit<'_>) -> (CrashPick, String) {
    let (mut ways, mut message) = (ways.to_vec(), message);
    for index in 0..ways.len() {
        let without = with(&ways, &[(index, 0)]);
        let pick = cut.choices.pick(&without);
        let disk = cut.choices.remains.disk(&pick);
        if let Err(why) = visit(&CrashState { disk, position: cut.position, pick: &pick }) {
            (ways, message) = (without, why);
        }
    }
    (cut.choices.pick(&ways), message)
}

/// A choice with some of its ways changed.
fn with(ways: &[usize], changes: &[(usize, usize)]) -> Vec<usize> {
    let mut ways = ways.to_vec();
    changes.iter().for_each(|(index, way)| ways[*index] = *way);
    ways
}
