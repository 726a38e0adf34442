//! What must be true of every state: the invariants of the crash rules, by the driver's own recovery and by a checker that shares no code with it.

use crate::driver::{Machine, write};
use crate::workload::{CLUSTER, Run};
use io_engine::SysKind;
use io_engine::sim::{LogEvent, SimDisk};
use sim::enumerate::{CrashState, Failure, Options, Stats, enumerate};
use sim::model::{Promise, stamp};
use sim::qed::{self, Qed};

/// One state in so many is opened read-only as well, and has the power cut during its recovery.
const DEEPER_EVERY: u64 = 32;
const DEEPER_STATES: u64 = 48;

pub struct Judge<'a> {
    run: &'a Run,
    machine: &'a Machine,
    promise: (usize, Promise<'a>),
    seen: u64,
    /// States judged within recoveries.
    pub deeper: u64,
}

/// Judges every state of a run, with `log` in place of what really happened.
pub fn judge_all<'a>(
    run: &'a Run,
    log: &[LogEvent],
    machine: &'a Machine,
    states_max: u64,
    seed: u64,
) -> (Result<Stats, Box<Failure>>, u64) {
    let end = run.start.fork();
    end.replay(log);
    let metadata = Qed::open(&end).map(|image| image.metadata()).unwrap_or_default();
    let options = Options {
        is_metadata: &|at| metadata.iter().any(|range| range.contains(&at)),
        promise: &|position| run.history.promises_by(position),
        states_max,
        samples: 256,
        exhaustive_bits: 12,
        seed,
    };
    let promise = (0, run.history.promise_at(0));
    let mut judge = Judge { run, machine, promise, seen: 0, deeper: 0 };
    let result = enumerate(&run.start, log, &options, |state| judge.state(state));
    (result, judge.deeper)
}

impl Judge<'_> {
    fn state(&mut self, state: &CrashState<'_>) -> Result<(), String> {
        if self.promise.0 != state.position {
            self.promise = (state.position, self.run.history.promise_at(state.position));
        }
        self.seen += 1;
        let deeper = self.seen.is_multiple_of(DEEPER_EVERY);
        let before = deeper.then(|| state.disk.fork());
        qed::check(&state.disk).judge_crash()?;
        self.recovered(&state.disk)?;
        if let Some(before) = before {
            self.read_only(&before.fork())?;
            self.cut_recovery(&before)?;
        }
        Ok(())
    }

    /// I1, I4 to I7, I9: it opens, the guest finds what it was promised, and a second life on it goes well.
    fn recovered(&self, disk: &SimDisk) -> Result<(), String> {
        let (machine, backing) = (self.machine, self.run.backing.as_ref());
        let len = self.run.setup.bytes as usize;
        let node = machine.open(disk, backing, false).map_err(|e| format!("I1: {e}"))?;
        let mut content = machine.read(&node, len).map_err(|e| format!("I1: reading: {e}"))?;
        self.promised(&content)?;
        let mut second = |at: u64, bytes: u64| {
            let data: Vec<u8> =
                (at / 512..(at + bytes) / 512).flat_map(|n| stamp(n, 1 << 40)).collect();
            content[at as usize..(at + bytes) as usize].copy_from_slice(&data);
            let written = write(machine, &node, at, machine.data(&data), false);
            machine.run(written).then_some(()).ok_or("I9: a write failed")
        };
        second(13 * CLUSTER, 512)?;
        second(5 * CLUSTER + 1024, CLUSTER)?;
        second(0, 512)?;
        let found = machine.read(&node, len).map_err(|e| format!("I9: reading: {e}"))?;
        if found != content {
            return Err("I9: new writes changed something else".into());
        }
        machine.close(node).map_err(|e| format!("I9: closing: {e}"))?;
        let report = qed::check(disk);
        if !report.is_sound() || report.need_check {
            return Err(format!("I9: after a second life: {:?}", report.damage));
        }
        let node = machine.open(disk, backing, true).map_err(|e| format!("I9: {e}"))?;
        let found = machine.read(&node, len).map_err(|e| format!("I9: reading: {e}"))?;
        if found != content {
            Err("I9: it reads differently when opened again".into())
        } else {
            Ok(())
        }
    }

    fn promised(&self, content: &[u8]) -> Result<(), String> {
        self.promise.1.judge(|at, into| {
            into.copy_from_slice(&content[at as usize..at as usize + into.len()]);
            Ok(())
        })
    }

    /// A read-only open finds the same, and writes nothing.
    fn read_only(&self, disk: &SimDisk) -> Result<(), String> {
        let backing = self.run.backing.as_ref();
        let node = self.machine.open(disk, backing, true).map_err(|e| format!("read-only: {e}"))?;
        // Entries beyond the file are an error there, and no promise about them can have been made: only without them all can be read.
        if qed::check(disk).damage_count == 0 {
            let content = self.machine.read(&node, self.run.setup.bytes as usize);
            self.promised(&content.map_err(|e| format!("read-only: {e}"))?)?;
        }
        self.machine.close(node).map_err(|e| format!("read-only: {e}"))?;
        let writes =
            [SysKind::Pwritev, SysKind::PwritevDsync, SysKind::Ftruncate, SysKind::Fallocate];
        match writes.iter().all(|kind| disk.count(*kind) == 0) {
            true => Ok(()),
            false => Err("a read-only open wrote".into()),
        }
    }

    /// I8: the power is cut again while the image is being recovered.
    fn cut_recovery(&mut self, before: &SimDisk) -> Result<(), String> {
        let disk = before.fork();
        let backing = self.run.backing.as_ref();
        let node = self.machine.open(&disk, backing, false).map_err(|e| format!("I8: {e}"))?;
        drop(node);
        // Its background task ends.
        self.machine.run(async {});
        let log = disk.write_log();
        let options = Options { states_max: DEEPER_STATES, samples: 16, ..Options::default() };
        let stats = enumerate(before, &log, &options, |state| {
            qed::check(&state.disk).judge_crash().map_err(|e| format!("I8: {e}"))?;
            self.recovered(&state.disk).map_err(|e| format!("I8: {e}"))
        });
        match stats {
            Ok(stats) => {
                self.deeper += stats.states;
                Ok(())
            }
            Err(failure) => Err(failure.message.clone()),
        }
    }
}
