//! No kick and no notification is lost, and no needless one is sent.

use super::guest::{Guest, memory};
use crate::driver::{BadUsed, DriverConfig, DriverQueue, Seg};
use crate::layout::passes_event;
use crate::{Notify, Virtqueue};
use guest_mem::{GuestAddr, MemHandle, clear_read_hook, set_read_hook};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

const SEG: Seg = Seg { addr: GuestAddr(0x8000), len: 8, device_writes: true };

fn pair(config: DriverConfig) -> (DriverQueue, Virtqueue) {
    let mem = MemHandle::new(memory());
    let driver = DriverQueue::new(&mem, GuestAddr(0), config).unwrap();
    let device = Virtqueue::new(&mem, &driver.config(), config.first_index).unwrap();
    (driver, device)
}

fn config(size: u16, event_idx: bool, first_index: u16) -> DriverConfig {
    DriverConfig { size, event_idx, indirect_entries: 0, first_index }
}

#[test]
fn an_event_is_passed_if_it_is_one_of_the_indices_that_were_filled() {
    for old in [0u16, 1, 5, 32767, 32768, 65530, 65535] {
        for count in [0u16, 1, 2, 3, 8, 255, 32768] {
            let new = old.wrapping_add(count);
            for near in 0..12 {
                for event in
                    [old.wrapping_sub(6).wrapping_add(near), new.wrapping_sub(6).wrapping_add(near)]
                {
                    let filled = event.wrapping_sub(old) < count;
                    assert_eq!(passes_event(event, new, old), filled, "{event} {old}..{new}");
                }
            }
        }
    }
}

#[test]
fn without_event_indices_flags_decide() {
    let (mut driver, mut device) = pair(config(4, false, 0));
    driver.add(&[SEG]).unwrap();
    assert!(driver.kick_needed());
    assert!(!driver.kick_needed(), "nothing new");
    device.disable_kicks();
    driver.add(&[SEG]).unwrap();
    assert!(!driver.kick_needed());
    assert!(device.enable_kicks(), "two chains are there");
    for written in [1, 2] {
        let chain = device.pop().unwrap().unwrap();
        device.push_used(chain.head, written);
    }
    assert!(!device.enable_kicks());
    driver.disable_notify();
    assert_eq!(device.publish(), Notify::Suppressed);
    assert!(driver.enable_notify(), "two are used");
    assert_eq!(driver.poll_used().unwrap().1, 1);
    assert_eq!(driver.poll_used().unwrap().1, 2);
    assert!(driver.poll_used().is_none() && !driver.enable_notify());
    driver.add(&[SEG]).unwrap();
    assert!(driver.kick_needed());
    let chain = device.pop().unwrap().unwrap();
    device.push_used(chain.head, 0);
    assert!(driver.poll_used().is_none(), "not before it is published");
    assert_eq!(device.publish(), Notify::Needed);
    assert_eq!(device.publish(), Notify::Suppressed, "nothing new");
}

#[test]
fn the_first_publication_notifies_whatever_the_event_index_says() {
    // A server that published and died before it notified left the driver asleep, its event index behind the used index.
    let mem = MemHandle::new(memory());
    let mut driver = DriverQueue::new(&mem, GuestAddr(0), config(4, true, 0)).unwrap();
    let mut device = Virtqueue::new(&mem, &driver.config(), 0).unwrap();
    driver.add(&[SEG]).unwrap();
    driver.add(&[SEG]).unwrap();
    assert!(driver.kick_needed());
    let heads: Vec<u16> = (0..2).map(|_| device.pop().unwrap().unwrap().head).collect();
    device.push_used(heads[0], 1);
    let _died_here = device.publish();
    let mut device = Virtqueue::new(&mem, &driver.config(), device.next_avail()).unwrap();
    device.resubmit(heads[1]).unwrap();
    device.push_used(heads[1], 1);
    assert_eq!(device.publish(), Notify::Needed);
}

#[test]
fn a_driver_that_waits_for_several_is_notified_once() {
    for first in [0, 65533] {
        let (mut driver, mut device) = pair(config(8, true, first));
        for _ in 0..8 {
            driver.add(&[SEG]).unwrap();
        }
        assert!(driver.kick_needed());
        assert!(!driver.notify_after(4));
        let mut needed = Vec::new();
        for _ in 0..8 {
            let chain = device.pop().unwrap().unwrap();
            device.push_used(chain.head, 0);
            needed.push(device.publish() == Notify::Needed);
        }
        // The first one always notifies, see above.
        assert_eq!(needed, [true, false, false, false, true, false, false, false]);
        assert!(driver.notify_after(4));
    }
}

