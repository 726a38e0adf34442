//! Random or sequential 4 KiB reads of one file through the workload engine: what `fio --ioengine=psync` is compared with.
//!
//! ```text
//! run_profile DIRECTORY SIZE_MIB THREADS SECONDS [OPERATION_MIB]
//! ```
//!
//! FFSB opens and closes a file for each operation; an operation of many blocks (64 MiB by default) makes that disappear, as it does
//! for fio, which opens its file once.

use ffsb::profile::{FileSystem, Op, Profile, Stats, ThreadGroup};
use ffsb::run::{Cleanup, Control, Place, run};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [location, size, threads, seconds, rest @ ..] = words.as_slice() else {
        return Err("DIRECTORY SIZE_MIB THREADS SECONDS [OPERATION_MIB]".into());
    };
    let operation: u64 = rest.first().map_or(Ok(64), |word| word.parse())?;
    let size = size.parse::<u64>()? << 20;
    let file_system = FileSystem {
        location: location.clone(),
        num_files: 1,
        num_dirs: 0,
        reuse: false,
        min_filesize: size,
        max_filesize: size,
        max_files: None,
        size_weights: Vec::new(),
        create_blocksize: 1 << 20,
        age_blocksize: 4096,
        init_util: None,
        init_size: None,
        desired_util: None,
        ageing: None,
    };
    let group = ThreadGroup {
        num_threads: threads.parse()?,
        bindfs: None,
        weights: vec![(Op::Read, 1)],
        read_random: true,
        read_size: Some(operation << 20),
        read_blocksize: 4096,
        read_skip: None,
        write_random: false,
        write_size: None,
        write_blocksize: 4096,
        op_delay: 0,
        iterations: None,
        stats: Stats::default(),
    };
    let profile = Profile {
        time: Some(seconds.parse()?),
        alignio: true,
        filesystems: vec![file_system],
        thread_groups: vec![group],
        ..Profile::default()
    };
    let control = Control { cleanup: Cleanup::Remove, cut: true, ..Control::default() };
    let outcome = run(&profile, Place::Directories, &control)?;
    let transactions = outcome.groups[0].ops[0].transactions;
    println!(
        "{:.0} transactions/s, p50 {} us, p99 {} us, {:.2} s user, {:.2} s system",
        transactions as f64 / outcome.seconds,
        outcome.latency.p50_us,
        outcome.latency.p99_us,
        outcome.cpu_user_seconds,
        outcome.cpu_system_seconds
    );
    Ok(())
}
