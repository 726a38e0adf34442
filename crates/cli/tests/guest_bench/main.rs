//! The workloads in a real guest. Emulated where the machine has no KVM; figures are not judged then, only that they are there.

#![allow(clippy::disallowed_methods, reason = "a test: files, clocks and processes are its work")]

use block::{CacheMode, Format};
use ffsb::grid::Workload;
use ffsb::guest::{
    Compare, Disk, Fs, Guest, GuestError, GuestErrorKind, GuestSpec, ImageSpec, Kernel, Scheduler,
    compare, find_program,
};
use ffsb::profile::Profile;
use ffsb::profile::scenario::{Scale, Scenario};
use ffsb::run::{Cleanup, Control, RunErrorKind};
use ffsb::server::{Server, ServerKind, ServerSpec};
use io_engine::EngineKind;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

static NEVER: AtomicBool = AtomicBool::new(false);
const MIB: u64 = 1 << 20;

fn binary() -> PathBuf {
    env!("CARGO_BIN_EXE_ferroblk").into()
}

/// A kernel, if everything is there that a guest needs; else says what is missing.
fn kernel(mkfs: &[&str]) -> Option<Kernel> {
    let programs = ["qemu-system-x86_64"].iter().chain(mkfs);
    let lacking = programs.copied().find(|program| find_program(program).is_none());
    let why = match (lacking, Kernel::find(None, None)) {
        (None, Ok(kernel)) => return Some(kernel),
        (Some(program), _) => format!("{program} is not installed"),
        (None, Err(error)) => error.to_string(),
    };
    println!("SKIPPED: {why}; `cargo xtask setup` installs what is missing");
    assert!(std::env::var_os("CI").is_none(), "no test may be skipped here: {why}");
    None
}

/// A directory on a real file system, and an empty raw image in it.
fn image(bytes: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
    (dir, path)
}

fn image_spec(path: &Path) -> ImageSpec {
    let (format, aio) = (Format::Raw, EngineKind::Threads);
    ImageSpec { path: path.into(), format, cache: CacheMode::Writeback, aio }
}

fn spec(kernel: Kernel, disk: Disk) -> GuestSpec {
    GuestSpec { binary: Some(binary()), ..GuestSpec::new(kernel, disk) }
}

/// Reads and overwrites of two threads, with verified content.
fn workload(seconds: u32) -> Profile {
    let text = format!(
        "time={seconds}\nverify=1\ndirectio=1\nalignio=1\n\
         [filesystem]\n location=/bench\n num_files=4\n min_filesize=1M\n max_filesize=1M\n create_blocksize=256k\n[end]\n\
         [threadgroup]\n num_threads=2\n read_weight=1\n write_weight=1\n read_random=1\n write_random=1\n \
         read_size=8k\n write_size=8k\n read_blocksize=8k\n write_blocksize=8k\n[end]\n"
    );
    Profile::parse(&text).unwrap().profile
}

/// A workload of a second; the disk is whole afterwards.
fn measure(guest: Result<Guest, GuestError>, fs: Fs, image: &Path) {
    let mut guest = guest.unwrap();
    let pid = guest.pid();
    let control = Control { cleanup: Cleanup::Remove, cut: true, ..Control::default() };
    for threads in [1, 2] {
        let mut profile = workload(1);
        profile.thread_groups[0].num_threads = threads;
        let done = guest.run(&profile, &control).unwrap();
        let run = done.run;
        assert!(run.transactions > 0 && run.seconds >= 1.0, "{run:?}");
        assert!(run.read_bytes > 0 && run.written_bytes > 0 && run.latency.count > 0, "{run:?}");
        assert_eq!(run.vcpu_seconds.len(), 2);
        assert!(run.vcpu_seconds.iter().sum::<f64>() > 0.0, "{run:?}");
        let whole = run.workload_cpu_seconds + run.server_cpu_seconds;
        assert!(run.server_cpu_seconds > 0.0 && whole > run.workload_cpu_seconds, "{run:?}");
        assert!(run.host_cpu_seconds > 0.0, "{run:?}");
    }
    guest.shutdown().unwrap();
    assert!(!is_alive(pid));
    check_file_system(fs, image);
}

