//! One line for each cell and repetition, as RFC 4180 has it: fields with a comma, a quote or an end of line in them
//! are quoted, lines end with CR LF.
//!
//! A cell that failed has a line too, with its reason in the last field. A figure that is not there is an empty field.

use super::figures::{Figures, Measure};
use super::{Cell, Report, Run};
use std::io::{self, Write};

/// The fields before the figures.
const PLACE: [&str; 9] =
    ["scenario", "subject", "server", "device", "format", "cache", "aio", "threads", "repetition"];
const RAW: [&str; 4] = ["seconds", "transactions", "read_bytes", "written_bytes"];

/// Writes it, a line of names first.
pub fn write(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    report.checked()?;
    let figures = Figures::new(report);
    let measures = Measure::ALL.iter().map(|m| m.key());
    let names =
        PLACE.into_iter().chain(RAW).chain(measures).chain(["ratio_to_baseline", "failure"]);
    line(out, names.map(str::to_owned))?;
    for cell in &report.cells {
        if cell.runs.is_empty() {
            let failure = cell.failure.as_deref().unwrap_or("not measured");
            let empty = vec![String::new(); RAW.len() + Measure::ALL.len() + 1];
            let place = place(report, cell, None);
            line(out, place.into_iter().chain(empty).chain([failure.to_owned()]))?;
        }
        for (n, run) in cell.runs.iter().enumerate() {
            let place = place(report, cell, Some(n + 1));
            let failure = cell.failure.clone().unwrap_or_default();
            line(out, place.into_iter().chain(of_run(&figures, cell, run)).chain([failure]))?;
        }
    }
    Ok(())
}

fn place(report: &Report, cell: &Cell, repetition: Option<usize>) -> Vec<String> {
    let subject = &report.subjects[cell.subject];
    vec![
        report.scenarios[cell.scenario].clone(),
        subject.name.clone(),
        subject.server.clone(),
        subject.device.clone(),
        subject.format.clone(),
        subject.cache.clone(),
        subject.aio.clone(),
        cell.threads.to_string(),
        repetition.map(|n| n.to_string()).unwrap_or_default(),
    ]
}

fn of_run(figures: &Figures, cell: &Cell, run: &Run) -> Vec<String> {
    let baseline = figures.report().baseline;
    let base = figures.spread(cell.scenario, baseline, cell.threads, Measure::Iops);
    let ratio = Measure::Iops.of(run).zip(base).map(|(own, base)| own / base.median);
    let number = |v: Option<f64>| v.filter(|v| v.is_finite()).map(rounded).unwrap_or_default();
    let raw = [
        rounded(run.seconds),
        run.transactions.to_string(),
        run.read_bytes.to_string(),
        run.written_bytes.to_string(),
    ];
    let measures = Measure::ALL.iter().map(|m| number(m.of(run)));
    raw.into_iter().chain(measures).chain([number(ratio)]).collect()
}

/// Six digits behind the point at most: more than any clock gives.
fn rounded(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn line(out: &mut dyn Write, fields: impl IntoIterator<Item = String>) -> io::Result<()> {
    let fields: Vec<String> = fields.into_iter().map(|f| quoted(&f)).collect();
    write!(out, "{}\r\n", fields.join(","))
}

fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}
