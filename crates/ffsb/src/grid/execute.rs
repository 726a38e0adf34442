//! The grid at work: in what order, for how long, and what becomes of failures.

use super::plan::{Plan, Timing};
use super::sitting::{Audience, Broke, Measured, Room, Sitting};
use super::trace::Stages;
use super::{GridError, Status, machine};
use crate::clock;
use crate::report::figures::{Measure, Spread};
use crate::report::{Cell, Report, Trace, VERSION};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Seconds that a sitting takes besides its measurements, until it is known better.
const OVERHEAD: f64 = 0.4;
/// A shorter measurement says nothing.
const LEAST_SECONDS: f64 = 0.05;

/// (workload, subject, threads)
type Place = (usize, usize, u32);

impl Plan {
    /// Measures everything. A measurement that fails is noted in the report, and the rest goes on. `status` is told before each
    /// measurement.
    ///
    /// # Errors
    ///
    /// The scratch directories cannot be made, or `stop` was set. Nothing is left in either case.
    pub fn execute(
        &self,
        stop: &AtomicBool,
        status: &dyn Fn(&Status),
    ) -> Result<Report, GridError> {
        let refuse = |what: &Path, error: std::io::Error| {
            GridError::Refused(format!("making a scratch directory in {}: {error}", what.display()))
        };
        let scratch = |dir: &Path| {
            let made = tempfile::Builder::new().prefix("ferroblk-bench-").tempdir_in(dir);
            made.map_err(|error| refuse(dir, error))
        };
        let (images, sockets) = (scratch(&self.options.dir)?, scratch(&std::env::temp_dir())?);
        let program = match &self.options.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().map_err(|error| {
                GridError::Refused(format!("finding the running binary: {error}"))
            })?,
        };
        let started_unix = clock::unix_seconds();
        let mut work = Work::new(self, status);
        let room = Room {
            plan: self,
            images: images.path(),
            sockets: sockets.path(),
            program: &program,
            stop,
        };
        for sitting in self.order() {
            if stop.load(Ordering::Relaxed) {
                return Err(GridError::Interrupted);
            }
            work.hold(&room, &sitting)?;
        }
        let dir: PathBuf = self.options.dir.canonicalize().unwrap_or(self.options.dir.clone());
        Ok(work.report(started_unix, machine::describe(&dir)))
    }

    /// All sittings: a workload after the other, its repetitions round robin over the subjects, each round in the other direction.
    fn order(&self) -> Vec<Seat> {
        let mut order = Vec::new();
        for (workload, threads) in self.threads.iter().enumerate() {
            // What it makes on an empty disk is what is measured: each time on a new one.
            let apart = self.options.workloads[workload].begins_empty();
            let size = if apart { 1 } else { threads.len() };
            let starts = (0..threads.len()).step_by(size);
            let parts: Vec<_> = starts.map(|start| start..start + size).collect();
            for repetition in 0..self.options.repetitions {
                let mut round = Vec::new();
                for subject in 0..self.subjects.len() {
                    let twice = self.is_traced(&self.subjects[subject]);
                    for threads in &parts {
                        for traced in [false, true].into_iter().filter(|traced| !traced || twice) {
                            let threads = threads.clone();
                            round.push(Seat { workload, subject, threads, repetition, traced });
                        }
                    }
                }
                if repetition % 2 == 1 {
                    round.reverse();
                }
                order.extend(round);
            }
        }
        order
    }

    fn settings(&self, shortest: f64, longest: f64) -> Vec<(String, String)> {
        let options = &self.options;
        let seconds = match longest - shortest < 0.01 {
            true => format!("{longest:.2}"),
            false => format!("{shortest:.2} to {longest:.2}"),
        };
        let mut settings = vec![("seconds of a run".to_owned(), seconds)];
        let mut add = |what: &str, value: String| settings.push((what.to_owned(), value));
        if let Timing::Budget { total, .. } = options.timing {
            add("budget", format!("{} s for everything", total.as_secs()));
        }
        add("repetitions", options.repetitions.to_string());
        add("warm-up", format!("{} s", options.warm_up_seconds));
        add("seed", options.seed.map_or("the profile's own, or 0".to_owned(), |n| n.to_string()));
        add("verification", if options.verify { "on" } else { "off" }.to_owned());
        add("disk", format!("{} MiB, new for each sitting", self.disk_bytes >> 20));
        add("queues", options.queues.to_string());
        add("I/O threads", format!("{} (ferroblk), 1 (others)", options.iothreads));
        let mut notes: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for workload in &options.workloads {
            notes.entry(workload.note()).or_default().push(workload.name());
        }
        for (note, names) in notes {
            add(
                &format!("data set of {}", names[0]),
                match names.len() {
                    1 => note,
                    _ => format!("{note}; so for {}", names[1..].join(", ")),
                },
            );
        }
        settings
    }
}

