//! The benchmark proper: all threads of all groups, from one start to one end.

use super::draw::{self, OpTable, Purpose};
use super::error::RunError;
use super::io::Io;
use super::ops::Worker;
use super::shared::{Course, Shared, Waited};
use super::tally::{self, Tally};
use super::target::Target;
use super::{Control, Job, Phase, spawn, sync};
use crate::clock;
use crate::disk::Lane;
use crate::files::Access;
use crate::files::set::SetKind;
use crate::outcome::{Latency, Outcome, Phases};
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A count that one thread writes and another reads, on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Live(AtomicU64);

/// CPU time of this process and of its children that have ended, as FFSB adds it up.
#[derive(Clone, Copy, Debug)]
struct Cpu {
    user: f64,
    system: f64,
}

impl Cpu {
    fn so_far() -> Cpu {
        let sum = |time: fn(&Usage) -> i64| {
            let of = |who| getrusage(who).map_or(0, |usage| time(&usage));
            (of(UsageWho::RUSAGE_SELF) + of(UsageWho::RUSAGE_CHILDREN)) as f64 / 1e6
        };
        Cpu {
            user: sum(|usage| usage.user_time().num_microseconds()),
            system: sum(|usage| usage.system_time().num_microseconds()),
        }
    }
}

/// The moment from which everything counts.
#[derive(Clone, Copy, Debug)]
struct Start {
    at: Instant,
    unix: u64,
    cpu: Cpu,
}

impl Start {
    fn now(control: &Control<'_>, live: u64) -> Start {
        control.tell(Phase::Measure, Some(0.0), live);
        Start { cpu: Cpu::so_far(), unix: clock::unix_seconds(), at: clock::now() }
    }
}

/// The outcome of a profile that only makes files.
pub(crate) fn nothing(job: &Job<'_>, setup_seconds: f64) -> Outcome {
    let now = clock::unix_seconds();
    Outcome {
        setup_seconds,
        started_unix: now,
        finished_unix: now,
        seconds: 0.0,
        seed: job.seed,
        phases: Phases::default(),
        groups: Vec::new(),
        latency: Latency::default(),
        cpu_user_seconds: 0.0,
        cpu_system_seconds: 0.0,
    }
}

