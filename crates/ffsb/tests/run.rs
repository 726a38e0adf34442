//! Runs as a whole: set-up, ageing, reuse, the end of a run, and what is left behind.

mod common;

use block::CacheMode;
use common::{Fault, MemoryLane, content, file_system, group, op, profile, put};
use ffsb::disk::Lane;
use ffsb::disk::file::FileLane;
use ffsb::outcome::Outcome;
use ffsb::profile::{Op, Profile, Syscall, ThreadGroup};
use ffsb::run::{
    Cleanup, Control, Phase, Place, Progress, RunError, RunErrorKind, Session, lanes_needed, run,
};
use std::cell::RefCell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

fn in_directories(profile: &Profile) -> Result<Outcome, RunError> {
    run(profile, Place::Directories, &Control::default())
}

fn on_disk(profile: &Profile, disk: &MemoryLane) -> Result<Outcome, RunError> {
    let mut lanes = disk.lanes(lanes_needed(profile));
    let place = Place::Disk { name: "memory", lanes: &mut lanes };
    run(profile, place, &Control::default())
}

/// Paths below a directory that are files, in order, with their sizes.
fn files_in(dir: &Path) -> Vec<(String, u64)> {
    let (mut found, mut todo) = (Vec::new(), vec![dir.to_path_buf()]);
    while let Some(path) = todo.pop() {
        for entry in std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap()) {
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            } else {
                let name = entry.path().strip_prefix(dir).unwrap().display().to_string();
                found.push((name, entry.metadata().unwrap().len()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn the_same_seed_draws_the_same() {
    let mix = [(Op::Read, 5), (Op::Create, 3), (Op::Delete, 2), (Op::Append, 2), (Op::Metaop, 1)];
    let once = |seed| {
        let dir = tempfile::tempdir().unwrap();
        let mut file_system = file_system(dir.path(), 50, 0);
        (file_system.min_filesize, file_system.max_filesize) = (8192, 30_000);
        let mut profile = profile(file_system, group(&mix, 200));
        profile.seed = seed;
        let outcome = in_directories(&profile).unwrap();
        assert_eq!(outcome.seed, seed.unwrap_or(0));
        (outcome.groups[0].ops.clone(), files_in(dir.path()))
    };
    assert_eq!(once(Some(1)), once(Some(1)));
    assert_eq!(once(None), once(Some(0)));
    assert_ne!(once(Some(1)), once(Some(2)));
}

#[test]
fn threads_and_file_systems_share_the_work() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut both = group(&[(Op::Create, 1)], 100);
    both.num_threads = 4;
    let bound = ThreadGroup { bindfs: Some(1), ..group(&[(Op::Delete, 1)], 10) };
    let profile = Profile {
        filesystems: vec![file_system(a.path(), 20, 4096), file_system(b.path(), 20, 4096)],
        thread_groups: vec![both, bound],
        ..Profile::default()
    };
    let outcome = in_directories(&profile).unwrap();
    assert_eq!(outcome.groups.len(), 2);
    assert_eq!((op(&outcome, Op::Create).drawn, op(&outcome, Op::Delete).drawn), (400, 10));
    let (in_a, in_b) = (files_in(a.path()).len(), files_in(b.path()).len());
    assert_eq!(in_a + in_b, 40 + 400 - 10);
    assert!(in_a > 170 && in_b > 160, "{in_a} and {in_b}");
    on_disk(&profile, &MemoryLane::new(32 << 20)).unwrap();
}

#[test]
fn sizes_follow_their_weights() {
    let dir = tempfile::tempdir().unwrap();
    let mut file_system = file_system(dir.path(), 400, 0);
    file_system.size_weights = vec![(1000, 3), (5000, 1), (7777, 0)];
    let mut profile = profile(file_system, group(&[(Op::Stat, 1)], 1));
    in_directories(&profile).unwrap();
    let files = files_in(dir.path());
    let small = files.iter().filter(|(_, size)| *size == 1000).count();
    let large = files.iter().filter(|(_, size)| *size == 5000).count();
    assert_eq!(small + large, 400);
    assert!((260..340).contains(&small), "{small}");
    // Spread over the set's own directory and two more.
    for dir in ["data/datafile", "data/datadir0/", "data/datadir1/"] {
        assert!(files.iter().filter(|(name, _)| name.starts_with(dir)).count() > 90, "{dir}");
    }
    // What O_DIRECT and verification need.
    profile.verify = true;
    in_directories(&profile).unwrap();
    let sizes: Vec<u64> = files_in(dir.path()).iter().map(|(_, size)| *size).collect();
    assert!(sizes.iter().all(|size| [1024, 5120].contains(size)));
}

#[test]
fn a_set_grows_to_its_size_or_utilisation() {
    let dir = tempfile::tempdir().unwrap();
    let mut file_system = file_system(dir.path(), 0, 10_000);
    file_system.init_size = Some(100_001);
    let mut profile = profile(file_system, group(&[(Op::Stat, 1)], 1));
    in_directories(&profile).unwrap();
    assert_eq!(files_in(dir.path()).len(), 11);

    profile.filesystems[0].init_size = None;
    profile.filesystems[0].init_util = Some(0.5);
    profile.thread_groups[0] = group(&[(Op::Create, 1)], 1000);
    // Three blocks of data and one of metadata for each file: half of 4 MiB takes 128 files, the other half 128 creates or more.
    let error = on_disk(&profile, &MemoryLane::new(4 << 20)).unwrap_err();
    assert_eq!(error.kind(), RunErrorKind::NoSpace);
    let text = error.to_string();
    assert!(
        text.starts_with("create: making data/") && text.contains("the disk is full"),
        "{text}"
    );
}

#[test]
fn ageing_fills_the_disk_and_leaves_its_files() {
    let mut file_system = file_system(Path::new("/nowhere"), 10, 4096);
    let mut ageing = group(&[(Op::Create, 10), (Op::Append, 10), (Op::Delete, 1)], 0);
    (ageing.num_threads, ageing.iterations) = (3, None);
    file_system.ageing = Some(Box::new(ageing));
    file_system.desired_util = Some(0.5);
    let disk = MemoryLane::new(8 << 20);
    let aged = profile(file_system.clone(), group(&[(Op::Stat, 1)], 1));
    assert_eq!(lanes_needed(&aged), 3);
    on_disk(&aged, &disk).unwrap();
    let writes = disk.with(|memory| memory.writes);
    assert!(writes > (4 << 20) / 4096 / 2, "{writes}");

    // In a directory the file system is as full as it is: ageing to less than that makes the files that ageing starts with.
    let dir = tempfile::tempdir().unwrap();
    file_system.location = dir.path().display().to_string();
    file_system.desired_util = Some(0.0);
    in_directories(&profile(file_system, group(&[(Op::Stat, 1)], 1))).unwrap();
    let files = files_in(dir.path());
    assert_eq!(files.iter().filter(|(name, _)| name.contains("datafile")).count(), 10);
    assert!(files.iter().filter(|(name, _)| name.contains("fillfile")).count() >= 1);
}

#[test]
fn files_that_fit_are_reused() {
    let dir = tempfile::tempdir().unwrap();
    let mut file_system = file_system(dir.path(), 30, 5000);
    file_system.reuse = true;
    let profile = profile(file_system, group(&[(Op::Read, 1)], 10));
    let mut profile = Profile {
        thread_groups: vec![ThreadGroup {
            read_size: Some(4096),
            ..profile.thread_groups[0].clone()
        }],
        ..profile
    };
    in_directories(&profile).unwrap();
    let file = dir.path().join(&files_in(dir.path())[0].0);
    put(&file, &[7; 5000]);
    let is_ours = || content(&file).is_some_and(|bytes| bytes == [7; 5000]);
    // Not even a failure removes what was not made by the run.
    profile.callout = Some("exit 3".to_owned());
    let error = in_directories(&profile).unwrap_err();
    assert_eq!(error.to_string(), "callout `exit 3`: exit status: 3");
    profile.callout = None;
    let control = Control { cleanup: Cleanup::Remove, ..Control::default() };
    run(&profile, Place::Directories, &control).unwrap();
    assert!(is_ours());
    // One file too few, a size that does not fit: all are made anew.
    profile.filesystems[0].num_files = 31;
    in_directories(&profile).unwrap();
    assert!(!is_ours());
    assert_eq!(files_in(dir.path()).len(), 31);
    put(&file, &[7; 5001]);
    in_directories(&profile).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 5000);
}

#[test]
fn somebody_elses_files_are_never_removed() {
    for name in ["data/letters.txt", "data/datadir0/notes", "meta/x"] {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join(name);
        std::fs::create_dir_all(theirs.parent().unwrap()).unwrap();
        put(&theirs, b"mine");
        let mut profile = profile(file_system(dir.path(), 3, 4096), group(&[(Op::Stat, 1)], 1));
        for reuse in [false, true] {
            profile.filesystems[0].reuse = reuse;
            let error = in_directories(&profile).unwrap_err();
            assert_eq!(error.kind(), RunErrorKind::Place);
            let named = format!("{} is in the way", theirs.display());
            assert!(error.to_string().contains(&named), "{error}");
            assert!(theirs.exists());
        }
    }
}

#[test]
fn what_was_made_is_removed_on_failure_and_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let is_empty = || std::fs::read_dir(dir.path()).unwrap().next().is_none();
    let mut profile = profile(file_system(dir.path(), 3, 4096), group(&[(Op::Delete, 1)], 4));
    let error = in_directories(&profile).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("delete: ") && text.contains("no files are left"), "{text}");
    assert!(is_empty());

    profile.thread_groups[0] = group(&[(Op::Read, 1)], 4);
    let text = in_directories(&profile).unwrap_err().to_string();
    assert!(text.ends_with(": the file has 4096 bytes, 8192 are to be read"), "{text}");
    assert!(text.starts_with(&format!("read: {}/data/", dir.path().display())), "{text}");
    assert!(is_empty());

    profile.thread_groups[0] = group(&[(Op::Stat, 1)], 4);
    let control = Control { cleanup: Cleanup::Remove, ..Control::default() };
    run(&profile, Place::Directories, &control).unwrap();
    assert!(is_empty());
    in_directories(&profile).unwrap();
    assert!(!is_empty());
}

