//! Proof that crash states of a qcow2 image are seen for what they are: QEMU's faults are found, and none where it has none.
//!
//! ```text
//!   qemu-io --> qcow2 --> blklogwrites --> image
//!                              `--> log --> WriteLog --> enumerate --> qcow2::check, Promise
//! ```
//!
//! QEMU writes what an entry points at before the entry only because it flushes the refcounts first, where it does. With
//! `lazy_refcounts=on` there are none to flush: the entry may be durable and the data, or the end of the file, not. The repair of such an
//! image takes the free clusters behind its end, and those are what the entry points at.
//!
//! A discarded cluster is free at once, and may be used again before it is durable that it was discarded. If only the new data are, the
//! old entry shows them at the old place.
#![allow(clippy::disallowed_methods)]

mod common;

use common::*;
use io_engine::SimDisk;
use io_engine::sim::{SimOptions, Unwritten};
use sim::enumerate::{CrashState, Options, enumerate};
use sim::log_writes::WriteLog;
use sim::model::{History, Promise, stamp, stamped_disk};
use sim::qcow2::{self, DamageKind, Kind, Qcow2};
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

const DISK_LEN: u64 = 1 << 20;
/// What the guest writes at once, mostly: one cluster, or eight.
const BLOCK: u64 = 4096;
/// The backing file, beside the image.
const BASE: &str = "base.raw";
/// What the prepared images have: the first blocks of the disk.
const PREPARED_LEN: u64 = 2 * BLOCK;

/// A guest's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Write(u64, u64),
    Zeroes(u64, u64),
    Discard(u64, u64),
    Flush,
}

use Ask::{Discard, Flush, Write, Zeroes};

const IN_PLACE: Ask = Write(0, BLOCK);
const SMALL: Ask = Write(64 << 10, BLOCK);
const PARTIAL: Ask = Write((132 << 10) + 1024, 1024);
const LARGE: Ask = Write(64 << 10, 16 << 10);
const ZEROES: Ask = Zeroes(64 << 10, BLOCK);
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

/// What was recorded of one workload.
struct Run {
    start: SimDisk,
    log: WriteLog,
    history: History,
    /// The image as it was in the end.
    image: Vec<u8>,
    backing: Vec<u8>,
}

/// What all workloads of a test have in common.
#[derive(Clone, Copy, Debug)]
struct Setup {
    name: &'static str,
    workloads: &'static [&'static [Ask]],
    cluster: u64,
    lazy_refcounts: bool,
}

/// Does a workload on a new image over a backing file, which has two blocks of data already if it is `prepared`.
fn record(scratch: &Scratch, setup: Setup, prepared: bool, workload: &[Ask]) -> Run {
    let backing = stamped_disk(DISK_LEN / 512);
    scratch.put(BASE, &backing);
    let image = scratch.path("image.qcow2");
    let options = format!(
        "cluster_size={},lazy_refcounts={}",
        setup.cluster,
        if setup.lazy_refcounts { "on" } else { "off" }
    );
    let name = image.to_str().unwrap();
    let (status, said) =
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, "-b", BASE, "-F", "raw", name]);
    assert_eq!(status, 0, "{said}");
    if prepared {
        let mut qemu = QemuIo::open(&["-f", "qcow2", name]);
        let block: Vec<u8> = (0..PREPARED_LEN / 512).flat_map(|sector| stamp(sector, 0)).collect();
        write(scratch, &mut qemu, 0, &block);
        qemu.close();
    }
    let options = SimOptions { unwritten: Unwritten::Zero, ..SimOptions::default() };
    let start = SimDisk::with_contents(options, &scratch.get("image.qcow2"));

    let log_path = scratch.put("log", &[]);
    let options = format!(
        "driver=qcow2,discard=unmap,file.driver=blklogwrites,file.discard=unmap,file.file.driver=file,\
         file.file.discard=unmap,file.file.filename={name},file.log.driver=file,file.log.filename={}",
        log_path.display()
    );
    let mut qemu = QemuIo::open(&["--image-opts", &options]);
    let log_len = || fs::metadata(&log_path).unwrap().len();
    let mut times = Vec::new();
    for (ask, number) in workload.iter().zip(1..) {
        let sent = log_len();
        match *ask {
            Write(at, len) => {
                let sectors = at / 512..(at + len) / 512;
                let data: Vec<u8> = sectors.flat_map(|sector| stamp(sector, number)).collect();
                write(scratch, &mut qemu, at, &data);
            }
            Zeroes(at, len) => {
                let said = qemu.run(&format!("write -z {at} {len}"));
                assert!(said.starts_with("wrote"), "{said}");
            }
            Discard(at, len) => {
                let said = qemu.run(&format!("discard {at} {len}"));
                assert!(said.starts_with("discard "), "{said}");
            }
            Flush => assert_eq!(qemu.run("flush"), ""),
        }
        times.push((*ask, sent, log_len()));
    }
    qemu.close();

    let log = WriteLog::parse(&scratch.get("log")).unwrap();
    let history = history(backing.clone(), &log, &times);
    Run { start, log, history, image: scratch.get("image.qcow2"), backing }
}

