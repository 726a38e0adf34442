//! The foreign driver of the `blkio` crate on ferroblk's socket: verified random I/O over every engine, every cache
//! mode, interrupt and poll queues.
#![allow(clippy::disallowed_methods, reason = "a test: files and processes are its work")]
#![allow(missing_docs)]

use std::os::unix::fs::FileExt;
use std::path::Path;

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
    let connect = connect_options(socket, notify);
    let options = VerifyOptions { connect, span: DISK_BYTES, limit: Limit::Ops(REQUESTS), seed };
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
