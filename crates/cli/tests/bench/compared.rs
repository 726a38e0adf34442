//! `bench compare`.

use crate::common::Scratch;
use crate::{bench, done};
use ffsb::outcome::Latency;
use ffsb::report::{Cell, Report, Run, Subject, VERSION, json};

fn report(rates: [u64; 5]) -> Report {
    let run = |transactions| Run {
        seconds: 1.0,
        transactions,
        read_bytes: transactions * 8192,
        written_bytes: 0,
        latency: Latency::default(),
        workload_cpu_seconds: 0.5,
        server_cpu_seconds: 0.0,
        host_cpu_seconds: 0.6,
        vcpu_seconds: Vec::new(),
    };
    let word = str::to_owned;
    Report {
        version: VERSION,
        ferroblk: word("0"),
        machine: Vec::new(),
        started_unix: 0,
        settings: Vec::new(),
        remarks: Vec::new(),
        baseline: 0,
        subjects: vec![Subject {
            name: word("bare none"),
            server: word("bare"),
            device: word("bare"),
            format: word("-"),
            cache: word("none"),
            aio: word("sync"),
        }],
        scenarios: vec![word("random-read-8k")],
        cells: vec![Cell {
            scenario: 0,
            subject: 0,
            threads: 1,
            runs: rates.map(run).to_vec(),
            failure: None,
        }],
        traces: Vec::new(),
    }
}

#[test]
fn what_is_worse_beyond_noise_is_said_and_may_fail() {
    let scratch = Scratch::new();
    for (name, rates) in [
        ("before.json", [1000, 1010, 1020, 1005, 1015]),
        ("same.json", [1002, 1012, 1018, 1003, 1013]),
        ("worse.json", [500, 510, 505, 502, 508]),
    ] {
        let mut file = std::fs::File::create(scratch.path(name)).unwrap();
        json::write(&mut file, &report(rates)).unwrap();
    }
    let fails = "--fail-on-worse";
    let text = done(&scratch, &["compare", "before.json", "same.json", fails]);
    assert!(text.contains("Worse in B, beyond noise: 0"), "{text}");
    let text = done(&scratch, &["compare", "before.json", "worse.json"]);
    assert!(
        !text.contains("Worse in B, beyond noise: 0") && text.contains("random-read-8k"),
        "{text}"
    );
    let output = bench(&scratch, &["compare", "before.json", "worse.json", fails, "--json"]);
    assert_eq!((output.status.code(), output.stderr.len()), (Some(1), 0));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(document["rows"].as_array().is_some_and(|rows| !rows.is_empty()));
    done(&scratch, &["compare", "worse.json", "before.json", fails]);
    std::fs::write(scratch.path("no.json"), "{}").unwrap();
    let output = bench(&scratch, &["compare", "no.json", "before.json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("no.json"));
}
