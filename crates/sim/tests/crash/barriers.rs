//! Each sync of a commit is needed: without it, some power cut breaks something. So what judges the states can see.

use crate::driver::Machine;
use crate::judge::judge_all;
use crate::setup::{Geometry, Kind, Setup};
use crate::workload::{Ask, Run, record};
use io_engine::sim::{Change, LogEvent};

/// A QED image that others are variations of.
pub const QED: Setup = Setup {
    kind: Kind::Qed,
    bytes: 24 * 4096,
    with_backing: false,
    on_device: false,
    align: 1,
    write_through: false,
    prepared: true,
    closed: false,
    discard_no_unref: false,
};

/// A geometry that others are variations of.
pub const GEOMETRY: Geometry = Geometry {
    version: 3,
    cluster: 4096,
    refcount_bits: 16,
    extended_l2: false,
    snapshot: false,
    at_table_end: false,
};

/// A qcow2 image that others are variations of.
pub const QCOW2: Setup = Setup { kind: Kind::Qcow2(GEOMETRY), ..QED };

/// The syncs in the log of the last flush.
fn syncs(run: &Run) -> Vec<usize> {
    let flush = run.last_flush();
    let is_sync =
        |at: &usize| matches!(run.log[*at], LogEvent::Issue { change: Change::Flush, .. });
    flush.filter(is_sync).collect()
}

/// The log as it would be if this event had done nothing.
fn without(run: &Run, at: usize) -> Vec<LogEvent> {
    let mut log = run.log.clone();
    if let LogEvent::Issue { change, .. } = &mut log[at] {
        *change = Change::Read { at: 0, len: 0 };
    }
    log
}

/// All states of a run are right; without any one of the syncs of its last flush, which are `expected`, some are not.
fn each_is_needed(name: &str, setup: Setup, asks: &[Ask], expected: usize) {
    let run = record(setup, asks, 7);
    let machine = Machine::new(7);
    let (sound, _) = judge_all(&run, &run.log, &machine, u64::MAX, 7);
    sound.unwrap_or_else(|failure| panic!("{name}: {failure:?}"));
    let syncs = syncs(&run);
    assert_eq!(syncs.len(), expected, "{name}");
    for (nth, at) in syncs.into_iter().enumerate() {
        let (result, _) = judge_all(&run, &without(&run, at), &machine, u64::MAX, 7);
        let failure = result.expect_err(&format!("{name}: sync {nth} is not needed"));
        println!("{name}, without sync {nth}: {:.200}", failure.message);
    }
}

#[test]
fn each_sync_that_qed_leaves_out_is_caught() {
    let c = |n: u64| n * 4096;
    let (write, reuse) = (Ask::Write(c(6), 512), Ask::Discard(c(0), c(2)));
    let simple = [write, Ask::Flush];
    each_is_needed("QED over a backing file", Setup { with_backing: true, ..QED }, &simple, 2);
    each_is_needed("QED on a block device", Setup { on_device: true, ..QED }, &simple, 2);
    each_is_needed("QED's first table", Setup { prepared: false, ..QED }, &simple, 2);
    let reused = [reuse, Ask::Flush, Ask::Rest, Ask::Write(c(8), c(2)), Ask::Flush];
    each_is_needed("QED's space used again", QED, &reused, 2);
}

#[test]
fn each_sync_that_qcow2_leaves_out_is_caught() {
    let c = |n: u64| n * 4096;
    let simple = [Ask::Write(c(6), 512), Ask::Flush];
    let backed = Setup { with_backing: true, ..QCOW2 };
    each_is_needed("qcow2 over a backing file", backed, &simple, 2);
    each_is_needed("qcow2 on a block device", Setup { on_device: true, ..QCOW2 }, &simple, 2);
    each_is_needed("qcow2's first table", Setup { prepared: false, ..QCOW2 }, &simple, 2);
    let reused =
        [Ask::Discard(c(0), c(2)), Ask::Flush, Ask::Rest, Ask::Write(c(8), c(2)), Ask::Flush];
    each_is_needed("qcow2's space used again", QCOW2, &reused, 2);
    let geometry = Geometry { cluster: 512, refcount_bits: 64, ..GEOMETRY };
    let small = |geometry| Setup { kind: Kind::Qcow2(geometry), bytes: 67 * 512, ..QCOW2 };
    // 64 counts a block: 12 clusters are in use, and 67 more are too many for it.
    let all = [Ask::Write(0, 67 * 512), Ask::Flush];
    each_is_needed("qcow2's new refcount block", small(geometry), &all, 3);
    let geometry = Geometry { at_table_end: true, ..geometry };
    each_is_needed("qcow2's larger refcount table", small(geometry), &all, 3);
    let geometry = Geometry { snapshot: true, ..GEOMETRY };
    let shared = [Ask::Write(c(1), 512), Ask::Flush];
    each_is_needed(
        "qcow2 with a snapshot",
        Setup { kind: Kind::Qcow2(geometry), ..QCOW2 },
        &shared,
        2,
    );
}
