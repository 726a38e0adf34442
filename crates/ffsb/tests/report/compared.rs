//! `bench compare`.

use super::sample;
use ffsb::report::Report;
use ffsb::report::compare::{Comparison, Verdict, compare};
use ffsb::report::figures::Measure;

fn text_of(comparison: &Comparison) -> String {
    let mut out = Vec::new();
    comparison.write_text(&mut out, 100).unwrap();
    String::from_utf8(out).unwrap()
}

/// One subject's throughput in one scenario, multiplied.
fn scale(report: &mut Report, scenario: usize, subject: usize, factor: f64) {
    let is_it = |c: &&mut ffsb::report::Cell| (c.scenario, c.subject) == (scenario, subject);
    for run in report.cells.iter_mut().filter(is_it).flat_map(|c| &mut c.runs) {
        run.transactions = (run.transactions as f64 * factor) as u64;
        run.read_bytes = (run.read_bytes as f64 * factor) as u64;
        run.written_bytes = (run.written_bytes as f64 * factor) as u64;
    }
}

#[test]
fn two_runs_of_the_same_have_not_changed() {
    let comparison = compare(&sample::again(3, 1), &sample::again(3, 2));
    assert_eq!(comparison.rows.len(), 8 * 8 * 3 * 3);
    let changed: Vec<_> = comparison.rows.iter().filter(|r| r.verdict != Verdict::Same).collect();
    assert!(changed.is_empty(), "{changed:?}");
    assert!(!comparison.is_worse());
    let text = text_of(&comparison);
    assert!(text.starts_with("Machine and settings are the same."), "{text}");
    assert!(text.contains("Within noise: 576 of 576 figures"), "{text}");
}

#[test]
fn a_slower_cell_is_worse_and_a_faster_one_better() {
    let a = sample::again(3, 1);
    let mut b = sample::again(3, 2);
    scale(&mut b, 4, 3, 0.8);
    scale(&mut b, 5, 6, 1.3);
    let comparison = compare(&a, &b);
    let cells = |verdict| {
        let of = comparison.with(verdict).filter(|r| r.measure == Measure::Iops);
        of.map(|r| (r.place.scenario.clone(), r.place.subject.clone())).collect::<Vec<_>>()
    };
    let worse = ("random-read-8k".into(), "ferroblk qcow2 none io_uring".into());
    let better = ("random-write-8k".into(), "qemu-storage-daemon qcow2 none io_uring".into());
    assert_eq!(cells(Verdict::Worse), vec![worse; 3]);
    assert_eq!(cells(Verdict::Better), vec![better; 3]);
    // The CPU for each MB went the other way: dearer where it is slower.
    let dearer: Vec<_> =
        comparison.with(Verdict::Worse).filter(|r| r.measure == Measure::CpuPerMb).collect();
    assert!(dearer.len() == 3 && dearer.iter().all(|r| r.ratio.unwrap() > 1.1), "{dearer:?}");
    assert!(comparison.is_worse());
    let text = text_of(&comparison);
    let line = "random-read-8k, ferroblk qcow2 none io_uring, 1 thread: IOPS";
    assert!(text.find("Worse in B").unwrap() < text.find(line).unwrap(), "{text}");
}

#[test]
fn one_repetition_cannot_be_told() {
    let a = sample::again(1, 1);
    let mut b = sample::again(1, 2);
    scale(&mut b, 4, 3, 0.5);
    let comparison = compare(&a, &b);
    assert!(comparison.rows.iter().all(|r| r.verdict == Verdict::Unknown));
    assert!(!comparison.is_worse());
    let text = text_of(&comparison);
    assert!(text.contains("Cannot be told: 576 figures"), "{text}");
    assert!(text.contains("Of these, 6 differ by 20\u{a0}% or more"), "{text}");
}

#[test]
fn what_differs_about_the_machine_comes_first() {
    let a = sample::again(3, 1);
    let mut b = sample::again(3, 2);
    b.machine[2].1 = "6.12.9".into();
    b.settings.push(("poll".into(), "32 µs".into()));
    b.subjects[3].cache = "writethrough".into();
    b.remarks.clear();
    let text = text_of(&compare(&a, &b));
    assert!(text.starts_with("Not the same in A and B:\n"), "{text}");
    for line in [
        "kernel: 6.1.0-28-amd64 -> 6.12.9",
        "poll: (not said) -> 32 µs",
        "subject ferroblk qcow2 none io_uring: ferroblk vhost-user qcow2 none io_uring -> ferroblk",
        "remark: Without a guest",
    ] {
        let at = text.find(line).unwrap_or_else(|| panic!("{line}: {text}"));
        assert!(at < text.find("Worse in B").unwrap());
    }
}

#[test]
fn a_slower_machine_is_seen_by_its_bare_metal() {
    let a = sample::again(3, 1);
    let mut b = sample::again(3, 2);
    let calm = compare(&a, &b).drift.unwrap();
    assert!((calm.ratio - 1.0).abs() < 0.02 && calm.changed == 0 && calm.cells == 24, "{calm:?}");
    for scenario in 0..8 {
        scale(&mut b, scenario, 0, 0.75);
    }
    let comparison = compare(&a, &b);
    let drift = comparison.drift.unwrap();
    assert!((drift.ratio - 0.75).abs() < 0.02 && drift.changed == 24, "{drift:?}");
    let text = text_of(&comparison).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("24 of 24 cells; the machine is not the same"), "{text}");
}

#[test]
fn what_is_in_one_only_or_fails_now_is_listed() {
    let mut a = sample::again(3, 1);
    let mut b = sample::again(3, 2);
    a.cells.retain(|c| (c.scenario, c.threads) != (2, 8));
    b.cells.retain(|c| (c.scenario, c.subject) != (6, 1));
    sample::fail(&mut a, 1, 2, 1, "no such file");
    sample::fail(&mut b, 0, 4, 16, "it ended");
    let comparison = compare(&a, &b);
    assert_eq!((comparison.only_in_a.len(), comparison.only_in_b.len()), (3, 8));
    assert!(comparison.is_worse(), "it fails now");
    let text = text_of(&comparison);
    let now = "FAILS NOW: large-file-create-256k, ferroblk qed none io_uring, 16 threads: it ended";
    assert!(text.contains(now), "{text}");
    assert!(text.contains("no longer fails: sequential-read-256k"), "{text}");
}

#[test]
fn the_json_form_has_every_row() {
    let comparison = compare(&sample::again(3, 1), &sample::again(3, 2));
    let mut out = Vec::new();
    comparison.write_json(&mut out).unwrap();
    let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(value["rows"].as_array().unwrap().len(), 576);
    let row = &value["rows"][0];
    assert_eq!(
        (&row["scenario"], &row["measure"]),
        (&"large-file-create-256k".into(), &"iops".into())
    );
    assert_eq!(row["verdict"], "same");
    assert!(row["a"]["median"].is_number());
}