fn write(scratch: &Scratch, qemu: &mut QemuIo, at: u64, data: &[u8]) {
    let path = scratch.put("data", data);
    let said = qemu.run(&format!("write -s {} {at} {}", path.display(), data.len()));
    assert!(said.starts_with("wrote"), "{said}");
}

/// Translates the lengths that the log had into positions.
fn history(initial: Vec<u8>, log: &WriteLog, times: &[(Ask, u64, u64)]) -> History {
    let mut history = History::new(initial, false);
    for (ask, sent, ended) in times {
        let sent = log.events_before(*sent);
        let request = match *ask {
            Write(at, len) => history.write(sent, at, len).0,
            Zeroes(at, len) => history.write_zeroes(sent, at, len),
            Discard(at, len) => history.discard(sent, at, len),
            Flush => history.flush(sent),
        };
        history.ended(log.events_before(*ended), request, true);
    }
    history
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
    let backing = |at: u64, into: &mut [u8]| sim::ImageFile::read_at(&run.backing[..], at, into);
    let read = |at: u64, into: &mut [u8]| {
        image.read_disk(at, into, backing).map_err(|why| why.to_string())
    };
    promise.judge(read).map_err(|message| {
        let is_misplaced = message.contains("Misplaced");
        (if is_misplaced { Wrong::Misplaced } else { Wrong::Data }, message)
    })
}

#[derive(Debug, Default)]
struct Tally {
    workloads: u64,
    hit: u64,
    states: u64,
    sampled_cuts: u64,
    wrong: BTreeMap<Wrong, u64>,
}

/// Judges every crash state of every workload; `on_wrong` gets the disks that are not as they should be, and why.
fn tally(setup: Setup, mut on_wrong: impl FnMut(&[Ask], Wrong, &str, &SimDisk)) -> Tally {
    let scratch = Scratch::new(setup.name);
    let mut tally = Tally::default();
    for (workload, prepared) in setup.workloads.iter().flat_map(|w| [(w, false), (w, true)]) {
        let run = record(&scratch, setup, prepared, workload);
        let report = qcow2::check(&run.image[..]);
        assert!(report.is_sound() && report.leaked_clusters == 0, "{workload:?}: {report:?}");
        let metadata = Qcow2::open(&run.image[..]).unwrap().metadata();
        let options = Options {
            is_metadata: &|at| metadata.iter().any(|range| range.contains(&at)),
            promise: &|position| run.history.promises_by(position),
            ..Options::default()
        };
        let mut promise = (0, run.history.promise_at(0));
        let mut wrong_here = 0;
        let visit = |state: &CrashState<'_>| {
            if promise.0 != state.position {
                promise = (state.position, run.history.promise_at(state.position));
            }
            if let Err((wrong, message)) = judge(&run, &promise.1, &state.disk) {
                *tally.wrong.entry(wrong).or_default() += 1;
                wrong_here += 1;
                on_wrong(workload, wrong, &message, &state.disk);
            }
            Ok(())
        };
        let stats = enumerate(&run.start, &run.log.events, &options, visit).unwrap();
        tally.workloads += 1;
        tally.hit += u64::from(wrong_here > 0);
        tally.states += stats.states;
        tally.sampled_cuts += stats.sampled_cuts;
    }
    println!("QEMU's qcow2, {}: {tally:?}", setup.name);
    tally
}

#[test]
fn nothing_is_found_in_plain_writes_over_a_backing_file() {
    if !has_qemu() {
        return;
    }
    for (name, cluster) in [("qcow2-plain", 4096), ("qcow2-plain-512", 512)] {
        let setup = Setup { name, workloads: PLAIN, cluster, lazy_refcounts: false };
        let tally = tally(setup, |workload, _, message, _| println!("{workload:?}: {message}"));
        assert!(tally.wrong.is_empty(), "{tally:?}");
        assert!(tally.states > 100, "{tally:?}");
    }
}

#[test]
fn lazy_refcounts_leave_entries_that_the_repair_overwrites() {
    if !has_qemu() {
        return;
    }
    let setup =
        Setup { name: "qcow2-lazy", workloads: WITHOUT_COPY, cluster: 4096, lazy_refcounts: true };
    let mut found = Vec::new();
    let tally = tally(setup, |_, wrong, _, disk| {
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
    let setup = Setup {
        name: "qcow2-discard",
        workloads: WITH_DISCARD,
        cluster: 4096,
        lazy_refcounts: false,
    };
    let mut found = None;
    let tally = tally(setup, |workload, wrong, _, disk| {
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
