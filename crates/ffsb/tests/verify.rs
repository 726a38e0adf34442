//! Verification: each way in which a disk can lie is injected, caught and named.

mod common;

use common::{Fault, Memory, MemoryLane, file_system, group, profile};
use ffsb::profile::{Op, Profile};
use ffsb::run::{Control, Place, RunError, RunErrorKind, lanes_needed, run};
use std::path::Path;

/// One file of four blocks, its blocks read and written at random.
fn one_file(location: &Path, weights: &[(Op, u32)]) -> Profile {
    let mut group = group(weights, 40);
    (group.read_random, group.write_random) = (true, true);
    (group.read_size, group.write_size) = (Some(4096), Some(4096));
    Profile { verify: true, alignio: true, ..profile(file_system(location, 1, 16384), group) }
}

fn on_disk(profile: &Profile, prepare: impl FnOnce(&mut Memory)) -> Result<u64, RunError> {
    let disk = MemoryLane::new(4 << 20);
    disk.with(prepare);
    let mut lanes = disk.lanes(lanes_needed(profile));
    let place = Place::Disk { name: "memory", lanes: &mut lanes };
    run(profile, place, &Control::default()).map(|_| disk.with(|memory| memory.reads))
}

/// The one line that says what was found.
#[track_caller]
fn fault(profile: &Profile, prepare: impl FnOnce(&mut Memory)) -> String {
    let error = on_disk(profile, prepare).unwrap_err();
    assert_eq!(error.kind(), RunErrorKind::Verify, "{error}");
    error.to_string()
}

const NOWHERE: &str = "/nowhere";

#[test]
fn an_honest_disk_passes_with_every_operation() {
    let ops = [
        Op::Read,
        Op::Readall,
        Op::Write,
        Op::WriteFsync,
        Op::Writeall,
        Op::WriteallFsync,
        Op::Create,
        Op::CreateFsync,
        Op::Append,
        Op::AppendFsync,
        Op::Delete,
        Op::Metaop,
        Op::Createdir,
        Op::Stat,
        Op::OpenClose,
    ];
    let dir = tempfile::tempdir().unwrap();
    for random in [false, true] {
        let mut group = group(&ops.map(|op| (op, 1)), 100);
        (group.read_random, group.write_random) = (random, random);
        (group.num_threads, group.read_blocksize, group.write_blocksize) = (4, 512, 1536);
        group.stats.enabled = random;
        let mut file_system = file_system(dir.path(), 300, 0);
        (file_system.min_filesize, file_system.max_filesize) = (10_000, 30_000);
        let profile = Profile { verify: true, ..profile(file_system, group) };
        run(&profile, Place::Directories, &Control::default()).unwrap();

        let mut lanes = MemoryLane::new(256 << 20).lanes(4);
        let place = Place::Disk { name: "memory", lanes: &mut lanes };
        run(&profile, place, &Control::default()).unwrap();
    }
}

/// Writes of `one_file`'s set-up before those of the file's four blocks: four directories.
const WRITES_BEFORE: u64 = 4;
/// All writes of its set-up: the file's inode, too.
const SET_UP_WRITES: u64 = WRITES_BEFORE + 5;

#[test]
fn a_flipped_bit_is_named() {
    let profile = one_file(Path::new(NOWHERE), &[(Op::Readall, 1)]);
    // Third block, second sector.
    let text = fault(&profile, |memory| memory.reads_until = Some((2, Fault::FlipBit)));
    assert!(text.starts_with("readall: data/"), "{text}");
    let end = "datafile0 on memory at offset 0x2200: corrupt block: checksum does not match, generation 3 expected";
    assert!(text.ends_with(end), "{text}");
}

#[test]
fn a_write_that_never_arrived_is_named() {
    // The last of forty writes; nothing is read in this profile: it is found when all is read back.
    let profile = one_file(Path::new(NOWHERE), &[(Op::Write, 1)]);
    let last = SET_UP_WRITES + 39;
    let text = fault(&profile, |memory| memory.writes_until = Some((last, Fault::DropWrite)));
    assert!(text.starts_with("verify: data/"), "{text}");
    assert!(
        text.contains(": lost write: generation ") && text.ends_with(", 44 expected"),
        "{text}"
    );

    let profile = one_file(Path::new(NOWHERE), &[(Op::Stat, 1)]);
    let second = WRITES_BEFORE + 1;
    let text = fault(&profile, |memory| memory.writes_until = Some((second, Fault::DropWrite)));
    let end = "at offset 0x1000: lost write: zeroes found, generation 2 expected";
    assert!(text.ends_with(end), "{text}");
}

