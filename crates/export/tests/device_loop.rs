//! The real device over a block device: sectors larger than the guest's, and writes that must be durable.

#![allow(missing_docs, clippy::disallowed_methods)]

mod device;

use block::CacheMode;
use device::load::{FIRST_INDEX, T_OUT};
use device::model::Model;
use device::*;
use io_engine::EngineKind;

/// Host blocks of 4096 bytes that the drivers fight over.
const BLOCKS: usize = 64;

#[test]
fn writes_of_parts_of_a_host_block_leave_their_neighbours_alone() {
    for engine in [EngineKind::IoUring, EngineKind::Threads, EngineKind::Native] {
        let setup = Setup {
            engine,
            cache: CacheMode::None,
            io_threads: 2,
            queues: 4,
            in_ram: false,
            event_idx: true,
        };
        let Some(disk) = LoopDevice::new(BLOCKS as u64 * 4096, 4096) else { return };
        let Some(host) = Host::serve(setup, &disk.path) else { return };
        assert!(host.image.needs_home_thread(), "{:?}", host.image.file().facts());
        let mut client = host.client();
        // Each host block has two sectors of each queue.
        let model = |first| Model::new(first, 4, BLOCKS * 2);
        let drivers = client.drive_all((0..4).map(model).collect());
        drivers.iter().for_each(|driver| driver.wait_answers(400));
        let models = finish(drivers);
        drop(client);
        let content = host.stop();
        assert!(content == std::fs::read(&disk.file).unwrap(), "on the device, not in a cache");
        check_disk(models, &content);
    }
}

#[test]
fn without_a_write_cache_a_write_is_on_the_device_when_it_is_answered() {
    let Some(disk) = LoopDevice::new(1 << 20, 512) else { return };
    let setup = Setup { queues: 1, io_threads: 1, ..PLAIN };
    assert!(!setup.cache.is_direct(), "else each write is on the device anyway");
    let Some(host) = Host::serve(setup, &disk.path) else { return };
    let mut stamp = 0u8;
    let mut durable_write = |client: &mut Client| {
        let mut load = client.load(0, Model::new(0, 1, SECTORS))();
        client.start_ring(0, &load.config(), FIRST_INDEX);
        let before = disk.writes();
        stamp += 1;
        let (status, _) =
            load.request(&client.events[0].call, T_OUT, u64::from(stamp) * 8, &[stamp; 4096], 0);
        assert_eq!(status, 0);
        let after = disk.writes();
        client.front.stop_vring(0).unwrap();
        after > before
    };
    let mut client = host.client();
    println!("with a write cache: {}", durable_write(&mut client));
    client.front.write_config(32, &[0]).unwrap();
    assert!(durable_write(&mut client), "the driver has switched the cache off");
    drop(client);
    let mut client = host.client();
    assert!(durable_write(&mut client), "and relies on it after a reconnect");
    client.front.write_config(32, &[1]).unwrap();
    println!("with a write cache: {}", durable_write(&mut client));
    drop(client);
    host.stop();
}