fn check_file_system(fs: Fs, image: &Path) {
    let (program, args): (_, &[&str]) = match fs {
        Fs::Ext4 => ("e2fsck", &["-f", "-n"]),
        Fs::Xfs => ("xfs_repair", &["-n"]),
    };
    let checked =
        Command::new(find_program(program).unwrap()).args(args).arg(image).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn virtio_with_and_without_an_iothread() {
    let Some(kernel) = kernel(&["mkfs.ext4", "e2fsck"]) else { return };
    for iothread in [true, false] {
        let (dir, path) = image(256 * MIB);
        let disk = Disk::Virtio { image: image_spec(&path), iothread };
        let mut spec = spec(kernel.clone(), disk);
        spec.barriers = iothread;
        measure(Guest::boot(&spec, dir.path(), &NEVER), Fs::Ext4, &path);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "something was left behind");
    }
}

#[test]
fn ide_with_mq_deadline() {
    let Some(kernel) = kernel(&["mkfs.ext4", "e2fsck"]) else { return };
    let (dir, path) = image(256 * MIB);
    let mut spec = spec(kernel, Disk::Ide { image: image_spec(&path) });
    spec.scheduler = Scheduler::MqDeadline;
    measure(Guest::boot(&spec, dir.path(), &NEVER), Fs::Ext4, &path);
}

#[test]
fn vhost_user_with_xfs_and_bfq() {
    let Some(kernel) = kernel(&["mkfs.xfs", "xfs_repair"]) else { return };
    let (dir, path) = image(512 * MIB);
    let sockets = tempfile::tempdir().unwrap();
    let server = ServerSpec {
        program: Some(binary()),
        cache: CacheMode::Writeback,
        aio: EngineKind::Threads,
        queues: 2,
        ..ServerSpec::new(ServerKind::Ferroblk, &path, Format::Raw)
    };
    let server = Server::start(&server, sockets.path()).unwrap();
    let disk = Disk::VhostUser { socket: server.socket().into(), queues: 2, server: server.pid() };
    let mut spec = spec(kernel, disk);
    (spec.fs, spec.scheduler) = (Fs::Xfs, Scheduler::Bfq);
    measure(Guest::boot(&spec, dir.path(), &NEVER), Fs::Xfs, &path);
    server.stop().unwrap();
}

#[test]
fn a_comparison_has_every_cell_and_leaves_nothing() {
    let Some(kernel) = kernel(&["mkfs.ext4"]) else { return };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut asked = Compare::quick(kernel, dir.path().into());
    asked.binary = Some(binary());
    for setup in &mut asked.setups {
        (setup.cache, setup.aio) = (CacheMode::Writeback, EngineKind::Threads);
    }
    asked.setups[2].format = Format::Qcow2;
    let scenario = |scenario| Workload::scenario(scenario, small());
    let own = Workload::profile("own", workload(1)).unwrap();
    asked.workloads =
        vec![scenario(Scenario::RandomRead8k), scenario(Scenario::LargeFileCreate256k), own];
    (asked.threads, asked.seconds, asked.repetitions) = (Some(vec![1, 2]), Some(0.5), 2);
    let steps = RefCell::new(Vec::new());
    let report = compare(&asked, &NEVER, &|step| steps.borrow_mut().push(step.clone())).unwrap();
    report.check().unwrap();
    assert_eq!(report.cells.len(), 3 * 3 * 2);
    for cell in &report.cells {
        assert_eq!(cell.failure, None);
        assert_eq!(cell.runs.len(), 2);
        assert!(cell.runs.iter().all(|run| run.transactions > 0), "{cell:?}");
    }
    let emulated = report.settings.iter().any(|(_, value)| value.contains("(tcg)"));
    assert_eq!(report.remarks.iter().any(|remark| remark.contains("emulated")), emulated);
    let last = steps.borrow().last().cloned().unwrap();
    assert_eq!((last.done, last.total), (35, 36), "{last:?}");
    assert_empty(dir.path());
}

