//! Seeded runs of the whole device over a disk that loses what was not flushed.
//!
//! Each seed draws the cache mode, the rates of harmless faults and a sequence of requests with several in flight, and cuts the power
//! somewhere. What is left is judged sector by sector against what the guest was told. To replay one: `SEED=n`.

use super::rig::{DEPTH, Rig, T_DISCARD, T_FLUSH, T_IN, T_OUT, T_WRITE_ZEROES, range};
use block::{CacheMode, DetectZeroes, OpenOptions, SECTOR};
use io_engine::sim::{CrashPick, Fault, FaultAction, Rates, SimDisk, SimOptions};
use io_engine::{IoEngine, Rng, SysKind};
use std::collections::BTreeMap;
use std::ops::Range;
use virtio_blk::Features;

const SECTORS: u64 = 256;

/// What a sector may hold: the stamp of a write, 0 for zeroes.
#[derive(Clone, Debug, Default)]
struct Sector {
    /// What it reads as, and the request that made it so.
    now: u64,
    version: u64,
    /// What a power cut may leave: the last durable value and everything since, with the number of the request.
    possible: Vec<(u64, u64)>,
}

impl Sector {
    fn may_hold(&self, stamp: u64) -> bool {
        self.possible.iter().any(|(_, possible)| *possible == stamp)
    }
}

#[derive(Debug)]
enum Pending {
    Read { sector: u64, sectors: u64 },
    Write { sector: u64, sectors: u64, stamp: u64, durable: bool, version: u64 },
    Flush { completed: Vec<(u64, u64)> },
}

struct Run {
    rng: Rng,
    rig: Rig,
    disk: SimDisk,
    sectors: Vec<Sector>,
    pending: BTreeMap<u64, Pending>,
    /// Requests that change something so far; also the stamp of each.
    version: u64,
    /// Faults that the guest sees may have happened: then a failed request may have done anything in its range.
    faulty: bool,
    cache: CacheMode,
}

