//! What one run of a profile gave.

use crate::profile::{Op, Syscall};
use serde::{Deserialize, Serialize};

/// The figures of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Seconds the set-up took (files made, ageing).
    pub setup_seconds: f64,
    /// When the benchmark began: seconds since 1970.
    pub started_unix: u64,
    /// When it ended.
    pub finished_unix: u64,
    /// Seconds the benchmark took, the closing sync included: what rates are computed from.
    pub seconds: f64,
    /// Seed of the run.
    pub seed: u64,
    /// What each thread group did.
    pub groups: Vec<GroupOutcome>,
    /// Latency of single transactions that read or wrote a block, all groups together.
    pub latency: Latency,
    /// CPU seconds that this process spent in user mode.
    pub cpu_user_seconds: f64,
    /// CPU seconds that this process spent in the kernel.
    pub cpu_system_seconds: f64,
    /// What FFSB's text says besides.
    #[serde(default)]
    pub phases: Phases,
}

/// What was seen around the benchmark itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Phases {
    /// How full each file system was before the set-up, 0.0 to 1.0, in the profile's order; empty: not known.
    pub utilisation: Vec<f64>,
    /// Seconds the `sync` before the benchmark took.
    pub sync_before_seconds: f64,
    /// Seconds the `sync` after it took, which count as part of it.
    pub sync_after_seconds: f64,
}

/// What one thread group did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupOutcome {
    /// Each operation that was drawn at least once.
    pub ops: Vec<OpOutcome>,
    /// Latencies of system calls, if `[stats]` asked for them.
    pub syscalls: Vec<SyscallOutcome>,
}

/// What one kind of operation came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpOutcome {
    /// Which.
    pub op: Op,
    /// Times it was drawn (FFSB's "op weight").
    pub drawn: u64,
    /// Transactions, counted as FFSB counts them.
    pub transactions: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

/// Latency of one system call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SyscallOutcome {
    /// Which.
    pub syscall: Syscall,
    /// Calls.
    pub calls: u64,
    /// Milliseconds.
    pub min_ms: f64,
    /// Milliseconds.
    pub mean_ms: f64,
    /// Milliseconds.
    pub max_ms: f64,
    /// Low and high bound in milliseconds, and calls that fell between.
    pub ranges: Vec<(f64, f64, u64)>,
}

/// A latency distribution, microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Mean.
    pub mean_us: f64,
    /// Half took at most this.
    pub p50_us: f64,
    /// 95 of 100.
    pub p95_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
    /// 999 of 1000.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
    /// The distribution for a plot: upper bound of a bucket in microseconds (ascending), and how many fell in it.
    pub buckets: Vec<(f64, u64)>,
}
