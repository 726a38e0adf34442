//! Proof that the enumerator can see: it finds the barrier that QEMU's own QED driver lacks, and none where there is one.
//!
//! An allocating write without a backing file sets NEED_CHECK in the header, writes data and L2 entry, and flushes between none of them.
//! If only the L2 entry reaches the disk, the image says that it is clean and has an entry beyond its end. The next cluster to be allocated
//! is that one, and two places of the disk share it. With a backing file QEMU flushes the data first, and needs no mark.
#![allow(clippy::disallowed_methods)]

mod common;

use common::faults::{Ask, DISK_LEN, IN_PLACE, PARTIAL, Plan, Run, SMALL, Subject, ZEROES, tally};
use common::*;
use io_engine::SimDisk;
use io_engine::sim::Unwritten;
use sim::model::{Promise, stamped_disk};
use sim::qed::{self, DamageKind, OnDamage, Qed};
use std::ops::Range;

use Ask::{Flush, Write};

const LARGE: Ask = Write(64 << 10, 64 << 10);

const WORKLOADS: &[&[Ask]] = &[
    &[LARGE],
    &[SMALL],
    &[PARTIAL],
    &[ZEROES],
    &[IN_PLACE],
    &[SMALL, Flush],
    &[SMALL, PARTIAL],
    &[SMALL, ZEROES],
    &[ZEROES, SMALL],
    &[IN_PLACE, SMALL],
    &[LARGE, SMALL, Flush],
    &[SMALL, Flush, PARTIAL],
    &[PARTIAL, Flush, PARTIAL],
    &[SMALL, Flush, ZEROES],
];

/// What all images of a test have in common.
#[derive(Clone, Copy, Debug)]
struct Setup {
    plan: Plan,
    with_backing: bool,
}

/// What is wrong with a state, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wrong {
    /// It says that it is clean and has an entry beyond its end.
    CleanWithDangling,
    /// Tables worse than that.
    Tables,
    /// The guest's data.
    Data,
}

impl Subject for Setup {
    const FORMAT: &'static str = "qed";
    const PREPARED_LEN: u64 = 4096;
    type Wrong = Wrong;

    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn create(&self, scratch: &Scratch) -> Option<Vec<u8>> {
        let backing = self.with_backing.then(|| stamped_disk(DISK_LEN / 512));
        let backing_path = backing.as_ref().map(|bytes| scratch.put("base.raw", bytes));
        create_qed(&scratch.path("image"), backing_path.as_deref());
        backing
    }

    fn metadata(&self, image: &[u8]) -> Vec<Range<u64>> {
        assert!(qed::check(image).is_sound());
        Qed::open(image).unwrap().metadata()
    }

    fn judge(run: &Run, promise: &Promise<'_>, disk: &SimDisk) -> Result<(), (Wrong, String)> {
        let report = qed::check(disk);
        if let Err(message) = report.judge_crash() {
            let is_dangling = report.header.is_empty()
                && report.harmful_count == 0
                && report.damage.iter().all(|damage| damage.kind == DamageKind::BeyondFile);
            let wrong = if is_dangling { Wrong::CleanWithDangling } else { Wrong::Tables };
            return Err((wrong, message));
        }
        let image = Qed::open(disk).unwrap();
        let backing = |at: u64, into: &mut [u8]| run.read_backing(at, into);
        let read = |at: u64, into: &mut [u8]| {
            image.read_disk(at, into, OnDamage::Unallocated, backing).map_err(|d| d.to_string())
        };
        promise.judge(read).map_err(|message| (Wrong::Data, message))
    }
}

#[test]
fn qemus_missing_barrier_is_found_and_real() {
    if !has_qemu() {
        return;
    }
    let plan = Plan { name: "plain", workloads: WORKLOADS, unwritten: Unwritten::Zero };
    let setup = Setup { plan, with_backing: false };
    let mut found = None;
    let tally = tally(&setup, |workload, wrong, _, disk| {
        let entry = qed::check(disk).damage.first().map(|damage| damage.value);
        let is_next = entry == Some(disk.len());
        if wrong == Wrong::CleanWithDangling && workload == [SMALL] && is_next {
            found = Some(disk.contents());
        }
    });
    assert!(tally.wrong.get(&Wrong::CleanWithDangling) > Some(&0), "{tally:?}");
    assert_eq!(tally.wrong.len(), 1, "nothing else is wrong with it: {tally:?}");
    assert!(tally.hit < tally.workloads, "writes in place are sound: {tally:?}");

    // The next cluster to be allocated is the one that the entry points at.
    let scratch = Scratch::new("confirm");
    let path = scratch.put("image.qed", &found.expect("a state in which the next cluster is it"));
    assert!(!qed::check(&scratch.get("image.qed")[..]).need_check);
    let mut qemu = QemuIo::open(&["-f", "qed", path.to_str().unwrap()]);
    let said = qemu.run("write -P 0x55 256k 4k");
    assert!(said.starts_with("wrote"), "{said}");
    let said = qemu.run("read -P 0x55 64k 4k");
    qemu.close();
    assert!(said.starts_with("read") && !said.contains("fail"), "{said}");
    let report = qed::check(&scratch.get("image.qed")[..]);
    assert_eq!(report.damage[0].kind, DamageKind::Shared, "{report:?}");
    println!("stock QEMU: what was written at 256 KiB reads at 64 KiB too; {}", report.damage[0]);
}

#[test]
fn nothing_is_found_with_a_backing_file() {
    if !has_qemu() {
        return;
    }
    let plan = Plan { name: "backing", workloads: WORKLOADS, unwritten: Unwritten::Zero };
    let setup = Setup { plan, with_backing: true };
    let tally = tally(&setup, |workload, _, message, _| println!("{workload:?}: {message}"));
    assert!(tally.wrong.is_empty(), "{tally:?}");
    assert!(tally.states > 100, "{tally:?}");
}

/// On a disk whose fresh space holds somebody else's bytes, the L2 entry must not get there before the data either. Nobody promised
/// that QEMU's QED could be used on one; what counts is that the bytes are seen.
#[test]
fn bytes_of_the_host_are_seen_where_data_may_come_late() {
    if !has_qemu() {
        return;
    }
    // Zeroes are worth writing there, so a new table has all its sectors undecided: a few workloads are enough.
    let plan = Plan {
        name: "poisoned",
        workloads: &[&[SMALL], &[LARGE]],
        unwritten: Unwritten::Poison(0xee),
    };
    let plain = Setup { plan, with_backing: false };
    let backing = Setup { plan: Plan { name: "poisoned-backing", ..plan }, with_backing: true };
    let plain = tally(&plain, |workload, wrong, message, _| {
        let is_foreign = message.contains("I7") && message.contains("Filled(238)");
        assert!(wrong != Wrong::Data || is_foreign, "{workload:?}: {message}");
    });
    assert!(plain.wrong.get(&Wrong::Data) > Some(&0), "{plain:?}");
    let backing = tally(&backing, |workload, _, message, _| println!("{workload:?}: {message}"));
    assert_eq!(backing.wrong.get(&Wrong::Data), None, "{backing:?}");
}
