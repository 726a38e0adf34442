//! Figures and what is found in them.

use super::sample;
use ffsb::report::figures::{Figures, Measure, Spread};
use ffsb::report::findings::{Findings, Setting};
use ffsb::report::{Report, Run};

/// The report with the throughput of each cell multiplied, in place.
fn scale(report: &mut Report, factor: impl Fn(&Report, usize, usize) -> f64) {
    let mut cells = std::mem::take(&mut report.cells);
    for cell in &mut cells {
        let by = factor(report, cell.scenario, cell.subject);
        for run in &mut cell.runs {
            run.transactions = (run.transactions as f64 * by) as u64;
        }
    }
    report.cells = cells;
}

#[test]
fn each_measure_is_what_it_says() {
    let mut run: Run = sample::report().cells[0].runs[0].clone();
    run.seconds = 4.0;
    run.transactions = 2_000;
    run.read_bytes = 6_000_000;
    run.written_bytes = 2_000_000;
    run.workload_cpu_seconds = 1.0;
    run.server_cpu_seconds = 3.0;
    run.host_cpu_seconds = 6.0;
    run.vcpu_seconds = vec![0.4, 0.6];
    run.latency.p99_us = 77.0;
    for (measure, expected) in [
        (Measure::Iops, 500.0),
        (Measure::MbPerSecond, 2.0),
        (Measure::CpuWorkload, 25.0),
        (Measure::CpuServer, 75.0),
        (Measure::CpuTotal, 100.0),
        (Measure::CpuHost, 150.0),
        // 100 % for 2 MB/s.
        (Measure::CpuPerMb, 50.0),
        (Measure::ServerCpuPerTransaction, 1_500.0),
        (Measure::Vcpu0, 10.0),
        (Measure::Vcpu1, 15.0),
        (Measure::LatencyP99, 77.0),
    ] {
        let value = measure.of(&run).unwrap();
        assert!((value - expected).abs() < 1e-9, "{measure:?}: {value}");
    }
    run.vcpu_seconds.clear();
    run.latency.count = 0;
    run.read_bytes = 0;
    run.written_bytes = 0;
    for measure in [Measure::Vcpu0, Measure::Vcpu1, Measure::LatencyP99, Measure::CpuPerMb] {
        assert_eq!(measure.of(&run), None, "{measure:?}");
    }
}

#[test]
fn the_spread_is_median_and_range() {
    let odd = Spread::of(&[3.0, 1.0, 2.0]).unwrap();
    assert_eq!((odd.median, odd.min, odd.max, odd.count), (2.0, 1.0, 3.0, 3));
    assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
    assert_eq!(odd.half_range(), Some(0.5));
    assert_eq!(Spread::of(&[7.0]).unwrap().half_range(), None);
    assert_eq!(Spread::of(&[]), None);
}

#[test]
fn a_ratio_is_of_medians_and_its_range_the_widest() {
    let mut report = sample::report();
    for (subject, transactions) in [(0, [100, 110, 90]), (1, [80, 50, 55])] {
        let is_it =
            |c: &&mut ffsb::report::Cell| (c.scenario, c.subject, c.threads) == (0, subject, 8);
        let cell = report.cells.iter_mut().find(is_it).unwrap();
        for (run, transactions) in cell.runs.iter_mut().zip(transactions) {
            run.seconds = 1.0;
            run.transactions = transactions;
        }
    }
    let ratio = Figures::new(&report).ratio(0, 1, 8).unwrap();
    assert!((ratio.median - 0.55).abs() < 1e-12);
    assert!((ratio.min - 50.0 / 110.0).abs() < 1e-12);
    assert!((ratio.max - 80.0 / 90.0).abs() < 1e-12);
}

#[test]
fn the_nearest_is_who_keeps_most_of_bare_metal() {
    let report = sample::report();
    let findings = Findings::of(&Figures::new(&report));
    let (subject, ratio) = findings.overall.unwrap();
    assert_eq!(report.subjects[subject].name, "ferroblk raw none io_uring");
    assert!((0.90..1.0).contains(&ratio), "{ratio}");
    assert_eq!(findings.nearest.len(), 8);
    assert!(findings.nearest.iter().all(|n| n.subject == subject && !n.is_unknown));
}

