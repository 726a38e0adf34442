<<<<<<< HEAD
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
=======
//! What tests of block targets share: servers, a verified load, and a way not to hang.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(missing_docs, missing_debug_implementations, clippy::disallowed_methods)]

pub mod fake;

use block::{CacheMode, Format};
use ffsb::disk::Lane;
use ffsb::disk::vhost_user::{VhostUserDisk, VhostUserOptions};
use ffsb::server::{Server, ServerKind, ServerSpec, create_image};
use io_engine::EngineKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;
use tempfile::TempDir;

/// Longer than anything here takes, unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes of the disk that each lane has for itself.
pub const LANE_BYTES: usize = 256 << 10;

pub fn ferroblk() -> PathBuf {
    blk_client::server::ferroblk_binary().unwrap()
}

/// Whether qemu-storage-daemon is installed. If not, the test that asks is skipped; where all tests must run, it fails.
pub fn has_qemu() -> bool {
    let found = Command::new("qemu-storage-daemon").arg("--version").output().is_ok();
    if !found {
        println!("SKIPPED: qemu-storage-daemon is not installed");
        assert!(std::env::var_os("CI").is_none(), "no test may be skipped here");
    }
    found
}

/// The kinds of server that can run here.
pub fn kinds() -> impl Iterator<Item = ServerKind> {
    ServerKind::ALL.into_iter().filter(|kind| *kind != ServerKind::QemuStorageDaemon || has_qemu())
}

/// A directory with an image in it.
pub struct Bench {
    pub dir: TempDir,
    pub image: PathBuf,
    pub format: Format,
}

impl Bench {
    pub fn new(format: Format, bytes: u64) -> Bench {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let image = dir.path().join(format!("disk.{format}"));
        create_image(&ferroblk(), &image, format, bytes, &[]).unwrap();
        Bench { dir, image, format }
    }

    /// A server that every host can run.
    pub fn spec(&self, kind: ServerKind) -> ServerSpec {
        let program = (kind == ServerKind::Ferroblk).then(ferroblk);
        ServerSpec {
            program,
            cache: CacheMode::Writeback,
            aio: EngineKind::Threads,
            ..ServerSpec::new(kind, &self.image, self.format)
        }
    }

    pub fn start(&self, spec: &ServerSpec) -> Server {
        Server::start(spec, self.dir.path()).unwrap()
    }
}

/// Connects with the patience of a test.
pub fn connect(socket: &Path, options: &VhostUserOptions) -> VhostUserDisk {
    let options = VhostUserOptions { patience: PATIENCE, ..options.clone() };
    VhostUserDisk::connect(socket, &options).unwrap()
}

/// Runs `f` on a thread and fails if it does not end.
#[track_caller]
pub fn in_time<T: Send + 'static>(what: &str, f: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, done) = channel();
    let thread = std::thread::spawn(move || sender.send(f()));
    match done.recv_timeout(3 * PATIENCE) {
        Ok(value) => value,
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("{what}: hangs"),
        Err(_) => std::panic::resume_unwind(thread.join().unwrap_err()),
    }
}

/// A generator of numbers that a seed determines (splitmix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    pub fn fill(&mut self, buf: &mut [u8]) {
        for word in buf.chunks_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes()[..word.len()]);
>>>>>>> 9773619 (ffsb: a disk behind a vhost-user socket without a guest, and the servers that are measured)
        }
    }
}

<<<<<<< HEAD
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
=======
/// Writes, reads and checks at random in the lane's own part of a disk that was zeroes at first. Requests have up to `most` sectors.
pub fn verified_load(lane: &mut dyn Lane, index: usize, ops: usize, most: usize) {
    let mut rng = Rng(index as u64 + 1);
    let base = index * LANE_BYTES;
    let mut model = vec![0; LANE_BYTES];
    let mut buf = vec![0; most * 512];
    for op in 0..ops {
        let len = 512 * (1 + rng.below(most));
        let at = 512 * rng.below((LANE_BYTES - len) / 512 + 1);
        let (part, buf) = (&mut model[at..at + len], &mut buf[..len]);
        let offset = (base + at) as u64;
        match rng.below(64) {
            0 => lane.flush().unwrap(),
            1..=31 => {
                rng.fill(buf);
                part.copy_from_slice(buf);
                lane.write_at(offset, buf).unwrap();
            }
            _ => {
                lane.read_at(offset, buf).unwrap();
                assert!(part == buf, "lane {index}, operation {op}: wrong data at {offset:#x}");
            }
        }
    }
    let mut whole = vec![0; LANE_BYTES];
    lane.read_at(base as u64, &mut whole).unwrap();
    assert!(whole == model, "lane {index}: wrong data in the end");
}

/// A verified load on each lane, side by side.
#[track_caller]
pub fn load_all(disk: VhostUserDisk, lanes: usize, ops: usize, most: usize) {
    let disk = Arc::new(disk);
    in_time("the load", move || {
        let threads: Vec<_> = (0..lanes)
            .map(|index| {
                let mut lane = disk.lane(index).unwrap();
                std::thread::spawn(move || verified_load(&mut lane, index, ops, most))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

/// Reads on all lanes until they fail; calls `then` once each has had some answers. Returns their errors.
#[track_caller]
pub fn load_until_error(
    disk: VhostUserDisk,
    lanes: usize,
    then: impl FnOnce(),
) -> Vec<std::io::Error> {
    let running = Arc::new(AtomicU32::new(0));
    let disk = Arc::new(disk);
    let threads: Vec<_> = (0..lanes)
        .map(|index| {
            let mut lane = disk.lane(index).unwrap();
            let running = running.clone();
            std::thread::spawn(move || {
                let mut rng = Rng(index as u64);
                let mut buf = vec![0; 4096];
                for op in 0u64.. {
                    let offset = 4096 * rng.below(64) as u64;
                    if let Err(error) = lane.read_at(offset, &mut buf) {
                        return (error, lane.read_at(0, &mut buf).unwrap_err());
                    }
                    if op == 50 {
                        running.fetch_add(1, Ordering::SeqCst);
                    }
                }
                unreachable!("a u64 of reads");
            })
        })
        .collect();
    let all = u32::try_from(lanes).unwrap();
    while running.load(Ordering::SeqCst) < all {
        if let Some(at) = threads.iter().position(|thread| thread.is_finished()) {
            let early = threads.into_iter().nth(at).unwrap().join();
            panic!("lane {at} failed too early: {early:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    then();
    in_time("lanes without a server", move || {
        let errors = threads.into_iter().map(|thread| thread.join().unwrap());
        errors
            .map(|(error, later)| {
                assert_eq!(later.to_string(), error.to_string(), "it stays failed");
                error
            })
            .collect()
    })
>>>>>>> 9773619 (ffsb: a disk behind a vhost-user socket without a guest, and the servers that are measured)
}