#[test]
fn a_device_that_uses_what_is_not_in_flight_is_told_from_one_that_is_done() {
    for id in [1u32, 4, 65536 + 2, u32::MAX] {
        let mem = MemHandle::new(memory());
        let mut driver = DriverQueue::new(&mem, GuestAddr(0), config(4, true, 0)).unwrap();
        let head = driver.add(&[SEG]).unwrap();
        assert!(driver.kick_needed() && head == 0);
        assert_eq!(driver.try_poll_used(), Ok(None));
        let used = mem.slice(driver.config().used, 38).unwrap();
        used.write_u32(4, u32::from(head));
        used.write_u32(12, id);
        used.store_index(2, 2);
        assert_eq!(driver.try_poll_used(), Ok(Some((0, 0))));
        assert_eq!(driver.try_poll_used(), Err(BadUsed { id }), "{id}");
    }
}

#[test]
fn a_polling_side_is_left_alone() {
    let (mut driver, mut device) = pair(config(4, true, 65530));
    device.disable_kicks();
    driver.disable_notify();
    let mut notified = 0;
    for i in 0..1000 {
        driver.add(&[SEG]).unwrap();
        assert!(!driver.kick_needed(), "{i}");
        let chain = device.pop().unwrap().unwrap();
        device.push_used(chain.head, i);
        notified += u32::from(device.publish() == Notify::Needed);
        assert_eq!(driver.poll_used(), Some((chain.head, i)));
    }
    assert_eq!(notified, 1, "only the first one");
}

/// Goes through all sequences of choices: [`Choices::next`] answers as the present sequence says, [`Choices::advance`] makes the
/// next one.
#[derive(Default)]
struct Choices {
    taken: Vec<bool>,
    at: usize,
}

impl Choices {
    fn next(&mut self) -> bool {
        if self.at == self.taken.len() {
            self.taken.push(false);
        }
        self.at += 1;
        self.taken[self.at - 1]
    }

    fn advance(&mut self) -> bool {
        self.at = 0;
        while self.taken.pop_if(|last| *last).is_some() {}
        match self.taken.last_mut() {
            Some(last) => {
                *last = true;
                true
            }
            None => false,
        }
    }
}

/// The driver's part in the exploration: it adds up to `left` chains, one per step.
struct Adder {
    driver: DriverQueue,
    left: u32,
    kicked: bool,
}

impl Adder {
    fn step(&mut self) {
        if self.left > 0 && self.driver.add(&[SEG]).is_some() {
            self.left -= 1;
            self.kicked |= self.driver.kick_needed();
        }
    }
}

/// The device serves until it sleeps; the driver may step in before any of the device's reads of memory, so also between the
/// device's last look and its falling asleep.
#[test]
fn no_kick_is_lost_whenever_the_driver_steps_in() {
    for (event_idx, first) in [(true, 0), (true, 65534), (false, 0)] {
        let choices = Rc::new(RefCell::new(Choices::default()));
        let mut runs = 0;
        loop {
            let (driver, mut device) = pair(config(2, event_idx, first));
            let adder = Rc::new(RefCell::new(Adder { driver, left: 2, kicked: false }));
            let (hook_adder, hook_choices) = (adder.clone(), choices.clone());
            set_read_hook(Box::new(move || {
                let mut adder = hook_adder.borrow_mut();
                if adder.left > 0 && hook_choices.borrow_mut().next() {
                    adder.step();
                }
            }));
            let mut served = 0;
            for _awake in 0..4 {
                device.disable_kicks();
                loop {
                    while device.pop().unwrap().is_some() {
                        served += 1;
                    }
                    if !device.enable_kicks() {
                        break;
                    }
                }
                // Asleep: only a kick gets it up again.
                if !std::mem::take(&mut adder.borrow_mut().kicked) {
                    break;
                }
            }
            clear_read_hook();
            assert_eq!(served, 2 - adder.borrow().left, "asleep over an available chain");
            while adder.borrow().left > 0 {
                adder.borrow_mut().step();
                assert!(std::mem::take(&mut adder.borrow_mut().kicked), "it is asleep");
                assert!(device.pop().unwrap().is_some());
                assert!(!device.enable_kicks());
            }
            runs += 1;
            if !choices.borrow_mut().advance() {
                break;
            }
        }
        assert!(runs > 10, "{runs}");
    }
}