#[test]
fn an_answer_older_than_one_before_is_named() {
    // Every block is written and read often, so that the newest was seen when the old answer comes.
    let mut profile = one_file(Path::new(NOWHERE), &[(Op::Read, 3), (Op::Write, 1)]);
    profile.filesystems[0].max_filesize = 4096;
    profile.filesystems[0].min_filesize = 4096;
    profile.thread_groups[0].iterations = Some(100);
    let text = fault(&profile, |memory| memory.reads_until = Some((60, Fault::StaleRead)));
    assert!(text.starts_with("read: data/"), "{text}");
    let named = text.contains(": stale read: generation ") && text.ends_with("and read before");
    assert!(named, "{text}");
}

#[test]
fn a_write_at_a_wrong_place_is_named() {
    // The last block goes to the place of the one before.
    let profile = one_file(Path::new(NOWHERE), &[(Op::Stat, 1)]);
    let last = WRITES_BEFORE + 3;
    let text = fault(&profile, |memory| memory.writes_until = Some((last, Fault::Misplace)));
    let end = "at offset 0x2000: misplaced block: content of datafile0 of file system 0 at offset 0x3000 found, \
               generation 3 expected";
    assert!(text.ends_with(end), "{text}");
}

#[test]
fn a_failing_disk_ends_the_run_with_operation_file_and_reason() {
    let profile = one_file(Path::new(NOWHERE), &[(Op::Read, 1)]);
    let error =
        on_disk(&profile, |memory| memory.reads_until = Some((3, Fault::Fail))).unwrap_err();
    assert_eq!(error.kind(), RunErrorKind::Io);
    let text = error.to_string();
    assert!(text.starts_with("read: reading at offset 0x") && text.contains(" of data/"), "{text}");
    assert!(text.ends_with("datafile0 on memory: the disk is broken"), "{text}");
}

/// A shell command that changes the file of `one_file` behind the benchmark's back.
fn edit(location: &Path, dd: &str) -> String {
    let find = format!("$(find {} -name datafile0)", location.display());
    format!("f={find}; dd {dd} of=$f conv=notrunc status=none")
}

#[test]
fn a_file_edited_between_set_up_and_benchmark_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut profile = one_file(dir.path(), &[(Op::Readall, 1)]);
    for (dd, kind) in [
        ("if=/dev/zero bs=512 count=1 seek=9", "lost write: zeroes found, generation 2 expected"),
        (
            "if=/dev/zero bs=1 count=3 seek=4800",
            "corrupt block: checksum does not match, generation 2 expected",
        ),
        (
            "if=$f bs=512 skip=1 count=1 seek=9",
            "misplaced block: content of datafile0 of file system 0 at offset 0x200 found, generation 2 expected",
        ),
    ] {
        profile.callout = Some(edit(dir.path(), dd));
        let error = run(&profile, Place::Directories, &Control::default()).unwrap_err();
        let text = error.to_string();
        assert!(text.ends_with(&format!("datafile0 at offset 0x1200: {kind}")), "{text}");
        assert!(dir.path().join("data").exists(), "kept to be looked at");
    }
}

#[test]
fn files_of_an_earlier_run_are_believed_if_they_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut profile = one_file(dir.path(), &[(Op::Write, 1), (Op::Read, 1)]);
    profile.filesystems[0].reuse = true;
    for _ in 0..3 {
        run(&profile, Place::Directories, &Control::default()).unwrap();
    }
    let status = std::process::Command::new("/bin/sh")
        .arg("-c")
        .arg(edit(dir.path(), "if=/dev/zero bs=1 count=3 seek=4800"))
        .status();
    assert!(status.unwrap().success());
    let error = run(&profile, Place::Directories, &Control::default()).unwrap_err();
    assert_eq!(error.kind(), RunErrorKind::Verify);
    let text = error.to_string();
    assert!(
        text.starts_with("set-up: ") && text.contains("datafile0 at offset 0x1200: corrupt"),
        "{text}"
    );

    // Files that never were verified cannot be: they are made anew.
    profile.verify = false;
    profile.filesystems[0].reuse = false;
    run(&profile, Place::Directories, &Control::default()).unwrap();
    profile.verify = true;
    profile.filesystems[0].reuse = true;
    run(&profile, Place::Directories, &Control::default()).unwrap();
}

#[test]
fn block_sizes_that_cannot_be_verified_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut profile = one_file(dir.path(), &[(Op::Write, 1)]);
    profile.thread_groups[0].write_blocksize = 1000;
    let error = run(&profile, Place::Directories, &Control::default()).unwrap_err();
    assert_eq!(error.kind(), RunErrorKind::Profile);
    let text = "threadgroup 0: write_blocksize is 1000; with verify it must be a multiple of 512";
    assert_eq!(error.to_string(), text);
    assert!(!dir.path().join("data").exists());
}