#[test]
fn a_place_that_cannot_be_used_is_named() {
    let location = "/nowhere/at/all";
    let stat = group(&[(Op::Stat, 1)], 1);
    let profile = profile(file_system(Path::new(location), 3, 4096), stat);
    let error = in_directories(&profile).unwrap_err();
    assert_eq!(error.kind(), RunErrorKind::Place);
    assert!(error.to_string().starts_with("location /nowhere/at/all: No such file"), "{error}");

    let error = on_disk(&profile, &MemoryLane::new(8192)).unwrap_err();
    assert_eq!(error.kind(), RunErrorKind::NoSpace);
    assert!(error.to_string().contains("the disk is full"), "{error}");

    let place = Place::Disk { name: "nbd0", lanes: &mut [] };
    let error = run(&profile, place, &Control::default()).unwrap_err();
    assert_eq!(error.to_string(), "nbd0: 1 lanes are needed, 0 are there");
}

#[test]
fn impossible_profiles_are_refused_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let good = profile(file_system(dir.path(), 3, 4096), group(&[(Op::Read, 1)], 1));
    type Spoil = fn(&mut Profile);
    let cases: &[(&str, Spoil)] = &[
        ("the profile has no [filesystem]", |p| p.filesystems.clear()),
        ("the profile has no [threadgroup]", |p| p.thread_groups.clear()),
        ("filesystem 0: min_filesize is more than max_filesize", |p| {
            p.filesystems[0].min_filesize = 5000;
        }),
        ("filesystem 0: create_blocksize is 0; it must be from 1 byte to 1 GiB", |p| {
            p.filesystems[0].create_blocksize = 0;
        }),
        ("threadgroup 0: num_threads is 0", |p| p.thread_groups[0].num_threads = 0),
        ("threadgroup 0: no operation has a weight", |p| p.thread_groups[0].weights.clear()),
        ("threadgroup 0: bindfs names no file system of the profile", |p| {
            p.thread_groups[0].bindfs = Some(1);
        }),
        ("threadgroup 0: read_blocksize is 0; it must be from 1 byte to 1 GiB", |p| {
            p.thread_groups[0].read_blocksize = 0;
        }),
        ("threadgroup 0: read_random and read_skip exclude each other", |p| {
            p.thread_groups[0].read_random = true;
            p.thread_groups[0].read_skip = Some(1);
        }),
        ("threadgroup 0: neither a time nor iterations say when it ends", |p| {
            p.thread_groups[0].iterations = None;
        }),
        ("filesystem 0: files without size never reach init_size or init_util", |p| {
            let spec = &mut p.filesystems[0];
            (spec.num_files, spec.init_size) = (0, Some(1));
            (spec.min_filesize, spec.max_filesize) = (0, 0);
        }),
        ("filesystem 0: a utilisation is between 0 and 1", |p| {
            p.filesystems[0].init_util = Some(20.0);
        }),
    ];
    for (expected, spoil) in cases {
        let mut profile = good.clone();
        spoil(&mut profile);
        let error = in_directories(&profile).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (RunErrorKind::Profile, *expected));
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
    }
}

