//! What must be true of every state: the invariants of the crash rules, by the driver's own recovery and by a checker that shares no code with it.

use crate::driver::{Machine, write};
use crate::setup::{Kind, Start, Verdict};
use crate::snapshot;
use crate::workload::{Ask, Run, record_on};
use io_engine::SysKind;
use io_engine::sim::{LogEvent, SimDisk};
use sim::enumerate::{CrashState, Failure, Options, Stats, enumerate};
use sim::model::{Promise, stamp};
use std::ops::Range;

/// One state in so many is opened read-only as well, and has the power cut during its recovery and second life.
const DEEPER_EVERY: u64 = 64;
const DEEPER_STATES: u64 = 24;

pub struct Judge<'a> {
    run: &'a Run,
    machine: &'a Machine,
    metadata: &'a [Range<u64>],
    metadata_clusters_max: u64,
    /// What holds at a place in the log: it, what the guest was promised, and how many clusters of data may be leaked.
    promise: (usize, Promise<'a>, u64),
    seen: u64,
    /// States judged within recoveries; `None` in one.
    deeper: Option<u64>,
}

/// Judges every state of a run, with `log` in place of what really happened. Gives also how many states of second lives were judged.
pub fn judge_all(
    run: &Run,
    log: &[LogEvent],
    machine: &Machine,
    states_max: u64,
    seed: u64,
) -> (Result<Stats, Box<Failure>>, u64) {
    let options = Options { states_max, samples: 256, seed, ..Options::default() };
    judge_states(run, log, machine, options, Some(0))
}

fn judge_states(
    run: &Run,
    log: &[LogEvent],
    machine: &Machine,
    options: Options<'_>,
    deeper: Option<u64>,
) -> (Result<Stats, Box<Failure>>, u64) {
    let end = run.start.disk.fork();
    end.replay(log);
    let metadata = run.setup.kind.metadata(&end);
    let options = Options {
        is_metadata: &|at| metadata.iter().any(|range| range.contains(&at)),
        promise: &|position| run.history.promises_by(position),
        exhaustive_bits: 12,
        ..options
    };
    let promise = (0, run.history.promise_at(0), run.leaks_max(0, &metadata));
    let metadata_clusters_max = run.setup.kind.metadata_clusters_max(&end);
    let metadata = &metadata[..];
    let mut judge =
        Judge { run, machine, metadata, metadata_clusters_max, promise, seen: 0, deeper };
    let result = enumerate(&run.start.disk, log, &options, |state| judge.state(state));
    (result, judge.deeper.unwrap_or(0))
}

