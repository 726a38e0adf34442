//! What a whole comparison gave, and the forms in which it is shown.

use crate::outcome::Latency;
use serde::{Deserialize, Serialize};

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