#[test]
fn the_stop_flag_ends_every_phase() {
    let dir = tempfile::tempdir().unwrap();
    let mut profile = profile(file_system(dir.path(), 20, 4096), group(&[(Op::Stat, 1)], 1));
    profile.time = Some(3600);
    for phase in [Phase::SetUp, Phase::WarmUp, Phase::Measure] {
        let stop = AtomicBool::new(false);
        let progress = |progress: Progress| {
            if progress.phase == phase {
                stop.store(true, Ordering::Relaxed);
            }
        };
        let control = Control {
            stop: &stop,
            progress: Some(&progress),
            warm_up_seconds: if phase == Phase::WarmUp { 3600.0 } else { 0.0 },
            ..Control::default()
        };
        let error = run(&profile, Place::Directories, &control).unwrap_err();
        assert_eq!(error.kind(), RunErrorKind::Interrupted, "{phase:?}");
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "{phase:?}");
    }
}

#[test]
fn phases_come_in_order_and_a_warm_up_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let mut profile = profile(file_system(dir.path(), 5, 9000), group(&[(Op::Read, 1)], 3));
    profile.callout = Some("true".to_owned());
    let phases = RefCell::new(Vec::new());
    let progress = |progress: Progress| {
        let mut phases = phases.borrow_mut();
        if phases.last() != Some(&progress.phase) {
            phases.push(progress.phase);
        }
        assert!(progress.fraction.is_none_or(|fraction| (0.0..=1.0).contains(&fraction)));
    };
    let control = Control {
        progress: Some(&progress),
        warm_up_seconds: 0.05,
        cleanup: Cleanup::Remove,
        ..Control::default()
    };
    let outcome = run(&profile, Place::Directories, &control).unwrap();
    // The operation under way when the measurement began counts from there: with one block of its two, or both.
    let read = op(&outcome, Op::Read);
    assert_eq!(read.drawn, 3);
    assert!((4..=6).contains(&read.transactions), "{read:?}");
    assert_eq!(outcome.latency.count, read.transactions);
    let calls = |syscall| {
        let syscalls = &outcome.groups[0].syscalls;
        syscalls.iter().find(|one| one.syscall == syscall).map_or(0, |one| one.calls)
    };
    assert_eq!(calls(Syscall::Read), read.transactions);
    assert!((2..=3).contains(&calls(Syscall::Open)));
    use Phase::*;
    let all = [SetUp, Sync, Callout, WarmUp, Measure, Measured, CleanUp];
    assert_eq!(*phases.borrow(), all);
}

