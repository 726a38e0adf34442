//! The load generator: keeps `depth` requests in flight on every queue and measures them.
//!
//! Each queue has its own thread. One timestamp per batch of completions ends the requests of that batch and starts
//! those that replace them, so the clock is read once per wake-up, not once per request. Warm-up requests are made
//! and forgotten: the counters start afterwards, for load and CPU time alike.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::json;

use crate::device::{ConnectOptions, Device, Op, Queue};
use crate::{Error, Rng, process_cpu_ns};

/// What kind of requests to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rw {
    /// Reads, one after another.
    Read,
    /// Writes, one after another.
    Write,
    /// Reads at random offsets.
    RandRead,
    /// Writes at random offsets.
    RandWrite,
    /// Seven random reads to three random writes.
    Mixed,
    /// Connect, make one read, then nothing: what does an idle disk cost?
    Idle,
}

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// After this time.
    Time(Duration),
    /// After this many requests, over all queues.
    Ops(u64),
}

/// The whole load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where and how to connect.
    pub connect: ConnectOptions,
    /// Kind of requests.
    pub rw: Rw,
    /// Bytes per request.
    pub block_bytes: usize,
    /// The first so many bytes of the disk are used; `None`: all of it.
    pub span: Option<u64>,
    /// When to stop.
    pub limit: Limit,
    /// Load before the measurement.
    pub warmup: Duration,
    /// Seed of the offsets.
    pub seed: u64,
    /// The process whose CPU time is measured with the load.
    pub server_pid: Option<u32>,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct LoadReport {
    /// Completed requests.
    pub ops: u64,
    /// The same with those of the warm-up.
    pub requests: u64,
    /// Bytes per request.
    pub block_bytes: usize,
    /// Duration of the measurement.
    pub elapsed: Duration,
    /// CPU nanoseconds of the server while measured; 0 if its process was not named.
    pub server_cpu_ns: u64,
    /// CPU nanoseconds of this process while measured.
    pub client_cpu_ns: u64,
    latency_ns: Histogram<u64>,
}

impl LoadReport {
    /// Requests per second.
    pub fn iops(&self) -> f64 {
        self.ops as f64 / self.elapsed.as_secs_f64()
    }

    /// Latency in microseconds below which the share `q` (0 to 1) of all requests stayed.
    pub fn latency_us(&self, q: f64) -> f64 {
        self.latency_ns.value_at_quantile(q) as f64 / 1000.0
    }

    /// One JSON object, the keys of which `cargo xtask compare` reads.
    pub fn to_json(&self) -> serde_json::Value {
        let ops = self.ops.max(1) as f64;
        json!({
            "ops": self.ops,
            "requests": self.requests,
            "seconds": self.elapsed.as_secs_f64(),
            "iops": self.iops(),
            "mb_per_s": self.iops() * self.block_bytes as f64 / 1e6,
            "lat_mean_us": self.latency_ns.mean() / 1000.0,
            "lat_p50_us": self.latency_us(0.5),
            "lat_p99_us": self.latency_us(0.99),
            "lat_max_us": self.latency_us(1.0),
            "server_cpu_us_per_io": self.server_cpu_ns as f64 / 1000.0 / ops,
            "server_cpu_percent": 100.0 * self.server_cpu_ns as f64 / self.elapsed.as_nanos() as f64,
            "client_cpu_us_per_io": self.client_cpu_ns as f64 / 1000.0 / ops,
        })
    }
}

impl std::fmt::Display for LoadReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let report = self.to_json();
        let get = |key: &str| report[key].as_f64().unwrap_or(0.0);
        writeln!(f, "IOPS     {:12.0}   MB/s {:9.1}", get("iops"), get("mb_per_s"))?;
        write!(f, "latency  mean {:.1} us, p50 {:.1}", get("lat_mean_us"), get("lat_p50_us"))?;
        writeln!(f, ", p99 {:.1}, max {:.1}", get("lat_p99_us"), get("lat_max_us"))?;
        write!(f, "CPU      server {:.2} us per I/O", get("server_cpu_us_per_io"))?;
        write!(f, " ({:.1} %), ", get("server_cpu_percent"))?;
        writeln!(f, "client {:.2} us per I/O", get("client_cpu_us_per_io"))
    }
}

