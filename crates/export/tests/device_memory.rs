//! The real device: guest memory that changes under load.

#![allow(missing_docs, clippy::disallowed_methods)]

mod device;

use device::load::{Command, EXTRA_ADDR, EXTRA_AREA_BYTES};
use device::*;
use guest_mem::{GuestAddr, RegionSpec};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Rounds in each setup; all setups together make a thousand.
const ROUNDS: usize = 200;

/// At most two queues: more drivers keep the machine so busy that the changes themselves come slowly.
fn two_queues() -> impl Iterator<Item = Setup> {
    setups().map(|setup| Setup { queues: setup.queues.min(2), ..setup })
}

/// A region that comes and goes. Nobody but the server maps its file.
struct Extra {
    spec: RegionSpec,
    fd: Arc<OwnedFd>,
    name: String,
    bytes: usize,
}

impl Extra {
    fn new(setup: Setup) -> Extra {
        let len = u64::from(setup.queues) * EXTRA_AREA_BYTES;
        let (fd, name) = memfd(len);
        let guest_addr = GuestAddr(EXTRA_ADDR);
        let spec = RegionSpec { guest_addr, len, user_addr: 1 << 40, file_offset: 0 };
        Extra { spec, fd: Arc::new(fd), name, bytes: usize::try_from(len).unwrap() }
    }

    fn assert_unmapped(&self) {
        assert_eq!(mappings(&self.name), 0, "the region was removed and is mapped");
    }

    fn write_pattern(&self, pattern: &[u8]) {
        assert_eq!(rustix::io::pwrite(&self.fd, pattern, 0).unwrap(), self.bytes);
    }

    fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes];
        assert_eq!(rustix::io::pread(&self.fd, &mut bytes, 0).unwrap(), self.bytes);
        bytes
    }
}

#[test]
fn a_region_comes_and_goes_under_load() {
    for setup in two_queues() {
        let Some(host) = Host::start(setup) else { continue };
        let mut client = host.client();
        let drivers = client.drive_all(host.models());
        let extra = Extra::new(setup);
        let pattern = vec![0xA5; extra.bytes];
        for round in 0..ROUNDS {
            client.front.add_region(&extra.spec, extra.fd.as_fd()).unwrap();
            drivers.iter().for_each(|d| d.tell(Command::Extra(extra.fd.clone(), false)));
            drivers[round % drivers.len()].wait_extra_answers(2);
            // A guest that unplugs memory has no request in it; the others stay in flight.
            drivers.iter().for_each(|driver| driver.ask(Command::NoExtra));
            client.front.remove_region(&extra.spec).unwrap();
            extra.assert_unmapped();
            extra.write_pattern(&pattern);
            drivers[round % drivers.len()].wait_answers(1);
            assert!(extra.read() == pattern, "the device wrote to memory that was removed");
        }
        let models = finish(drivers);
        drop(client);
        check_disk(models, &host.stop());
    }
}

#[test]
fn a_region_goes_while_requests_are_in_it() {
    for setup in two_queues() {
        let Some(host) = Host::start(setup) else { continue };
        let mut client = host.client();
        let drivers = client.drive_all(host.models());
        let extra = Extra::new(setup);
        for round in 0..ROUNDS / 5 {
            client.front.add_region(&extra.spec, extra.fd.as_fd()).unwrap();
            drivers.iter().for_each(|d| d.tell(Command::Extra(extra.fd.clone(), true)));
            drivers[round % drivers.len()].wait_extra_answers(2);
            // What was taken is finished first; what comes later finds its data unmapped and fails, the rings go on.
            client.front.remove_region(&extra.spec).unwrap();
            extra.assert_unmapped();
            drivers.iter().for_each(|driver| driver.wait_answers(1));
            assert!(!client.needs_reset());
        }
        drivers.iter().for_each(|driver| driver.ask(Command::NoExtra));
        let models = finish(drivers);
        drop(client);
        check_disk(models, &host.stop());
    }
}

#[test]
fn the_memory_table_is_replaced_under_load() {
    for setup in two_queues() {
        let Some(host) = Host::start(setup) else { continue };
        let mut client = host.client();
        let drivers = client.drive_all(host.models());
        let extra = Extra::new(setup);
        for round in 0..ROUNDS / 4 {
            let base = (client.spec, client.memfd.as_fd());
            client.front.set_mem_table(&[base, (extra.spec, extra.fd.as_fd())]).unwrap();
            assert_eq!(mappings(&client.memory_name), 2, "the driver's and the server's");
            drivers.iter().for_each(|d| d.tell(Command::Extra(extra.fd.clone(), false)));
            drivers[round % drivers.len()].wait_extra_answers(1);
            drivers.iter().for_each(|driver| driver.ask(Command::NoExtra));
            client.set_mem_table().unwrap();
            extra.assert_unmapped();
            drivers[round % drivers.len()].wait_answers(1);
        }
        let models = finish(drivers);
        drop(client);
        check_disk(models, &host.stop());
    }
}

#[test]
fn rings_whose_memory_is_taken_away_stop_and_start_again_with_it() {
    let host = Host::start(PLAIN).unwrap();
    let mut client = host.client();
    let mut models = host.models();
    let extra = Extra::new(PLAIN);
    for _ in 0..20 {
        let drivers = client.drive_all(models);
        drivers.iter().for_each(|driver| driver.wait_answers(3));
        client.front.set_mem_table(&[(extra.spec, extra.fd.as_fd())]).unwrap();
        assert_eq!(mappings(&client.memory_name), 1, "the driver's");
        let bases: Vec<_> =
            (0..PLAIN.queues).map(|i| client.front.stop_vring(i).unwrap()).collect();
        for (driver, base) in drivers.iter().zip(&bases) {
            assert_eq!(client.used_index(&driver.config), *base, "all taken were answered");
        }
        client.set_mem_table().unwrap();
        for ((index, driver), base) in (0..).zip(&drivers).zip(bases) {
            client.start_ring(index, &driver.config, base);
            driver.wait_answers(1);
        }
        models = finish(drivers);
        client.reset();
    }
    drop(client);
    check_disk(models, &host.stop());
}
