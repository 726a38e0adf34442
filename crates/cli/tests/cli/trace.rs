//! `--trace`: where the time of requests goes, in a file, on SIGUSR1 and at the end.

use crate::common::{PATIENCE, Scratch, lines_of};
use crate::qed::BLOCK;
use crate::statistics::{connect, run, some_of_each};
use blk_client::{Op, Queue};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::process::Stdio;

const STAGES: [&str; 7] =
    ["seen", "parsed", "mapped", "submitted", "completed", "published", "notified"];

/// Serves a new image with all requests traced; sends the requests of `first`, SIGUSR1, those of `then`, and SIGTERM. Gives the traces of both.
fn traces(image: &str, first: impl Fn(&mut Queue), then: impl Fn(&mut Queue)) -> [Value; 2] {
    let scratch = Scratch::new();
    let mut command = scratch.ferroblk(&["serve", image, "--create", "1G"]);
    command.args(["--vhost-user-blk", "vm.sock", "--trace", "way.json", "--trace-one-in", "1"]);
    command.args(["--cache", "writeback"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let printed = lines_of(child.stdout.take().unwrap());
    printed.recv_timeout(PATIENCE).unwrap();
    let read = || {
        printed.recv_timeout(PATIENCE).unwrap();
        serde_json::from_slice(&fs::read(scratch.path("way.json")).unwrap()).unwrap()
    };
    let (device, mut queue) = connect(&scratch.path("vm.sock"));
    queue.fill(0, 0, &[7; BLOCK]);
    first(&mut queue);
    // Counted at the end of a turn, when the guest has its answer already. This goes through the thread, and so behind that.
    drop((queue, device));
    let (device, mut queue) = connect(&scratch.path("vm.sock"));
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::USR1).unwrap();
    let in_between = read();
    then(&mut queue);
    drop((queue, device));
    kill_process(pid, Signal::TERM).unwrap();
    let last = read();
    assert!(child.wait().unwrap().success());
    [in_between, last]
}

/// The path of a type of request, which must be sound.
fn path<'a>(trace: &'a Value, kind: &str) -> &'a Value {
    let paths = trace["requests"].as_array().unwrap();
    let path = paths.iter().find(|path| path["type"] == kind).unwrap();
    let stages = path["stages"].as_array().unwrap();
    assert!(stages.iter().map(|stage| &stage["stage"]).eq(STAGES));
    let mean = |latency: &Value| latency["mean_us"].as_f64().unwrap();
    for latency in stages.iter().chain([&path["total"]]) {
        assert_eq!(latency["count"], path["sampled"]);
        let counted = latency["buckets"].as_array().unwrap().iter().map(|b| b[1].as_u64().unwrap());
        assert_eq!(counted.sum::<u64>(), path["sampled"]);
        let names = ["min_us", "p50_us", "p95_us", "p99_us", "p999_us", "max_us"];
        let figures = names.map(|name| latency[name].as_f64().unwrap());
        assert!(figures.is_sorted(), "{latency}");
        assert!((figures[0]..=figures[5]).contains(&mean(latency)), "{latency}");
    }
    let sum: f64 = stages.iter().map(mean).sum();
    assert!((sum - mean(&path["total"])).abs() < 1e-3, "{sum}: {path}");
    path
}

#[test]
fn a_trace_is_written_while_serving_and_at_the_end() {
    for (image, writes_are_tasks) in [("a.raw", false), ("a.qcow2", true), ("a.qed", true)] {
        let one_more = |queue: &mut Queue| run(queue, Op::Read, 0, BLOCK);
        let [first, last] = traces(image, some_of_each, one_more);
        assert_eq!((&first["ferroblk_trace"], &first["one_in"]), (&1.into(), &1.into()));
        let read = path(&first, "read");
        assert_eq!(read["sampled"], 1, "{image}");
        let write = path(&first, "write");
        assert_eq!(write["sampled"], 2, "{image}");
        let tasks = write["tasks"].as_u64().unwrap();
        assert_eq!(
            tasks > 0,
            writes_are_tasks,
            "{image}: new clusters take more than one operation"
        );
        assert_eq!(path(&first, "flush")["tasks"], 1, "{image}");
        assert_eq!(path(&first, "other")["sampled"], 1, "{image}");
        assert_eq!(path(&first, "all")["sampled"], 5, "{image}");
        assert_eq!(path(&last, "read")["sampled"], 2, "{image}");
        assert_eq!(path(&last, "all")["sampled"], 6, "{image}");
    }
}

#[test]
fn without_the_option_there_is_no_file_and_with_it_there_is_one_from_the_start() {
    let scratch = Scratch::with_image();
    scratch.serve(&["a.raw"]).stop();
    assert_eq!(scratch.names(), ["a.raw"]);
    let server = scratch.serve(&["a.raw", "--trace", "way.json"]);
    assert_eq!(fs::read(scratch.path("way.json")).unwrap(), b"");
    server.stop();
    let trace: Value =
        serde_json::from_slice(&fs::read(scratch.path("way.json")).unwrap()).unwrap();
    assert_eq!(trace["one_in"], 64);
    assert_eq!(path(&trace, "all")["sampled"], 0);
    assert_eq!(
        trace["requests"].as_array().unwrap().len(),
        1,
        "types without requests are left out"
    );
    // An earlier trace is replaced, a shorter one too.
    let mut long = fs::read(scratch.path("way.json")).unwrap();
    long.extend([b' '; 5000]);
    fs::write(scratch.path("way.json"), long).unwrap();
    scratch.serve(&["a.raw", "--trace", "way.json"]).stop();
    let now: Value = serde_json::from_slice(&fs::read(scratch.path("way.json")).unwrap()).unwrap();
    assert_eq!(now, trace);
    assert!(fs::metadata(scratch.path("way.json")).unwrap().len() < 5000);
}

#[test]
fn a_file_that_cannot_be_written_or_is_no_trace_is_refused_at_the_start() {
    let scratch = Scratch::with_image();
    scratch.image("b.img", 4096);
    fs::create_dir(scratch.path("dir")).unwrap();
    let refuses = |args: &[&str], code, words: &[&str]| {
        scratch.refuses(&[&["serve", "a.raw"], args].concat(), code, words);
    };
    refuses(&["--trace", "no/way.json"], 1, &["writing the trace no/way.json", "No such file"]);
    refuses(&["--trace", "dir"], 1, &["writing the trace dir", "directory"]);
    refuses(&["--trace", "/dev/null"], 1, &["writing the trace /dev/null", "no regular file"]);
    for image in ["a.raw", "b.img"] {
        refuses(&["--trace", image], 1, &["exists and is no trace"]);
    }
    refuses(&["--trace", "w.json", "--trace-one-in", "0"], 2, &["--trace-one-in"]);
    refuses(&["--trace-one-in", "5"], 2, &["--trace"]);
    // What was made goes again, if the start fails after it.
    let args = ["serve", "new.raw", "--create", "1M", "--trace", "b.img"];
    scratch.refuses(&args, 1, &["exists and is no trace"]);
}