/// The same the other way round: the driver sleeps, and the device steps in before any of its reads.
#[test]
fn no_notification_is_lost_whenever_the_device_steps_in() {
    for (event_idx, first) in [(true, 0), (true, 65534), (false, 0)] {
        let choices = Rc::new(RefCell::new(Choices::default()));
        let mut runs = 0;
        loop {
            let (mut driver, mut device) = pair(config(4, event_idx, first));
            for _ in 0..3 {
                driver.add(&[SEG]).unwrap();
            }
            assert!(driver.kick_needed());
            let mut heads: Vec<u16> = (0..3).map(|_| device.pop().unwrap().unwrap().head).collect();
            // The first publication notifies in any case: get it behind us.
            device.push_used(heads.pop().unwrap(), 0);
            assert_eq!(device.publish(), Notify::Needed);
            let user = Rc::new(RefCell::new((device, heads, false)));
            let (hook_user, hook_choices) = (user.clone(), choices.clone());
            set_read_hook(Box::new(move || {
                let (device, heads, notified) = &mut *hook_user.borrow_mut();
                if !heads.is_empty() && hook_choices.borrow_mut().next() {
                    device.push_used(heads.pop().unwrap(), 0);
                    *notified |= device.publish() == Notify::Needed;
                }
            }));
            let mut polled = 0;
            for _awake in 0..4 {
                driver.disable_notify();
                loop {
                    while driver.poll_used().is_some() {
                        polled += 1;
                    }
                    if !driver.enable_notify() {
                        break;
                    }
                }
                if !std::mem::take(&mut user.borrow_mut().2) {
                    break;
                }
            }
            clear_read_hook();
            let left = user.borrow().1.len();
            assert_eq!(polled, 3 - left, "asleep over a used chain");
            for _ in 0..left {
                let (device, heads, _) = &mut *user.borrow_mut();
                device.push_used(heads.pop().unwrap(), 0);
                assert_eq!(device.publish(), Notify::Needed, "it is asleep");
                assert!(driver.poll_used().is_some() && !driver.enable_notify());
            }
            runs += 1;
            if !choices.borrow_mut().advance() {
                break;
            }
        }
        assert!(runs > 10, "{runs}");
    }
}

/// A flag that one thread raises and the other one waits for, as an eventfd.
#[derive(Default)]
struct Call(AtomicBool);

impl Call {
    fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Waits, but not for ever: false if nobody called.
    fn wait(&self) -> bool {
        for _ in 0..20_000_000u64 {
            if self.0.swap(false, Ordering::Acquire) {
                return true;
            }
            std::hint::spin_loop();
            std::thread::yield_now();
        }
        false
    }
}

/// Both sides sleep as often as they can, on two CPUs. (Missing fences are for the test in `fences.rs` to find.)
#[test]
fn two_threads_that_sleep_whenever_they_can_never_miss_each_other() {
    const CHAINS: u32 = 60_000;
    for event_idx in [true, false] {
        let memory = memory();
        let queue_config = config(4, event_idx, 65500);
        let driver_mem = MemHandle::new(memory.clone());
        let mut driver = DriverQueue::new(&driver_mem, GuestAddr(0), queue_config).unwrap();
        let device_config = driver.config();
        let (kick, notify) = (Call::default(), Call::default());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mem = MemHandle::new(memory.clone());
                let mut device = Virtqueue::new(&mem, &device_config, 65500).unwrap();
                let mut served = 0;
                while served < CHAINS {
                    device.disable_kicks();
                    while let Some(chain) = device.pop().unwrap() {
                        device.push_used(chain.head, served);
                        served += 1;
                        if device.publish() == Notify::Needed {
                            notify.raise();
                        }
                    }
                    if served < CHAINS && !device.enable_kicks() {
                        assert!(kick.wait(), "a kick was lost after {served} chains");
                    }
                }
            });
            let (mut added, mut polled) = (0, 0);
            while polled < CHAINS {
                driver.disable_notify();
                while let Some((_, order)) = driver.poll_used() {
                    assert_eq!(order, polled);
                    polled += 1;
                }
                while added < CHAINS && driver.add(&[SEG]).is_some() {
                    added += 1;
                    if driver.kick_needed() {
                        kick.raise();
                    }
                }
                if polled < CHAINS && !driver.enable_notify() {
                    assert!(notify.wait(), "a notification was lost after {polled} chains");
                }
            }
        });
    }
}

#[test]
fn kicks_without_work_and_work_without_kicks_are_fine() {
    let mut guest = Guest::new(4);
    let mut device = guest.queue();
    for _ in 0..1000 {
        assert!(device.pop().unwrap().is_none() && !device.has_avail());
    }
    guest.desc(0, 0x8000, 1, 2, 0);
    guest.avail(0);
    assert!(device.has_avail() && device.pop().unwrap().is_some() && !device.has_avail());
}
