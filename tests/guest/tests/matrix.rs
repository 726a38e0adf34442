//! The foreign driver of the `blkio` crate on ferroblk's socket: verified random I/O over every engine, every cache
//! mode, interrupt and poll queues; on QED images a sample of them, with QEMU's checker as the judge of what is left.
#![allow(clippy::disallowed_methods, reason = "a test: files and processes are its work")]
#![allow(missing_docs)]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use blk_client::server::{Server, ferroblk_binary};
use blk_client::{
    ConnectOptions, Limit, Model, Notify, VerifyOptions, VerifyReport, run_verify, verify_disk,
};
use guest_tests::{Scratch, ServerKind, missing_programs, skip};

const DISK_BYTES: u64 = 48 << 20;
/// Every queue of the driver; the server offers as many.
const QUEUES: usize = 2;
/// Enough for some hundred of each kind of request, and for several on the same sectors.
const REQUESTS: u64 = 3000;

fn connect_options(socket: &Path, notify: Notify) -> ConnectOptions {
    let socket = socket.display().to_string();
    let slot_bytes = (64 << 10) + 4096;
    let (queues, queue_size, depth) = (QUEUES, 128, 16);
    ConnectOptions { socket, queues, notify, queue_size, depth, slot_bytes, read_only: false }
}

fn verify(socket: &Path, notify: Notify, seed: u64) -> VerifyReport {
    verify_on(socket, notify, seed, None)
}

/// On a disk whose content is known already.
fn verify_on(socket: &Path, notify: Notify, seed: u64, known: Option<Model>) -> VerifyReport {
    let connect = connect_options(socket, notify);
    let (span, limit) = (DISK_BYTES, Limit::Ops(REQUESTS));
    let options = VerifyOptions { connect, span, limit, seed, known };
    let report = run_verify(&options).unwrap_or_else(|e| panic!("{notify:?}: {e}"));
    assert!(report.reads > REQUESTS / 4 && report.writes > REQUESTS / 4, "{notify:?}");
    report
}

/// Reads the image file as anyone on the host would and compares it with what the driver wrote.
fn check_file(image: &Path, model: &Model) {
    let data = std::fs::read(image).unwrap();
    assert!(data.len() as u64 >= model.len(), "the file is shorter than the disk");
    model.check(0, &data).unwrap_or_else(|e| panic!("in {}: {e}", image.display()));
}

fn run_on_ferroblk(engine: &str, cache: &str) {
    let scratch = Scratch::new().unwrap();
    let image = scratch.image("disk.raw", DISK_BYTES).unwrap();
    let socket = scratch.socket("disk");
    let queues = QUEUES.to_string();
    // One IoThread for both queues, then one for each.
    for (notify, iothreads, seed) in [(Notify::Interrupt, "1", 1), (Notify::Poll, "2", 2)] {
        let args = ["--aio", engine, "--cache", cache, "--queues", &queues];
        let args = [&args[..], &["--iothreads", iothreads]].concat();
        let server = Server::ferroblk(&ferroblk_binary().unwrap(), &image, &socket, &args).unwrap();
        let report = verify(&socket, notify, seed);
        // The next client finds the same.
        verify_disk(&connect_options(&socket, notify), &report.model).unwrap();
        server.stop().unwrap();
        check_file(&image, &report.model);
    }
}

fn run_engine(engine: &str, caches: &[&str]) {
    let direct = Scratch::new().unwrap().has_direct_io();
    for &cache in caches {
        if !direct && matches!(cache, "none" | "directsync") {
            skip(&format!("{engine} with {cache}: no O_DIRECT on the build directory's disk"));
            continue;
        }
        println!("{engine}, {cache}");
        run_on_ferroblk(engine, cache);
    }
}

#[test]
fn io_uring_keeps_data_in_every_cache_mode() {
    run_engine("io_uring", &["none", "writeback", "writethrough", "directsync", "unsafe"]);
}

/// Linux AIO does O_DIRECT only.
#[test]
fn native_keeps_data_in_the_direct_cache_modes() {
    run_engine("native", &["none", "directsync"]);
}

#[test]
fn threads_keep_data_in_every_cache_mode() {
    run_engine("threads", &["none", "writeback", "writethrough", "directsync", "unsafe"]);
}

