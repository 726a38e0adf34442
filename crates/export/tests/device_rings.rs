//! The real device: rings stopped, started and broken at any time, under load.

#![allow(missing_docs, clippy::disallowed_methods)]

mod device;

use device::load::{Command, FIRST_INDEX, Load};
use device::*;
use io_engine::Rng;
use std::time::Duration;

/// Rounds in each setup.
const ROUNDS: usize = 100;

/// After the reply to `GET_VRING_BASE`: everything taken was answered, and the device touches nothing any more.
fn assert_quiet(client: &mut Client, index: u16, at_reply: &[u8], used: u16, base: u16) {
    assert_eq!(used, base, "all chains taken were answered, and no others");
    // Gives a straggler its chance; it cannot make the test fail where there is none.
    client.front.get_features().unwrap();
    std::thread::sleep(Duration::from_micros(200));
    assert!(client.snapshot(index) == at_reply, "the device wrote after it had stopped");
}

#[test]
fn a_ring_is_stopped_and_started_with_requests_in_flight() {
    for setup in setups() {
        let Some(host) = Host::start(setup) else { continue };
        let mut client = host.client();
        // On this thread: what is in memory at the reply is seen at the reply.
        let mut loads: Vec<Load> = Vec::new();
        for (index, model) in (0..).zip(host.models()) {
            let load = client.load(index, model)();
            client.start_ring(index, &load.config(), FIRST_INDEX);
            loads.push(load);
        }
        let mut rng = Rng::new(7);
        let mut unfinished = 0;
        for round in 0..ROUNDS {
            let index = u16::try_from(round % loads.len()).unwrap();
            let load = &mut loads[usize::from(index)];
            load.fill();
            for _ in 0..rng.below(3) {
                std::thread::yield_now();
                load.reap();
                load.fill();
            }
            let base = client.front.stop_vring(index).unwrap();
            let snapshot = client.snapshot(index);
            let used = client.used_index(&load.config());
            assert_quiet(&mut client, index, &snapshot, used, base);
            load.reap();
            unfinished += load.in_flight();
            client.start_ring(index, &load.config(), base);
            if round % 4 == 3 {
                load.drain(&client.events[usize::from(index)].call);
            }
        }
        let mut models = Vec::new();
        for (load, events) in loads.into_iter().zip(&client.events) {
            let mut load = load;
            load.drain(&events.call);
            models.push(load.abandon());
        }
        println!("{setup:?}: {unfinished} requests were left to the restarts");
        drop(client);
        check_disk(models, &host.stop());
    }
}

#[test]
fn a_ring_is_stopped_and_started_while_its_driver_goes_on() {
    for setup in setups() {
        let Some(host) = Host::start(setup) else { continue };
        let mut client = host.client();
        let drivers = client.drive_all(host.models());
        for round in 0..ROUNDS {
            let index = u16::try_from(round % drivers.len()).unwrap();
            let driver = &drivers[usize::from(index)];
            driver.wait_answers(1);
            let base = client.front.stop_vring(index).unwrap();
            let used = client.used_index(&driver.config);
            driver.ask(Command::Pause);
            let snapshot = client.snapshot(index);
            assert_quiet(&mut client, index, &snapshot, used, base);
            driver.tell(Command::Go);
            client.start_ring(index, &driver.config, base);
        }
        // All at once, in any order.
        for _ in 0..10 {
            let bases: Vec<u16> =
                (0..setup.queues).map(|index| client.front.stop_vring(index).unwrap()).collect();
            for index in (0..setup.queues).rev() {
                let driver = &drivers[usize::from(index)];
                let base = bases[usize::from(index)];
                assert_eq!(client.used_index(&driver.config), base);
                client.start_ring(index, &driver.config, base);
                driver.wait_answers(1);
            }
        }
        let models = finish(drivers);
        drop(client);
        check_disk(models, &host.stop());
    }
}

#[test]
fn a_ring_is_disabled_and_enabled_under_load() {
    let host = Host::start(PLAIN).unwrap();
    let mut client = host.client();
    let drivers = client.drive_all(host.models());
    for round in 0..ROUNDS {
        let index = u16::try_from(round % drivers.len()).unwrap();
        client.front.enable_vring(index, false).unwrap();
        client.front.enable_vring(index, true).unwrap();
        // Nothing may depend on a further kick.
        drivers[usize::from(index)].wait_answers(1);
    }
    let models = finish(drivers);
    drop(client);
    check_disk(models, &host.stop());
}
