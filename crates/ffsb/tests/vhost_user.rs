//! The block target without a guest: against ferroblk, qemu-storage-daemon, and a server that misbehaves.

#![allow(missing_docs, clippy::disallowed_methods)]

mod servers;

use block::{CacheMode, Format};
use ffsb::disk::Lane;
use ffsb::disk::vhost_user::{VhostUserDisk, VhostUserOptions};
use ffsb::server::{ServerKind, ServerSpec};
use io_engine::{EngineKind, IoEngine};
use servers::fake::{BYTES, FakeDisk, Manner};
use servers::{
    Bench, LANE_BYTES, connect, in_time, kinds, load_all, load_until_error, verified_load,
};
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;
use virtio_blk::Features;

const LANES: usize = 16;

fn options(queues: u16, lanes: usize) -> VhostUserOptions {
    VhostUserOptions { queues, lanes, ..VhostUserOptions::default() }
}

/// Lanes on as many queues as there are, and on fewer, with content that tells one from another.
fn check_server(bench: &Bench, spec: &ServerSpec, ops: usize) {
    for queues in [1, 2, 4] {
        let spec = ServerSpec { queues, ..spec.clone() };
        // The load begins with zeroes.
        let bytes = (LANES * LANE_BYTES) as u64;
        ffsb::server::create_image(&servers::ferroblk(), &bench.image, bench.format, bytes, &[])
            .unwrap();
        let server = bench.start(&spec);
        let disk = connect(server.socket(), &options(queues, LANES));
        assert_eq!(disk.size(), bytes);
        assert!(disk.can_flush() && !disk.is_read_only());
        load_all(disk, LANES, ops, 64);
        server.stop().unwrap();
    }
}

#[test]
fn sixteen_lanes_of_ferroblk_find_what_they_wrote() {
    for format in [Format::Raw, Format::Qcow2] {
        let bench = Bench::new(format, 1 << 20);
        check_server(&bench, &bench.spec(ServerKind::Ferroblk), 400);
    }
}

#[test]
fn sixteen_lanes_of_qemu_storage_daemon_find_what_they_wrote() {
    if servers::has_qemu() {
        for format in [Format::Raw, Format::Qcow2] {
            let bench = Bench::new(format, 1 << 20);
            check_server(&bench, &bench.spec(ServerKind::QemuStorageDaemon), 400);
        }
    }
}

#[test]
fn every_cache_mode_and_engine_serves_the_same_disk() {
    for kind in kinds() {
        for cache in CacheMode::ALL {
            for aio in EngineKind::ALL {
                let bench = Bench::new(Format::Raw, 2 * LANE_BYTES as u64);
                let spec = ServerSpec { cache, aio, ..bench.spec(kind) };
                if spec.check().is_err() {
                    assert!(aio == EngineKind::Native && !cache.is_direct());
                    continue;
                }
                if let Err(error) = IoEngine::new(aio, 8) {
                    println!("SKIPPED: {aio}: {error}");
                    continue;
                }
                let server = match ffsb::server::Server::start(&spec, bench.dir.path()) {
                    Err(error) if error.to_string().contains("O_DIRECT") => {
                        println!("SKIPPED: {error}");
                        continue;
                    }
                    server => server.unwrap(),
                };
                let disk = connect(server.socket(), &options(1, 2));
                // In whole blocks of what O_DIRECT may ask for.
                load_all(disk, 2, 20, 64);
                server.stop().unwrap();
            }
        }
    }
}

#[test]
fn no_wake_up_is_lost_whatever_order_a_server_answers_in() {
    for (queues, event_idx) in [(1, true), (2, true), (4, true), (1, false), (4, false)] {
        let server = FakeDisk { event_idx, ..FakeDisk::new(Manner::Good) }.serve();
        let disk = connect(&server.socket, &options(queues, LANES));
        load_all(disk, LANES, 3000, 8);
        assert!(server.requests() > 48_000 && server.flushes() > 100);
    }
}

#[test]
fn polling_lanes_find_what_they_wrote_and_ask_for_no_notification() {
    for event_idx in [true, false] {
        let server = FakeDisk { event_idx, ..FakeDisk::new(Manner::Good) }.serve();
        let options = VhostUserOptions { poll: true, ..options(2, 4) };
        load_all(connect(&server.socket, &options), 4, 1000, 8);
        // A queue's first publication notifies, whatever it is asked for.
        let (notifications, requests) = (server.notifications(), server.requests());
        assert!(notifications <= 2, "{notifications} for {requests} requests, {event_idx}");
    }
    let bench = Bench::new(Format::Raw, 4 * LANE_BYTES as u64);
    let server = bench.start(&bench.spec(ServerKind::Ferroblk));
    let options = VhostUserOptions { poll: true, ..options(1, 4) };
    load_all(connect(server.socket(), &options), 4, 400, 8);
}

#[test]
fn one_lane_is_notified_once_for_each_request_at_most() {
    let server = FakeDisk::new(Manner::Good).serve();
    let disk = connect(&server.socket, &options(1, 1));
    load_all(disk, 1, 1000, 8);
    assert!(server.notifications() <= server.requests(), "event indices are of use");
}

