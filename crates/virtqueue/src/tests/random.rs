//! Device against driver: random chains, answered in random order, over the wrap of the indices.

use super::guest::{Rng, memory};
use crate::driver::{DriverConfig, DriverQueue, Seg};
use crate::{Notify, Virtqueue};
use guest_mem::{GuestAddr, IoVecs, MemHandle};
use std::collections::BTreeMap;

/// Data of a chain: `SLOT` bytes for each head, so that chains do not touch each other's.
const SLOT: u64 = 256;
const DATA_AT: u64 = 0x8000;

struct Sent {
    readable: Vec<u8>,
    writable: IoVecs,
    reply: Vec<u8>,
}

fn bytes(rng: &mut Rng, len: u64) -> Vec<u8> {
    (0..len).map(|_| rng.next() as u8).collect()
}

/// Cuts a slot of memory into random segments; the readable ones get random content.
fn chain(rng: &mut Rng, mem: &MemHandle, slot: u64, segs_max: u64) -> (Vec<Seg>, Sent) {
    let mut at = DATA_AT + slot * SLOT;
    let count = 1 + rng.below(segs_max);
    let readable = rng.below(count + 1);
    let mut sent = Sent { readable: Vec::new(), writable: IoVecs::new(mem), reply: Vec::new() };
    let mut segs = Vec::new();
    for i in 0..count {
        let len = 1 + rng.below(SLOT / 16);
        let device_writes = i >= readable;
        segs.push(Seg { addr: GuestAddr(at), len: len as u32, device_writes });
        if device_writes {
            sent.writable.push(GuestAddr(at), len).unwrap();
        } else {
            let data = bytes(rng, len);
            let mut iov = IoVecs::new(mem);
            iov.push(GuestAddr(at), len).unwrap();
            iov.copy_from(0, &data);
            sent.readable.extend(data);
        }
        at += len;
    }
    sent.reply = bytes(rng, sent.writable.bytes());
    (segs, sent)
}

fn contents(iov: &IoVecs) -> Vec<u8> {
    let mut data = vec![0; iov.bytes() as usize];
    assert_eq!(iov.copy_to(0, &mut data), data.len());
    data
}

fn run(seed: u64, steps: u64) {
    let mut rng = Rng(seed);
    let mem = MemHandle::new(memory());
    let config = DriverConfig {
        size: 1 << rng.below(6),
        event_idx: rng.below(2) == 0,
        indirect_entries: [0, 4, 16][rng.below(3) as usize],
        first_index: 0u16.wrapping_sub(rng.below(300) as u16),
    };
    assert!(config.bytes() < DATA_AT, "the queue and its tables lie below the data");
    let mut driver = DriverQueue::new(&mem, GuestAddr(0), config).unwrap();
    let mut device = Virtqueue::new(&mem, &driver.config(), config.first_index).unwrap();
    let mut sent: BTreeMap<u16, Sent> = BTreeMap::new();
    let mut taken = Vec::new();
    let mut free_slots: Vec<u64> = (0..64).collect();
    let mut slots = BTreeMap::new();
    let mut done = 0u64;

    for _ in 0..steps {
        match rng.below(8) {
            0..=2 => {
                let Some(slot) = free_slots.pop() else { continue };
                let (segs, info) = chain(&mut rng, &mem, slot, 8);
                match driver.add(&segs) {
                    Some(head) => {
                        slots.insert(head, slot);
                        assert!(sent.insert(head, info).is_none(), "head {head} twice");
                    }
                    None => {
                        free_slots.push(slot);
                        assert!(segs.len() > usize::from(driver.free_descs()));
                    }
                }
            }
            3 => drop(driver.kick_needed()),
            4 | 5 => {
                if let Some(chain) = device.pop().unwrap() {
                    let info = &sent[&chain.head];
                    assert_eq!(contents(&chain.readable), info.readable);
                    assert_eq!(chain.writable.bytes(), info.writable.bytes());
                    assert_eq!((chain.flaw, chain.splits), (None, 0));
                    taken.push(chain);
                }
            }
            6 => {
                if !taken.is_empty() {
                    let chain = taken.swap_remove(rng.below(taken.len() as u64) as usize);
                    chain.writable.copy_from(0, &sent[&chain.head].reply);
                    device.push_used(chain.head, chain.writable.bytes() as u32);
                    device.recycle(chain.writable.into_storage());
                    device.recycle(chain.readable.into_storage());
                }
                if rng.below(2) == 0 {
                    let _: Notify = device.publish();
                }
            }
            _ => {
                while let Some((head, written)) = driver.poll_used() {
                    let info = sent.remove(&head).expect("sent, and not answered before");
                    assert_eq!(u64::from(written), info.writable.bytes());
                    assert_eq!(contents(&info.writable), info.reply);
                    free_slots.push(slots.remove(&head).unwrap());
                    done += 1;
                }
            }
        }
        assert_eq!(usize::from(device.in_flight()), taken.len());
        assert_eq!(usize::from(driver.in_flight()), sent.len());
    }
    assert!(done > steps / 100, "seed {seed}: {done} chains in {steps} steps");
}

#[test]
fn every_chain_comes_back_once_with_its_data() {
    for seed in 0..60 {
        run(seed, 5000);
    }
}
