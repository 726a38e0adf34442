//! Engines that the kernel refuses, and engines that do not go with a cache mode.
//!
//! The kernel's refusal is a seccomp filter on the one thread that starts the binary: the child inherits it, and nobody else
//! notices.

use crate::common::{MIB, Scratch, Server, output};
use blk_client::{ConnectOptions, Limit, Notify, VerifyOptions, run_verify};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::path::Path;
use std::process::{Command, Stdio};

// asm-generic/unistd.h and asm/unistd_64.h: io_uring has the same numbers everywhere, Linux AIO has not.
const IO_URING_SETUP: i64 = 425;
#[cfg(target_arch = "x86_64")]
const IO_SETUP: i64 = 206;
#[cfg(not(target_arch = "x86_64"))]
const IO_SETUP: i64 = 0;

/// Does something on a thread whose system call `number` fails with EPERM, in all that it starts too.
fn without<T: Send>(number: i64, start: impl FnOnce() -> T + Send) -> T {
    let rules = [(number, vec![])].into_iter().collect();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let eperm = u32::try_from(rustix::io::Errno::PERM.raw_os_error()).unwrap();
    let denied = SeccompAction::Errno(eperm);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    std::thread::scope(|scope| {
        let confined = scope.spawn(move || {
            seccompiler::apply_filter(&program).unwrap();
            start()
        });
        confined.join().unwrap()
    })
}

/// Random I/O on the whole of a small disk, every byte compared.
fn verify(socket: &Path, seed: u64) {
    let connect = ConnectOptions {
        socket: socket.to_str().unwrap().to_owned(),
        queues: 1,
        notify: Notify::Interrupt,
        queue_size: 128,
        depth: 8,
        slot_bytes: 64 << 10,
        read_only: false,
    };
    let (span, limit) = (MIB as u64, Limit::Ops(500));
    let options = VerifyOptions { connect, span, limit, seed, known: None };
    let report = run_verify(&options).unwrap();
    assert!(report.reads > 0 && report.writes > 0);
}

fn native(scratch: &Scratch) -> Command {
    scratch.ferroblk(&["serve", "a.raw", "--aio", "native"])
}

#[test]
fn without_io_uring_the_default_is_threads_and_says_so_once() {
    let scratch = Scratch::with_image();
    let command = scratch.ferroblk(&["serve", "a.raw", "--iothreads", "2", "--queues", "2"]);
    let socket = scratch.path("a.raw.sock");
    let server = without(IO_URING_SETUP, || Server::start(command, socket));
    let warnings = server.log_lines("WARN");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for word in ["io_uring", "Operation not permitted", "threads"] {
        assert!(warnings[0].contains(word), "{warnings:?}");
    }
    verify(&server.socket, 1);
    server.stop();
}

#[test]
fn an_engine_that_was_asked_for_and_is_refused_is_an_error() {
    let scratch = Scratch::with_image();
    let uring = scratch.ferroblk(&["serve", "a.raw", "--aio", "io_uring"]);
    for (number, command, name) in
        [(IO_URING_SETUP, uring, "io_uring"), (IO_SETUP, native(&scratch), "native")]
    {
        let line = without(number, || scratch.refused(command, 1));
        assert!(line.contains(name) && line.contains("Operation not permitted"), "{line}");
    }
    let create = ["serve", "b.raw", "--create", "1M", "--aio", "io_uring"];
    without(IO_URING_SETUP, || scratch.refused(scratch.ferroblk(&create), 1));
}

#[test]
fn an_engine_does_not_need_the_system_calls_of_another() {
    let scratch = Scratch::with_image();
    let socket = scratch.path("a.raw.sock");
    let server = without(IO_URING_SETUP, || Server::start(native(&scratch), socket.clone()));
    verify(&server.socket, 2);
    server.stop();
    let uring = scratch.ferroblk(&["serve", "a.raw", "--aio", "io_uring"]);
    let server = without(IO_SETUP, || Server::start(uring, socket));
    verify(&server.socket, 3);
    assert_eq!(server.stop().matches("WARN").count(), 0);
}

#[test]
fn linux_aio_with_the_page_cache_is_refused() {
    let scratch = Scratch::with_image();
    for cache in ["writeback", "writethrough", "unsafe"] {
        let args = ["serve", "a.raw", "--aio", "native", "--cache", cache];
        scratch.refuses(&args, 1, &["native", "O_DIRECT"]);
    }
    for cache in ["none", "directsync"] {
        scratch.serve(&["a.raw", "--aio", "native", "--cache", cache]).stop();
    }
}

#[test]
fn a_process_without_file_descriptors_to_spare_says_so() {
    let scratch = Scratch::with_image();
    for limit in 3..=16 {
        let before = scratch.look();
        let mut command = Command::new("sh");
        command.args(["-c", r#"ulimit -n "$1" && exec "$2" serve a.raw --iothreads 8"#, "sh"]);
        command.arg(limit.to_string()).arg(env!("CARGO_BIN_EXE_ferroblk"));
        command.current_dir(scratch.dir()).env("FERROBLK_LOG", "error");
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let done = output(command.spawn().unwrap(), "sh");
        let stderr = String::from_utf8(done.stderr).unwrap();
        assert!(scratch.look() == before, "{limit}: {:?}", scratch.names());
        // Below some number not even the loader finds its libraries; that is not ours to say.
        if stderr.contains("shared libraries") {
            continue;
        }
        assert_eq!(done.status.code(), Some(1), "{limit}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{limit}: {stderr}");
        assert!(stderr.starts_with("ferroblk: "), "{limit}: {stderr}");
    }
}
