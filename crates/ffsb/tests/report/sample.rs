//! A made-up report with figures as a small server might give them: the same in every run.

use ffsb::outcome::Latency;
use ffsb::report::{Cell, Report, Run, Subject, Trace, VERSION};

/// Scenario, IOPS of bare metal with one thread, bytes of a transaction, how much of it are reads.
const SCENARIOS: [(&str, f64, f64, f64); 8] = [
    ("large-file-create-256k", 1_450.0, 262_144.0, 0.0),
    ("sequential-read-256k", 3_900.0, 262_144.0, 1.0),
    ("large-file-create-8k", 21_000.0, 8_192.0, 0.0),
    ("sequential-read-8k", 46_000.0, 8_192.0, 1.0),
    ("random-read-8k", 9_800.0, 8_192.0, 1.0),
    ("random-write-8k", 14_200.0, 8_192.0, 0.0),
    ("mixed-8k", 10_900.0, 8_192.0, 0.7),
    ("mail-server-8k", 5_200.0, 6_100.0, 0.4),
];

/// Name, server, device, format, cache, aio, part of bare metal's IOPS, CPU seconds of the server for a transaction.
type Made = (&'static str, &'static str, &'static str, &'static str, &'static str, f64, f64);

const NO_GUEST: [Made; 8] = [
    ("bare", "bare", "-", "-", "sync", 1.0, 0.0),
    ("ferroblk", "vhost-user", "raw", "none", "io_uring", 0.95, 7.5e-6),
    ("ferroblk", "vhost-user", "raw", "none", "threads", 0.71, 16.0e-6),
    ("ferroblk", "vhost-user", "qcow2", "none", "io_uring", 0.91, 8.9e-6),
    ("ferroblk", "vhost-user", "qed", "none", "io_uring", 0.84, 9.6e-6),
    ("qemu-storage-daemon", "vhost-user", "raw", "none", "io_uring", 0.80, 12.2e-6),
    ("qemu-storage-daemon", "vhost-user", "qcow2", "none", "io_uring", 0.66, 17.8e-6),
    ("qemu-storage-daemon", "vhost-user", "qed", "none", "io_uring", 0.42, 29.5e-6),
];

const IN_GUEST: [Made; 4] = [
    ("bare", "bare", "-", "-", "sync", 1.0, 0.0),
    ("qemu", "guest virtio", "raw", "none", "io_uring", 0.72, 14.0e-6),
    ("qemu", "guest ide", "raw", "none", "io_uring", 0.21, 61.0e-6),
    ("ferroblk", "guest vhost-user", "raw", "none", "io_uring", 0.86, 8.1e-6),
];

/// Draws from -1.0..1.0.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// Eight scenarios, 1, 8 and 16 threads, eight subjects without a guest, three repetitions, two traces, one failure.
pub fn report() -> Report {
    let mut report = make(&NO_GUEST, 3, 1);
    fail(&mut report, 7, 7, 16, "qemu-storage-daemon ended: qed: L2 table at 0x250000 is corrupt");
    report.traces = vec![trace(1, 4, 8, 1.0), trace(3, 4, 8, 1.35)];
    report
}

/// Four subjects, three of them in an emulated guest.
pub fn guest() -> Report {
    let mut report = make(&IN_GUEST, 3, 2);
    let emulated = "The guest is emulated (no KVM on this machine): its figures say nothing about a virtual machine under KVM.";
    report.remarks.push(emulated.into());
    for run in report.cells.iter_mut().filter(|c| c.subject > 0).flat_map(|c| &mut c.runs) {
        run.vcpu_seconds = vec![run.workload_cpu_seconds * 0.7, run.workload_cpu_seconds * 0.3];
    }
    report
}

/// As [`report`], on another day, with other draws.
pub fn again(repetitions: usize, seed: u64) -> Report {
    make(&NO_GUEST, repetitions, seed)
}

/// Twelve subjects, five repetitions: about as much as anybody measures.
pub fn large() -> Report {
    let mut made = NO_GUEST.to_vec();
    made.extend([
        ("ferroblk", "vhost-user", "raw", "writethrough", "io_uring", 0.77, 8.0e-6),
        ("ferroblk", "vhost-user", "qcow2", "writethrough", "io_uring", 0.73, 9.9e-6),
        ("qemu-storage-daemon", "vhost-user", "raw", "none", "native", 0.79, 12.9e-6),
        ("qemu-storage-daemon", "vhost-user", "raw", "none", "threads", 0.52, 24.0e-6),
    ]);
    make(&made, 5, 3)
}

fn make(made: &[Made], repetitions: usize, seed: u64) -> Report {
    let mut draws = Draws(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut cells = Vec::new();
    for (scenario, facts) in SCENARIOS.iter().enumerate() {
        for (subject, of) in made.iter().enumerate() {
            for threads in [1, 8, 16] {
                let runs = (0..repetitions).map(|_| run(*facts, *of, threads, &mut draws));
                let runs = runs.collect();
                cells.push(Cell { scenario, subject, threads, runs, failure: None });
            }
        }
    }
    let pairs = |list: &[(&str, &str)]| {
        list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>()
    };
    Report {
        version: VERSION,
        ferroblk: "0.1.0".into(),
        machine: pairs(&[
            ("CPU", "2 x AMD EPYC 7313 (virtual), 3.0 GHz"),
            ("memory", "7.8 GiB"),
            ("kernel", "6.1.0-28-amd64"),
            ("disk", "/dev/vda, 252 GiB, scheduler none"),
            ("file system", "ext4, barriers on"),
        ]),
        started_unix: 1_770_805_320,
        settings: pairs(&[
            ("seconds a run", "5"),
            ("repetitions", &repetitions.to_string()),
            ("seed", "0"),
            ("scale", "1/100 of the talk's file sets"),
            ("file set", "/var/tmp/ferroblk-bench"),
        ]),
        remarks: vec![
            "Without a guest, the file sets are block traces over a simple extent layout: no file system, no journal.".into(),
        ],
        baseline: 0,
        subjects: made.iter().map(subject).collect(),
        scenarios: SCENARIOS.iter().map(|s| s.0.to_owned()).collect(),
        cells,
        traces: Vec::new(),
    }
}

fn subject(made: &Made) -> Subject {
    let (server, device, format, cache, aio) = (made.0, made.1, made.2, made.3, made.4);
    let name = match (server, device) {
        ("bare", _) => "bare metal".to_owned(),
        (_, "vhost-user") => format!("{server} {format} {cache} {aio}"),
        _ => format!("{device} by {server}"),
    };
    let [server, device, format, cache, aio] =
        [server, device, format, cache, aio].map(String::from);
    Subject { name, server, device, format, cache, aio }
}

fn run(facts: (&str, f64, f64, f64), made: Made, threads: u32, draws: &mut Draws) -> Run {
    let (_, base, bytes, reads) = facts;
    let (.., part, server_cpu) = made;
    let scale = match threads {
        1 => 1.0,
        8 => 4.6,
        _ => 5.9,
    };
    // A slow server loses more where there are many small requests, and formats cost more when they allocate.
    let small = if bytes > 100_000.0 { 0.35 } else { 1.0 };
    let writes = 1.0 + (1.0 - reads) * 0.4;
    let lost = (1.0 - part) * small * writes * if threads == 1 { 0.8 } else { 1.0 };
    let iops = base * scale * (1.0 - lost).max(0.08) * (1.0 + 0.02 * draws.next());
    let seconds = 5.0 + 0.01 * draws.next().abs();
    let transactions = whole(iops * seconds);
    let moved = whole(transactions as f64 * bytes);
    let read_bytes = whole(moved as f64 * reads);
    let workload = transactions as f64 * (4.0e-6 + bytes * 0.6e-10);
    let server = transactions as f64 * server_cpu * (1.0 + 0.03 * draws.next());
    Run {
        seconds,
        transactions,
        read_bytes,
        written_bytes: moved - read_bytes,
        latency: latency(f64::from(threads) / iops * 1e6, transactions),
        workload_cpu_seconds: workload,
        server_cpu_seconds: server,
        host_cpu_seconds: (workload + server) * 1.08 + 0.05,
        vcpu_seconds: Vec::new(),
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

/// A skewed distribution with a second hump, about this mean.
fn latency(mean_us: f64, count: u64) -> Latency {
    let bounds: Vec<f64> = (0..48).map(|n| mean_us * 0.3 * 1.16f64.powi(n)).collect();
    let weight = |bound: f64| {
        let hump = |at: f64, width: f64| (-((bound / at).ln() / width).powi(2)).exp();
        hump(mean_us * 0.85, 0.28)
            + 0.03 * hump(mean_us * 3.2, 0.35)
            + 0.000_6 * hump(mean_us * 14.0, 0.9)
    };
    let total: f64 = bounds.iter().map(|b| weight(*b)).sum();
    let share = |b: &f64| (round(*b), whole(weight(*b) / total * count as f64));
    let buckets: Vec<(f64, u64)> = bounds.iter().map(share).collect();
    let all: u64 = buckets.iter().map(|b| b.1).sum();
    let at = |part: f64| {
        let mut seen = 0;
        let reached = |b: &&(f64, u64)| {
            seen += b.1;
            seen as f64 >= part * all as f64
        };
        buckets.iter().find(reached).map_or(0.0, |b| b.0)
    };
    let last = buckets.iter().rfind(|b| b.1 > 0).map_or(0.0, |b| b.0);
    Latency {
        count: all,
        mean_us: round(mean_us),
        p50_us: at(0.5),
        p95_us: at(0.95),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: last,
        buckets,
    }
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn trace(subject: usize, scenario: usize, threads: u32, slower: f64) -> Trace {
    let stages = [
        ("parsed", 2.1),
        ("mapped", 1.4 * slower * slower),
        ("submitted", 3.2),
        ("completed", 148.0),
        ("used ring", 0.9),
        ("notified", 4.4 * slower),
    ];
    let stage = |(name, us): (&str, f64)| (name.to_owned(), latency(us, 120_000));
    Trace { subject, scenario, threads, stages: stages.map(stage).into(), cost_percent: Some(0.8) }
}

/// The cell could not be measured.
pub fn fail(report: &mut Report, scenario: usize, subject: usize, threads: u32, why: &str) {
    let is_it = |c: &&mut Cell| (c.scenario, c.subject, c.threads) == (scenario, subject, threads);
    let cell = report.cells.iter_mut().find(is_it).expect("it is in the sample");
    cell.runs.clear();
    cell.failure = Some(why.into());
}