#[test]
fn when_the_time_is_up_an_operation_is_finished_or_cut() {
    let dir = tempfile::tempdir().unwrap();
    let mut endless = group(&[(Op::Create, 1)], 0);
    // A file that one second does not suffice for, by blocks of one byte.
    (endless.write_blocksize, endless.iterations) = (1, None);
    let mut file_system = file_system(dir.path(), 0, 1 << 40);
    file_system.num_dirs = 0;
    let mut profile = profile(file_system, endless);
    profile.time = Some(1);
    let control = Control { cut: true, latencies: false, ..Control::default() };
    let outcome = run(&profile, Place::Directories, &control).unwrap();
    let create = op(&outcome, Op::Create);
    assert_eq!((create.drawn, create.transactions), (1, create.written_bytes));
    let size = files_in(dir.path())[0].1;
    assert_eq!(create.written_bytes, size);
    assert!(size > 0 && size < 1 << 40 && outcome.seconds >= 1.0, "{outcome:?}");
    assert_eq!(outcome.latency.count, 0);

    profile.filesystems[0].max_filesize = 10_000;
    profile.filesystems[0].min_filesize = 10_000;
    let outcome = run(&profile, Place::Directories, &Control::default()).unwrap();
    assert!(files_in(dir.path()).iter().all(|(_, size)| *size == 10_000));
    let create = op(&outcome, Op::Create);
    assert_eq!(
        (create.transactions, create.written_bytes),
        (create.drawn * 10_000, create.transactions)
    );
    assert!(outcome.cpu_user_seconds + outcome.cpu_system_seconds > 0.0);
    assert!(outcome.cpu_user_seconds >= 0.0 && outcome.finished_unix >= outcome.started_unix);
}

