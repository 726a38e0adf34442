//! CPU time of a process and of the host.

use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use std::io;
use std::time::Duration;

/// CPU seconds, in user mode and in the kernel, that process `pid` has used so far.
///
/// Precise to the nanosecond: it is the process's CPU clock (clock_getcpuclockid(3)). Threads that have ended are in it, and so are
/// io_uring's kernel workers, which the kernel makes threads of the process. `/proc/PID/stat` counts in ticks of 10 ms, and
/// `/proc/PID/task/*/schedstat` forgets threads that ended. What the kernel does for the process elsewhere (block layer's interrupts,
/// write-back) is not in it, but in [`host_cpu_seconds`].
///
/// # Errors
///
/// There is no such process.
pub fn process_cpu_seconds(pid: u32) -> io::Result<f64> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid))?;
    Ok(Duration::from(clock_gettime(clock)?).as_secs_f64())
}

/// CPU seconds that the whole host has used so far, all processors together.
///
/// User mode (guests and low priority included), kernel, interrupts and soft interrupts; not idle time, not the wait for disks, and
/// not what a hypervisor took away. The kernel counts in ticks, mostly of 10 ms for each processor and kind: differences over less
/// than a second say little.
///
/// # Errors
///
/// `/proc/stat` cannot be read, or is not as it should be.
pub fn host_cpu_seconds() -> io::Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let ticks = busy_ticks(&stat).ok_or_else(|| io::Error::other("/proc/stat: no line cpu"))?;
    Ok(to_seconds(ticks, rustix::param::clock_ticks_per_second()))
}

#[expect(clippy::cast_precision_loss, reason = "2^53 ticks of 10 ms are millions of years")]
fn to_seconds(ticks: u64, ticks_per_second: u64) -> f64 {
    ticks as f64 / ticks_per_second as f64
}

/// The busy ticks of all processors: user, nice, system, irq, softirq of `cpu user nice system idle iowait irq softirq steal ...`.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|text| text.parse().ok()).collect();
    match *ticks.as_slice() {
        [user, nice, system, _idle, _iowait, irq, softirq, ..] => {
            Some(user + nice + system + irq + softirq)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work() -> u64 {
        (0..3_000_000u64).fold(1, |x, i| std::hint::black_box(x ^ i).rotate_left(7))
    }

    #[test]
    fn cpu_time_counts_work_and_threads_that_ended() {
        let before = process_cpu_seconds(std::process::id()).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a thread that ends is what is tested")]
        std::thread::spawn(work).join().unwrap();
        let ended = process_cpu_seconds(std::process::id()).unwrap();
        assert!(ended > before, "{before} {ended}");
        assert!(process_cpu_seconds(0x3fff_fff0).is_err());
        assert!(process_cpu_seconds(u32::MAX).is_err());
    }

    #[test]
    fn the_host_is_busy_with_what_is_neither_idle_nor_stolen() {
        let stat =
            "cpu  1 20 300 4000 50000 600000 7000000 80000000 1 20\ncpu0 9 9 9 9 9 9 9 9 9 9\n";
        assert_eq!(busy_ticks(stat), Some(7_600_321));
        assert_eq!(busy_ticks("cpu0 1 2 3 4 5 6 7 8\n"), None);
        assert_eq!(busy_ticks("cpu  1 2 3 4 5 6\n"), None);
        assert!(host_cpu_seconds().unwrap() > 0.0);
    }
}