#[test]
fn a_guest_that_does_not_boot_is_told_in_one_line_and_leaves_nothing() {
    let Some(kernel) = kernel(&["mkfs.ext4"]) else { return };
    let bad = |change: &dyn Fn(&mut GuestSpec, &Path), expected: &str| {
        let (dir, path) = image(64 * MIB);
        let work = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut spec = spec(kernel.clone(), Disk::Ide { image: image_spec(&path) });
        change(&mut spec, dir.path());
        let error = Guest::boot(&spec, work.path(), &NEVER).unwrap_err();
        let line = error.to_string();
        assert_eq!(error.kind(), GuestErrorKind::Boot, "{line}");
        assert!(line.starts_with("guest ide: ") && line.contains(expected), "{line}");
        assert!(!line.contains('\n'), "{line}");
        assert_empty(work.path());
        assert_eq!(processes_with(work.path()), 0, "{line}");
    };
    bad(
        &|spec, dir| {
            spec.kernel.image = dir.join("vmlinuz");
            std::fs::write(&spec.kernel.image, [7; 4096]).unwrap();
        },
        "kernel",
    );
    // An init that ends at once: the kernel panics, and says so last.
    bad(&|spec, _| spec.binary = Some(find_program("true").unwrap()), "Kernel panic");
    bad(&|spec, _| spec.patience = Duration::ZERO, "said nothing for 0 s");
    bad(
        &|spec, dir| {
            // Without modules there is no disk.
            spec.kernel.modules = dir.into();
        },
        "found no disk sda",
    );
    bad(
        &|spec, dir| {
            let Disk::Ide { image } = &mut spec.disk else { unreachable!() };
            image.path = dir.join("missing");
        },
        "missing",
    );
}

#[test]
fn a_full_file_system_is_a_failed_run_and_an_interruption_ends_the_guest() {
    let Some(kernel) = kernel(&["mkfs.ext4", "e2fsck"]) else { return };
    let (dir, path) = image(128 * MIB);
    let spec = spec(kernel, Disk::Virtio { image: image_spec(&path), iothread: false });
    let mut guest = Guest::boot(&spec, dir.path(), &NEVER).unwrap();
    let control = Control { cleanup: Cleanup::Remove, cut: true, ..Control::default() };
    let mut large = workload(1);
    large.filesystems[0].num_files = 400;
    let error = guest.run(&large, &control).unwrap_err();
    assert_eq!(error.kind(), GuestErrorKind::Run(RunErrorKind::NoSpace), "{error}");
    assert!(error.to_string().starts_with("guest virtio: "), "{error}");
    // What it had made is gone: there is room again.
    guest.run(&workload(1), &control).unwrap();

    let mut callout = workload(1);
    callout.callout = Some("true".to_owned());
    let error = guest.run(&callout, &control).unwrap_err();
    assert_eq!(error.kind(), GuestErrorKind::Refused, "{error}");
    guest.run(&Scenario::RandomRead8k.profile(1, "/r", 1, small()), &control).unwrap();

    let pid = guest.pid();
    let stop = AtomicBool::new(false);
    let interrupt = |_| stop.store(true, Ordering::Relaxed);
    let control = Control { stop: &stop, progress: Some(&interrupt), ..control };
    let error = guest.run(&workload(60), &control).unwrap_err();
    assert_eq!(error.kind(), GuestErrorKind::Interrupted, "{error}");
    assert_eq!(guest.run(&workload(1), &control).unwrap_err().kind(), GuestErrorKind::Lost);
    drop(guest);
    assert!(!is_alive(pid));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "something was left behind");
}

#[test]
fn what_no_guest_can_be_is_refused_before_anything_starts() {
    let kernel = Kernel { image: "k".into(), modules: "m".into() };
    let dir = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut GuestSpec), expected: &str| {
        let image = image_spec(&dir.path().join("none"));
        let mut spec = spec(kernel.clone(), Disk::Ide { image });
        change(&mut spec);
        let error = Guest::boot(&spec, dir.path(), &NEVER).unwrap_err();
        assert_eq!(error.kind(), GuestErrorKind::Refused, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert_empty(dir.path());
    };
    refused(&|spec| (spec.fs, spec.barriers) = (Fs::Xfs, false), "without barriers");
    refused(&|spec| spec.memory_mib = 64, "memory");
    refused(&|spec| spec.vcpus = 0, "CPU");
    refused(
        &|spec| {
            let Disk::Ide { image } = &mut spec.disk else { unreachable!() };
            image.aio = EngineKind::Native;
        },
        "aio=native",
    );
}

fn small() -> Scale {
    Scale::new(1000).unwrap()
}