/// The verifier must accept a server that is known to be good, and must see one wrong byte.
#[test]
fn the_verifier_accepts_qemu_storage_daemon_and_sees_a_wrong_byte() {
    if let Some(what) = missing_programs(&["qemu-storage-daemon"]) {
        return skip(&what);
    }
    let scratch = Scratch::new().unwrap();
    let image = scratch.image("disk.raw", DISK_BYTES).unwrap();
    let socket = scratch.socket("disk");
    let server = ServerKind::QemuStorageDaemon.start(&image, &socket, "writeback", QUEUES).unwrap();
    let report = verify(&socket, Notify::Interrupt, 3);
    check_file(&image, &report.model);

    let file = std::fs::OpenOptions::new().read(true).write(true).open(&image).unwrap();
    let mut sector = [0; 512];
    let stamped = (0..DISK_BYTES / 512).map(|s| s * 512).find(|&at| {
        file.read_exact_at(&mut sector, at).unwrap();
        sector.iter().any(|&b| b != 0)
    });
    let at = stamped.expect("some writes were not discarded") + 300;
    file.write_all_at(&[!sector[300]], at).unwrap();
    let error = verify_disk(&connect_options(&socket, Notify::Poll), &report.model).unwrap_err();
    assert!(error.to_string().contains("torn"), "{error}");
    server.stop().unwrap();
}

fn qemu_img(args: &[&str], good: &[i32]) -> String {
    let output = Command::new("qemu-img").args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let why = String::from_utf8_lossy(&output.stderr);
    let is_good = output.status.code().is_some_and(|code| good.contains(&code));
    assert!(is_good, "qemu-img {args:?}: {}\n{said}{why}", output.status);
    said
}

/// An image in a format with tables, and what its disk contains.
struct Disk {
    format: &'static str,
    image: PathBuf,
    known: Option<Model>,
}

impl Disk {
    /// A new image, without data.
    fn new(format: &'static str, scratch: &Scratch) -> Disk {
        let image = scratch.path(&format!("disk.{format}"));
        let size = DISK_BYTES.to_string();
        qemu_img(&["create", "-q", "-f", format, image.to_str().unwrap(), &size], &[0]);
        Disk { format, image, known: None }
    }

    /// A new image over a raw file, whose every sector is stamped.
    fn over_raw(format: &'static str, scratch: &Scratch) -> Disk {
        let base = scratch.path("base.raw");
        let mut model = Model::new(7, DISK_BYTES);
        let mut data = vec![0; usize::try_from(DISK_BYTES).unwrap()];
        let generation = model.new_generation();
        model.stamp(generation, 0, &mut data);
        model.written(generation, 0, DISK_BYTES);
        std::fs::write(&base, data).unwrap();
        let image = scratch.path(&format!("disk.{format}"));
        let (over, under) = (image.to_str().unwrap(), base.to_str().unwrap());
        qemu_img(&["create", "-q", "-f", format, "-b", under, "-F", "raw", over], &[0]);
        Disk { format, image, known: Some(model) }
    }

    fn serve(&self, socket: &Path, engine: &str, cache: &str, iothreads: &str) -> Server {
        let queues = QUEUES.to_string();
        let args = ["--aio", engine, "--cache", cache, "--queues", &queues, "--iothreads"];
        let args = [&args[..], &[iothreads, "--allow-backing"]].concat();
        Server::ferroblk(&ferroblk_binary().unwrap(), &self.image, socket, &args).unwrap()
    }

    /// What others find in the image that a server has left: no error, and the data. In QED discarded clusters are leaks to them.
    fn check(&self, model: &Model) {
        let image = self.image.to_str().unwrap();
        let good: &[i32] = if self.format == "qed" { &[0, 3] } else { &[0] };
        qemu_img(&["check", "-f", self.format, image], good);
        let raw = self.image.with_extension("copy");
        qemu_img(&["convert", "-f", self.format, "-O", "raw", image, raw.to_str().unwrap()], &[0]);
        check_file(&raw, model);
    }

    /// What a killed server has left: leaks at most, which our repair gives back.
    fn give_back_leaks(&self) {
        let image = self.image.to_str().unwrap();
        qemu_img(&["check", "-f", self.format, image], &[0, 3]);
        let program = ferroblk_binary().unwrap();
        let args = ["img", "check", "-r", "leaks", image];
        let output = Command::new(program).args(args).output().unwrap();
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {}\n{why}", output.status);
    }

    /// Whether the image is marked as one that was not closed; `None` in a format whose order of writes needs no such mark.
    fn needs_check(&self) -> Option<bool> {
        if self.format != "qed" {
            return None;
        }
        let mut features = [0; 8];
        let file = std::fs::File::open(&self.image).unwrap();
        file.read_exact_at(&mut features, 16).unwrap();
        Some(u64::from_le_bytes(features) & 2 != 0)
    }
}

