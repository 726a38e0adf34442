//! What is derived from the runs: rates, CPU, latency, each as median and range over the repetitions.
//!
//! A CPU percentage is of one CPU: two busy CPUs are 200 %. MB are 10^6 bytes. The spread is the range from the
//! lowest to the highest repetition: of three to five runs, that says all there is to say, and hides none.

use super::{Cell, Report, Run};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Whether more of it is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

/// A figure of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Transactions per second, as FFSB counts them.
    Iops,
    /// Bytes read and written per second, 10^6.
    MbPerSecond,
    /// Mean latency of a block, µs.
    LatencyMean,
    /// Median latency of a block, µs.
    LatencyP50,
    /// 95 % of blocks took at most this, µs.
    LatencyP95,
    /// 99 % of blocks took at most this, µs.
    LatencyP99,
    /// 99.9 % of blocks took at most this, µs.
    LatencyP999,
    /// Longest latency of a block, µs.
    LatencyMax,
    /// CPU of the workload, % of one CPU.
    CpuWorkload,
    /// CPU of the server, % of one CPU.
    CpuServer,
    /// CPU of workload and server, % of one CPU.
    CpuTotal,
    /// CPU of the whole host, everything included, % of one CPU.
    CpuHost,
    /// Total CPU % for each MB/s.
    CpuPerMb,
    /// CPU of the server for each transaction, µs.
    ServerCpuPerTransaction,
    /// CPU of the guest's first vCPU thread, %.
    Vcpu0,
    /// CPU of the guest's second vCPU thread, %.
    Vcpu1,
}

impl Measure {
    /// All of them, in the order of tables.
    pub const ALL: [Measure; 16] = [
        Measure::Iops,
        Measure::MbPerSecond,
        Measure::LatencyMean,
        Measure::LatencyP50,
        Measure::LatencyP95,
        Measure::LatencyP99,
        Measure::LatencyP999,
        Measure::LatencyMax,
        Measure::CpuWorkload,
        Measure::CpuServer,
        Measure::CpuTotal,
        Measure::CpuHost,
        Measure::CpuPerMb,
        Measure::ServerCpuPerTransaction,
        Measure::Vcpu0,
        Measure::Vcpu1,
    ];

    /// The figure; `None` if this run has none, e.g. a vCPU where there is no guest.
    pub fn of(self, run: &Run) -> Option<f64> {
        let value = match self {
            Measure::Iops => run.transactions as f64 / run.seconds,
            Measure::MbPerSecond => mb(run) / run.seconds,
            Measure::LatencyMean => measured(run, run.latency.mean_us)?,
            Measure::LatencyP50 => measured(run, run.latency.p50_us)?,
            Measure::LatencyP95 => measured(run, run.latency.p95_us)?,
            Measure::LatencyP99 => measured(run, run.latency.p99_us)?,
            Measure::LatencyP999 => measured(run, run.latency.p999_us)?,
            Measure::LatencyMax => measured(run, run.latency.max_us)?,
            Measure::CpuWorkload => percent(run, run.workload_cpu_seconds),
            Measure::CpuServer => percent(run, run.server_cpu_seconds),
            Measure::CpuTotal => percent(run, total_cpu(run)),
            Measure::CpuHost => percent(run, run.host_cpu_seconds),
            // The seconds cancel out.
            Measure::CpuPerMb => 100.0 * total_cpu(run) / mb(run),
            Measure::ServerCpuPerTransaction => {
                1e6 * run.server_cpu_seconds / run.transactions as f64
            }
            Measure::Vcpu0 => percent(run, *run.vcpu_seconds.first()?),
            Measure::Vcpu1 => percent(run, *run.vcpu_seconds.get(1)?),
        };
        value.is_finite().then_some(value)
    }

    /// Its name in files, unit included: `iops`, `latency_p99_us`.
    pub fn key(self) -> &'static str {
        match self {
            Measure::Iops => "iops",
            Measure::MbPerSecond => "mb_per_s",
            Measure::LatencyMean => "latency_mean_us",
            Measure::LatencyP50 => "latency_p50_us",
            Measure::LatencyP95 => "latency_p95_us",
            Measure::LatencyP99 => "latency_p99_us",
            Measure::LatencyP999 => "latency_p999_us",
            Measure::LatencyMax => "latency_max_us",
            Measure::CpuWorkload => "cpu_workload_percent",
            Measure::CpuServer => "cpu_server_percent",
            Measure::CpuTotal => "cpu_total_percent",
            Measure::CpuHost => "cpu_host_percent",
            Measure::CpuPerMb => "cpu_percent_per_mb_per_s",
            Measure::ServerCpuPerTransaction => "server_cpu_us_per_transaction",
            Measure::Vcpu0 => "vcpu0_percent",
            Measure::Vcpu1 => "vcpu1_percent",
        }
    }

    /// Its name for people, unit included where a table needs it.
    pub fn label(self) -> &'static str {
        match self {
            Measure::Iops => "IOPS",
            Measure::MbPerSecond => "MB/s",
            Measure::LatencyMean => "mean",
            Measure::LatencyP50 => "p50",
            Measure::LatencyP95 => "p95",
            Measure::LatencyP99 => "p99",
            Measure::LatencyP999 => "p99.9",
            Measure::LatencyMax => "max",
            Measure::CpuWorkload => "workload %",
            Measure::CpuServer => "server %",
            Measure::CpuTotal => "CPU %",
            Measure::CpuHost => "host %",
            Measure::CpuPerMb => "CPU %/MB/s",
            Measure::ServerCpuPerTransaction => "server µs/op",
            Measure::Vcpu0 => "vCPU 0 %",
            Measure::Vcpu1 => "vCPU 1 %",
        }
    }

    /// Whether more of it is good.
    pub fn better(self) -> Better {
        match self {
            Measure::Iops | Measure::MbPerSecond => Better::Higher,
            _ => Better::Lower,
        }
    }

    /// Whether it is a latency in µs.
    pub fn is_latency(self) -> bool {
        (Measure::LatencyMean..=Measure::LatencyMax).contains(&self)
    }
}