fn assert_empty(dir: &Path) {
    let left: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// Processes whose command line names the path.
fn processes_with(path: &Path) -> usize {
    let path = path.to_str().unwrap();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(path)
        })
        .count()
}

fn bench(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(["bench", "--guest", "--dir"]).arg(dir).args(args).current_dir(dir);
    command
}

#[test]
fn the_command_writes_a_report_of_guests() {
    let Some(_) = kernel(&["mkfs.ext4"]) else { return };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let words = ["--scenario", "random-read-8k", "--seconds", "0.5", "--repetitions", "1"];
    let matrix = [
        "--scale",
        "1000",
        "--json",
        "r.json",
        "--matrix",
        "threads=1",
        "aio=threads",
        "cache=writeback",
    ];
    let output = bench(dir.path(), &words).args(matrix).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for device in ["guest virtio", "guest ide", "guest vhost-user"] {
        assert!(text.contains(device), "{text}");
    }
    let json = std::fs::read_to_string(dir.path().join("r.json")).unwrap();
    assert!(json.contains("guest vhost-user raw writeback threads"), "{json}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the report is left");
}

/// Once: a guest whose QEMU fails each time does not boot.
#[test]
fn a_guest_whose_emulator_aborts_is_booted_once_more() {
    use std::os::unix::fs::PermissionsExt;
    let Some(_) = kernel(&["mkfs.ext4"]) else { return };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let bin = tempfile::tempdir().unwrap();
    let qemu = bin.path().join("qemu-system-x86_64");
    let path = std::env::var("PATH").unwrap();
    let real = find_program("qemu-system-x86_64").unwrap();
    let words = ["--scenario", "random-read-8k", "--seconds", "0.5", "--repetitions", "1"];
    let matrix = [
        "--scale",
        "1000",
        "--matrix",
        "threads=1",
        "device=virtio",
        "aio=threads",
        "cache=writeback",
    ];
    let run = |times: usize| {
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *-kernel*)\necho start >> {starts}\n\
             if [ $(wc -l < {starts}) -le {times} ]; then kill -ABRT $$; fi;;\nesac\nexec {real} \"$@\"\n",
            starts = bin.path().join("starts").display(),
            real = real.display(),
        );
        std::fs::write(&qemu, script).unwrap();
        std::fs::set_permissions(&qemu, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = bench(dir.path(), &words);
        command.args(["--guest-accel", "tcg"]).args(matrix);
        command.env("PATH", format!("{}:{path}", bin.path().display())).output().unwrap()
    };
    let output = run(1);
    assert!(output.status.success(), "{output:?}");
    std::fs::remove_file(bin.path().join("starts")).unwrap();
    let output = run(9);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let starts = std::fs::read_to_string(bin.path().join("starts")).unwrap();
    assert_eq!(starts.lines().count(), 2);
}

#[test]
fn the_command_refuses_in_one_line() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("boot")).unwrap();
    std::fs::create_dir_all(root.path().join("lib/modules/9.9")).unwrap();
    let refused = |args: &[&str], path: Option<&Path>, expected: &str| {
        let mut command = bench(dir.path(), args);
        command.env("FERROBLK_GUEST", root.path());
        command.envs(path.map(|path| ("PATH", path)));
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = text.lines().last().unwrap_or_default();
        assert!(line.starts_with("ferroblk: ") && line.contains(expected), "{output:?}");
        assert!(matches!(output.status.code(), Some(1 | 2)), "{output:?}");
        assert_empty(dir.path());
    };
    refused(&["--quick"], None, "no kernel for the guest");
    std::fs::write(root.path().join("boot/vmlinuz-9.9"), b"kernel").unwrap();
    refused(&["--quick"], Some(root.path()), "qemu-system-x86_64 is not installed");
    let xfs = ["--guest-fs", "xfs", "--guest-barriers", "off"];
    refused(&xfs, None, "without barriers");
    refused(&["--matrix", "device=bare"], None, "device is virtio, ide or vhost-user");
    refused(&["--guest-kernel", "/nonexistent/vmlinuz"], None, "/nonexistent/vmlinuz");
    refused(&["--guest-scheduler", "cfq"], None, "none, mq-deadline, bfq");
    refused(&["--trace"], None, "--trace");
}