#[test]
fn many_threads_make_and_delete_without_losing_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let mix = [
        (Op::Create, 5),
        (Op::Delete, 4),
        (Op::Append, 3),
        (Op::Write, 3),
        (Op::Readall, 3),
        (Op::Metaop, 1),
        (Op::Createdir, 1),
        (Op::Stat, 1),
    ];
    let mut many = group(&mix, 200);
    (many.num_threads, many.write_size) = (16, Some(4096));
    let profile = profile(file_system(dir.path(), 40, 4096), many);
    let outcome = in_directories(&profile).unwrap();
    let of = |the_op| op(&outcome, the_op);
    assert_eq!(outcome.groups[0].ops.iter().map(|op| op.drawn).sum::<u64>(), 16 * 200);
    let files = files_in(dir.path());
    assert_eq!(files.len() as u64, 40 + of(Op::Create).drawn - of(Op::Delete).drawn);
    let on_disk_too = on_disk(&profile, &MemoryLane::new(64 << 20)).unwrap();
    let drawn = |outcome: &Outcome| -> Vec<(Op, u64)> {
        outcome.groups[0].ops.iter().map(|op| (op.op, op.drawn)).collect()
    };
    // However the threads met, each drew its own operations.
    assert_eq!(drawn(&outcome), drawn(&on_disk_too));
}

#[test]
fn a_create_at_max_files_removes_a_file_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut creates = group(&[(Op::Create, 1)], 60);
    let mut spec = file_system(dir.path(), 3, 4096);
    spec.max_files = Some(5);
    let outcome = in_directories(&profile(spec.clone(), creates.clone())).unwrap();
    let done = op(&outcome, Op::Create);
    // What is removed counts nowhere.
    assert_eq!((done.drawn, done.transactions, done.written_bytes), (60, 60, 60 * 4096));
    let calls = &outcome.groups[0].syscalls;
    assert!(outcome.groups[0].ops.len() == 1 && calls.iter().all(|c| c.syscall != Syscall::Unlink));
    assert_eq!(files_in(dir.path()).len(), 5);

    // A disk without room for more than seven of them, inodes included; each thread may be one over the bound.
    (creates.num_threads, spec.min_filesize, spec.max_filesize) = (2, 1 << 20, 1 << 20);
    let mut verified = profile(spec, creates);
    verified.verify = true;
    let outcome = on_disk(&verified, &MemoryLane::new(9 << 20)).unwrap();
    assert_eq!(op(&outcome, Op::Create).drawn, 120);
    verified.filesystems[0].max_files = None;
    let error = on_disk(&verified, &MemoryLane::new(9 << 20)).unwrap_err();
    assert_eq!(error.kind(), RunErrorKind::NoSpace);
    // A bound of one, which all threads want to go below at once.
    (verified.filesystems[0].max_files, verified.thread_groups[0].num_threads) = (Some(1), 8);
    verified.filesystems[0].num_files = 1;
    on_disk(&verified, &MemoryLane::new(12 << 20)).unwrap();
}

