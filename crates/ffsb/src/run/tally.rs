//! What a thread counts while it works, and how the counts of all threads become an [`Outcome`](crate::outcome::Outcome).

use crate::clock;
use crate::outcome::{GroupOutcome, Latency, OpOutcome, SyscallOutcome};
use crate::profile::{Op, Stats, Syscall};
use hdrhistogram::Histogram;
use std::time::Instant;

/// Longest latency that is told from others: one hour.
const LONGEST_NS: u64 = 3_600_000_000_000;
/// A bucket is at most 1 % wide. More digits would make a histogram that does not fit in a CPU's first cache.
const DIGITS: u8 = 2;

/// What one operation came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    pub transactions: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct OpCount {
    drawn: u64,
    done: Done,
}

/// The counts of one thread.
#[derive(Debug)]
pub(crate) struct Tally {
    ops: [OpCount; Op::ALL.len()],
    transactions: u64,
    /// Nanoseconds of single blocks; `None`: not wanted.
    latency: Option<Histogram<u32>>,
    /// Empty: not wanted.
    syscalls: Vec<SyscallCount>,
    ranges: Vec<(u64, u64)>,
    /// End of the block before, if nothing lay between: the next block began then.
    last: Option<Instant>,
}

#[derive(Clone, Debug)]
struct SyscallCount {
    wanted: bool,
    calls: u64,
    min_ns: u64,
    max_ns: u64,
    total_ns: u64,
    /// Calls in each range.
    in_range: Vec<u64>,
}

impl Tally {
    pub fn new(latencies: bool, stats: &Stats) -> Tally {
        let ranges: &[(f64, f64)] = if stats.ranges_enabled { &stats.ranges } else { &[] };
        let count = |syscall| SyscallCount {
            wanted: !stats.ignore.contains(syscall),
            calls: 0,
            min_ns: u64::MAX,
            max_ns: 0,
            total_ns: 0,
            in_range: vec![0; ranges.len()],
        };
        let syscalls =
            if stats.enabled { Syscall::ALL.iter().map(count).collect() } else { Vec::new() };
        Tally {
            ops: [OpCount::default(); Op::ALL.len()],
            transactions: 0,
            latency: latencies.then(histogram),
            syscalls,
            // Whole microseconds, as FFSB compares them.
            ranges: ranges.iter().map(|(low, high)| (micros(*low), micros(*high))).collect(),
            last: None,
        }
    }

    /// Forgets everything: the measurement begins.
    pub fn reset(&mut self) {
        self.ops = [OpCount::default(); Op::ALL.len()];
        self.transactions = 0;
        if let Some(latency) = &mut self.latency {
            latency.reset();
        }
        for count in &mut self.syscalls {
            (count.calls, count.min_ns, count.max_ns, count.total_ns) = (0, u64::MAX, 0, 0);
            count.in_range.fill(0);
        }
    }

    pub fn add(&mut self, op: Op, done: Done) {
        let count = &mut self.ops[op as usize];
        count.drawn += 1;
        count.done.transactions += done.transactions;
        count.done.read_bytes += done.read_bytes;
        count.done.written_bytes += done.written_bytes;
        self.transactions += done.transactions;
    }

    /// Transactions so far.
    pub fn transactions(&self) -> u64 {
        self.transactions
    }

    /// When a block starts. `None`: nobody wants to know.
    #[inline]
    pub fn block_start(&mut self, syscall: Syscall) -> Option<Instant> {
        if self.latency.is_none() && !self.wants(syscall) {
            return None;
        }
        Some(self.last.unwrap_or_else(clock::now))
    }

    /// A block is done.
    #[inline]
    pub fn block_end(&mut self, syscall: Syscall, start: Option<Instant>) {
        let Some(start) = start else { return };
        let end = clock::now();
        self.last = Some(end);
        let ns = nanos(start, end);
        if let Some(latency) = &mut self.latency {
            latency.saturating_record(ns);
        }
        if self.wants(syscall) {
            self.record(syscall, ns);
        }
    }

    /// Something that belongs to no block took time: the next block asks the clock when it starts.
    #[inline]
    pub fn pause(&mut self) {
        self.last = None;
    }

    /// When a system call starts that is no block.
    pub fn call_start(&mut self, syscall: Syscall) -> Option<Instant> {
        self.pause();
        self.wants(syscall).then(clock::now)
    }

    /// Its end.
    pub fn call_end(&mut self, syscall: Syscall, start: Option<Instant>) {
        if let Some(start) = start {
            self.record(syscall, nanos(start, clock::now()));
        }
    }

    #[inline]
    fn wants(&self, syscall: Syscall) -> bool {
        self.syscalls.get(syscall as usize).is_some_and(|count| count.wanted)
    }

    fn record(&mut self, syscall: Syscall, ns: u64) {
        let count = &mut self.syscalls[syscall as usize];
        count.calls += 1;
        count.min_ns = count.min_ns.min(ns);
        count.max_ns = count.max_ns.max(ns);
        count.total_ns += ns;
        let us = ns / 1000;
        // The last range that holds it: FFSB keeps its list with the last entry first. Ranges may overlap.
        let range = self.ranges.iter().rposition(|(low, high)| (*low..=*high).contains(&us));
        if let Some(range) = range {
            count.in_range[range] += 1;
        }
    }
}

fn histogram<T: hdrhistogram::Counter>() -> Histogram<T> {
    Histogram::new_with_bounds(1, LONGEST_NS, DIGITS).expect("fixed bounds")
}

