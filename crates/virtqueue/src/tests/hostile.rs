//! Rings full of garbage, which changes before each read: no panic, and a bounded amount of work.

use super::guest::{MEM_END, Rng};
use crate::{BadRing, INDIRECT_ENTRIES_MAX, QueueConfig, Virtqueue};
use guest_mem::{GuestAddr, GuestSlice, IoVecs, MemHandle, clear_read_hook, set_read_hook};
use std::cell::Cell;
use std::rc::Rc;

/// Where the rings of one run lie, so that garbage can be aimed at them.
#[derive(Clone)]
struct Target {
    words: GuestSlice,
    config: QueueConfig,
}

impl Target {
    /// Overwrites one field with a value that is often nearly right.
    fn spoil(&self, rng: &mut Rng) {
        let size = u64::from(self.config.size);
        let near = |rng: &mut Rng| match rng.below(4) {
            0 => rng.next() as u16,
            _ => rng.below(size + 2) as u16,
        };
        match rng.below(8) {
            0..=2 => {
                let at = 16 * rng.below(size);
                let flags = [0, 2, 2, 3, 1, 3, 4, 5][rng.below(8) as usize];
                let len = [0, 1, 16, 48, 64, 4096, 1 << 14, u32::MAX][rng.below(8) as usize];
                let rest = u64::from(len) | flags << 32 | u64::from(near(rng)) << 48;
                self.write(self.config.desc.0 + at, self.addr(rng));
                self.write(self.config.desc.0 + at + 8, rest);
            }
            3 | 4 => {
                let at = self.config.avail.0 + 2 * rng.below(size + 3);
                self.words.write_u16(at as usize, near(rng));
            }
            5 => self.words.store_index(self.config.avail.0 as usize + 2, near(rng)),
            6 => self.write(rng.below(MEM_END / 2 / 8) * 8, rng.next()),
            _ => self.words.write_u16(self.config.used.0 as usize + 2, near(rng)),
        }
    }

    fn addr(&self, rng: &mut Rng) -> u64 {
        match rng.below(8) {
            0 => rng.next(),
            1 => MEM_END - rng.below(64),
            2 => self.config.desc.0,
            3 => u64::MAX - rng.below(32),
            _ => rng.below(MEM_END),
        }
    }

    fn write(&self, addr: u64, value: u64) {
        self.words.write_u64(addr as usize, value);
    }
}

/// Serves a queue for some steps; returns whether any chain was popped, and why the queue broke.
fn serve(
    queue: &mut Virtqueue,
    rng: &mut Rng,
    size: u16,
    reads: &Cell<u64>,
) -> (u32, Option<BadRing>) {
    let mut taken = Vec::new();
    let mut popped = 0;
    for _ in 0..40 {
        match rng.below(6) {
            0..=2 => {
                let before = reads.get();
                let result = queue.pop();
                // The index, the entry, and two words for each step.
                let table = u64::from(size.max(INDIRECT_ENTRIES_MAX));
                assert!(reads.get() - before <= 2 + 2 * (u64::from(size) + table));
                match result {
                    Ok(Some(chain)) => {
                        popped += 1;
                        assert!(chain.readable.bytes() + chain.writable.bytes() <= 1 << 32);
                        chain.writable.copy_from(0, &[0xa5; 64]);
                        taken.push(chain);
                    }
                    Ok(None) => {}
                    Err(why) => assert_eq!(queue.broken(), Some(why)),
                }
            }
            3 if !taken.is_empty() => {
                let chain = taken.swap_remove(rng.below(taken.len() as u64) as usize);
                queue.push_used(chain.head, rng.next() as u32);
                queue.recycle(chain.readable.into_storage());
                queue.recycle(chain.writable.into_storage());
            }
            3 => queue.disable_kicks(),
            4 => drop(queue.publish()),
            _ => drop(queue.enable_kicks()),
        }
        assert_eq!(usize::from(queue.in_flight()), taken.len());
        assert!(queue.in_flight() <= size);
    }
    (popped, queue.broken())
}

#[test]
fn garbage_that_changes_all_the_time_breaks_the_queue_and_nothing_else() {
    let mem = {
        // One region, so that one slice reaches it all.
        let (memory, _fd) = guest_mem::GuestMemory::memfd(MEM_END).unwrap();
        MemHandle::new(std::sync::Arc::new(memory))
    };
    let words = mem.slice(GuestAddr(0), MEM_END).unwrap();
    let mut all = IoVecs::new(&mem);
    all.push(GuestAddr(0), 0x4000).unwrap();
    let (mut popped_all, mut kinds) = (0, std::collections::BTreeSet::new());
    for seed in 0..10_000 {
        let mut rng = Rng(seed);
        let size = 1u16 << rng.below(8);
        let config = QueueConfig {
            size,
            desc: GuestAddr(rng.below(64) * 16),
            avail: GuestAddr(0x2000 + rng.below(64) * 2),
            used: GuestAddr(0x3000 + rng.below(64) * 4),
            event_idx: rng.below(2) == 0,
            indirect: rng.below(4) != 0,
        };
        let target = Target { words: words.clone(), config };
        all.zero_from(0);
        for _ in 0..u64::from(size) * 2 {
            target.spoil(&mut rng);
        }
        let first = rng.next() as u16;
        words.store_index(config.avail.0 as usize + 2, first.wrapping_add(rng.below(3) as u16));
        let mut queue = Virtqueue::new(&mem, &config, first).unwrap();
        let reads = Rc::new(Cell::new(0));
        let (counter, mut hook_rng, often) = (reads.clone(), Rng(!seed), 1 + seed % 64);
        set_read_hook(Box::new(move || {
            counter.set(counter.get() + 1);
            if hook_rng.below(often) == 0 {
                target.spoil(&mut hook_rng);
            }
        }));
        let (popped, broken) = serve(&mut queue, &mut rng, size, &reads);
        clear_read_hook();
        popped_all += popped;
        kinds.extend(
            broken.map(|why| format!("{why:?}").split([' ', '(']).next().unwrap().to_owned()),
        );
    }
    // The garbage must be good enough to get somewhere.
    assert!(popped_all > 4000, "{popped_all}");
    assert!(kinds.len() >= 10, "{kinds:?}");
}