#[test]
fn a_session_measures_several_times_on_one_file_set() {
    let dir = tempfile::tempdir().unwrap();
    let mut profile =
        profile(file_system(dir.path(), 8, 64 << 10), group(&[(Op::Write, 1), (Op::Read, 1)], 20));
    profile.verify = true;
    let control = Control { cleanup: Cleanup::Remove, ..Control::default() };
    let mut session = Session::open(&profile, Place::Directories, &control).unwrap();
    session.set_up(&control).unwrap();
    let before = files_in(dir.path());
    for threads in [1, 4, 2] {
        let outcome = session.measure(Some(threads), &control).unwrap();
        let drawn: u64 = outcome.groups[0].ops.iter().map(|op| op.drawn).sum();
        assert_eq!(drawn, u64::from(threads) * 20);
        assert_eq!(files_in(dir.path()), before);
        let full = outcome.phases.utilisation[0];
        assert!(full > 0.0 && full < 1.0, "{full}");
        assert!(outcome.phases.sync_before_seconds > 0.0);
        assert!(outcome.phases.sync_after_seconds > 0.0);
        assert!(outcome.seconds > outcome.phases.sync_after_seconds);
    }
    // Less than a second, whatever the profile says.
    let short = Control { seconds: Some(0.05), ..control };
    let outcome = session.measure(None, &short).unwrap();
    assert!((0.05..20.0).contains(&outcome.seconds), "{}", outcome.seconds);
    session.close(Ok(()), &control).unwrap();
    assert!(files_in(dir.path()).is_empty());

    let mut lanes = MemoryLane::new(4 << 20).lanes(1);
    let place = Place::Disk { name: "memory", lanes: &mut lanes };
    let mut session = Session::open(&profile, place, &control).unwrap();
    session.set_up(&control).unwrap();
    let error = session.measure(Some(3), &control).unwrap_err();
    assert_eq!(error.to_string(), "memory: 3 lanes are needed, 1 are there");
}

#[test]
fn a_file_serves_as_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    put(&path, &vec![0; 8 << 20]);
    let mut profile = profile(
        file_system(Path::new("-"), 20, 9000),
        group(
            &[
                (Op::Read, 1),
                (Op::Write, 1),
                (Op::Create, 1),
                (Op::Delete, 1),
                (Op::AppendFsync, 1),
            ],
            50,
        ),
    );
    (profile.verify, profile.thread_groups[0].num_threads) = (true, 3);
    for cache in CacheMode::ALL {
        let lanes = match FileLane::open(&path, cache, 3) {
            Ok(lanes) => lanes,
            Err(error) if cache.is_direct() && std::env::var_os("CI").is_none() => {
                return println!("SKIPPED: no O_DIRECT here: {error}");
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(lanes[0].size(), 8 << 20);
        let mut lanes: Vec<Box<dyn Lane>> =
            lanes.into_iter().map(|lane| Box::new(lane) as Box<dyn Lane>).collect();
        let place = Place::Disk { name: "disk", lanes: &mut lanes };
        run(&profile, place, &Control::default()).unwrap();
        // Memory that O_DIRECT would not take goes through memory of the lane.
        let mut buf = vec![0; 1025];
        lanes[0].write_at(512, &[9; 512]).unwrap();
        lanes[0].read_at(512, &mut buf[1..513]).unwrap();
        assert_eq!(buf[1..513], [9; 512]);
        let beyond = lanes[0].read_at(8 << 20, &mut buf[..512]).unwrap_err();
        assert_eq!(beyond.kind(), std::io::ErrorKind::UnexpectedEof);
    }
    assert!(FileLane::open(dir.path(), CacheMode::Writeback, 1).is_err());
}

#[test]
fn a_disk_that_fails_while_files_are_made_is_named() {
    let profile = profile(file_system(Path::new("-"), 3, 4096), group(&[(Op::Stat, 1)], 1));
    let disk = MemoryLane::new(1 << 20);
    disk.with(|memory| memory.writes_until = Some((4, Fault::Fail)));
    let error = on_disk(&profile, &disk).unwrap_err();
    assert_eq!(error.kind(), RunErrorKind::Io);
    let text = error.to_string();
    assert!(text.starts_with("set-up: writing at offset 0x0 of data/"), "{text}");
    assert!(text.ends_with("datafile0 on memory: the disk is broken"), "{text}");
}