pub(crate) fn measure(
    job: &Job<'_>,
    control: &Control<'_>,
    targets: &[Target<'_>],
    lanes: &mut [Box<dyn Lane>],
    setup_seconds: f64,
) -> Result<Outcome, RunError> {
    let groups = &job.profile.thread_groups;
    let tables: Vec<OpTable> = groups.iter().map(OpTable::new).collect();
    let threads: usize = groups.iter().map(|group| group.num_threads as usize).sum();
    let live: Vec<Live> = (0..threads).map(|_| Live::default()).collect();
    let timed = job.profile.time.is_some() || control.seconds.is_some();
    let warms_up = control.warm_up_seconds > 0.0;
    let course = if warms_up { Course::WarmUp } else { Course::Measure };
    let shared = Shared::new(control.stop, course);

    let (start, tallies) = std::thread::scope(|scope| {
        let (mut live_of, mut lane_of) = (live.iter(), lanes.iter_mut());
        let mut handles = Vec::new();
        for (index, table) in tables.iter().enumerate() {
            let iterations = groups[index].iterations.filter(|_| !timed);
            let mut of_group = Vec::new();
            for thread in 0..groups[index].num_threads as usize {
                let place = (index, thread);
                let mut worker = worker(job, targets, table, &shared, place, lane_of.next());
                if let Some(live) = live_of.next() {
                    worker.io.tell(&live.0);
                }
                let name = format!("ffsb-{index}-{thread}");
                of_group.extend(spawn(scope, &shared, &name, move || worker.run(iterations)));
            }
            handles.push(of_group);
        }
        let start = conduct(job, control, &shared, &live);
        let tallies: Vec<Vec<Tally>> = handles
            .into_iter()
            .map(|group| group.into_iter().map(|handle| joined(handle.join())).collect())
            .collect();
        (start, tallies)
    });
    shared.result()?;
    let sync_begun = clock::now();
    sync(targets, lanes)?;
    let sync_after_seconds = sync_begun.elapsed().as_secs_f64();
    let seconds = start.at.elapsed().as_secs_f64();
    let (finished_unix, cpu) = (clock::unix_seconds(), Cpu::so_far());
    let transactions = total(&live);
    control.tell(Phase::Measured, Some(1.0), transactions);

    let of_group = |(tallies, group): (&Vec<Tally>, &crate::profile::ThreadGroup)| {
        tally::group_outcome(tallies, &group.stats)
    };
    Ok(Outcome {
        setup_seconds,
        started_unix: start.unix,
        finished_unix,
        seconds,
        seed: job.seed,
        phases: Phases { sync_after_seconds, ..Phases::default() },
        groups: tallies.iter().zip(groups).map(of_group).collect(),
        latency: tally::latency(tallies.iter().flatten()),
        cpu_user_seconds: cpu.user - start.cpu.user,
        cpu_system_seconds: cpu.system - start.cpu.system,
    })
}

/// A thread's result; its panic goes on here.
fn joined<T>(result: std::thread::Result<T>) -> T {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn worker<'a>(
    job: &'a Job<'a>,
    targets: &'a [Target<'a>],
    table: &'a OpTable,
    shared: &'a Shared<'a>,
    (index, thread): (usize, usize),
    lane: Option<&'a mut Box<dyn Lane>>,
) -> Worker<'a> {
    let group = &job.profile.thread_groups[index];
    let of = |purpose| draw::generator(job.seed, purpose, index, thread);
    let tally = Tally::new(job.latencies, &group.stats);
    let content = of(Purpose::Content);
    let mut io = Io::new(shared, Access::new(lane), tally, job.longest_block, content);
    io.verify = job.profile.verify;
    io.seeks = job.seeks;
    Worker {
        io,
        targets,
        kind: SetKind::Data,
        group,
        table,
        operations: of(Purpose::Operations),
        places: of(Purpose::Places),
    }
}

/// Starts all threads together, tells how far they are, and ends them when it is time.
fn conduct(job: &Job<'_>, control: &Control<'_>, shared: &Shared<'_>, live: &[Live]) -> Start {
    let after = |seconds: f64| {
        Duration::try_from_secs_f64(seconds).ok().and_then(|time| clock::now().checked_add(time))
    };
    shared.wait_until_ready();
    let mut start = None;
    if shared.course() == Course::WarmUp {
        control.tell(Phase::WarmUp, Some(0.0), 0);
        shared.start();
        let (begun, seconds) = (clock::now(), control.warm_up_seconds);
        shared.wait(after(seconds), || {
            let fraction = begun.elapsed().as_secs_f64() / seconds;
            control.tell(Phase::WarmUp, Some(fraction.min(1.0)), total(live));
        });
    } else {
        start = Some(Start::now(control, 0));
    }
    let start = start.unwrap_or_else(|| Start::now(control, 0));
    shared.steer(Course::Measure);
    shared.start();
    let time = control.seconds.or(job.profile.time.map(f64::from));
    let deadline = time.and_then(after);
    let waited = shared.wait(deadline, || {
        let fraction = time.map(|time| (start.at.elapsed().as_secs_f64() / time).min(1.0));
        control.tell(Phase::Measure, fraction, total(live));
    });
    if waited == Waited::TimeUp {
        shared.steer(if control.cut { Course::Cut } else { Course::End });
        shared.wait(None, || control.tell(Phase::Measure, Some(1.0), total(live)));
    }
    start
}

fn total(live: &[Live]) -> u64 {
    live.iter().map(|live| live.0.load(Ordering::Relaxed)).sum()
}
