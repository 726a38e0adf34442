//! The servers under test, as processes.

#![allow(missing_docs, clippy::disallowed_methods)]

mod servers;

use block::{CacheMode, Format};
use ffsb::disk::Lane;
use ffsb::disk::vhost_user::VhostUserOptions;
use ffsb::server::{Server, ServerKind, ServerSpec, create_image};
use io_engine::EngineKind;
use servers::{Bench, connect, ferroblk, in_time, kinds, load_all};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// What is in the directory besides the image.
fn left_over(bench: &Bench) -> Vec<String> {
    let entries = std::fs::read_dir(bench.dir.path()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with("disk.")).collect()
}

#[test]
fn a_server_ends_when_it_is_stopped_killed_or_dropped_and_leaves_nothing() {
    for kind in kinds() {
        let bench = Bench::new(Format::Raw, 1 << 20);
        for end in 0..3 {
            let server = bench.start(&bench.spec(kind));
            let pid = server.pid();
            assert!(exists(pid) && server.socket().exists());
            match end {
                0 => server.stop().unwrap(),
                1 => server.kill(),
                _ => drop(server),
            }
            assert!(!exists(pid), "{kind}");
            assert_eq!(left_over(&bench), Vec::<String>::new(), "{kind}");
        }
    }
}

#[test]
fn cpu_time_grows_with_what_the_server_does() {
    for kind in kinds() {
        let bench = Bench::new(Format::Raw, 1 << 20);
        let server = bench.start(&bench.spec(kind));
        let before = server.cpu_seconds().unwrap();
        let disk = connect(server.socket(), &VhostUserOptions { lanes: 4, ..Default::default() });
        load_all(disk, 4, 200, 8);
        let after = server.cpu_seconds().unwrap();
        assert!(before > 0.0 && after > before, "{kind}: {before} {after}");
    }
}

#[test]
fn several_servers_run_side_by_side_in_one_directory() {
    let bench = Bench::new(Format::Raw, 1 << 20);
    let other = bench.dir.path().join("disk.other, with a comma.qcow2");
    create_image(&ferroblk(), &other, Format::Qcow2, 2 << 20, &["cluster_size=4k".into()]).unwrap();
    for kind in kinds() {
        let one = bench.start(&bench.spec(kind));
        let spec = ServerSpec { image: other.clone(), format: Format::Qcow2, ..bench.spec(kind) };
        let two = bench.start(&spec);
        let size = |server: &Server| connect(server.socket(), &Default::default()).size();
        assert_eq!((size(&one), size(&two)), (1 << 20, 2 << 20), "{kind}");
        two.stop().unwrap();
        one.stop().unwrap();
    }
}

#[track_caller]
fn fails(bench: &Bench, spec: &ServerSpec, expected: &str) {
    let error = Server::start(spec, bench.dir.path()).unwrap_err().to_string();
    assert!(error.contains(expected) && !error.contains('\n'), "{error}");
    assert_eq!(left_over(bench), Vec::<String>::new(), "{error}");
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let bench = Bench::new(Format::Raw, 1 << 20);
    for kind in kinds() {
        let spec = bench.spec(kind);
        let nothing = ServerSpec { image: bench.dir.path().join("disk.no"), ..spec.clone() };
        fails(&bench, &nothing, "No such file or directory");
        let wrong = ServerSpec { format: Format::Qcow2, ..spec.clone() };
        fails(&bench, &wrong, &format!("{kind} ended with exit code 1: "));
        let unknown = ServerSpec { extra_args: vec!["--no-such-option".into()], ..spec.clone() };
        fails(&bench, &unknown, &format!("{kind} ended with exit code"));
        let native = ServerSpec { aio: EngineKind::Native, ..spec.clone() };
        fails(&bench, &native, "cache none and directsync only");
        let missing = ServerSpec { program: Some("/no/such/program".into()), ..spec.clone() };
        match kind {
            ServerKind::Ferroblk => fails(&bench, &missing, "there is no program /no/such/program"),
            ServerKind::QemuStorageDaemon => fails(&bench, &missing, "package qemu-utils"),
        }
        let none = ServerSpec { queues: 0, ..spec };
        fails(&bench, &none, "without a queue");
    }
    let deep = bench.dir.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    let error = Server::start(&bench.spec(ServerKind::Ferroblk), &deep).unwrap_err();
    assert!(error.to_string().contains("at most 107"), "{error}");
}

#[test]
fn an_image_that_cannot_be_made_says_why_and_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none/disk.raw");
    let error = create_image(&ferroblk(), &path, Format::Raw, 512, &[]).unwrap_err().to_string();
    assert!(error.contains("No such file or directory") && !error.contains('\n'), "{error}");
    let path = dir.path().join("disk.qcow2");
    let bad = ["cluster_size=3".to_owned()];
    let error = create_image(&ferroblk(), &path, Format::Qcow2, 512, &bad).unwrap_err();
    assert!(error.to_string().contains("cluster"), "{error}");
    assert!(!path.exists());
}

/// Whether strace is installed and may trace. If not, the test that asks is skipped; where all tests must run, it fails.
fn has_strace() -> bool {
    let traces = std::process::Command::new("strace").args(["-qq", "-e", "none", "true"]).status();
    let found = traces.is_ok_and(|status| status.success());
    if !found {
        println!("SKIPPED: strace is not installed, or may not trace");
        assert!(std::env::var_os("CI").is_none(), "no test may be skipped here");
    }
    found
}

/// Syncs of a server that is asked for ten writes.
fn syncs_of_ten_writes(bench: &Bench, spec: &ServerSpec) -> usize {
    let (log, wrapper) = (bench.dir.path().join("disk.log"), bench.dir.path().join("disk.sh"));
    let program = spec.program.clone().unwrap_or_else(|| spec.kind.to_string().into());
    let script = format!(
        "#!/bin/sh\nexec strace -D -f -q -e trace=fsync,fdatasync,pwritev2 -o '{}' '{}' \"$@\"\n",
        log.display(),
        program.display()
    );
    std::fs::write(&wrapper, script).unwrap();
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o700)).unwrap();
    let server = bench.start(&ServerSpec { program: Some(wrapper), ..spec.clone() });
    let pid = server.pid();
    let mut lane = connect(server.socket(), &VhostUserOptions::default()).lane(0).unwrap();
    for sector in 0..10 {
        lane.write_at(sector * 512, &[1; 512]).unwrap();
    }
    drop(lane);
    server.stop().unwrap();
    // strace writes its log as it likes, the end of the process last.
    let end = move |line: &str| {
        line.split_whitespace().next() == Some(&pid.to_string()) && line.contains("+++ exited")
    };
    in_time("strace", move || {
        loop {
            let text = std::fs::read_to_string(&log).unwrap();
            if text.lines().any(&end) {
                let is_sync = |line: &&str| line.contains("sync(") || line.contains("RWF_DSYNC");
                return text.lines().filter(is_sync).count();
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    })
}

#[test]
fn a_write_through_server_makes_each_write_durable_and_the_others_do_not() {
    if !has_strace() {
        return;
    }
    for kind in kinds() {
        for (cache, durable) in [(CacheMode::Writethrough, true), (CacheMode::Writeback, false)] {
            let bench = Bench::new(Format::Raw, 1 << 20);
            let syncs = syncs_of_ten_writes(&bench, &ServerSpec { cache, ..bench.spec(kind) });
            // One or two come with the end.
            let expected = if durable { 10..20 } else { 0..3 };
            assert!(expected.contains(&syncs), "{kind} {cache}: {syncs} syncs for 10 writes");
        }
    }
}
