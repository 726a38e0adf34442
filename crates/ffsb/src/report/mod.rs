//! What a whole comparison gave, and the forms in which it is shown.
//!
//! ```text
//!  Report --figures--> medians, ranges, ratios --+-- table  (terminal)
//!    |                    |                      +-- csv    (one line per repetition)
//!    |                  noise                    +-- html   (one file, with plots)
//!    |                    |                      +-- findings (in words: nearest to bare metal, which setting costs)
//!   json                  +----------------------+-- compare  (two reports)
//! ```
//!
//! A report may come from a file that somebody else wrote: [`json`] checks it, and every form escapes its texts.

pub mod compare;
pub mod csv;
pub mod figures;
pub mod findings;
pub mod html;
pub mod json;
pub mod noise;
pub mod number;
pub mod table;

use crate::outcome::{Latency, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;

/// The version of [`Report`] that is written and read.
pub const VERSION: u32 = 1;

/// A comparison: every scenario on every subject at every number of threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this structure: 1.
    pub version: u32,
    /// Version of ferroblk that measured.
    pub ferroblk: String,
    /// The machine, in words: (what, value).
    pub machine: Vec<(String, String)>,
    /// When it began: seconds since 1970.
    pub started_unix: u64,
    /// How it was measured, in words: (what, value). Seconds per run, repetitions, seed, scale.
    pub settings: Vec<(String, String)>,
    /// What a reader must know to read the figures rightly; e.g. "the guest is emulated, not virtualised".
    pub remarks: Vec<String>,
    /// Index into `subjects` of what the others are compared with.
    pub baseline: usize,
    /// What was compared, in order.
    pub subjects: Vec<Subject>,
    /// Scenarios, in order.
    pub scenarios: Vec<String>,
    /// One for each scenario, subject and number of threads that was measured.
    pub cells: Vec<Cell>,
    /// Where the time of a request goes, if it was traced; one for each subject that was.
    pub traces: Vec<Trace>,
}

/// A thing that is measured.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Subject {
    /// Short and unique, e.g. `ferroblk qcow2 none io_uring`.
    pub name: String,
    /// Who serves the disk: `bare`, `ferroblk`, `qemu-storage-daemon`, `qemu`.
    pub server: String,
    /// How it reaches the workload: `bare`, `vhost-user` (no guest), `guest virtio`, `guest ide`, `guest vhost-user`, ...
    pub device: String,
    /// `raw`, `qcow2`, `qed`; `-` where there is no image.
    pub format: String,
    /// `none`, `writethrough`, ...
    pub cache: String,
    /// `io_uring`, `native`, `threads`, or for bare metal `sync`.
    pub aio: String,
}

/// One scenario on one subject with so many threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Index into `Report::scenarios`.
    pub scenario: usize,
    /// Index into `Report::subjects`.
    pub subject: usize,
    /// Threads of the workload.
    pub threads: u32,
    /// Each repetition.
    pub runs: Vec<Run>,
    /// Why it could not be measured, if so; then `runs` may be empty.
    pub failure: Option<String>,
}

/// One repetition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Seconds measured.
    pub seconds: f64,
    /// Transactions, as FFSB counts them.
    pub transactions: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Of single blocks.
    pub latency: Latency,
    /// CPU seconds of the workload itself: the generator's process, or in a guest all vCPUs together.
    pub workload_cpu_seconds: f64,
    /// CPU seconds of the server, kernel workers included; in a guest, QEMU's without its vCPUs plus the server's. 0 for bare metal.
    pub server_cpu_seconds: f64,
    /// CPU seconds of the whole host, everything included.
    pub host_cpu_seconds: f64,
    /// CPU seconds of each vCPU thread; empty without a guest.
    pub vcpu_seconds: Vec<f64>,
}

/// The way of a request through the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// Index into `Report::subjects`.
    pub subject: usize,
    /// Index into `Report::scenarios`.
    pub scenario: usize,
    /// Threads of the workload.
    pub threads: u32,
    /// Stages in order: name (`parsed`, `submitted`, ...) and time since the stage before.
    pub stages: Vec<(String, Latency)>,
    /// What tracing cost: percent of the throughput, measured beside a run without.
    pub cost_percent: Option<f64>,
}