/// Connects, makes the load, reports.
pub fn run_load(options: &LoadOptions) -> Result<LoadReport, Error> {
    let (device, queues) = Device::connect(&options.connect)?;
    let span = options.span.unwrap_or(device.capacity).min(device.capacity);
    let blocks = span / options.block_bytes as u64;
    if blocks == 0 || !(options.block_bytes as u64).is_multiple_of(device.block_bytes) {
        let why = format!("the disk has {span:#x} bytes in blocks of {}", device.block_bytes);
        return Err(Error::new(format_args!("requests of {} bytes", options.block_bytes), why));
    }
    let count = queues.len();
    // Threads wait here twice: before and after the counters are read for the first time.
    let barrier = Barrier::new(count + 1);
    let mut report = LoadReport {
        ops: 0,
        requests: 0,
        block_bytes: options.block_bytes,
        elapsed: Duration::ZERO,
        server_cpu_ns: 0,
        client_cpu_ns: 0,
        latency_ns: new_histogram(),
    };
    let cpu = || -> Result<(u64, u64), Error> {
        let read = |pid| process_cpu_ns(pid).map_err(|e| Error::new("CPU time of the server", e));
        let server = options.server_pid.map(read).transpose()?.unwrap_or(0);
        Ok((server, read(std::process::id())?))
    };
    std::thread::scope(|scope| -> Result<(), Error> {
        let threads: Vec<_> = (0..count as u64)
            .zip(queues)
            .map(|(index, queue)| {
                let rng = Rng::new(options.seed.wrapping_add(index << 32));
                let next_block = index * (blocks / count as u64);
                let mut worker = Worker { queue, options, blocks, rng, next_block };
                let barrier = &barrier;
                scope.spawn(move || {
                    worker.run(count as u64, barrier).map(|counted| (counted, worker))
                })
            })
            .collect();
        barrier.wait();
        let before = cpu();
        let start = Instant::now();
        barrier.wait();
        let results: Vec<_> = threads
            .into_iter()
            .map(|t| t.join().expect("a worker reports, it does not panic"))
            .collect();
        report.elapsed = start.elapsed();
        let (before, after) = (before?, cpu()?);
        // The workers, and with them the connection, end here: taking it down is not measured.
        for result in results {
            let (counted, _worker) = result?;
            report.ops += counted.ops;
            report.requests += counted.ops + counted.warmup_ops;
            report.latency_ns.add(counted.latency_ns).expect("same bounds");
        }
        report.server_cpu_ns = after.0.saturating_sub(before.0);
        report.client_cpu_ns = after.1.saturating_sub(before.1);
        Ok(())
    })?;
    Ok(report)
}

/// Up to a minute, three digits.
fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_max(60_000_000_000, 3).expect("bounds the crate accepts")
}

/// What a worker has done.
struct Counted {
    warmup_ops: u64,
    ops: u64,
    latency_ns: Histogram<u64>,
}

struct Worker<'a> {
    queue: Queue,
    options: &'a LoadOptions,
    blocks: u64,
    rng: Rng,
    next_block: u64,
}

impl Worker<'_> {
    fn run(&mut self, workers: u64, barrier: &Barrier) -> Result<Counted, Error> {
        let mut unused = new_histogram();
        let warmup = match self.options.rw {
            Rw::Idle => Limit::Ops(1),
            _ => Limit::Time(self.options.warmup),
        };
        let warm = self.load(warmup, &mut unused);
        // Both waits must happen even after an error: the others would wait for ever.
        barrier.wait();
        barrier.wait();
        let warmup_ops = warm?;
        let mut latency_ns = new_histogram();
        let limit = match self.options.limit {
            Limit::Ops(ops) => Limit::Ops(ops.div_ceil(workers)),
            time => time,
        };
        let ops = match (self.options.rw, limit) {
            (Rw::Idle, Limit::Time(time)) => {
                std::thread::sleep(time);
                0
            }
            _ => self.load(limit, &mut latency_ns)?,
        };
        Ok(Counted { warmup_ops, ops, latency_ns })
    }

    /// Keeps the queue full until the limit, then waits for what is in flight.
    fn load(&mut self, limit: Limit, latency_ns: &mut Histogram<u64>) -> Result<u64, Error> {
        let start = Instant::now();
        let (deadline, max_ops) = match limit {
            Limit::Time(time) => (start + time, u64::MAX),
            Limit::Ops(ops) => (start + Duration::from_secs(3600), ops),
        };
        let mut started_at = vec![start; self.queue.depth()];
        let mut submitted = 0;
        for slot in 0..self.queue.depth() {
            if submitted < max_ops {
                self.submit(slot);
                submitted += 1;
            }
        }
        let (mut completed, mut freed) = (0, Vec::new());
        while self.queue.in_flight() > 0 {
            let done = self.queue.wait(1)?;
            let now = Instant::now();
            freed.clear();
            for d in done {
                if d.ret != 0 {
                    let why = std::io::Error::from_raw_os_error(-d.ret);
                    return Err(Error::new("a request failed", why));
                }
                let ns = u64::try_from((now - started_at[d.slot]).as_nanos()).unwrap_or(u64::MAX);
                latency_ns.saturating_record(ns);
                freed.push(d.slot);
            }
            completed += freed.len() as u64;
            if now >= deadline {
                continue;
            }
            for &slot in &freed {
                if submitted < max_ops {
                    started_at[slot] = now;
                    self.submit(slot);
                    submitted += 1;
                }
            }
        }
        Ok(completed)
    }

    fn submit(&mut self, slot: usize) {
        let block = match self.options.rw {
            Rw::Read | Rw::Write => {
                let block = self.next_block;
                self.next_block = (block + 1) % self.blocks;
                block
            }
            _ => self.rng.below(self.blocks),
        };
        let op = match self.options.rw {
            Rw::Read | Rw::RandRead | Rw::Idle => Op::Read,
            Rw::Write | Rw::RandWrite => Op::Write,
            Rw::Mixed if self.rng.below(10) < 7 => Op::Read,
            Rw::Mixed => Op::Write,
        };
        let at = block * self.options.block_bytes as u64;
        self.queue.submit(slot, op, at, self.options.block_bytes);
    }
}
