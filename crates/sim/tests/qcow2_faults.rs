//! Proof that crash states of a qcow2 image are seen for what they are: QEMU's faults are found, and none where it has none.
//!
//! QEMU writes what an entry points at before the entry only because it flushes the refcounts first, where it does. With
//! `lazy_refcounts=on` there are none to flush: the entry may be durable and the data, or the end of the file, not. The repair of such an
//! image takes the free clusters behind its end, and those are what the entry points at.
//!
//! A discarded cluster is free at once, and may be used again before it is durable that it was discarded. If only the new data are, the
//! old entry shows them at the old place.
#![allow(clippy::disallowed_methods)]

mod common;

use common::faults::{Ask, DISK_LEN, IN_PLACE, PARTIAL, Plan, Run, SMALL, Subject, ZEROES, tally};
use common::*;
use io_engine::SimDisk;
use io_engine::sim::Unwritten;
use sim::model::{Promise, stamp, stamped_disk};
use sim::qcow2::{self, DamageKind, Kind, Qcow2};
use std::ops::Range;
use std::process::Command;

/// What the guest writes at once, mostly: one cluster, or eight.
const BLOCK: u64 = 4096;
/// The backing file, beside the image.
const BASE: &str = "base.raw";

use Ask::{Discard, Flush, Write};

const LARGE: Ask = Write(64 << 10, 16 << 10);
const ANOTHER: Ask = Write(200 << 10, BLOCK);
/// Of a block that the prepared images have.
const DISCARD: Ask = Discard(0, BLOCK);

const PLAIN: &[&[Ask]] = &[
    &[SMALL],
    &[PARTIAL],
    &[LARGE],
    &[ZEROES],
    &[IN_PLACE],
    &[SMALL, Flush],
    &[SMALL, PARTIAL],
    &[ZEROES, SMALL],
    &[IN_PLACE, SMALL],
    &[SMALL, Flush, PARTIAL],
    &[PARTIAL, Flush, PARTIAL],
    &[SMALL, Flush, ZEROES],
    &[SMALL, ANOTHER, Flush],
];

/// Where the image becomes dirty QEMU flushes, so the first allocation is guarded by luck; and so is a copy on write.
const WITHOUT_COPY: &[&[Ask]] = &[
    &[SMALL],
    &[IN_PLACE],
    &[SMALL, ANOTHER],
    &[IN_PLACE, SMALL],
    &[SMALL, ANOTHER, Flush],
    &[SMALL, Flush, ANOTHER],
    &[ZEROES, SMALL, PARTIAL],
];

const WITH_DISCARD: &[&[Ask]] = &[
    &[DISCARD],
    &[DISCARD, SMALL],
    &[DISCARD, Flush, SMALL],
    &[DISCARD, PARTIAL, Flush],
    &[SMALL, DISCARD, Flush],
];

/// What all images of a test have in common.
#[derive(Clone, Copy, Debug)]
struct Setup {
    plan: Plan,
    cluster: u64,
    lazy_refcounts: bool,
}

/// What is wrong with a state, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wrong {
    /// It is marked dirty and has an entry beyond its end, which a repair will fill.
    DirtyWithDangling,
    /// Tables worse than that.
    Tables,
    /// The guest finds another sector's data.
    Misplaced,
    /// The guest finds something else that it must not.
    Data,
}

impl Subject for Setup {
    const FORMAT: &'static str = "qcow2";
    const PREPARED_LEN: u64 = 2 * BLOCK;
    type Wrong = Wrong;

    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn create(&self, scratch: &Scratch) -> Option<Vec<u8>> {
        let backing = stamped_disk(DISK_LEN / 512);
        scratch.put(BASE, &backing);
        let lazy = if self.lazy_refcounts { "on" } else { "off" };
        let options = format!("cluster_size={},lazy_refcounts={lazy}", self.cluster);
        let image = scratch.path("image");
        let name = image.to_str().unwrap();
        let create = ["create", "-q", "-f", "qcow2", "-o", &options, "-b", BASE, "-F", "raw", name];
        let (status, said) = qemu_img(&create);
        assert_eq!(status, 0, "{said}");
        Some(backing)
    }

    fn metadata(&self, image: &[u8]) -> Vec<Range<u64>> {
        let report = qcow2::check(image);
        assert!(report.is_sound() && report.leaked_clusters == 0, "{report:?}");
        Qcow2::open(image).unwrap().metadata()
    }

