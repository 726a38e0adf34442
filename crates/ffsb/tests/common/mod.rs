//! Profiles and disks for the tests of runs.

#![allow(dead_code, reason = "each test binary uses a part")]

use ffsb::disk::Lane;
use ffsb::outcome::{OpOutcome, Outcome};
use ffsb::profile::{FileSystem, Op, Profile, Stats, ThreadGroup};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// `num_files` files of `size` bytes in two sub-directories.
pub fn file_system(location: &Path, num_files: u32, size: u64) -> FileSystem {
    FileSystem {
        location: location.display().to_string(),
        num_files,
        num_dirs: 2,
        reuse: false,
        min_filesize: size,
        max_filesize: size,
        max_files: None,
        size_weights: Vec::new(),
        create_blocksize: 4096,
        age_blocksize: 4096,
        init_util: None,
        init_size: None,
        desired_util: None,
        ageing: None,
    }
}

/// One thread that does `iterations` operations; blocks of 4 KiB, 8 KiB an operation.
pub fn group(weights: &[(Op, u32)], iterations: u64) -> ThreadGroup {
    ThreadGroup {
        num_threads: 1,
        bindfs: None,
        weights: weights.to_vec(),
        read_random: false,
        read_size: Some(8192),
        read_blocksize: 4096,
        read_skip: None,
        write_random: false,
        write_size: Some(8192),
        write_blocksize: 4096,
        op_delay: 0,
        iterations: Some(iterations),
        stats: Stats { enabled: true, ..Stats::default() },
    }
}

/// A profile that ends when its threads have done their iterations.
pub fn profile(file_system: FileSystem, group: ThreadGroup) -> Profile {
    Profile { filesystems: vec![file_system], thread_groups: vec![group], ..Profile::default() }
}

/// What an operation came to, in all groups.
pub fn op(outcome: &Outcome, op: Op) -> OpOutcome {
    let mut sum = OpOutcome { op, drawn: 0, transactions: 0, read_bytes: 0, written_bytes: 0 };
    for one in outcome.groups.iter().flat_map(|group| &group.ops).filter(|one| one.op == op) {
        sum.drawn += one.drawn;
        sum.transactions += one.transactions;
        sum.read_bytes += one.read_bytes;
        sum.written_bytes += one.written_bytes;
    }
    sum
}

/// What a faulty disk does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answers with a bit flipped.
    FlipBit,
    /// Says that it has written, and has not.
    DropWrite,
    /// Puts it 4 KiB before its place.
    Misplace,
    /// Answers with what was there before the last write.
    StaleRead,
    /// Fails.
    Fail,
}

/// A disk in memory that may be faulty.
#[derive(Debug)]
pub struct Memory {
    now: Vec<u8>,
    before: Vec<u8>,
    /// What is counted down, and the fault that happens at 0: `[reads, writes]` to come.
    pub reads_until: Option<(u64, Fault)>,
    pub writes_until: Option<(u64, Fault)>,
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
}

/// A thread's way to a [`Memory`].
#[derive(Clone, Debug)]
pub struct MemoryLane(pub Arc<Mutex<Memory>>);

impl MemoryLane {
    pub fn new(bytes: usize) -> MemoryLane {
        MemoryLane(Arc::new(Mutex::new(Memory {
            now: vec![0; bytes],
            before: vec![0; bytes],
            reads_until: None,
            writes_until: None,
            reads: 0,
            writes: 0,
            flushes: 0,
        })))
    }

    pub fn lanes(&self, count: usize) -> Vec<Box<dyn Lane>> {
        (0..count).map(|_| Box::new(self.clone()) as Box<dyn Lane>).collect()
    }

    pub fn with<T>(&self, change: impl FnOnce(&mut Memory) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }
}

fn due(countdown: &mut Option<(u64, Fault)>) -> Option<Fault> {
    let (left, fault) = countdown.as_mut()?;
    match *left {
        0 => {
            let fault = *fault;
            *countdown = None;
            Some(fault)
        }
        _ => {
            *left -= 1;
            None
        }
    }
}

impl Lane for MemoryLane {
    fn size(&self) -> u64 {
        self.with(|memory| memory.now.len() as u64)
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        assert!(offset.is_multiple_of(512) && buf.len().is_multiple_of(512));
        let at = usize::try_from(offset).unwrap();
        self.with(|memory| {
            memory.reads += 1;
            let fault = due(&mut memory.reads_until);
            let range = at..at + buf.len();
            match fault {
                Some(Fault::Fail) => return Err(io::Error::other("the disk is broken")),
                Some(Fault::StaleRead) => buf.copy_from_slice(&memory.before[range]),
                _ => buf.copy_from_slice(&memory.now[range]),
            }
            if fault == Some(Fault::FlipBit) {
                buf[777] ^= 0x10;
            }
            Ok(())
        })
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        assert!(offset.is_multiple_of(512) && buf.len().is_multiple_of(512));
        let at = usize::try_from(offset).unwrap();
        self.with(|memory| {
            memory.writes += 1;
            let range = match due(&mut memory.writes_until) {
                Some(Fault::DropWrite) => return Ok(()),
                Some(Fault::Fail) => return Err(io::Error::other("the disk is broken")),
                Some(Fault::Misplace) => at - 4096..at - 4096 + buf.len(),
                _ => at..at + buf.len(),
            };
            let old = memory.now[range.clone()].to_vec();
            memory.before[range.clone()].copy_from_slice(&old);
            memory.now[range].copy_from_slice(buf);
            Ok(())
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.with(|memory| memory.flushes += 1);
        Ok(())
    }
}

/// Puts a file where the benchmark does not expect it, or changes one.
#[expect(clippy::disallowed_methods, reason = "a test's own file")]
pub fn put(path: &Path, content: &[u8]) {
    std::fs::write(path, content).unwrap();
}

/// What a file holds, if it is there.
#[expect(clippy::disallowed_methods, reason = "a test's own file")]
pub fn content(path: &Path) -> Option<Vec<u8>> {
    std::fs::read(path).ok()
}