fn filled(stamp: u64, sectors: u64) -> Vec<u8> {
    let one = |sector: u64| match stamp {
        0 => vec![0; SECTOR as usize],
        _ => (0..SECTOR / 16)
            .flat_map(|_| [stamp.to_le_bytes(), sector.to_le_bytes()].concat())
            .collect(),
    };
    (0..sectors).flat_map(one).collect()
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::new(seed);
        let cache = CacheMode::ALL[rng.index(5)];
        let align = if rng.chance(250) { 4096 } else { 512 };
        let detect_zeroes =
            [DetectZeroes::Off, DetectZeroes::On, DetectZeroes::Unmap][rng.index(3)];
        let disk =
            SimDisk::new(SimOptions { len: SECTORS * SECTOR, align, ..SimOptions::default() });
        if rng.chance(500) {
            disk.set_rates(Rates { eintr: 30, eagain: 30, short: 100 });
        }
        let faulty = rng.chance(200);
        if faulty {
            let flush = rng.chance(500);
            disk.fault(Fault {
                kind: flush.then_some(SysKind::Fdatasync),
                range: None,
                nth: 1 + rng.below(40),
                sticky: rng.chance(300),
                action: if flush { FaultAction::FlushLost(5) } else { FaultAction::Errno(5) },
            });
        }
        let options = OpenOptions { cache, detect_zeroes, ..OpenOptions::default() };
        let engine = IoEngine::sim(rng.bits(), 64).unwrap();
        let without = if rng.chance(100) { Features::FLUSH } else { Features::empty() };
        let rig = Rig::new(engine, SECTORS * SECTOR, &options, without, |context| {
            context.with_engine(|engine| engine.open_sim(&disk)).unwrap()
        });
        let sectors =
            vec![Sector { possible: vec![(0, 0)], ..Sector::default() }; SECTORS as usize];
        Run { rng, rig, disk, sectors, pending: BTreeMap::new(), version: 0, faulty, cache }
    }

    /// A range that no request in flight touches.
    fn free_range(&mut self) -> Option<(u64, u64)> {
        let sectors = 1 + self.rng.below(24);
        let sector = self.rng.below(SECTORS - sectors);
        let busy = |other: &Pending| match other {
            Pending::Read { sector: s, sectors: n }
            | Pending::Write { sector: s, sectors: n, .. } => {
                sector < s + n && *s < sector + sectors
            }
            Pending::Flush { .. } => false,
        };
        (!self.pending.values().any(busy)).then_some((sector, sectors))
    }

    fn submit(&mut self) {
        if self.pending.len() as u64 >= DEPTH {
            return;
        }
        let kind =
            [T_IN, T_OUT, T_OUT, T_OUT, T_FLUSH, T_DISCARD, T_WRITE_ZEROES][self.rng.index(7)];
        if kind == T_FLUSH {
            let completed = (0..SECTORS).map(|s| (s, self.sectors[s as usize].version)).collect();
            let slot = self.rig.submit(T_FLUSH, 0, &[], 0).unwrap();
            self.pending.insert(slot, Pending::Flush { completed });
            return;
        }
        let Some((sector, sectors)) = self.free_range() else { return };
        self.version += 1;
        let version = self.version;
        let (slot, stamp) = match kind {
            T_IN => {
                let slot = self.rig.submit(T_IN, sector, &[], sectors * SECTOR).unwrap();
                self.pending.insert(slot, Pending::Read { sector, sectors });
                return;
            }
            T_OUT => {
                let stamp = if self.rng.chance(100) { 0 } else { version };
                let slot = self.rig.submit(T_OUT, sector, &filled(stamp, sectors), 0).unwrap();
                (slot, stamp)
            }
            _ => {
                let unmap = kind == T_WRITE_ZEROES && self.rng.chance(500);
                let data = range(sector, sectors as u32, unmap);
                (self.rig.submit(kind, 0, &data, 0).unwrap(), 0)
            }
        };
        let durable = self.is_durable(kind);
        for index in sector..sector + sectors {
            self.sectors[index as usize].possible.push((version, stamp));
        }
        let discard = kind == T_DISCARD;
        let durable = durable && !discard;
        let done = Pending::Write { sector, sectors, stamp, durable, version };
        self.pending.insert(slot, done);
    }

    fn is_durable(&self, kind: u32) -> bool {
        kind != T_DISCARD && !self.cache.has_write_cache()
    }

    fn turn(&mut self) {
        for answer in self.rig.turn() {
            let pending = self.pending.remove(&answer.slot).unwrap();
            if answer.status != 0 {
                assert!(self.faulty, "nothing went wrong, but {pending:?} failed");
                self.failed(&pending);
                continue;
            }
            match pending {
                Pending::Read { sector, sectors } => self.check_read(answer.slot, sector, sectors),
                Pending::Write { sector, sectors, stamp, durable, version } => {
                    self.written(sector..sector + sectors, stamp, durable, version);
                }
                Pending::Flush { completed } if !self.cache.ignores_flush() => {
                    for (sector, version) in completed {
                        self.sectors[sector as usize].possible.retain(|(v, _)| *v >= version);
                    }
                }
                Pending::Flush { .. } => {}
            }
        }
    }

    fn written(&mut self, range: Range<u64>, stamp: u64, durable: bool, version: u64) {
        let contents = self.disk.contents();
        for index in range {
            let entry = &mut self.sectors[index as usize];
            let found = stamp_of(&contents, index).expect("whole sectors");
            // Only a discard (of stamp 0) may do nothing.
            assert!(found == stamp || stamp == 0, "sector {index} has {found}, not {stamp}");
            assert!(entry.may_hold(found), "sector {index}: {found} after {stamp}");
            entry.possible.retain(|(v, _)| *v != version && !durable);
            entry.possible.push((version, found));
            (entry.now, entry.version) = (found, version);
        }
    }

    /// Each sector of a failed request is old, new, or (a write of zeroes cut short) zero.
    fn failed(&mut self, pending: &Pending) {
        let Pending::Write { sector, sectors, version, .. } = *pending else { return };
        let contents = self.disk.contents();
        for index in sector..sector + sectors {
            let found = stamp_of(&contents, index).expect("whole sectors");
            let entry = &mut self.sectors[index as usize];
            assert!(entry.may_hold(found) || found == 0);
            entry.possible.push((version, found));
            entry.now = found;
        }
    }

    fn check_read(&mut self, slot: u64, sector: u64, sectors: u64) {
        let data = self.rig.data(slot, sectors * SECTOR);
        for index in 0..sectors {
            let found = stamp_of(&data, index).expect("whole sectors");
            let expected = self.sectors[(sector + index) as usize].now;
            assert_eq!(found, expected, "read of sector {}", sector + index);
        }
    }

    fn crash_and_check(&mut self) {
        self.disk.crash(&CrashPick::Seed(self.rng.bits()));
        let contents = self.disk.contents();
        for (index, sector) in (0..).zip(&self.sectors) {
            let found = stamp_of(&contents, index);
            assert!(
                found.is_some_and(|found| sector.may_hold(found)),
                "after the power cut sector {index} has {found:?}, possible are {:?}",
                sector.possible
            );
        }
        // Nothing may be left over, so that the rig can be dropped.
        while self.rig.in_flight() > 0 {
            self.rig.turn();
        }
    }
}

/// The stamp a sector holds; `None` if it is no whole sector of one write.
fn stamp_of(contents: &[u8], sector: u64) -> Option<u64> {
    let start = (sector * SECTOR) as usize;
    let bytes = contents.get(start..start + SECTOR as usize)?;
    let stamp = u64::from_le_bytes(*bytes.first_chunk()?);
    let tag = bytes.chunks(16).all(|chunk| chunk == &bytes[..16]);
    tag.then_some(stamp)
}

#[test]
fn no_power_cut_loses_what_the_guest_was_told_is_safe() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => seed.parse().map(|seed| seed..seed + 1).unwrap(),
        Err(_) => 0..400,
    };
    for seed in seeds {
        let run = std::panic::AssertUnwindSafe(|| {
            let mut run = Run::new(seed);
            let steps = 20 + run.rng.below(300);
            for _ in 0..steps {
                for _ in 0..run.rng.below(4) {
                    run.submit();
                }
                run.turn();
            }
            run.crash_and_check();
        });
        if let Err(panic) = std::panic::catch_unwind(run) {
            println!("failed with SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