#[test]
fn who_failed_somewhere_is_not_the_nearest_of_all() {
    let mut report = sample::report();
    sample::fail(&mut report, 3, 1, 8, "it ended");
    let findings = Findings::of(&Figures::new(&report));
    assert_eq!(findings.overall.unwrap().0, 3, "the second best, which is whole");
    assert_eq!(findings.nearest[3].subject, 3);
    assert_eq!(findings.nearest[2].subject, 1);
}

#[test]
fn the_setting_to_blame_is_the_one_that_costs_most_where_nothing_else_differs() {
    let mut report = sample::report();
    // All alike but for the engine `threads`, which loses 60 %.
    let lost = |r: &Report, _, subject: usize| {
        if r.subjects[subject].aio == "threads" { 0.4 } else { 1.0 }
    };
    let bare: Vec<_> = report.cells.iter().filter(|c| c.subject == 0).cloned().collect();
    for cell in &mut report.cells {
        let same =
            |b: &&ffsb::report::Cell| (b.scenario, b.threads) == (cell.scenario, cell.threads);
        cell.runs = bare.iter().find(same).unwrap().runs.clone();
        cell.failure = None;
    }
    scale(&mut report, lost);
    let findings = Findings::of(&Figures::new(&report));
    let largest = findings.largest().unwrap();
    assert_eq!(largest.setting, Setting::Aio);
    assert_eq!((largest.better.as_str(), largest.worse.as_str()), ("io_uring", "threads"));
    assert!((largest.all.ratio() - 0.4).abs() < 0.01);
    // Eight scenarios, three numbers of threads, one pair: the only one that differs in the engine alone.
    assert_eq!((largest.all.pairs, largest.all.lower, largest.all.higher), (24, 24, 0));
    let others = findings.effects.iter().filter(|e| e.setting != Setting::Aio);
    assert!(others.clone().all(|e| !e.all.is_beyond_noise()), "{:?}", others.collect::<Vec<_>>());
    assert_eq!(findings.largest_in(4).unwrap().0.setting, Setting::Aio);
}

#[test]
fn the_value_that_costs_is_named_whatever_its_place_in_the_alphabet() {
    for worse in ["raw", "qed"] {
        let mut report = sample::again(3, 5);
        let bare: Vec<_> = report.cells.iter().filter(|c| c.subject == 0).cloned().collect();
        for cell in &mut report.cells {
            let same =
                |b: &&ffsb::report::Cell| (b.scenario, b.threads) == (cell.scenario, cell.threads);
            cell.runs = bare.iter().find(same).unwrap().runs.clone();
        }
        scale(&mut report, |r, _, s| if r.subjects[s].format == worse { 0.5 } else { 1.0 });
        let findings = Findings::of(&Figures::new(&report));
        let largest = findings.largest().unwrap();
        assert_eq!((largest.setting, largest.worse.as_str()), (Setting::Format, worse));
        assert!((largest.all.ratio() - 0.5).abs() < 0.01);
    }
}

#[test]
fn subjects_that_differ_in_two_settings_blame_none() {
    let mut report = sample::guest();
    report.subjects[2].format = "qcow2".into();
    let findings = Findings::of(&Figures::new(&report));
    assert!(findings.effects.is_empty(), "{:?}", findings.effects);
    let words = findings.sentences(&report).join("\n");
    assert!(words.contains("no setting can be blamed"), "{words}");
}

#[test]
fn one_repetition_is_said_to_tell_nothing_of_noise() {
    let report = sample::again(1, 9);
    let findings = Findings::of(&Figures::new(&report));
    assert!(findings.nearest.iter().all(|n| n.is_unknown && n.level.is_empty()));
    let words = findings.sentences(&report).join("\n");
    assert!(words.contains("too few repetitions to tell it from noise"), "{words}");
}