fn nanos(start: Instant, end: Instant) -> u64 {
    u64::try_from(end.saturating_duration_since(start).as_nanos()).unwrap_or(u64::MAX)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn micros(ms: f64) -> u64 {
    (ms * 1000.0).round() as u64
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// What the threads of one group counted together.
pub(crate) fn group_outcome(tallies: &[Tally], stats: &Stats) -> GroupOutcome {
    let ops = Op::ALL.iter().map(|op| {
        let mut sum =
            OpOutcome { op: *op, drawn: 0, transactions: 0, read_bytes: 0, written_bytes: 0 };
        for count in tallies.iter().map(|tally| tally.ops[*op as usize]) {
            sum.drawn += count.drawn;
            sum.transactions += count.done.transactions;
            sum.read_bytes += count.done.read_bytes;
            sum.written_bytes += count.done.written_bytes;
        }
        sum
    });
    let syscalls =
        Syscall::ALL.iter().filter_map(|syscall| syscall_outcome(*syscall, tallies, stats));
    GroupOutcome { ops: ops.filter(|op| op.drawn > 0).collect(), syscalls: syscalls.collect() }
}

fn syscall_outcome(syscall: Syscall, tallies: &[Tally], stats: &Stats) -> Option<SyscallOutcome> {
    let counts = || tallies.iter().filter_map(|tally| tally.syscalls.get(syscall as usize));
    let calls: u64 = counts().map(|count| count.calls).sum();
    if calls == 0 {
        return None;
    }
    let total_ns: u64 = counts().map(|count| count.total_ns).sum();
    let ranges: &[(f64, f64)] = if stats.ranges_enabled { &stats.ranges } else { &[] };
    let in_range = |index: usize| counts().map(|count| count.in_range[index]).sum();
    Some(SyscallOutcome {
        syscall,
        calls,
        min_ms: counts().map(|count| count.min_ns).min().map_or(0.0, ms),
        mean_ms: ms(total_ns) / calls as f64,
        max_ms: counts().map(|count| count.max_ns).max().map_or(0.0, ms),
        ranges: ranges
            .iter()
            .enumerate()
            .map(|(index, (low, high))| (*low, *high, in_range(index)))
            .collect(),
    })
}

/// Latencies of all threads together.
pub(crate) fn latency<'a>(tallies: impl Iterator<Item = &'a Tally>) -> Latency {
    let mut all = histogram::<u64>();
    for latency in tallies.filter_map(|tally| tally.latency.as_ref()) {
        for bucket in latency.iter_recorded() {
            let count = bucket.count_at_value().into();
            all.saturating_record_n(bucket.value_iterated_to(), count);
        }
    }
    if all.is_empty() {
        return Latency::default();
    }
    let us = |ns: u64| ns as f64 / 1000.0;
    let at = |quantile| us(all.value_at_quantile(quantile));
    Latency {
        count: all.len(),
        mean_us: all.mean() / 1000.0,
        p50_us: at(0.5),
        p95_us: at(0.95),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: us(all.max()),
        buckets: all
            .iter_recorded()
            .map(|bucket| (us(bucket.value_iterated_to()), bucket.count_since_last_iteration()))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats() -> Stats {
        Stats {
            enabled: true,
            ranges_enabled: true,
            ignore: vec![Syscall::Close],
            ranges: vec![(0.0, 10.0), (0.05, 1.0), (0.0, 0.05)],
        }
    }

    #[test]
    fn the_order_of_operations_is_their_index() {
        assert!(Op::ALL.iter().enumerate().all(|(index, op)| *op as usize == index));
        assert!(Syscall::ALL.iter().enumerate().all(|(index, call)| *call as usize == index));
    }

    #[test]
    fn a_call_counts_in_the_last_range_that_holds_it() {
        let mut tally = Tally::new(false, &stats());
        // 50.999 us are 50 whole microseconds; 20 ms are in no range.
        for ns in [0, 50_999, 51_000, 1_000_999, 1_001_000, 20_000_000] {
            tally.record(Syscall::Read, ns);
        }
        let group = group_outcome(&[tally], &stats());
        let read = &group.syscalls[0];
        assert_eq!(read.ranges, [(0.0, 10.0, 1), (0.05, 1.0, 2), (0.0, 0.05, 2)]);
        assert_eq!((read.calls, read.min_ms, read.max_ms), (6, 0.0, 20.0));
    }

    #[test]
    fn ignored_calls_and_calls_without_stats_are_not_recorded() {
        let mut tally = Tally::new(true, &stats());
        assert_eq!(tally.call_start(Syscall::Close), None);
        assert!(tally.call_start(Syscall::Open).is_some());
        let mut tally = Tally::new(false, &Stats::default());
        assert_eq!(tally.call_start(Syscall::Open), None);
        assert_eq!(tally.block_start(Syscall::Read), None);
    }

    #[test]
    fn latencies_of_all_threads_are_one_distribution() {
        let mut tallies =
            [Tally::new(true, &Stats::default()), Tally::new(true, &Stats::default())];
        for (tally, ns) in tallies.iter_mut().zip([1_000, 3_000]) {
            for _ in 0..50 {
                tally.latency.as_mut().unwrap().record(ns).unwrap();
            }
        }
        let latency = latency(tallies.iter());
        assert_eq!(latency.count, 100);
        assert!((latency.mean_us - 2.0).abs() < 0.02, "{latency:?}");
        assert!((latency.p50_us - 1.0).abs() < 0.01 && (latency.p95_us - 3.0).abs() < 0.03);
        assert_eq!(latency.buckets.iter().map(|(_, count)| count).sum::<u64>(), 100);
    }
}