impl Judge<'_> {
    fn state(&mut self, state: &CrashState<'_>) -> Result<(), String> {
        let (run, position) = (self.run, state.position);
        if self.promise.0 != position {
            let leaks_max = run.leaks_max(position, self.metadata);
            self.promise = (position, run.history.promise_at(position), leaks_max);
        }
        self.seen += 1;
        let is_deeper = self.deeper.is_some() && self.seen.is_multiple_of(DEEPER_EVERY);
        let before = is_deeper.then(|| state.disk.fork());
        let verdict = run.setup.kind.check(&state.disk);
        verdict.crash.clone()?;
        self.leaks(&verdict)?;
        self.snapshot(&state.disk)?;
        let content = self.recovered(&state.disk, &verdict)?;
        if let Some(before) = before {
            self.independently(&before)?;
            self.read_only(&before.fork(), &verdict)?;
            self.cut_second_life(before, content)?;
        }
        Ok(())
    }

    /// I10.
    fn leaks(&self, verdict: &Verdict) -> Result<(), String> {
        let (leaked, most) = (verdict.leaked, self.promise.2 + self.metadata_clusters_max);
        match self.run.setup.kind {
            // What is not referenced is free there: nothing can be leaked for good.
            Kind::Qed => Ok(()),
            Kind::Qcow2(_) if leaked <= most => Ok(()),
            Kind::Qcow2(_) => Err(format!("I10: {leaked} clusters leaked, {most} at most may be")),
        }
    }

    /// I11.
    fn snapshot(&self, disk: &SimDisk) -> Result<(), String> {
        let Some(expected) = &self.run.start.snapshot else { return Ok(()) };
        let mut found = vec![0; expected.len()];
        snapshot::read(disk, self.run.start.backing.as_ref(), &mut found)
            .map_err(|e| format!("I11: reading the snapshot: {e}"))?;
        let is_same = found == *expected;
        is_same.then_some(()).ok_or_else(|| "I11: the snapshot has changed".into())
    }

    /// I1, I4 to I7, I9: it opens, the guest finds what it was promised, and a second life on it goes well. Gives what the guest found.
    fn recovered(&self, disk: &SimDisk, before: &Verdict) -> Result<Vec<u8>, String> {
        let (machine, setup) = (self.machine, &self.run.setup);
        let (backing, len) = (self.run.start.backing.as_ref(), setup.bytes as usize);
        let node = machine.open(setup, disk, backing, false).map_err(|e| format!("I1: {e}"))?;
        let recovered = machine.read(&node, len).map_err(|e| format!("I1: reading: {e}"))?;
        self.promised(&recovered)?;
        let mut content = recovered.clone();
        for (at, bytes) in self.second_life() {
            let data: Vec<u8> =
                (at / 512..(at + bytes) / 512).flat_map(|n| stamp(n, 1 << 40)).collect();
            content[at as usize..(at + bytes) as usize].copy_from_slice(&data);
            let written = write(machine, &node, at, machine.data(&data), false);
            machine.run(written).then_some(()).ok_or("I9: a write failed")?;
        }
        let found = machine.read(&node, len).map_err(|e| format!("I9: reading: {e}"))?;
        if found != content {
            return Err("I9: new writes changed something else".into());
        }
        machine.close(node).map_err(|e| format!("I9: closing: {e}"))?;
        let after = setup.kind.check(disk);
        after.closed.map_err(|e| format!("I9: after a second life: {e}"))?;
        if matches!(setup.kind, Kind::Qcow2(_)) && after.leaked > before.leaked {
            let (now, then) = (after.leaked, before.leaked);
            return Err(format!("I10: {now} clusters leaked after a second life, {then} before"));
        }
        self.snapshot(disk)?;
        let node = machine.open(setup, disk, backing, true).map_err(|e| format!("I9: {e}"))?;
        let found = machine.read(&node, len).map_err(|e| format!("I9: reading: {e}"))?;
        let is_same = found == content;
        is_same
            .then_some(recovered)
            .ok_or_else(|| "I9: it reads differently when opened again".into())
    }

    /// What is written after a crash: offsets and lengths.
    fn second_life(&self) -> [(u64, u64); 3] {
        let cluster = self.run.setup.cluster();
        [(13 * cluster, 512), (5 * cluster + 1024, cluster), (0, 512)]
    }

    fn promised(&self, content: &[u8]) -> Result<(), String> {
        self.promise.1.judge(|at, into| {
            into.copy_from_slice(&content[at as usize..at as usize + into.len()]);
            Ok(())
        })
    }

    /// A reader that knows nothing of the driver finds what was promised.
    fn independently(&self, disk: &SimDisk) -> Result<(), String> {
        let mut content = vec![0; self.run.setup.bytes as usize];
        let read = self.run.setup.kind.read(disk, self.run.start.backing.as_ref(), &mut content);
        read.map_err(|e| format!("I1: reading independently: {e}"))?;
        self.promised(&content).map_err(|e| format!("read independently: {e}"))
    }

    /// A read-only open finds the same, and writes nothing.
    fn read_only(&self, disk: &SimDisk, verdict: &Verdict) -> Result<(), String> {
        let (setup, backing) = (&self.run.setup, self.run.start.backing.as_ref());
        let failed = |e: block::Error| format!("read-only: {e}");
        let node = self.machine.open(setup, disk, backing, true).map_err(failed)?;
        // Entries beyond the file are an error there, and no promise about them can have been made: only without them all can be read.
        if verdict.is_readable {
            let content = self.machine.read(&node, setup.bytes as usize);
            self.promised(&content.map_err(failed)?)?;
        }
        self.machine.close(node).map_err(failed)?;
        let writes =
            [SysKind::Pwritev, SysKind::PwritevDsync, SysKind::Ftruncate, SysKind::Fallocate];
        match writes.iter().all(|kind| disk.count(*kind) == 0) {
            true => Ok(()),
            false => Err("a read-only open wrote".into()),
        }
    }

    /// I8: the power is cut again while the image is being recovered, and while it is used after that.
    fn cut_second_life(&mut self, before: SimDisk, content: Vec<u8>) -> Result<(), String> {
        let run = self.run;
        let (backing, snapshot) = (run.start.backing.clone(), run.start.snapshot.clone());
        let start = Start { disk: before, backing, content, snapshot };
        let mut asks: Vec<Ask> =
            self.second_life().iter().map(|(at, len)| Ask::Write(*at, *len)).collect();
        asks.push(Ask::Flush);
        let second =
            record_on(run.setup, start, &asks, self.machine).map_err(|e| format!("I8: {e}"))?;
        let options = Options { states_max: DEEPER_STATES, samples: 16, ..Options::default() };
        let (result, _) = judge_states(&second, &second.log, self.machine, options, None);
        match result {
            Ok(stats) => {
                self.deeper = self.deeper.map(|states| states + stats.states);
                Ok(())
            }
            Err(failure) => Err(format!("I8: {}", failure.message)),
        }
    }
}