    fn judge(run: &Run, promise: &Promise<'_>, disk: &SimDisk) -> Result<(), (Wrong, String)> {
        let report = qcow2::check(disk);
        if let Err(message) = report.judge_crash() {
            let is_dangling = report.header.is_empty()
                && report.is_dirty
                && report.doubly_used + report.copied_shared == 0
                && report.damage.iter().all(|damage| {
                    use DamageKind as D;
                    matches!(damage.kind, D::BeyondFile | D::Undercounted { .. } | D::Copied { .. })
                });
            let wrong = if is_dangling { Wrong::DirtyWithDangling } else { Wrong::Tables };
            return Err((wrong, message));
        }
        let image = Qcow2::open(disk).unwrap();
        let backing = |at: u64, into: &mut [u8]| run.read_backing(at, into);
        let read = |at: u64, into: &mut [u8]| {
            image.read_disk(at, into, backing).map_err(|why| why.to_string())
        };
        promise.judge(read).map_err(|message| {
            let is_misplaced = message.contains("Misplaced");
            (if is_misplaced { Wrong::Misplaced } else { Wrong::Data }, message)
        })
    }
}

fn plan(name: &'static str, workloads: &'static [&'static [Ask]]) -> Plan {
    Plan { name, workloads, unwritten: Unwritten::Zero }
}

#[test]
fn nothing_is_found_in_plain_writes_over_a_backing_file() {
    if !has_qemu() {
        return;
    }
    for (name, cluster) in [("qcow2-plain", 4096), ("qcow2-plain-512", 512)] {
        let setup = Setup { plan: plan(name, PLAIN), cluster, lazy_refcounts: false };
        let tally = tally(&setup, |workload, _, message, _| println!("{workload:?}: {message}"));
        assert!(tally.wrong.is_empty(), "{tally:?}");
        assert!(tally.states > 100, "{tally:?}");
    }
}

#[test]
fn lazy_refcounts_leave_entries_that_the_repair_overwrites() {
    if !has_qemu() {
        return;
    }
    let plan = plan("qcow2-lazy", WITHOUT_COPY);
    let setup = Setup { plan, cluster: 4096, lazy_refcounts: true };
    let mut found = Vec::new();
    let tally = tally(&setup, |_, wrong, _, disk| {
        if wrong == Wrong::DirtyWithDangling {
            found.push(disk.contents());
        }
    });
    assert!(tally.wrong.get(&Wrong::DirtyWithDangling) > Some(&0), "{tally:?}");
    assert!(tally.wrong.get(&Wrong::Data) > Some(&0), "{tally:?}");
    assert_eq!(tally.wrong.len(), 2, "nothing else is wrong with it: {tally:?}");
    assert!(tally.hit < tally.workloads, "a first allocation is sound: {tally:?}");

    // Real: stock QEMU opens it for writing, repairs it, and afterwards an entry leads into metadata.
    let scratch = Scratch::new("qcow2-lazy-confirm");
    scratch.put(BASE, &stamped_disk(DISK_LEN / 512));
    for image in &found {
        let path = scratch.put("image.qcow2", image);
        let args = ["-f", "qcow2", "-c", "read 0 4k", path.to_str().unwrap()];
        let output = Command::new("qemu-io").args(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let report = qcow2::check(&scratch.get("image.qcow2")[..]);
        let overlap = DamageKind::Overlap(Kind::RefcountBlock, Kind::Data);
        let is_hit = report.damage.iter().any(|damage| damage.kind == overlap);
        assert!(!report.is_dirty && is_hit, "{report:?} {said}");
        assert!(report.judge_crash().is_err());
    }
    println!("stock QEMU: {} of these repaired, and a refcount block in the data", found.len());
}

#[test]
fn discarded_clusters_are_used_again_too_early() {
    if !has_qemu() {
        return;
    }
    let plan = plan("qcow2-discard", WITH_DISCARD);
    let setup = Setup { plan, cluster: 4096, lazy_refcounts: false };
    let mut found = None;
    let tally = tally(&setup, |workload, wrong, _, disk| {
        if wrong == Wrong::Misplaced && workload == [DISCARD, SMALL] {
            found = Some(disk.contents());
        }
    });
    assert!(tally.wrong.get(&Wrong::Misplaced) > Some(&0), "{tally:?}");
    assert_eq!(tally.wrong.get(&Wrong::Tables), None, "{tally:?}");
    // Real: stock QEMU finds no error in it, and reads there what was written elsewhere.
    let scratch = Scratch::new("qcow2-discard-confirm");
    scratch.put(BASE, &stamped_disk(DISK_LEN / 512));
    let path = scratch.put("image.qcow2", &found.expect("a state in which the new data are"));
    let raw = scratch.path("disk.raw");
    let (name, raw) = (path.to_str().unwrap(), raw.to_str().unwrap());
    let (status, said) = qemu_img(&["check", "-f", "qcow2", name]);
    assert!([0, 3].contains(&status), "no errors, maybe leaks: {said}");
    let (status, said) = qemu_img(&["convert", "-f", "qcow2", "-O", "raw", name, raw]);
    assert_eq!(status, 0, "{said}");
    let disk = scratch.get("disk.raw");
    assert!((0..8).any(|sector| {
        let at = usize::try_from(sector * 512).unwrap();
        disk[at..at + 512] == stamp(128 + sector, 2)
    }));
    println!("stock QEMU: what was written at 64 KiB reads at 0, and: {said}");
}