/// A sitting in the order of the grid.
#[derive(Clone, Debug)]
struct Seat {
    workload: usize,
    subject: usize,
    /// Of the workload's numbers of threads.
    threads: std::ops::Range<usize>,
    repetition: u32,
    traced: bool,
}

/// What is known so far.
struct Work<'a> {
    plan: &'a Plan,
    status: &'a dyn Fn(&Status),
    begun: Instant,
    cells: BTreeMap<Place, Cell>,
    /// Runs with a trace: transactions per second of each, and the stages of all.
    traces: BTreeMap<Place, (Vec<f64>, Stages)>,
    done: usize,
    total: usize,
    /// Sittings to come, the one under way not among them, and those that were.
    sittings_left: usize,
    sittings_done: usize,
    /// Seconds that were measured.
    measured: f64,
    seat: Option<Seat>,
}

impl<'a> Work<'a> {
    fn new(plan: &'a Plan, status: &'a dyn Fn(&Status)) -> Work<'a> {
        let mut cells = BTreeMap::new();
        for (workload, threads) in plan.threads.iter().enumerate() {
            for subject in 0..plan.subjects.len() {
                for (threads, _) in threads {
                    let cell = Cell {
                        scenario: workload,
                        subject,
                        threads: *threads,
                        runs: Vec::new(),
                        failure: None,
                    };
                    cells.insert((workload, subject, *threads), cell);
                }
            }
        }
        Work {
            plan,
            status,
            begun: clock::now(),
            cells,
            traces: BTreeMap::new(),
            done: 0,
            total: plan.measurements(),
            sittings_left: plan.order().len(),
            sittings_done: 0,
            measured: 0.0,
            seat: None,
        }
    }

    /// Holds a sitting, again after a failure for what is left of it.
    fn hold(&mut self, room: &Room<'_>, seat: &Seat) -> Result<(), GridError> {
        self.sittings_left -= 1;
        self.seat = Some(seat.clone());
        let plan = self.plan;
        let all = &plan.threads[seat.workload][seat.threads.clone()];
        let end = self.done + all.len();
        while self.done < end {
            let left = &all[all.len() - (end - self.done)..];
            let sitting = Sitting {
                workload: &plan.options.workloads[seat.workload],
                subject: &plan.subjects[seat.subject],
                threads: left,
                traced: seat.traced,
            };
            let before = self.done;
            let Err(broke) = room.hold(&sitting, self) else { break };
            if matches!(broke, Broke::Interrupted) || room.stop.load(Ordering::Relaxed) {
                return Err(GridError::Interrupted);
            }
            // Removing files is all that can fail after the last was done, which then counts.
            let at = (self.done - before).min(left.len() - 1);
            let (failed, why) = match broke {
                Broke::All(why) => (&left[at..], why),
                Broke::One(why) => (&left[at..=at], why),
                Broke::Interrupted => unreachable!("dealt with above"),
            };
            for (threads, _) in failed {
                self.fail(*threads, &why);
            }
            self.done = (before + at + failed.len()).max(self.done);
        }
        self.sittings_done += 1;
        Ok(())
    }

    fn place(&self, threads: u32) -> Place {
        let seat = self.seat.as_ref().expect("somebody sits");
        (seat.workload, seat.subject, threads)
    }

    /// The first failure of a cell is kept.
    fn fail(&mut self, threads: u32, why: &str) {
        let traced = self.seat.as_ref().is_some_and(|seat| seat.traced);
        let place = self.place(threads);
        if let Some(cell) = self.cells.get_mut(&place) {
            let why = if traced { format!("with --trace: {why}") } else { why.to_owned() };
            cell.failure.get_or_insert(why);
        }
    }

    fn report(self, started_unix: u64, machine: Vec<(String, String)>) -> Report {
        let plan = self.plan;
        let lengths = || self.cells.values().flat_map(|cell| &cell.runs).map(|run| run.seconds);
        let (shortest, longest) =
            (lengths().fold(f64::INFINITY, f64::min), lengths().fold(0.0, f64::max));
        let mut remarks = plan.remarks.clone();
        let traces = self.traces();
        if !traces.is_empty() {
            remarks.push(TRACE_REMARK.to_owned());
        }
        if matches!(plan.options.timing, Timing::Budget { .. }) {
            remarks.push(BUDGET_REMARK.to_owned());
        }
        Report {
            version: VERSION,
            ferroblk: env!("CARGO_PKG_VERSION").to_owned(),
            machine,
            started_unix,
            settings: plan.settings(shortest.min(longest), longest),
            remarks,
            baseline: plan.baseline,
            subjects: plan.subjects.iter().map(|subject| subject.shown.clone()).collect(),
            scenarios: plan.options.workloads.iter().map(|one| one.name().to_owned()).collect(),
            cells: self.cells.into_values().collect(),
            traces,
        }
    }

    fn traces(&self) -> Vec<Trace> {
        let trace = |(place, (with, stages)): (&Place, &(Vec<f64>, Stages))| {
            let runs = self.cells.get(place).map(|cell| cell.values(Measure::Iops));
            let without = runs.and_then(|values| Spread::of(&values)).map(|spread| spread.median);
            let with = Spread::of(with).map(|spread| spread.median);
            let cost = without.zip(with).filter(|(without, _)| *without > 0.0);
            Trace {
                scenario: place.0,
                subject: place.1,
                threads: place.2,
                stages: stages.latencies(),
                cost_percent: cost.map(|(without, with)| 100.0 * (1.0 - with / without)),
            }
        };
        let sampled = self.traces.iter().filter(|(_, (_, stages))| stages.sampled() > 0);
        sampled.map(trace).collect()
    }
}

