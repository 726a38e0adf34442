//! The real device: its configuration space, the disk's size and its write cache, under load.

#![allow(missing_docs, clippy::disallowed_methods)]

mod device;

use device::load::{FIRST_INDEX, T_IN, T_OUT};
use device::*;
use export::vhost_user::ErrorKind;
use std::sync::atomic::Ordering;

const OK: u8 = 0;
const IOERR: u8 = 1;
/// Offset of the write cache's switch in the configuration space.
const WRITEBACK: u32 = 32;

fn capacity(client: &mut Client) -> u64 {
    u64::from_le_bytes(client.front.read_config(0, 8).unwrap().try_into().unwrap())
}

fn write_cache(client: &mut Client) -> u8 {
    client.front.read_config(WRITEBACK, 1).unwrap()[0]
}

#[test]
fn a_resized_disk_is_announced_and_used_at_once() {
    for setup in setups() {
        let queues = u64::from(setup.queues);
        // The last queue does single requests, beyond what the others use.
        let sectors = queues * SECTORS as u64;
        let Some(host) = Host::start(setup) else { continue };
        let mut client = host.client();
        let mut channel = client.front.open_channel().unwrap();
        let mut models = host.models();
        let last = setup.queues - 1;
        let mut load = client.load(last, models.pop().unwrap())();
        client.start_ring(last, &load.config(), FIRST_INDEX);
        let drivers = client.drive_all(models);
        let call = client.events[usize::from(last)].call.try_clone().unwrap();
        let mut write = |sector: u64, count: usize| {
            load.request(&call, T_OUT, sector, &vec![0x5A; count * 512], 0).0
        };
        assert_eq!(capacity(&mut client), sectors);
        assert_eq!(write(sectors - 1, 1), OK);
        assert_eq!(write(sectors, 1), IOERR);
        assert_eq!(write(sectors - 1, 2), IOERR);

        let resize = |to: u64| {
            let file = std::fs::OpenOptions::new().write(true).open(host.image.path()).unwrap();
            file.set_len(to * 512).unwrap();
            assert_eq!(host.image.update_size().unwrap(), Some(to * 512));
            host.wishes.changed.store(true, Ordering::SeqCst);
            host.wake();
        };
        resize(2 * sectors);
        channel.wait_config_change().unwrap();
        assert_eq!(capacity(&mut client), 2 * sectors);
        assert_eq!(write(2 * sectors - 16, 16), OK);
        assert_eq!(write(sectors, 1), OK);
        assert_eq!(write(2 * sectors - 1, 2), IOERR);
        assert_eq!(write(2 * sectors, 1), IOERR);

        // Smaller again, to an odd size.
        resize(sectors + 3);
        channel.wait_config_change().unwrap();
        assert_eq!(capacity(&mut client), sectors + 3);
        assert_eq!(write(sectors + 2, 1), OK);
        assert_eq!(write(sectors + 2, 2), IOERR);
        let (status, read) = load.request(&call, T_IN, sectors, &[], 512 * 3);
        assert_eq!((status, read), (OK, [vec![0x5A; 512], vec![0; 512], vec![0x5A; 512]].concat()));
        assert_eq!(load.request(&call, T_IN, sectors + 2, &[], 1024).0, IOERR);
        drivers.iter().for_each(|driver| driver.wait_answers(1));
        assert!(!channel.has_message());
        let models = finish(drivers);
        drop(client);
        check_disk(models, &host.stop());
    }
}

#[test]
fn the_write_cache_is_switched_under_load() {
    for setup in setups() {
        let Some(host) = Host::start(setup) else { continue };
        let mut client = host.client();
        let drivers = client.drive_all(host.models());
        assert_eq!(write_cache(&mut client), 1);
        for round in 0..20u8 {
            let on = round % 2;
            client.front.write_config(WRITEBACK, &[on]).unwrap();
            assert_eq!(write_cache(&mut client), on);
            drivers.iter().for_each(|driver| driver.wait_answers(2));
        }
        client.front.write_config(WRITEBACK, &[0]).unwrap();
        for (offset, data) in [
            (WRITEBACK, &[2][..]),
            (WRITEBACK, &[0xFF]),
            (WRITEBACK, &[1, 0]),
            (WRITEBACK, &[]),
            (WRITEBACK - 1, &[1]),
            (WRITEBACK + 1, &[1]),
            (0, &[1, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            let refused = client.front.write_config(offset, data).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Refused, "{offset} {data:?}");
            assert_eq!(write_cache(&mut client), 0, "{offset} {data:?}");
        }
        assert_eq!(capacity(&mut client), host.image.disk_bytes() / 512);
        drivers.iter().for_each(|driver| driver.wait_answers(2));
        let models = finish(drivers);
        drop(client);
        check_disk(models, &host.stop());
    }
}

#[test]
fn a_write_cache_switched_off_outlives_the_session_but_not_a_reset() {
    let host = Host::start(PLAIN).unwrap();
    let mut client = host.client();
    client.front.write_config(WRITEBACK, &[0]).unwrap();
    drop(client);
    // The guest lives on and reconnects: it was promised that its writes are durable, and does not flush.
    let mut client = host.client();
    assert_eq!(write_cache(&mut client), 0, "kept over the end of a session");
    let drivers = client.drive_all(host.models());
    drivers[0].wait_answers(5);
    drop(client.front);
    let models = abandon(drivers);
    let mut client = host.client();
    assert_eq!(write_cache(&mut client), 0, "kept over a crash");
    client.front.set_status(0).unwrap();
    assert_eq!(write_cache(&mut client), 0, "a device that is not broken keeps it");
    client.reset();
    assert_eq!(write_cache(&mut client), 1, "a reset brings the default back");
    drop(client);
    let mut client = host.client();
    assert_eq!(write_cache(&mut client), 1);
    let models = finish(client.drive_all(models));
    drop(client);
    check_disk(models, &host.stop());
}
