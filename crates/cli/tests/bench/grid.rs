//! Whole grids, and grids that are interrupted.

use crate::common::{Scratch, is_installed, wait_until};
use crate::{bench, done};
use ffsb::report::{Report, json};
use rustix::process::{Pid, Signal, kill_process};
use std::process::Stdio;

const SMALL: [&str; 4] = ["--scale", "1024", "--seconds", "0.3"];
/// What every host can do.
const PLAIN: [&str; 3] = ["cache=writeback", "aio=threads", "server=ferroblk"];

fn measured(scratch: &Scratch, args: &[&str]) -> Report {
    done(scratch, &[args, &["--output", "out"]].concat());
    json::read(&scratch.path("out/report.json")).unwrap()
}

#[test]
fn every_cell_is_measured_and_in_all_forms() {
    let scratch = Scratch::new();
    let what =
        ["--scenario", "random-read-8k,large-file-create-8k", "--repetitions", "2", "--quiet"];
    let matrix =
        ["--matrix", "threads=1,3", "format=raw,qcow2", "device=bare,directory,vhost-user"];
    let report = measured(&scratch, &[&what[..], &SMALL, &matrix, &PLAIN].concat());
    assert_eq!(report.scenarios, ["random-read-8k", "large-file-create-8k"]);
    let names: Vec<&str> = report.subjects.iter().map(|one| one.name.as_str()).collect();
    let served = ["ferroblk raw writeback threads", "ferroblk qcow2 writeback threads"];
    assert_eq!(names, [&["bare metal (writeback)", "directory (writeback)"][..], &served].concat());
    assert_eq!((report.baseline, report.cells.len()), (0, 2 * 4 * 2));
    for cell in &report.cells {
        assert_eq!((cell.runs.len(), &cell.failure), (2, &None), "{cell:?}");
        let is_served = report.subjects[cell.subject].server != "bare";
        for run in &cell.runs {
            let (place, count) = ((cell.scenario, cell.subject, cell.threads), run.latency.count);
            let is_whole = run.seconds >= 0.3 && run.transactions > 0 && count > 0;
            assert!(is_whole, "{place:?}: {} in {} s, {count}", run.transactions, run.seconds);
            assert!(run.workload_cpu_seconds > 0.0 && (run.server_cpu_seconds > 0.0) == is_served);
            let (read, written) = (run.read_bytes, run.written_bytes);
            assert!(if cell.scenario == 0 {
                read > 0 && written == 0
            } else {
                read == 0 && written > 0
            });
        }
    }
    assert!(report.remarks.iter().any(|remark| remark.contains("extent layout")));
    let text = |name| std::fs::read_to_string(scratch.path(name)).unwrap();
    assert_eq!(text("out/report.csv").lines().count(), 1 + 2 * 16);
    let page = text("out/report.html");
    assert!(page.contains("<svg") && names.iter().all(|name| page.contains(name)));
    assert_eq!(scratch.names(), ["out"], "nothing else is left");
}

