//! What a guest does, on which image, and what it leaves: the write log and what the guest was told when.

use crate::driver::{Machine, write};
use crate::setup::{Kind, Setup, Start};
use block::{BlockNode, DiskOffset};
use io_engine::Rng;
use io_engine::sim::{Change, LogEvent, SimDisk};
use sim::model::{History, RequestId};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

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

/// A request, and where in the log it was sent and answered.
#[derive(Clone, Copy, Debug)]
struct Note {
    sent: usize,
    ended: usize,
    /// Clusters of the disk that it touches.
    clusters: u64,
    /// Its answer promises that what came before it is durable, or that it is itself.
    is_commit: bool,
}

/// What came of it.
pub struct Run {
    pub setup: Setup,
    pub start: Start,
    pub log: Vec<LogEvent>,
    pub history: History,
    notes: Vec<Note>,
    /// Clusters that were leaked when it began.
    leaked: u64,
}

impl Run {
    /// Places in the log between which the last flush of the guest was under way.
    pub fn last_flush(&self) -> Range<usize> {
        let flush = self.notes.iter().rfind(|note| note.is_commit).unwrap();
        flush.sent..flush.ended
    }

    /// I10, of a format that counts: the most clusters of data that a cut after `log[..position]` may leak. A commit writes the counts of what is taken,
    /// and of what was let go before the commit before it. So only requests count that were under way since the last commit but one began.
    pub fn leaks_max(&self, position: usize, metadata: &[Range<u64>]) -> u64 {
        let has_written = |note: &&Note| {
            self.log[note.sent..note.ended].iter().any(|event| match event {
                LogEvent::Issue { change: Change::Write { at, .. }, .. } => {
                    metadata.iter().any(|range| range.contains(at))
                }
                _ => false,
            })
        };
        let commits = self.notes.iter().filter(|note| note.is_commit && note.ended <= position);
        let commits: Vec<&Note> = commits.filter(has_written).collect();
        let last = commits.iter().max_by_key(|note| note.sent);
        let before = last.and_then(|last| {
            commits.iter().filter(|note| note.ended <= last.sent).max_by_key(|note| note.sent)
        });
        let since = before.map_or(0, |commit| commit.sent);
        let requests =
            self.notes.iter().filter(|note| note.sent <= position && note.ended >= since);
        let clusters: u64 = requests.map(|note| note.clusters).sum();
        self.leaked + 2 * clusters
    }
}

struct Guest {
    setup: Setup,
    machine: Machine,
    node: Rc<BlockNode>,
    disk: SimDisk,
    history: Rc<RefCell<History>>,
    notes: Rc<RefCell<Vec<Note>>>,
}

impl Guest {
    /// Takes note of a request that is sent now; gives its number.
    fn note(&self, at: u64, len: u64, is_commit: bool) -> usize {
        let cluster = self.setup.cluster();
        let (sent, ended) = (self.disk.log_len(), usize::MAX);
        let clusters = (at + len).div_ceil(cluster) - at / cluster;
        self.notes.borrow_mut().push(Note { sent, ended, clusters, is_commit });
        self.notes.borrow().len() - 1
    }

