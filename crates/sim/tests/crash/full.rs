//! Devices with no room left.

use crate::barriers::QCOW2;
use crate::driver::{Machine, write};
use crate::setup::Setup;
use block::{BlockNode, DiskOffset};
use std::rc::Rc;

const CLUSTER: u64 = 4096;

/// Fills a block device, which has the L2 table from the start or not; discards 100 clusters; closes and opens it again.
fn full_device(has_table: bool) -> (Machine, Rc<BlockNode>) {
    let machine = Machine::new(1);
    let bytes = 300 * CLUSTER;
    let setup = Setup { on_device: true, prepared: has_table, bytes, ..QCOW2 };
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
    full_device(false);
}

#[test]
fn a_full_device_with_free_clusters_takes_writes() {
    let (machine, node) = full_device(true);
    assert!(write_cluster(&machine, &node, 0), "100 clusters are free");
}
