//! What a server has done: on SIGUSR1, and at its end.

use crate::common::{PATIENCE, Scratch, lines_of};
use crate::qed::BLOCK;
use blk_client::{ConnectOptions, Device, Notify, Op, Queue};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;

const MB: u64 = 1 << 20;

pub fn connect(socket: &Path) -> (Device, Queue) {
    let options = ConnectOptions {
        socket: socket.to_str().unwrap().to_owned(),
        queues: 1,
        notify: Notify::Interrupt,
        queue_size: 64,
        depth: 1,
        slot_bytes: BLOCK,
        read_only: false,
    };
    let (device, mut queues) = Device::connect(&options).unwrap();
    (device, queues.remove(0))
}

pub fn run(queue: &mut Queue, op: Op, at: u64, len: usize) {
    queue.submit(0, op, at, len);
    assert_eq!(queue.wait(1).unwrap()[0].ret, 0, "{op:?}");
}

/// Serves a new image of 1 GiB with these arguments; sends the requests of `first`, SIGUSR1, those of `then`, and SIGTERM. Gives what was printed at
/// both signals.
fn lines(args: &[&str], first: impl Fn(&mut Queue), then: impl Fn(&mut Queue)) -> [String; 2] {
    let scratch = Scratch::new();
    let mut command = scratch.ferroblk(&["serve"]);
    command.args(args).args(["--create", "1G", "--vhost-user-blk", "vm.sock"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let printed = lines_of(child.stdout.take().unwrap());
    let line = || printed.recv_timeout(PATIENCE).unwrap();
    let ready = line();
    assert!(ready.contains("ready"), "{ready}");
    let (device, mut queue) = connect(&scratch.path("vm.sock"));
    queue.fill(0, 0, &[7; BLOCK]);
    first(&mut queue);
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::USR1).unwrap();
    let in_between = line();
    then(&mut queue);
    drop((queue, device));
    kill_process(pid, Signal::TERM).unwrap();
    let last = line();
    assert!(child.wait().unwrap().success());
    assert!(printed.recv_timeout(PATIENCE).is_err(), "nothing more is printed");
    [in_between, last]
}

pub fn some_of_each(queue: &mut Queue) {
    run(queue, Op::Write, 0, BLOCK);
    run(queue, Op::Write, 8 * MB, BLOCK);
    run(queue, Op::Read, 0, BLOCK);
    run(queue, Op::Flush, 0, 0);
    run(queue, Op::Discard { len: MB }, 0, 0);
}

fn one_more(queue: &mut Queue) {
    run(queue, Op::Read, 8 * MB, BLOCK);
}

#[test]
fn requests_bytes_and_table_ram_are_told() {
    for name in ["a.qcow2", "a.qed"] {
        let [first, last] = lines(&[name], some_of_each, one_more);
        let start = "served: 1 reads of 4 KiB, 2 writes of 8 KiB, 1 flushes, 0 writes of zeroes of 0 B, 1 discards of 1 MiB, 0 failed; tables: ";
        assert!(first.starts_with(start) && first.ends_with(" of RAM"), "{first}");
        assert!(last.starts_with("served: 2 reads of 8 KiB, "), "{last}");
    }
}

#[test]
fn with_json_they_are_an_object() {
    for (name, has_tables) in [("a.qcow2", true), ("a.raw", false)] {
        for line in lines(&[name, "--json"], some_of_each, one_more) {
            let value: Value = serde_json::from_str(&line).unwrap();
            let served = &value["served"];
            assert_eq!(served["writes"], json!({ "requests": 2, "bytes": 8192 }));
            assert_eq!(served["discards"], json!({ "requests": 1, "bytes": MB }));
            assert_eq!(served["flushes"]["requests"], 1);
            assert_eq!(served["failed"], 0);
            assert_eq!(served["table_bytes"].is_u64(), has_tables, "{line}");
        }
    }
}

/// Of tables 4 KiB map 32 MiB.
#[test]
fn the_limit_for_tables_is_kept() {
    let fills = |queue: &mut Queue| {
        for place in 0..16 {
            run(queue, Op::Write, place * 64 * MB, BLOCK);
            run(queue, Op::Flush, 0, 0);
        }
    };
    let table_bytes = |limit: &str| {
        let args = ["a.qcow2", "--json", "--l2-cache-size", limit];
        let [line, _] = lines(&args, fills, one_more);
        let value: Value = serde_json::from_str(&line).unwrap();
        value["served"]["table_bytes"].as_u64().unwrap()
    };
    let (small, large) = (table_bytes("4k"), table_bytes("64k"));
    assert!(small + 14 * 4096 <= large, "{small}, {large}");
}
