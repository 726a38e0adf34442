//! What a guest does, on which image, and what it leaves: the write log and what the guest was told when.

use crate::driver::{Machine, image, write};
use block::qed::CreateOptions;
use block::{BlockNode, DiskOffset};
use io_engine::Rng;
use io_engine::sim::{LogEvent, SimDisk, SimOptions, Unwritten};
use sim::model::{History, RequestId, stamp, stamped_disk};
use std::cell::RefCell;
use std::rc::Rc;

pub const CLUSTER: u64 = 4096;
/// Room for clusters on a block device.
const ROOM: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub enum Ask {
    Write(u64, u64),
    Zeroes(u64, u64, bool),
    Discard(u64, u64),
    Flush,
    /// Six seconds in which nothing happens: what runs in the background comes to its turn.
    Pass,
    /// A moment: freed space becomes free.
    Rest,
    /// All at once.
    Together(Vec<Ask>),
}

/// The image and how it is used.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub bytes: u64,
    pub with_backing: bool,
    /// On a block device, whose fresh space holds somebody else's bytes.
    pub on_device: bool,
    pub write_through: bool,
    /// The first clusters are written before the run begins.
    pub prepared: bool,
    /// The image is closed at the end of the run.
    pub closed: bool,
}

impl Setup {
    pub fn any(rng: &mut Rng) -> Setup {
        Setup {
            // Two L2 tables now and then: that disk takes long to read.
            bytes: if rng.chance(80) { 513 * CLUSTER + 1536 } else { 24 * CLUSTER },
            with_backing: rng.chance(500),
            on_device: rng.chance(300),
            write_through: rng.chance(300),
            prepared: rng.chance(600),
            closed: rng.chance(400),
        }
    }

    fn sim(&self) -> SimOptions {
        let unwritten = if self.on_device { Unwritten::Poison(0xA5) } else { Unwritten::Zero };
        SimOptions { is_block_device: self.on_device, unwritten, ..SimOptions::default() }
    }

    /// The disk before the run, and the backing file.
    fn start(&self, machine: &Machine) -> (SimDisk, Option<SimDisk>, Vec<u8>) {
        let backing = self.with_backing.then(|| {
            // Shorter than the disk.
            let bytes = stamped_disk((self.bytes - 2 * CLUSTER) / 512);
            SimDisk::with_contents(SimOptions::default(), &bytes)
        });
        let create = CreateOptions {
            bytes: self.bytes,
            cluster_bytes: CLUSTER,
            table_clusters: 1,
            backing: self.with_backing.then(|| (b"base".to_vec(), true)),
        };
        let disk = image(&create, self.sim(), ROOM);
        let mut content = vec![0; self.bytes as usize];
        if let Some(backing) = &backing {
            let below = backing.contents();
            content[..below.len()].copy_from_slice(&below);
        }
        if self.prepared {
            let node = machine.open(&disk, backing.as_ref(), false).unwrap();
            let data: Vec<u8> = (0..4 * CLUSTER / 512).flat_map(|n| stamp(n, 0)).collect();
            content[..data.len()].copy_from_slice(&data);
            let written = write(machine, &node, 0, machine.data(&data), false);
            assert!(machine.run(written));
            machine.close(node).unwrap();
        }
        let start =
            SimDisk::with_contents(SimOptions { log: true, ..self.sim() }, &disk.contents());
        (start, backing, content)
    }
}

/// What came of it.
pub struct Run {
    pub setup: Setup,
    pub start: SimDisk,
    pub backing: Option<SimDisk>,
    pub log: Vec<LogEvent>,
    pub history: History,
    /// Places in the log between which each flush of the guest was under way.
    pub flushes: Vec<(usize, usize)>,
}

struct Guest {
    machine: Machine,
    node: Rc<BlockNode>,
    disk: SimDisk,
    history: Rc<RefCell<History>>,
    flushes: Rc<RefCell<Vec<(usize, usize)>>>,
    write_through: bool,
}