const TRACE_REMARK: &str = "what tracing costs is the ratio of the medians of runs with and without it, one after the other; \
     it has the noise of both, and is below 0 where that is larger than the cost";
const BUDGET_REMARK: &str = "each figure is a single short run, so that everything is done in three minutes: it shows orders of \
     magnitude; what is to be relied on takes --seconds 10 --repetitions 5 and a --scale with data beyond the caches";

impl Audience for Work<'_> {
    fn begin(&self, threads: u32) -> Result<Option<f64>, String> {
        let seat = self.seat.as_ref().expect("somebody sits");
        let options = &self.plan.options;
        let elapsed = self.begun.elapsed().as_secs_f64();
        let left = self.total - self.done;
        let pace = (self.done > 0).then(|| elapsed / self.done as f64 * left as f64);
        let trace = if seat.traced { ", traced" } else { "" };
        let round = match options.repetitions {
            1 => String::new(),
            all => format!(", {} of {all}", seat.repetition + 1),
        };
        let doing = format!(
            "{} on {}, {}{round}{trace}",
            options.workloads[seat.workload].name(),
            self.plan.subjects[seat.subject].shown.name,
            crate::report::number::threads(threads),
        );
        (self.status)(&Status { doing, done: self.done, total: self.total, seconds_left: pace });
        match options.timing {
            Timing::Each { seconds, otherwise } => {
                Ok(seconds.or(options.workloads[seat.workload].own_seconds(otherwise)))
            }
            Timing::Budget { total, most } => {
                budgeted(total, most, elapsed, left, self.overhead(elapsed)).map(Some)
            }
        }
    }

    fn done(&mut self, threads: u32, measured: Measured) {
        let place = self.place(threads);
        self.measured += measured.run.seconds;
        self.done += 1;
        match measured.stages {
            Some(stages) => {
                let (rates, all) = self.traces.entry(place).or_default();
                rates.extend(Measure::Iops.of(&measured.run));
                all.add(stages);
            }
            None => {
                if let Some(cell) = self.cells.get_mut(&place) {
                    cell.runs.push(measured.run);
                }
            }
        }
    }
}

impl Work<'_> {
    /// Seconds that sittings to come take besides their measurements.
    fn overhead(&self, elapsed: f64) -> f64 {
        let each = match self.sittings_done {
            0..4 => OVERHEAD,
            done => (elapsed - self.measured).max(0.0) / done as f64,
        };
        each * self.sittings_left as f64
    }
}

/// Seconds for the next of `left` measurements.
fn budgeted(
    total: Duration,
    most: f64,
    elapsed: f64,
    left: usize,
    overhead: f64,
) -> Result<f64, String> {
    let time = total.as_secs_f64() - elapsed;
    if time <= 0.0 {
        return Err(format!("no time was left of {} s", total.as_secs()));
    }
    Ok(((time - overhead) / left.max(1) as f64).clamp(LEAST_SECONDS, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_shared_out_and_ends() {
        let total = Duration::from_secs(100);
        assert_eq!(budgeted(total, 9.0, 20.0, 10, 30.0), Ok(5.0));
        assert_eq!(budgeted(total, 0.5, 20.0, 10, 30.0), Ok(0.5));
        assert_eq!(budgeted(total, 9.0, 90.0, 10, 30.0), Ok(LEAST_SECONDS));
        assert_eq!(
            budgeted(total, 9.0, 100.0, 10, 0.0),
            Err("no time was left of 100 s".to_owned())
        );
    }
}