/// Random requests on an image, twice; the server ends as it is told to. Each time QEMU finds what it should.
fn run_on(mut disk: Disk, scratch: &Scratch, engine: &str, cache: &str) {
    println!("{}, {engine}, {cache}, known content: {}", disk.format, disk.known.is_some());
    let socket = scratch.socket("disk");
    for (notify, iothreads, seed) in [(Notify::Interrupt, "1", 1), (Notify::Poll, "2", 2)] {
        let server = disk.serve(&socket, engine, cache, iothreads);
        let report = verify_on(&socket, notify, seed, disk.known.take());
        verify_disk(&connect_options(&socket, notify), &report.model).unwrap();
        server.stop().unwrap();
        assert_ne!(disk.needs_check(), Some(true), "an image that was closed");
        disk.check(&report.model);
        disk.known = Some(report.model);
    }
}

/// A server that is killed after a flush. The next one finds everything, with the mappings that only the flush has made durable.
fn kill_on(mut disk: Disk, scratch: &Scratch, engine: &str, cache: &str) {
    println!("{}, {engine}, {cache}, killed, known content: {}", disk.format, disk.known.is_some());
    let socket = scratch.socket("disk");
    for seed in [3, 4] {
        let server = disk.serve(&socket, engine, cache, "2");
        // The last thing that it does before it reads everything back is to flush.
        let report = verify_on(&socket, Notify::Interrupt, seed, disk.known.take());
        server.kill();
        assert_ne!(disk.needs_check(), Some(false), "an image that was not closed");
        let server = disk.serve(&socket, engine, cache, "1");
        assert_ne!(disk.needs_check(), Some(true), "an image that was checked");
        verify_disk(&connect_options(&socket, Notify::Poll), &report.model).unwrap();
        server.stop().unwrap();
        disk.give_back_leaks();
        disk.check(&report.model);
        disk.known = Some(report.model);
    }
}

/// What images need and this machine lacks; the direct cache modes included.
fn missing_for_formats() -> Option<String> {
    let no_direct = || {
        let direct = Scratch::new().unwrap().has_direct_io();
        (!direct).then(|| "no O_DIRECT on the build directory's disk".to_owned())
    };
    missing_programs(&["qemu-img"]).or_else(no_direct)
}

/// A sample of engines and cache modes, each of which occurs.
const SAMPLE: [(&str, &str); 5] = [
    ("io_uring", "none"),
    ("io_uring", "writethrough"),
    ("native", "directsync"),
    ("threads", "writeback"),
    ("threads", "unsafe"),
];

fn keeps_data(format: &'static str) {
    if let Some(what) = missing_for_formats() {
        return skip(&what);
    }
    for (engine, cache) in SAMPLE {
        let scratch = Scratch::new().unwrap();
        run_on(Disk::new(format, &scratch), &scratch, engine, cache);
    }
}

fn keeps_data_over_a_raw_file(format: &'static str) {
    if let Some(what) = missing_for_formats() {
        return skip(&what);
    }
    // What differs from a disk without backing file is the copying, not the engine.
    for (engine, cache) in [("io_uring", "none"), ("native", "directsync"), ("threads", "unsafe")] {
        let scratch = Scratch::new().unwrap();
        let disk = Disk::over_raw(format, &scratch);
        let base = disk.image.with_file_name("base.raw");
        let before = std::fs::read(&base).unwrap();
        run_on(disk, &scratch, engine, cache);
        assert!(std::fs::read(&base).unwrap() == before, "the backing file is not written");
    }
}

fn keeps_what_was_flushed(format: &'static str) {
    if let Some(what) = missing_for_formats() {
        return skip(&what);
    }
    for (engine, cache) in [("io_uring", "none"), ("threads", "writeback")] {
        let scratch = Scratch::new().unwrap();
        kill_on(Disk::new(format, &scratch), &scratch, engine, cache);
        let scratch = Scratch::new().unwrap();
        kill_on(Disk::over_raw(format, &scratch), &scratch, engine, cache);
    }
}

#[test]
fn a_qed_image_keeps_data() {
    keeps_data("qed");
}

#[test]
fn a_qcow2_image_keeps_data() {
    keeps_data("qcow2");
}

#[test]
fn a_qed_image_over_a_raw_file_keeps_data() {
    keeps_data_over_a_raw_file("qed");
}

#[test]
fn a_qcow2_image_over_a_raw_file_keeps_data() {
    keeps_data_over_a_raw_file("qcow2");
}

#[test]
fn a_qed_image_keeps_what_was_flushed_when_the_server_is_killed() {
    keeps_what_was_flushed("qed");
}

#[test]
fn a_qcow2_image_keeps_what_was_flushed_when_the_server_is_killed() {
    keeps_what_was_flushed("qcow2");
}
