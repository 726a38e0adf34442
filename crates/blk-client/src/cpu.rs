//! CPU time of a process, to the nanosecond, threads that have already ended included.
//!
//! `/proc/PID/stat` counts in ticks of 10 ms and `/proc/PID/task/*/schedstat` forgets threads that ended; the
//! process's CPU clock (clock_getcpuclockid(3)) has neither fault. It counts io_uring's kernel workers too,
//! because the kernel makes them threads of the process.

/// CPU nanoseconds (user and system) that process `pid` has used so far.
pub fn process_cpu_ns(pid: u32) -> std::io::Result<u64> {
    let pid = libc::pid_t::try_from(pid).map_err(std::io::Error::other)?;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: `clock` is valid for the write; the call reads nothing else of ours.
    let rc = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if rc != 0 {
        return Err(std::io::Error::from_raw_os_error(rc));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the write; an id of a process that has ended is refused with EINVAL.
    let rc = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if rc != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let ns = time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec);
    Ok(u64::try_from(ns).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_cpu_time_grows_with_work_and_an_unknown_process_is_an_error() {
        let before = process_cpu_ns(std::process::id()).unwrap();
        let mut x = 1u64;
        for _ in 0..200_000 {
            x = crate::rng::mix(std::hint::black_box(x));
        }
        assert!(process_cpu_ns(std::process::id()).unwrap() > before, "{x}");
        assert!(process_cpu_ns(0x3fff_fff0).is_err());
    }
}
