//! Proof that the enumerator can see: it finds the barrier that QEMU's own QED driver lacks, and none where there is one.
//!
//! ```text
//!   qemu-io --> qed --> blklogwrites --> image
//!                            `--> log --> WriteLog --> enumerate --> qed::check, Promise
//! ```
//!
//! An allocating write without a backing file sets NEED_CHECK in the header, writes data and L2 entry, and flushes between none of them.
//! If only the L2 entry reaches the disk, the image says that it is clean and has an entry beyond its end. The next cluster to be allocated
//! is that one, and two places of the disk share it. With a backing file QEMU flushes the data first, and needs no mark.
#![allow(clippy::disallowed_methods)]

mod common;

use common::*;
use io_engine::SimDisk;
use io_engine::sim::{SimOptions, Unwritten};
use sim::enumerate::{CrashState, Options, enumerate};
use sim::log_writes::WriteLog;
use sim::model::{History, Promise, stamp, stamped_disk};
use sim::qed::{self, DamageKind, OnDamage, Qed};
use std::collections::BTreeMap;
use std::fs;

const DISK_LEN: u64 = 1 << 20;

/// A guest's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Write(u64, u64),
    Zeroes(u64, u64),
    Flush,
}

use Ask::{Flush, Write, Zeroes};

/// In a cluster that is there already in the prepared images.
const IN_PLACE: Ask = Write(0, 4096);
const SMALL: Ask = Write(64 << 10, 4096);
const PARTIAL: Ask = Write((132 << 10) + 1024, 1024);
const LARGE: Ask = Write(64 << 10, 64 << 10);
const ZEROES: Ask = Zeroes(64 << 10, 4096);

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

/// What was recorded of one workload.
struct Run {
    start: SimDisk,
    log: WriteLog,
    history: History,
    /// The image as it was in the end.
    image: Vec<u8>,
    backing: Option<Vec<u8>>,
}

/// What all workloads of a test have in common.
#[derive(Clone, Copy, Debug)]
struct Setup {
    name: &'static str,
    workloads: &'static [&'static [Ask]],
    with_backing: bool,
    /// Of the disk that the crashes happen on. QEMU itself ran on a file.
    unwritten: Unwritten,
}

/// Does a workload on a new image, which has an L2 table and one data cluster already if it is `prepared`.
fn record(scratch: &Scratch, setup: Setup, prepared: bool, workload: &[Ask]) -> Run {
    let backing = setup.with_backing.then(|| stamped_disk(DISK_LEN / 512));
    let backing_path = backing.as_ref().map(|bytes| scratch.put("base.raw", bytes));
    let image = scratch.path("image.qed");
    create_qed(&image, backing_path.as_deref());
    let mut initial = backing.clone().unwrap_or_else(|| vec![0; 1 << 20]);
    if prepared {
        let mut qemu = QemuIo::open(&["-f", "qed", image.to_str().unwrap()]);
        let block: Vec<u8> = (0..8).flat_map(|sector| stamp(sector, 0)).collect();
        write(scratch, &mut qemu, 0, &block);
        qemu.close();
        initial[..block.len()].copy_from_slice(&block);
    }
    let start = SimDisk::with_contents(
        SimOptions { unwritten: setup.unwritten, ..SimOptions::default() },
        &scratch.get("image.qed"),
    );

    let log_path = scratch.put("log", &[]);
    let (image_name, log_name) = (image.display(), log_path.display());
    let options = format!(
        "driver=qed,file.driver=blklogwrites,file.file.driver=file,file.file.filename={image_name},\
         file.log.driver=file,file.log.filename={log_name}"
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
            Flush => assert_eq!(qemu.run("flush"), ""),
        }
        times.push((*ask, sent, log_len()));
    }
    qemu.close();

    let log = WriteLog::parse(&scratch.get("log")).unwrap();
    let history = history(initial, &log, &times);
    Run { start, log, history, image: scratch.get("image.qed"), backing }
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
            Flush => history.flush(sent),
        };
        history.ended(log.events_before(*ended), request, true);
    }
    history
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
    let backing = |at: u64, into: &mut [u8]| match &run.backing {
        Some(bytes) => sim::ImageFile::read_at(&bytes[..], at, into),
        None => into.fill(0),
    };
    let read = |at: u64, into: &mut [u8]| {
        image.read_disk(at, into, OnDamage::Unallocated, backing).map_err(|d| d.to_string())
    };
    promise.judge(read).map_err(|message| (Wrong::Data, message))
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
        assert!(qed::check(&run.image[..]).is_sound(), "{workload:?}");
        let metadata = Qed::open(&run.image[..]).unwrap().metadata();
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
    println!("QEMU's QED, {}: {tally:?}", setup.name);
    tally
}

#[test]
fn qemus_missing_barrier_is_found_and_real() {
    if !has_qemu() {
        return;
    }
    let setup = Setup {
        name: "plain",
        workloads: WORKLOADS,
        with_backing: false,
        unwritten: Unwritten::Zero,
    };
    let mut found = None;
    let tally = tally(setup, |workload, wrong, _, disk| {
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
    let setup = Setup {
        name: "backing",
        workloads: WORKLOADS,
        with_backing: true,
        unwritten: Unwritten::Zero,
    };
    let tally = tally(setup, |workload, _, message, _| println!("{workload:?}: {message}"));
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
    let plain = Setup {
        name: "poisoned",
        workloads: &[&[SMALL], &[LARGE]],
        with_backing: false,
        unwritten: Unwritten::Poison(0xee),
    };
    let backing = Setup { name: "poisoned-backing", with_backing: true, ..plain };
    let plain = tally(plain, |workload, wrong, message, _| {
        let is_foreign = message.contains("I7") && message.contains("Filled(238)");
        assert!(wrong != Wrong::Data || is_foreign, "{workload:?}: {message}");
    });
    assert!(plain.wrong.get(&Wrong::Data) > Some(&0), "{plain:?}");
    let backing = tally(backing, |workload, _, message, _| println!("{workload:?}: {message}"));
    assert_eq!(backing.wrong.get(&Wrong::Data), None, "{backing:?}");
}