    /// Sends a request; the future ends when it is answered.
    fn send(&self, ask: &Ask) -> impl Future<Output = ()> + 'static {
        let (node, disk, history) = (self.node.clone(), self.disk.clone(), self.history.clone());
        let (notes, durable) = (self.notes.clone(), self.setup.write_through);
        let now = disk.log_len();
        let number = match *ask {
            Ask::Write(at, len) | Ask::Zeroes(at, len, _) | Ask::Discard(at, len) => {
                self.note(at, len, durable)
            }
            _ => self.note(0, 0, true),
        };
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
            notes.borrow_mut()[number].ended = disk.log_len();
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

/// Does it, on a new image.
pub fn record(setup: Setup, asks: &[Ask], seed: u64) -> Run {
    let machine = Machine::new(seed);
    let start = setup.start(&machine);
    record_on(setup, start, asks, &machine).unwrap()
}

/// Does it, on this image.
pub fn record_on(
    setup: Setup,
    start: Start,
    asks: &[Ask],
    machine: &Machine,
) -> block::Result<Run> {
    let disk = start.disk.fork();
    let node = machine.open(&setup, &disk, start.backing.as_ref(), false)?;
    let history = History::new(start.content.clone(), setup.write_through);
    let guest = Guest {
        setup,
        machine: machine.clone(),
        node: node.clone(),
        disk: disk.clone(),
        history: Rc::new(RefCell::new(history)),
        notes: Rc::default(),
    };
    asks.iter().for_each(|ask| guest.ask(ask));
    if setup.closed {
        // Who has closed an image counts on all of it.
        let flush = guest.history.borrow_mut().flush(disk.log_len());
        let number = guest.note(0, 0, true);
        machine.close(node.clone())?;
        guest.history.borrow_mut().ended(disk.log_len(), flush, true);
        guest.notes.borrow_mut()[number].ended = disk.log_len();
    }
    let (history, notes) = (guest.history.borrow().clone(), guest.notes.take());
    drop((guest, node));
    // Its background task ends.
    machine.run(async {});
    let leaked = setup.kind.check(&start.disk).leaked;
    if setup.closed && matches!(setup.kind, Kind::Qcow2(_)) {
        assert_eq!(setup.kind.check(&disk).leaked, leaked, "an image that was closed");
    }
    Ok(Run { setup, start, log: disk.write_log(), history, notes, leaked })
}

/// The requests that short workloads are made of. The first ones are those of which all short workloads are tried.
pub fn alphabet(setup: &Setup) -> Vec<Ask> {
    use Ask::{Discard, Flush, Pass, Rest, Together, Write, Zeroes};
    let cluster = setup.cluster();
    let c = |n: u64| n * cluster;
    // A part of a cluster; of the smallest ones, all.
    let part = (cluster / 8).max(512);
    let far = setup.bytes / cluster * cluster - cluster;
    vec![
        Write(c(5) + part, 2 * part),
        Write(c(1) + part, 2 * part),
        Write(c(8), c(3)),
        Write(far, cluster),
        Discard(c(0), c(6)),
        Zeroes(c(9) + part, c(2), true),
        Flush,
        Rest,
        Together(vec![Write(c(0), 512), Flush, Write(c(11), cluster), Flush]),
        Write(c(6), cluster),
        Write(c(7) + 4 * part, cluster),
        Write(c(3) + 4 * part, cluster),
        Write(c(0), cluster),
        Discard(c(0), cluster),
        Zeroes(c(1), cluster, true),
        Zeroes(c(2) + part, 2 * part, false),
        Flush,
        Pass,
        Together(vec![Write(c(5), part), Write(c(5) + 2 * part, part), Write(c(6) + part, c(2))]),
        Together(vec![Discard(c(1), c(2)), Write(c(10), 512), Flush]),
    ]
}

/// So many of the alphabet's first letters.
pub const LETTERS: usize = 9;

/// A long workload.
pub fn random(setup: &Setup, rng: &mut Rng) -> Vec<Ask> {
    let cluster = setup.cluster();
    let sectors = setup.bytes / 512;
    let one = |rng: &mut Rng| {
        let near = (16 * cluster / 512).min(sectors);
        let span = if rng.chance(850) { near } else { sectors };
        let len = 1 + rng.below((5 * cluster / 1024).clamp(6, 20));
        let at = 512 * rng.below(span.saturating_sub(len).max(1));
        let len = (512 * len).min(setup.bytes - at);
        let whole = |at: u64| at / cluster * cluster;
        match rng.index(10) {
            0..=4 => Ask::Write(at, len),
            5 => Ask::Zeroes(at, len, rng.chance(700)),
            6 => Ask::Zeroes(whole(at), (2 * cluster).min(setup.bytes - whole(at)), true),
            7 => Ask::Discard(whole(at), (3 * cluster).min(setup.bytes - whole(at))),
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