fn mb(run: &Run) -> f64 {
    (run.read_bytes as f64 + run.written_bytes as f64) / 1e6
}

fn total_cpu(run: &Run) -> f64 {
    run.workload_cpu_seconds + run.server_cpu_seconds
}

fn percent(run: &Run, cpu_seconds: f64) -> f64 {
    100.0 * cpu_seconds / run.seconds
}

fn measured(run: &Run, us: f64) -> Option<f64> {
    (run.latency.count > 0).then_some(us)
}

/// Median and range over the repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
    /// How many.
    pub count: usize,
}

impl Spread {
    /// Of these values; `None` if there is none.
    pub fn of(values: &[f64]) -> Option<Spread> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[half]
        } else {
            f64::midpoint(sorted[half - 1], sorted[half])
        };
        Some(Spread { median, min, max, count: sorted.len() })
    }

    /// Half the range, as a part of the median; `None` of a single value, which has no range, and of a median of 0.
    pub fn half_range(self) -> Option<f64> {
        let known = self.count > 1 && self.median > 0.0;
        known.then(|| (self.max - self.min) / 2.0 / self.median)
    }
}

/// The figures of a report, by scenario, subject and number of threads.
#[derive(Debug)]
pub struct Figures<'a> {
    report: &'a Report,
    cells: BTreeMap<(usize, usize, u32), &'a Cell>,
    threads: Vec<u32>,
}

impl<'a> Figures<'a> {
    /// Of this report.
    pub fn new(report: &'a Report) -> Figures<'a> {
        let place = |c: &'a Cell| ((c.scenario, c.subject, c.threads), c);
        let threads: BTreeSet<u32> = report.cells.iter().map(|c| c.threads).collect();
        Figures {
            report,
            cells: report.cells.iter().map(place).collect(),
            threads: threads.into_iter().collect(),
        }
    }

    /// The report they are of.
    pub fn report(&self) -> &'a Report {
        self.report
    }

    /// Every number of threads that was measured, ascending.
    pub fn threads(&self) -> &[u32] {
        &self.threads
    }

    /// Those that were measured in this scenario.
    pub fn threads_in(&self, scenario: usize) -> Vec<u32> {
        let has = |t: &u32| self.cells.keys().any(|k| k.0 == scenario && k.2 == *t);
        self.threads.iter().copied().filter(has).collect()
    }

    /// The cell, if it was to be measured.
    pub fn cell(&self, scenario: usize, subject: usize, threads: u32) -> Option<&'a Cell> {
        self.cells.get(&(scenario, subject, threads)).copied()
    }

    /// A figure of each repetition; those without are left out.
    pub fn values(
        &self,
        scenario: usize,
        subject: usize,
        threads: u32,
        measure: Measure,
    ) -> Vec<f64> {
        let cell = self.cell(scenario, subject, threads);
        cell.map(|c| c.values(measure)).unwrap_or_default()
    }

    /// A figure over the repetitions.
    pub fn spread(
        &self,
        scenario: usize,
        subject: usize,
        threads: u32,
        measure: Measure,
    ) -> Option<Spread> {
        Spread::of(&self.values(scenario, subject, threads, measure))
    }

    /// IOPS against the baseline's in the same scenario with as many threads: the ratio of the medians, from the
    /// lowest run against the baseline's highest to the highest against its lowest; of the baseline itself 1. `None` if
    /// either has no run, or the baseline one without transactions.
    pub fn ratio(&self, scenario: usize, subject: usize, threads: u32) -> Option<Spread> {
        let own = self.spread(scenario, subject, threads, Measure::Iops)?;
        let base = self.spread(scenario, self.report.baseline, threads, Measure::Iops)?;
        if base.min <= 0.0 {
            return None;
        }
        if subject == self.report.baseline {
            return Some(Spread { median: 1.0, min: 1.0, max: 1.0, count: 1 });
        }
        Some(Spread {
            median: own.median / base.median,
            min: own.min / base.max,
            max: own.max / base.min,
            count: own.count.min(base.count),
        })
    }

    /// Whether any run has vCPUs: it came from a guest.
    pub fn has_guest(&self) -> bool {
        self.report.cells.iter().flat_map(|c| &c.runs).any(|r| !r.vcpu_seconds.is_empty())
    }
}

impl Cell {
    /// A figure of each repetition; those without are left out.
    pub fn values(&self, measure: Measure) -> Vec<f64> {
        self.runs.iter().filter_map(|run| measure.of(run)).collect()
    }
}
