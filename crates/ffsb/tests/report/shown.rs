//! The tables for a terminal.

use super::sample;
use ffsb::report::{Report, table};

fn table_of(report: &Report, width: usize) -> String {
    let mut out = Vec::new();
    table::write(&mut out, report, width).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn nothing_is_wider_than_the_terminal() {
    for report in [sample::report(), sample::guest(), sample::large()] {
        for width in [40, 60, 80, 100, 120, 140, 200] {
            let text = table_of(&report, width);
            // What is said of the machine is not broken: it may be copied.
            let body = text.lines().skip_while(|l| !l.is_empty());
            let widest = body.max_by_key(|l| l.chars().count()).unwrap();
            assert!(widest.chars().count() <= width, "{width}: {widest}");
        }
    }
}

#[test]
fn every_scenario_has_every_subject_and_number_of_threads() {
    let report = sample::report();
    let text = table_of(&report, 140);
    for scenario in &report.scenarios {
        assert!(text.lines().any(|l| l == scenario), "{scenario}");
    }
    for head in ["1 thread", "8 threads", "16 threads", "IOPS", "MB/s", "CPU %", "%/MB/s", "p99.9"]
    {
        assert!(text.contains(head), "{head}");
    }
    // Throughput, CPU, latency, in each scenario.
    let rows = text.lines().filter(|l| l.starts_with("ferroblk raw none threads ")).count();
    assert_eq!(rows, 8 * 3);
    assert!(text.contains("FAILED: qemu-storage-daemon qed none io_uring, 16 threads: "));
    assert!(!text.contains("vCPU"), "there is no guest");
    assert!(table_of(&sample::guest(), 140).contains("vCPU0"));
}

#[test]
fn a_cell_shows_the_median_its_noise_and_the_ratio() {
    let mut report = sample::report();
    for (subject, transactions) in [(0, [10_000, 10_200, 9_900]), (1, [7_500, 7_000, 8_000])] {
        let is_it =
            |c: &&mut ffsb::report::Cell| (c.scenario, c.subject, c.threads) == (0, subject, 1);
        let cell = report.cells.iter_mut().find(is_it).unwrap();
        for (run, transactions) in cell.runs.iter_mut().zip(transactions) {
            run.seconds = 1.0;
            run.transactions = transactions;
        }
    }
    let text = table_of(&report, 140);
    let row = text.lines().find(|l| l.starts_with("ferroblk raw none io_uring")).unwrap();
    let words: Vec<&str> = row.split_whitespace().skip(4).take(3).collect();
    assert_eq!(words, ["7,500", "±7%", "75%"]);
}

#[test]
fn what_comes_from_outside_cannot_command_the_terminal() {
    let mut report = sample::report();
    report.subjects[1].name = "evil\u{1b}[2J\nname".into();
    report.remarks.push("first\r\nsecond\u{1b}]0;x".into());
    sample::fail(&mut report, 0, 1, 1, "why\u{7}\nnot");
    for width in [40, 140] {
        let text = table_of(&report, width);
        assert!(!text.contains(['\u{1b}', '\u{7}', '\r']), "{width}");
        assert!(text.contains("evil\\u{1b}"), "{width}");
    }
}

#[test]
fn remarks_come_before_the_figures() {
    let text = table_of(&sample::guest(), 100);
    let remark = text.find("NOTE: The guest is emulated").unwrap();
    assert!(remark < text.find("IOPS").unwrap());
}