#[test]
fn quick_needs_no_arguments_and_a_trace_says_where_the_time_goes() {
    let scratch = Scratch::new();
    // Less of everything, so that the test is short.
    let args = ["--quick", "--trace", "--scenario", "mixed-8k", "--scale", "1024"];
    let refused = bench(&scratch, &args);
    assert_eq!(refused.status.code(), Some(2), "--quick has its own scale");
    let args = ["--quick", "--trace", "--scenario", "mixed-8k", "--verify", "--json", "one.json"];
    let shown =
        done(&scratch, &[&args[..], &["--matrix", "server=ferroblk", "threads=2"]].concat());
    for words in
        ["mixed-8k", "bare ", "ferroblk raw", "ferroblk qcow2", "ferroblk qed", "report: one.json"]
    {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    let report = json::read(&scratch.path("one.json")).unwrap();
    assert_eq!((report.cells.len(), report.traces.len()), (4, 3));
    assert!(report.cells.iter().all(|cell| cell.failure.is_none() && cell.runs.len() == 1));
    for trace in &report.traces {
        assert_eq!(report.subjects[trace.subject].server, "ferroblk");
        let names: Vec<&str> = trace.stages.iter().map(|(name, _)| name.as_str()).collect();
        let stages =
            ["seen", "parsed", "mapped", "submitted", "completed", "published", "notified"];
        assert_eq!(names, stages);
        assert!(trace.stages.iter().all(|(_, times)| times.count == trace.stages[0].1.count));
        assert!(trace.stages[0].1.count > 0 && trace.cost_percent.is_some_and(f64::is_finite));
    }
    assert!(
        report.settings.iter().any(|(what, value)| what == "budget" && value.starts_with("160 s"))
    );
    assert_eq!(scratch.names(), ["one.json"]);
}

#[test]
fn a_profile_keeps_its_threads_and_a_baseline_may_be_a_server() {
    if !is_installed("qemu-storage-daemon") {
        return;
    }
    let scratch = Scratch::new();
    let profile = "time = 1\n[filesystem]\nlocation = /nowhere\nnum_files = 4\nmin_filesize = 64k\nmax_filesize = 64k\n[end]\n\
                   [threadgroup]\nnum_threads = 3\nwrite_weight = 1\nwrite_size = 8k\nwrite_blocksize = 4k\n[end]\n";
    std::fs::write(scratch.path("mine.ffsb"), profile).unwrap();
    let args = [
        "mine.ffsb",
        "--seconds",
        "0.1",
        "--repetitions",
        "1",
        "--baseline",
        "qemu-storage-daemon",
        "-q",
    ];
    let matrix = ["--matrix", "format=raw", "cache=writeback", "aio=threads", "device=vhost-user"];
    let report = measured(&scratch, &[&args[..], &matrix].concat());
    assert_eq!(report.scenarios, ["mine"]);
    assert_eq!(report.subjects[report.baseline].server, "qemu-storage-daemon");
    assert!(report.cells.iter().all(|cell| cell.threads == 3 && cell.failure.is_none()));
}

#[test]
fn a_combination_that_cannot_be_is_left_out_with_a_remark() {
    let scratch = Scratch::new();
    let what = ["--scenario", "random-read-8k", "--repetitions", "1", "-q"];
    let matrix = [
        "--matrix",
        "format=raw",
        "cache=writeback",
        "aio=threads,native",
        "server=ferroblk",
        "threads=1",
    ];
    let report = measured(&scratch, &[&what[..], &SMALL, &matrix].concat());
    assert_eq!(report.subjects.len(), 2);
    assert!(
        report
            .remarks
            .iter()
            .any(|remark| remark.starts_with("left out: ferroblk with aio=native"))
    );
}

/// Children of a process, by id.
fn children(pid: u32) -> Vec<u32> {
    let list =
        std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

#[test]
fn a_signal_leaves_no_file_and_no_process() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let scratch = Scratch::new();
        let mut command =
            scratch.ferroblk(&["bench", "--scenario", "random-write-8k", "--seconds", "600"]);
        command
            .args(["--scale", "1024", "--matrix", "device=vhost-user", "format=qcow2", "threads=2"])
            .args(PLAIN);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let mut server = 0;
        wait_until("a server measures", || {
            let found = children(child.id());
            let serving = |pid: &&u32| {
                let line =
                    std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                line.contains("\0serve\0")
            };
            server = found.iter().find(serving).copied().unwrap_or(0);
            server != 0
        });
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = crate::common::output(child, "bench");
        assert_eq!(output.status.code(), Some(code));
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(errors.ends_with("ferroblk: interrupted\n"), "{errors}");
        assert!(scratch.names().is_empty(), "{:?}", scratch.names());
        assert!(!std::path::Path::new(&format!("/proc/{server}")).exists(), "the server is gone");
    }
}