#[test]
fn what_is_longer_than_a_request_may_be_is_split() {
    for (request_bytes, size_max, expected) in
        [(64 << 10, None, 64 << 10), (4096, None, 4096), (64 << 10, Some(3 * 4096 + 5), 3 * 4096)]
    {
        let mut disk = FakeDisk::new(Manner::Good);
        disk.info.size_max = size_max;
        disk.info.blk_size = 4096;
        let server = disk.serve();
        let disk = connect(&server.socket, &VhostUserOptions { request_bytes, ..options(1, 1) });
        assert_eq!((disk.request_bytes(), disk.block_bytes()), (expected, 4096));
        verified_load(&mut disk.lane(0).unwrap(), 0, 100, 256);
        assert_eq!(server.largest(), expected as u64);
    }
}

#[test]
fn a_disk_without_a_flush_command_is_never_flushed() {
    let without = FakeDisk { without: Features::FLUSH, ..FakeDisk::new(Manner::Good) }.serve();
    let disk = connect(&without.socket, &options(1, 1));
    assert!(!disk.can_flush());
    disk.lane(0).unwrap().flush().unwrap();
    assert_eq!((without.requests(), without.flushes()), (0, 0));

    let with = FakeDisk::new(Manner::Good).serve();
    let disk = connect(&with.socket, &options(1, 1));
    disk.lane(0).unwrap().flush().unwrap();
    assert_eq!((with.requests(), with.flushes()), (1, 1));
}

#[test]
fn a_failed_request_is_an_error_and_the_next_one_is_tried() {
    for (status, errno) in [(1, Some(5)), (2, Some(95)), (3, None), (255, None)] {
        let server = FakeDisk::new(Manner::Status(status)).serve();
        let mut lane = connect(&server.socket, &options(1, 1)).lane(0).unwrap();
        for _ in 0..2 {
            let error = lane.read_at(0, &mut [0; 512]).unwrap_err();
            assert_eq!(error.raw_os_error(), errno, "{error}");
            let error = lane.write_at(0, &[0; 512]).unwrap_err();
            assert_eq!(error.raw_os_error(), errno, "{error}");
            assert_eq!(lane.flush().unwrap_err().raw_os_error(), errno);
        }
        assert_eq!(server.requests(), 6);
    }
}

#[test]
fn a_server_that_misbehaves_fails_all_lanes_of_the_queue() {
    // Far more than a busy machine takes for an answer.
    let limit = Duration::from_secs(3);
    for (manner, poll, kind, text) in [
        (Manner::Silent(2000), false, ErrorKind::TimedOut, "has not answered for 3s"),
        (Manner::Silent(2000), true, ErrorKind::TimedOut, "has not answered for 3s"),
        (Manner::Mute(2000), false, ErrorKind::TimedOut, "without a notification"),
        (Manner::Mad(2000), false, ErrorKind::InvalidData, "used descriptor 77"),
        (Manner::Mad(2000), true, ErrorKind::InvalidData, "used descriptor 77"),
    ] {
        let server = FakeDisk::new(manner).serve();
        let options = VhostUserOptions { poll, patience: limit, ..options(1, LANES) };
        let disk = VhostUserDisk::connect(&server.socket, &options).unwrap();
        let errors = load_until_error(disk, LANES, || ());
        for error in &errors {
            assert_eq!(error.kind(), kind, "{manner:?}: {error}");
            assert!(error.to_string().contains(text), "{manner:?}: {error}");
        }
    }
}

#[test]
fn a_server_that_dies_fails_all_lanes() {
    for kind in kinds() {
        for (queues, poll) in [(1, false), (4, false), (2, true)] {
            let bench = Bench::new(Format::Raw, 1 << 20);
            let server = bench.start(&ServerSpec { queues, ..bench.spec(kind) });
            let options = VhostUserOptions { poll, ..options(queues, LANES) };
            let disk = connect(server.socket(), &options);
            let errors = load_until_error(disk, LANES, || server.kill());
            for error in &errors {
                assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}");
                assert!(error.to_string().ends_with("closed the connection"), "{error}");
            }
        }
    }
}

#[test]
fn a_server_that_is_stopped_fails_all_lanes_and_ends_well() {
    for kind in kinds() {
        let bench = Bench::new(Format::Raw, 1 << 20);
        let server = bench.start(&bench.spec(kind));
        let disk = connect(server.socket(), &options(1, LANES));
        let mut stopped = None;
        let errors = load_until_error(disk, LANES, || stopped = Some(server.stop()));
        assert_eq!(errors.len(), LANES);
        stopped.unwrap().unwrap();
    }
}

