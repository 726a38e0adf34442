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
        }
    }
}

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
}
