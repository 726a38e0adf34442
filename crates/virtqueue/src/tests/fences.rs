//! The four places where each side stores one word and then loads the other's: without a full fence between the two, both sides
//! can fall asleep. Two threads meet at exactly these places, again and again.
//!
//! Without one of the fences this fails in a release build (`cargo test --release`), within the rounds given. In a debug build
//! so many instructions lie between store and load that the missing fence is hardly ever seen.

use super::guest::{Rng, memory};
use crate::driver::{DriverConfig, DriverQueue, Seg};
use crate::{Notify, Virtqueue};
use guest_mem::{GuestAddr, MemHandle};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const ROUNDS: u64 = if cfg!(debug_assertions) { 20_000 } else { 200_000 };
const SEG: Seg = Seg { addr: GuestAddr(0x8000), len: 8, device_writes: true };

/// Where two threads wait for each other.
#[derive(Default)]
struct Meeting([AtomicU64; 2]);

impl Meeting {
    fn wait(&self, me: usize) {
        let round = self.0[me].load(Ordering::Relaxed) + 1;
        self.0[me].store(round, Ordering::Release);
        let mut spins = 0;
        while self.0[1 - me].load(Ordering::Acquire) < round {
            spins += 1;
            match spins % 1000 {
                // On a single CPU the other one would never come.
                0 => std::thread::yield_now(),
                _ => std::hint::spin_loop(),
            }
        }
    }
}

/// Lets the two arrive at different moments, some nanoseconds apart.
fn dither(rng: &mut Rng) {
    for i in 0..rng.below(100) {
        std::hint::black_box(i);
    }
}

#[test]
fn two_threads_that_meet_at_the_fences_never_miss_each_other() {
    for event_idx in [true, false] {
        let memory = memory();
        let mem = MemHandle::new(memory.clone());
        let config = DriverConfig { event_idx, ..DriverConfig::new(256) };
        let mut driver = DriverQueue::new(&mem, GuestAddr(0), config).unwrap();
        let device_config = driver.config();
        let meeting = Meeting::default();
        // What the device's call returned, for the driver's thread to judge.
        let (awake, notified) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mem = MemHandle::new(memory.clone());
                let mut device = Virtqueue::new(&mem, &device_config, 0).unwrap();
                let mut rng = Rng(1);
                for _ in 0..ROUNDS {
                    device.disable_kicks();
                    assert!(device.pop().unwrap().is_none());
                    meeting.wait(0);
                    dither(&mut rng);
                    awake.store(device.enable_kicks(), Ordering::Relaxed);
                    meeting.wait(0);
                    let chain = device.pop().unwrap().expect("it was added");
                    meeting.wait(0);
                    dither(&mut rng);
                    device.push_used(chain.head, 0);
                    let needed = device.publish() == Notify::Needed;
                    notified.store(needed, Ordering::Relaxed);
                    meeting.wait(0);
                }
            });
            let mut rng = Rng(2);
            let (mut lost_kicks, mut lost_notifications) = (0, 0);
            for _ in 0..ROUNDS {
                driver.disable_notify();
                assert!(driver.poll_used().is_none());
                meeting.wait(1);
                dither(&mut rng);
                driver.add(&[SEG]).unwrap();
                let kick = driver.kick_needed();
                meeting.wait(1);
                lost_kicks += u32::from(!kick && !awake.load(Ordering::Relaxed));
                meeting.wait(1);
                dither(&mut rng);
                let more = driver.enable_notify();
                meeting.wait(1);
                lost_notifications += u32::from(!more && !notified.load(Ordering::Relaxed));
                assert!(driver.poll_used().is_some());
            }
            assert_eq!((lost_kicks, lost_notifications), (0, 0), "event_idx: {event_idx}");
        });
    }
}