impl Guest {
    /// Sends a request; the future ends when it is answered.
    fn send(&self, ask: &Ask) -> impl Future<Output = ()> + 'static {
        let (node, disk, history) = (self.node.clone(), self.disk.clone(), self.history.clone());
        let (flushes, durable) = (self.flushes.clone(), self.write_through);
        let now = disk.log_len();
        let mut sent = history.borrow_mut();
        let (id, written): (RequestId, Option<_>) = match *ask {
            Ask::Write(at, len) => {
                let (id, bytes) = sent.write(now, at, len);
                let data = self.machine.data(&bytes);
                (id, Some(write(&self.machine, &self.node, at, data, durable)))
            }
            Ask::Zeroes(at, len, _) => (sent.write_zeroes(now, at, len), None),
            Ask::Discard(at, len) => (sent.discard(now, at, len), None),
            Ask::Flush => (sent.flush(now), None),
            Ask::Pass | Ask::Rest | Ask::Together(_) => unreachable!("not a request"),
        };
        drop(sent);
        let ask = ask.clone();
        async move {
            let mut is_ok = match (ask.clone(), written) {
                (_, Some(written)) => written.await,
                (Ask::Zeroes(at, len, unmap), _) => {
                    node.write_zeroes(DiskOffset(at), len, unmap).await.is_ok()
                }
                (Ask::Discard(at, len), _) => node.discard(DiskOffset(at), len).await.is_ok(),
                _ => node.flush().await.is_ok(),
            };
            if durable && matches!(ask, Ask::Zeroes(..) | Ask::Discard(..)) {
                is_ok &= node.flush().await.is_ok();
            }
            assert!(is_ok, "nothing goes wrong here: {ask:?}");
            history.borrow_mut().ended(disk.log_len(), id, is_ok);
            if matches!(ask, Ask::Flush) {
                flushes.borrow_mut().push((now, disk.log_len()));
            }
        }
    }

    fn ask(&self, ask: &Ask) {
        let context = &self.machine.context;
        match ask {
            Ask::Pass => {
                // Once for what is due, once for what that leads to.
                for _ in 0..2 {
                    self.machine.pass(6_000_000_000);
                    for _ in 0..40 {
                        self.machine.tick(&self.disk);
                    }
                }
            }
            Ask::Rest => (0..40).for_each(|_| self.machine.tick(&self.disk)),
            Ask::Together(asks) => {
                for ask in asks {
                    assert!(context.spawn(Box::pin(self.send(ask))));
                }
                self.machine.run(async {});
                let mut turns = 0;
                while !context.is_idle() {
                    turns += 1;
                    assert!(turns < 10_000, "it never comes to rest: {:?}", self.node);
                    self.machine.tick(&self.disk);
                }
            }
            ask => self.machine.run(self.send(ask)),
        }
    }
}

/// Does it.
pub fn record(setup: Setup, asks: &[Ask], seed: u64) -> Run {
    let machine = Machine::new(seed);
    let (start, backing, content) = setup.start(&machine);
    let disk = start.fork();
    let node = machine.open(&disk, backing.as_ref(), false).unwrap();
    let history = Rc::new(RefCell::new(History::new(content, setup.write_through)));
    let guest = Guest {
        machine: machine.clone(),
        node: node.clone(),
        disk: disk.clone(),
        history: history.clone(),
        flushes: Rc::default(),
        write_through: setup.write_through,
    };
    asks.iter().for_each(|ask| guest.ask(ask));
    if setup.closed {
        // Who has closed an image counts on all of it.
        let flush = history.borrow_mut().flush(disk.log_len());
        machine.close(node.clone()).unwrap();
        history.borrow_mut().ended(disk.log_len(), flush, true);
    }
    let flushes = guest.flushes.take();
    drop((guest, node));
    // Its background task ends.
    machine.run(async {});
    let history = history.borrow().clone();
    Run { setup, start, backing, log: disk.write_log(), history, flushes }
}

/// The requests that short workloads are made of.
pub fn alphabet(setup: &Setup) -> Vec<Ask> {
    use Ask::{Discard, Flush, Pass, Rest, Together, Write, Zeroes};
    let c = |n: u64| n * CLUSTER;
    let far = setup.bytes / CLUSTER * CLUSTER - CLUSTER;
    vec![
        Write(c(5) + 512, 1024),
        Write(c(6), CLUSTER),
        Write(c(7) + 2048, CLUSTER),
        Write(c(1) + 512, 1024),
        Write(c(3) + 2048, CLUSTER),
        Write(c(0), CLUSTER),
        Write(far, CLUSTER),
        Write(c(8), c(3)),
        Discard(c(0), CLUSTER),
        Discard(c(0), c(6)),
        Zeroes(c(1), CLUSTER, true),
        Zeroes(c(2) + 512, 1024, false),
        Zeroes(c(9) + 512, c(2), true),
        Flush,
        Flush,
        Pass,
        Rest,
        Together(vec![Write(c(5), 512), Write(c(5) + 1024, 512), Write(c(6) + 512, c(2))]),
        Together(vec![Discard(c(1), c(2)), Write(c(10), 512), Flush]),
        Together(vec![Write(c(0), 512), Flush, Write(c(11), CLUSTER), Flush]),
    ]
}

/// A long workload.
pub fn random(setup: &Setup, rng: &mut Rng) -> Vec<Ask> {
    let sectors = setup.bytes / 512;
    let one = |rng: &mut Rng| {
        let near = (16 * CLUSTER / 512).min(sectors);
        let span = if rng.chance(850) { near } else { sectors };
        let len = 1 + rng.below(20);
        let at = 512 * rng.below(span.saturating_sub(len).max(1));
        let len = (512 * len).min(setup.bytes - at);
        let whole = |at: u64| at / CLUSTER * CLUSTER;
        match rng.index(10) {
            0..=4 => Ask::Write(at, len),
            5 => Ask::Zeroes(at, len, rng.chance(700)),
            6 => Ask::Zeroes(whole(at), (2 * CLUSTER).min(setup.bytes - whole(at)), true),
            7 => Ask::Discard(whole(at), (3 * CLUSTER).min(setup.bytes - whole(at))),
            _ => Ask::Flush,
        }
    };
    let count = 3 + rng.index(10);
    let mut asks = Vec::new();
    for _ in 0..count {
        match rng.index(8) {
            0 => asks.push(if rng.chance(400) { Ask::Pass } else { Ask::Rest }),
            1 | 2 => {
                let together: Vec<Ask> = (0..2 + rng.index(4)).map(|_| one(rng)).collect();
                asks.push(Ask::Together(together));
            }
            _ => asks.push(one(rng)),
        }
    }
    asks
}