#[test]
fn an_idle_lane_notices_at_its_next_request_that_the_server_is_gone() {
    let bench = Bench::new(Format::Raw, 1 << 20);
    let server = bench.start(&bench.spec(ServerKind::Ferroblk));
    let disk = connect(server.socket(), &options(1, 2));
    let mut lane = disk.lane(0).unwrap();
    lane.read_at(0, &mut [0; 512]).unwrap();
    server.kill();
    let (disk, error) = in_time("an idle lane", move || {
        let error = lane.read_at(0, &mut [0; 512]).unwrap_err();
        (disk, error)
    });
    assert!(error.to_string().ends_with("closed the connection"), "{error}");
    let later = disk.lane(1).unwrap_err();
    assert_eq!(later.to_string(), error.to_string(), "no new lane either");
}

#[test]
fn the_last_user_of_a_disk_gives_its_queues_back() {
    let server = FakeDisk::new(Manner::Good).serve();
    let disk = connect(&server.socket, &options(3, 4));
    let mut lane = disk.lane(2).unwrap();
    drop(disk);
    lane.read_at(0, &mut [0; 512]).unwrap();
    assert_eq!(server.returned(), 0);
    drop(lane);
    assert_eq!(server.returned(), 3);
}

#[track_caller]
fn refused(socket: &Path, options: &VhostUserOptions, expected: &str) {
    let error = VhostUserDisk::connect(socket, options).unwrap_err().to_string();
    assert!(error.contains(expected) && !error.contains('\n'), "{error}");
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nobody.sock");
    refused(&socket, &options(1, 1), "nobody.sock: No such file or directory");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    refused(&socket, &options(1, 1), "nobody.sock: Connection refused");
}

#[test]
fn a_disk_that_does_not_suit_the_workload_is_refused() {
    let server = || FakeDisk::new(Manner::Good).serve();
    let larger = VhostUserOptions { min_bytes: BYTES + 1, ..options(1, 1) };
    refused(&server().socket, &larger, "its disk has 4194304 bytes, the workload needs 4194305");
    connect(&server().socket, &VhostUserOptions { min_bytes: BYTES, ..options(1, 1) });
    refused(&server().socket, &options(5, 5), "5 queues are asked for, it offers 4");

    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("never.sock");
    for (bad, text) in [
        (options(0, 1), "at least one queue"),
        (options(1, 0), "at least one"),
        (options(1, 43), "43 lanes share a queue of 128 entries, which has room for 42 requests"),
        (VhostUserOptions { queue_size: 100, ..options(1, 1) }, "a power of two"),
        (VhostUserOptions { request_bytes: 0, ..options(1, 1) }, "not whole pages"),
        (VhostUserOptions { request_bytes: 4097, ..options(1, 1) }, "not whole pages"),
    ] {
        refused(&nowhere, &bad, text);
    }
}

#[test]
fn a_read_only_disk_is_read_and_not_written() {
    for kind in kinds() {
        let bench = Bench::new(Format::Raw, 1 << 20);
        let server = bench.start(&ServerSpec { read_only: true, ..bench.spec(kind) });
        refused(server.socket(), &options(1, 1), "its disk is read-only, and the workload writes");
        let disk = connect(server.socket(), &VhostUserOptions { writable: false, ..options(1, 1) });
        assert!(disk.is_read_only());
        let mut lane = disk.lane(0).unwrap();
        let error = lane.write_at(0, &[1; 512]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
        let mut buf = [1; 512];
        lane.read_at(0, &mut buf).unwrap();
        assert_eq!(buf, [0; 512]);
    }
}

#[test]
fn what_is_not_on_the_disk_or_not_whole_sectors_is_never_sent() {
    let server = FakeDisk::new(Manner::Good).serve();
    let mut lane = connect(&server.socket, &options(1, 1)).lane(0).unwrap();
    assert_eq!(lane.size(), BYTES);
    let mut buf = vec![0; 2048];
    for (offset, len) in
        [(1, 512), (0, 511), (256, 512), (BYTES, 512), (BYTES - 512, 1024), (u64::MAX - 511, 512)]
    {
        let read = lane.read_at(offset, &mut buf[..len]).unwrap_err();
        let write = lane.write_at(offset, &buf[..len]).unwrap_err();
        assert_eq!([read.kind(), write.kind()], [ErrorKind::InvalidInput; 2], "{offset} {len}");
    }
    assert_eq!(server.requests(), 0);
    lane.write_at(BYTES - 512, &buf[..512]).unwrap();
    lane.read_at(BYTES, &mut []).unwrap();
    assert_eq!(server.requests(), 1);
}

#[test]
fn a_lane_has_one_user_at_a_time() {
    let server = FakeDisk::new(Manner::Good).serve();
    let disk = connect(&server.socket, &options(2, 3));
    assert_eq!(disk.lane(3).unwrap_err().kind(), ErrorKind::InvalidInput);
    let lane = disk.lane(1).unwrap();
    assert!(disk.lane(1).unwrap_err().to_string().contains("in use"));
    let _others = (disk.lane(0).unwrap(), disk.lane(2).unwrap());
    drop(lane);
    let mut lane = disk.lane(1).unwrap();
    drop(disk);
    // The connection lasts as long as a lane does; and a lane may change threads.
    std::thread::spawn(move || verified_load(&mut lane, 0, 50, 8)).join().unwrap();
}
