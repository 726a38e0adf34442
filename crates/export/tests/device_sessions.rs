//! The real device: resets, crashes and reconnects under load.

#![allow(missing_docs, clippy::disallowed_methods)]

mod device;

use device::load::{Command, WHOLE_PROCESS};
use device::*;

#[test]
fn the_device_is_reset_under_load() {
    let _alone = WHOLE_PROCESS.lock();
    for setup in setups() {
        let Some(host) = Host::start(setup) else { continue };
        let mut client = host.client();
        let mut models = host.models();
        for _ in 0..40 {
            let drivers = client.drive_all(models);
            drivers[0].wait_answers(3);
            client.reset();
            // The drivers know of nothing and go on: nobody may answer them.
            let used = |client: &Client| -> Vec<u16> {
                drivers.iter().map(|driver| client.used_index(&driver.config)).collect()
            };
            let at_reply = used(&client);
            client.front.get_features().unwrap();
            assert_eq!(used(&client), at_reply, "a queue was served after the reset");
            models = abandon(drivers);
        }
        models = finish(client.drive_all(models));
        drop(client);
        check_disk(models, &host.stop());
    }
}

/// What a leak would show in.
#[derive(Debug)]
struct Resources {
    fds: usize,
    mappings: usize,
    rss_kib: usize,
}

impl Resources {
    fn now() -> Resources {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Resources {
            fds: std::fs::read_dir("/proc/self/fd").unwrap().count(),
            mappings: std::fs::read_to_string("/proc/self/maps").unwrap().lines().count(),
            rss_kib: rss.trim().trim_end_matches(" kB").parse().unwrap(),
        }
    }

    /// File descriptors are counted exactly; what the C library keeps for threads that come and go is allowed for.
    fn assert_constant_since(&self, before: &Resources) {
        assert_eq!(self.fds, before.fds, "{self:?}, before: {before:?}");
        assert!(self.mappings < before.mappings + 64, "{self:?}, before: {before:?}");
        assert!(self.rss_kib < before.rss_kib + (64 << 10), "{self:?}, before: {before:?}");
    }
}

/// Clients that crash under load, each in the middle of whatever there is.
const CRASHES: usize = 200;

#[test]
fn clients_crash_under_load_and_the_next_one_is_served() {
    let _alone = WHOLE_PROCESS.lock();
    let setups: Vec<_> = setups().collect();
    for setup in &setups {
        let Some(host) = Host::start(*setup) else { continue };
        let mut models = host.models();
        let mut before = None;
        let rounds = (CRASHES / setups.len()).max(40);
        for round in 0..rounds {
            // The next session begins only after the last one has ended, so this counts nothing of that one.
            let mut client = host.client();
            client.front.get_features().unwrap();
            match &before {
                None if round == 10 => before = Some(Resources::now()),
                Some(before) if round + 1 == rounds => {
                    Resources::now().assert_constant_since(before)
                }
                _ => {}
            }
            assert!(!client.needs_reset(), "the last client's ring is forgotten");
            let drivers = client.drive_all(models);
            drivers[round % drivers.len()].wait_answers(3);
            models = crash(client, drivers, round);
        }
        let mut client = host.client();
        models = finish(client.drive_all(models));
        drop(client);
        check_disk(models, &host.stop());
    }
}

/// Ends a client as a crash would: its socket first, its memory first, or both ends of its life at once.
fn crash(
    client: Client,
    mut drivers: Vec<device::load::Driver>,
    round: usize,
) -> Vec<device::model::Model> {
    let Client { front, memfd, .. } = client;
    match round % 4 {
        // The memory is taken away under full rings, and the client lives on for a moment.
        0 => {
            let last = drivers.pop().unwrap();
            let mut models = abandon(drivers);
            // These have left requests in flight in the same memory.
            models.iter_mut().for_each(|model| model.spoil_unanswered());
            models.push(last.end(Command::Truncate(memfd)));
            drop(front);
            models
        }
        1 => {
            let models = abandon(drivers);
            drop(front);
            models
        }
        _ => {
            drop(front);
            abandon(drivers)
        }
    }
}

#[test]
fn the_disk_holds_what_was_written_after_the_client_has_gone() {
    let _alone = WHOLE_PROCESS.lock();
    for setup in setups() {
        let Some(host) = Host::start(setup) else { continue };
        let mut models = host.models();
        for _ in 0..3 {
            let mut client = host.client();
            let drivers = client.drive_all(models);
            drivers.iter().for_each(|driver| driver.wait_answers(50));
            // No flush, no stop: the connection just ends.
            drop(client.front);
            models = abandon(drivers);
        }
        check_disk(models, &host.stop());
    }
}