impl Report {
    /// Whether it is one that can be shown: indices that exist, names that are unique, figures that are numbers.
    /// Else why not, on one line.
    pub fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("version {} is not known, only {VERSION}", self.version));
        }
        let names = self.subjects.iter().map(|s| s.name.as_str());
        unique("subject", names)?;
        unique("scenario", self.scenarios.iter().map(String::as_str))?;
        if self.baseline >= self.subjects.len() {
            return Err(format!("the baseline is subject {}, which is not there", self.baseline));
        }
        let mut seen = BTreeSet::new();
        for (n, cell) in self.cells.iter().enumerate() {
            self.check_place(cell.scenario, cell.subject).map_err(|e| format!("cell {n}: {e}"))?;
            if !seen.insert((cell.scenario, cell.subject, cell.threads)) {
                return Err(format!("cell {n} is there twice"));
            }
            for run in &cell.runs {
                run.check().map_err(|e| format!("cell {n}: {e}"))?;
            }
        }
        for (n, trace) in self.traces.iter().enumerate() {
            self.check_place(trace.scenario, trace.subject)
                .and_then(|()| trace.stages.iter().try_for_each(|(_, l)| l.check()))
                .map_err(|e| format!("trace {n}: {e}"))?;
        }
        Ok(())
    }

    fn check_place(&self, scenario: usize, subject: usize) -> Result<(), String> {
        match () {
            () if scenario >= self.scenarios.len() => Err(format!("no scenario {scenario}")),
            () if subject >= self.subjects.len() => Err(format!("no subject {subject}")),
            () => Ok(()),
        }
    }

    /// As [`Report::check`], for whoever writes one.
    fn checked(&self) -> io::Result<()> {
        let bad = |why| io::Error::new(io::ErrorKind::InvalidInput, format!("report: {why}"));
        self.check().map_err(bad)
    }
}

impl Run {
    /// What a report says of an outcome that was measured by this process; `server_cpu_seconds` and `host_cpu_seconds` were
    /// metered meanwhile.
    pub fn of(outcome: &Outcome, server_cpu_seconds: f64, host_cpu_seconds: f64) -> Run {
        let ops = || outcome.groups.iter().flat_map(|group| &group.ops);
        Run {
            // A run cannot be shorter; what divides by it stays a number.
            seconds: outcome.seconds.max(1e-9),
            transactions: ops().map(|op| op.transactions).sum(),
            read_bytes: ops().map(|op| op.read_bytes).sum(),
            written_bytes: ops().map(|op| op.written_bytes).sum(),
            latency: outcome.latency.clone(),
            workload_cpu_seconds: outcome.cpu_user_seconds + outcome.cpu_system_seconds,
            server_cpu_seconds,
            host_cpu_seconds,
            vcpu_seconds: Vec::new(),
        }
    }

    fn check(&self) -> Result<(), String> {
        let plain = [self.workload_cpu_seconds, self.server_cpu_seconds, self.host_cpu_seconds];
        let mut all = plain.iter().chain(&self.vcpu_seconds);
        if !all.all(|v| v.is_finite() && *v >= 0.0) {
            return Err("CPU seconds that are no number, or below 0".into());
        }
        if !(self.seconds.is_finite() && self.seconds > 0.0) {
            return Err("a run of no time".into());
        }
        self.latency.check()
    }
}

impl Latency {
    fn check(&self) -> Result<(), String> {
        let percentiles = [self.p50_us, self.p95_us, self.p99_us, self.p999_us, self.max_us];
        let mut all = percentiles.into_iter().chain([self.mean_us]);
        let bounds = self.buckets.iter().map(|b| b.0);
        if !all.all(|v| v.is_finite() && v >= 0.0) || !bounds.clone().all(f64::is_finite) {
            return Err("a latency that is no number, or below 0".into());
        }
        if !bounds.is_sorted() {
            return Err("latency buckets that do not ascend".into());
        }
        Ok(())
    }
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(format!("two {what}s are called `{}`", number::printable(name)));
        }
    }
    Ok(())
}
