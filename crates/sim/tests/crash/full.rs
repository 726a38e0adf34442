//! Devices with no room left.

use crate::barriers::{QCOW2, QED};
use crate::driver::{Machine, write};
use crate::setup::Setup;
use block::{BlockNode, DiskOffset};
use io_engine::sim::{SimDisk, SimOptions};
use std::cell::Cell;
use std::rc::Rc;

const CLUSTER: u64 = 4096;

/// Fills a block device, which has the L2 table from the start or not; discards 100 clusters; closes and opens it again.
fn full_device(format: Setup, has_table: bool) -> (Machine, Rc<BlockNode>) {
    let machine = Machine::new(1);
    let bytes = 300 * CLUSTER;
    let setup = Setup { on_device: true, prepared: has_table, bytes, ..format };
    let disk = setup.start(&machine).disk;
    let node = machine.open(&setup, &disk, None, false).unwrap();
    let taken = (0..300).take_while(|n| write_cluster(&machine, &node, *n)).count();
    assert!(taken > 200 && taken < 300, "it is full: {taken}");
    let discard = node.clone();
    machine.run(async move { discard.discard(DiskOffset(0), 100 * CLUSTER).await }).unwrap();
    machine.close(node).expect("what was accepted can be committed");
    let node = machine.open(&setup, &disk, None, false).unwrap();
    (machine, node)
}

fn write_cluster(machine: &Machine, node: &Rc<BlockNode>, number: u64) -> bool {
    machine.run(write(machine, node, number * CLUSTER, machine.data(&[7; CLUSTER as usize]), false))
}

#[test]
fn a_full_device_can_commit_what_it_accepted() {
    full_device(QCOW2, false);
    full_device(QED, false);
}

#[test]
fn a_full_device_with_free_clusters_takes_writes() {
    for format in [QCOW2, QED] {
        let (machine, node) = full_device(format, true);
        assert!(write_cluster(&machine, &node, 0), "100 clusters are free");
    }
}

/// Writes one after the other to the first L2 table's clusters, at most so many; gives how many there was room for.
fn fill(machine: &Machine, node: &Rc<BlockNode>, most: u64) -> u64 {
    (4..most.min(512)).take_while(|n| write_cluster(machine, node, *n)).count() as u64
}

/// When little is left, writes at once to as many places that have no table: what is accepted of it can be committed.
fn at_once(format: Setup) {
    const TABLES: u64 = 24;
    let setup = Setup { on_device: true, prepared: true, bytes: TABLES * 512 * CLUSTER, ..format };
    let new = || {
        let machine = Machine::new(1);
        let disk = setup.start(&machine).disk;
        let node = machine.open(&setup, &disk, None, false).unwrap();
        (machine, node)
    };
    let (machine, node) = new();
    let room = fill(&machine, &node, u64::MAX);
    machine.close(node).unwrap();

    let (machine, node) = new();
    fill(&machine, &node, 4 + room - 12);
    let (accepted, refused) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    for table in 1..TABLES {
        let data = machine.data(&[7; CLUSTER as usize]);
        let done = write(&machine, &node, table * 512 * CLUSTER, data, false);
        let (accepted, refused) = (accepted.clone(), refused.clone());
        machine.context.spawn(async move {
            let count = if done.await { accepted } else { refused };
            count.set(count.get() + 1);
        });
    }
    let disk = SimDisk::with_contents(SimOptions::default(), &[0; 4096]);
    while accepted.get() + refused.get() < TABLES - 1 {
        machine.tick(&disk);
    }
    assert!(accepted.get() > 0 && refused.get() > 0, "{accepted:?} {refused:?}");
    machine.close(node).expect("what was accepted can be committed");
}

#[test]
fn a_device_that_fills_up_at_once_can_commit_what_it_accepted() {
    at_once(QCOW2);
    at_once(QED);
}
