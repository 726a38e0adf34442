//! JSON and CSV.

use super::sample;
use ffsb::report::{Report, csv, json};

fn json_of(report: &Report) -> String {
    let mut out = Vec::new();
    json::write(&mut out, report).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_report_comes_back_as_it_was_written() {
    for report in [sample::report(), sample::guest()] {
        // Not `assert_eq`: what it would print of two reports, nobody could read.
        assert!(json::parse(json_of(&report).as_bytes()).unwrap() == report);
    }
}

#[test]
fn what_is_no_report_is_refused_in_one_line() {
    let good = json_of(&sample::report());
    let cases: [(&str, String); 9] = [
        ("not a report", String::new()),
        ("not a report", "<html>".into()),
        ("not a report", "{}".into()),
        ("not a report", good[..good.len() / 2].into()),
        (
            "a report of version 2; this ferroblk reads version 1",
            r#"{"version":2,"new":[]}"#.into(),
        ),
        ("the baseline is subject 99", good.replacen("\"baseline\":0", "\"baseline\":99", 1)),
        ("no scenario 77", good.replacen("\"scenario\":3", "\"scenario\":77", 1)),
        ("cell 1 is there twice", good.replacen("\"threads\":8", "\"threads\":1", 1)),
        ("two scenarios are called", good.replacen("\"mixed-8k\"", "\"random-read-8k\"", 1)),
    ];
    for (expected, text) in cases {
        let error = json::parse(text.as_bytes()).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn figures_that_are_none_are_refused() {
    let mut bad = sample::report();
    bad.cells[0].runs[0].seconds = 0.0;
    assert!(json::write(&mut Vec::new(), &bad).unwrap_err().to_string().contains("no time"));
    let mut bad = sample::report();
    bad.cells[5].runs[0].server_cpu_seconds = -1.0;
    assert!(bad.check().unwrap_err().starts_with("cell 5: CPU seconds"));
    let mut bad = sample::report();
    bad.traces[1].stages[0].1.p50_us = f64::NAN;
    assert!(bad.check().unwrap_err().starts_with("trace 1: a latency"));
    let mut bad = sample::report();
    bad.cells[0].runs[0].latency.buckets.swap(0, 1);
    assert!(bad.check().unwrap_err().contains("do not ascend"));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("a\nb.json");
    let error = json::read(&missing).unwrap_err().to_string();
    assert!(error.contains("a\\nb.json: ") && !error.contains('\n'), "{error}");
    assert!(json::read(dir.path()).is_err());
}

/// The fields of a CSV text, as RFC 4180 reads it.
fn parse_csv(text: &str) -> Vec<Vec<String>> {
    let mut rows = vec![vec![String::new()]];
    let mut is_quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let row = rows.last_mut().unwrap();
        match c {
            '"' if is_quoted && chars.peek() == Some(&'"') => {
                chars.next();
                row.last_mut().unwrap().push('"');
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => row.push(String::new()),
            '\r' if !is_quoted => {
                assert_eq!(chars.next(), Some('\n'), "a line ends with CR LF");
                rows.push(vec![String::new()]);
            }
            c => row.last_mut().unwrap().push(c),
        }
    }
    assert_eq!(rows.pop().unwrap(), [""], "the last line ends too");
    rows
}

#[test]
fn csv_has_a_line_for_each_repetition_and_failure() {
    let mut report = sample::report();
    report.subjects[1].name = "a \"quoted\", name\r\nwith two lines".into();
    let mut out = Vec::new();
    csv::write(&mut out, &report).unwrap();
    let rows = parse_csv(&String::from_utf8(out).unwrap());
    // 8 scenarios, 8 subjects, 3 numbers of threads, 3 repetitions; one cell failed and has one line instead of three.
    assert_eq!(rows.len(), 1 + 8 * 8 * 3 * 3 - 3 + 1);
    assert!(rows.iter().all(|r| r.len() == rows[0].len()));
    let column = |name: &str| rows[0].iter().position(|n| n == name).unwrap();
    let subject = &report.subjects[1].name;
    assert_eq!(rows.iter().filter(|r| r[column("subject")] == *subject).count(), 72);
    let failed: Vec<_> = rows[1..].iter().filter(|r| !r[column("failure")].is_empty()).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(
        (failed[0][column("iops")].as_str(), failed[0][column("threads")].as_str()),
        ("", "16")
    );
    let first = &rows[1];
    let number = |name: &str| first[column(name)].parse::<f64>().unwrap();
    assert!((number("iops") - number("transactions") / number("seconds")).abs() < 1e-3);
    assert_eq!(first[column("repetition")], "1");
    assert_eq!(first[column("vcpu0_percent")], "");
}
