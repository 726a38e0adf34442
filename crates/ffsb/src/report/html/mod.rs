//! The report as one HTML file: no script, nothing fetched, light and dark, for a screen of any width and for paper.
//!
//! The page forbids itself every request and every script, so that a hostile name in it could do nothing even if it
//! were not escaped. Plots are SVG in the page, each with title and description; every figure is also in a table.

mod escape;
mod panel;
mod plots;
mod tables;

use super::Report;
use super::figures::Figures;
use super::findings::Findings;
use super::number::{date, percent};
use escape::Text;
use plots::Plots;
use std::fmt::Write as _;
use std::io::{self, Write};

const STYLE: &str = include_str!("style.css");

/// Writes it.
pub fn write(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    report.checked()?;
    let figures = Figures::new(report);
    let findings = Findings::of(&figures);
    let mut plots = Plots::new(&figures);
    write!(out, "{}", head(report))?;
    write!(out, "{}", contents(report))?;
    writeln!(out, "<main id=\"main\" tabindex=\"-1\">")?;
    write!(out, "{}", summary(&figures, &findings))?;
    write!(out, "{}", settings(report))?;
    write!(out, "{}", ratios(&figures, &mut plots))?;
    for scenario in 0..report.scenarios.len() {
        write!(out, "{}", of_scenario(&figures, &findings, &mut plots, scenario))?;
    }
    if !report.traces.is_empty() {
        write!(out, "{}", traces(report, &mut plots))?;
    }
    if let Some(table) = tables::failures(report) {
        let title = "<h2 id=\"failures\">What could not be measured</h2>";
        writeln!(out, "<section aria-labelledby=\"failures\">{title}{table}</section>")?;
    }
    writeln!(out, "{READING}</main>")?;
    let version = Text(&report.ferroblk);
    writeln!(out, "<footer><p>Written by ferroblk {version}.</p></footer>\n</body>\n</html>")
}

const READING: &str = "<section aria-labelledby=\"reading\"><h2 id=\"reading\">How to read the figures</h2><ul>\
<li>Every figure is the median of its repetitions. The thin line on a bar is the range from the lowest to the highest of them; ± in a table is half that range, in % of the median. The JSON and CSV forms have every repetition.</li>\
<li>IOPS are transactions per second as FFSB counts them: each block of a read, write, create or append is one; a delete, stat or directory operation is one.</li>\
<li>MB are 10<sup>6</sup> bytes.</li>\
<li>CPU: 100 % is one CPU, so two busy CPUs are 200 %. Workload is the generator's process, or in a guest all vCPUs; server is what serves the disk, with its kernel workers; CPU % is both together. Host is everything that ran on the machine.</li>\
<li>CPU %/MB/s is CPU % divided by MB/s: what throughput costs. Server µs/op is the server's CPU time for each transaction.</li>\
<li>Beyond noise: the ranges of the repetitions do not overlap, and the medians differ by more than 3.5 standard errors, where the noise from run to run is taken from all cells of the scenario.</li>\
<li>A setting is judged by pairs of subjects that differ in it and in nothing else.</li>\
</ul></section>";

fn head(report: &Report) -> String {
    let version = Text(&report.ferroblk);
    let when = date(report.started_unix);
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <title>ferroblk bench, {when}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#main\">Skip to the figures</a>\n{}\
         <header>\n<h1>How far from {}?</h1>\n\
         <p class=\"muted\">ferroblk {version} bench, begun {when}. {} subjects, {} scenarios.</p>\n",
        panel::PATTERNS,
        Text(&report.subjects[report.baseline].name),
        report.subjects.len(),
        report.scenarios.len(),
    );
    if !report.remarks.is_empty() {
        out.push_str("<div class=\"note\" role=\"note\" aria-label=\"Remarks\"><p><strong>Before you read the figures</strong></p><ul>");
        for remark in &report.remarks {
            let _ = write!(out, "<li>{}</li>", Text(remark));
        }
        out.push_str("</ul></div>\n");
    }
    out.push_str("<div class=\"facts\">");
    for (title, facts) in [("Machine", &report.machine), ("Settings", &report.settings)] {
        let _ = write!(out, "<div><h2 class=\"minor\">{title}</h2><dl>");
        for (what, value) in facts {
            let _ = write!(out, "<dt>{}</dt><dd>{}</dd>", Text(what), Text(value));
        }
        out.push_str("</dl></div>");
    }
    out + "</div>\n</header>\n"
}

fn contents(report: &Report) -> String {
    let mut out = String::from("<nav aria-label=\"Contents\"><ul>");
    let mut link =
        |id: &str, name: &str| write!(out, "<li><a href=\"#{id}\">{}</a></li>", Text(name));
    let mut all = vec![link("summary", "In plain words")];
    all.push(link("subjects", "What was compared"));
    all.push(link("ratios", "Ratios"));
    for (n, name) in report.scenarios.iter().enumerate() {
        all.push(link(&format!("s{n}"), name));
    }
    if !report.traces.is_empty() {
        all.push(link("traces", "Where the time goes"));
    }
    if report.cells.iter().any(|c| c.failure.is_some()) {
        all.push(link("failures", "Failures"));
    }
    all.push(link("reading", "How to read"));
    out + "</ul></nav>\n"
}

fn summary(figures: &Figures, findings: &Findings) -> String {
    let report = figures.report();
    let base = &report.subjects[report.baseline].name;
    let mut out = String::from(
        "<section aria-labelledby=\"summary\"><h2 id=\"summary\">In plain words</h2>\n<div class=\"headline\">",
    );
    let mut card = |what: &str, big: &str, rest: &str| {
        let _ = write!(
            out,
            "<div class=\"card\"><p class=\"what\">{}</p><p class=\"big\">{}</p><p>{}</p></div>",
            Text(what),
            Text(big),
            Text(rest)
        );
    };
    if let Some((subject, ratio)) = findings.overall {
        let rest = format!("of its transactions/s: {}", report.subjects[subject].name);
        card(&format!("Nearest to {base}, all scenarios together"), &percent(ratio), &rest);
    }
    if let Some(effect) = findings.largest() {
        let words = effect.sentence(report);
        let big = format!("{}: {}", effect.setting.name(), effect.worse);
        card("The setting that costs most", &big, &words);
    }
    let failed = report.cells.iter().filter(|c| c.failure.is_some()).count();
    let runs: usize = report.cells.iter().map(|c| c.runs.len()).sum();
    let rest = match failed {
        0 => "None failed.".to_owned(),
        n => format!("{n} of {} cells could not be measured.", report.cells.len()),
    };
    card("Measured", &format!("{runs} runs"), &rest);
    out.push_str("</div>\n");
    if findings.largest().is_none() {
        let why = findings.sentences(report);
        let blamed = why.iter().find(|s| s.starts_with("No "));
        let _ = write!(out, "<p>{}</p>", Text(blamed.map_or("", String::as_str)));
    }
    if !findings.nearest.is_empty() {
        out.push_str(&tables::nearest(report, findings, figures));
    }
    if !findings.effects.is_empty() {
        out.push_str(&tables::effects(report, &findings.effects));
    }
    out + "</section>\n"
}

fn settings(report: &Report) -> String {
    let table = tables::subjects(report);
    format!(
        "<section aria-labelledby=\"subjects\"><h2 id=\"subjects\">What was compared</h2>{table}</section>\n"
    )
}

fn ratios(figures: &Figures, plots: &mut Plots) -> String {
    let report = figures.report();
    let base = Text(&report.subjects[report.baseline].name);
    let panels = plots.ratios();
    format!(
        "<section aria-labelledby=\"ratios\"><h2 id=\"ratios\">Ratio to {base}</h2>\n\
         <p>Transactions per second in % of {base}, in the same scenario with as many threads. Right of the dashed line is faster. \
         The figures right of a name are those of its marks.</p>\n\
         <figure><figcaption>Ratio to {base} by scenario <span class=\"muted\">(logarithmic axes)</span></figcaption>{}{}{panels}</figure>\n{}</section>\n",
        plots.thread_legend(),
        plots.legend(),
        tables::ratios(figures)
    )
}

fn of_scenario(
    figures: &Figures,
    findings: &Findings,
    plots: &mut Plots,
    scenario: usize,
) -> String {
    let report = figures.report();
    let mut out = format!(
        "<section aria-labelledby=\"s{scenario}\"><h2 id=\"s{scenario}\">{}</h2>\n",
        Text(&report.scenarios[scenario])
    );
    if figures.threads_in(scenario).is_empty() {
        return out + "<p>Not measured.</p></section>\n";
    }
    if let Some(sentence) = findings.sentence_of(report, scenario) {
        // The heading says which scenario it is.
        let prefix = format!("{}: ", report.scenarios[scenario]);
        let sentence = sentence.strip_prefix(&prefix).unwrap_or(&sentence);
        let _ = writeln!(out, "<p>{}</p>", Text(sentence));
    }
    out.push_str(&plots.legend());
    out.push_str(&plots.throughput(scenario));
    out.push_str(&plots.cpu_total(scenario));
    out.push_str(&plots.cpu_per_mb(scenario));
    let latency = plots.latency(scenario);
    if !latency.is_empty() {
        out.push_str(&latency);
        out.push_str(&Plots::latency_legend());
    }
    out.push_str(&tables::scenario(figures, scenario));
    out + "</section>\n"
}

fn traces(report: &Report, plots: &mut Plots) -> String {
    let mut out = String::from(
        "<section aria-labelledby=\"traces\"><h2 id=\"traces\">Where the time goes</h2>\n\
         <p>The way of a request through the server, from the guest's kick to its interrupt, measured from the inside.</p>\n",
    );
    out.push_str(&plots.stages());
    out.push_str("<figure><figcaption>Time of each stage: distribution and percentiles <span class=\"muted\">(logarithmic axes)</span></figcaption><div class=\"panels\">");
    for trace in &report.traces {
        let name = plots::trace_name(report, trace);
        let panel = plots.stage_latencies(trace);
        let _ = write!(out, "<div class=\"panel\"><p>{}</p>{panel}</div>", Text(&name));
    }
    let _ = writeln!(out, "</div>{}</figure>", Plots::latency_legend());
    for trace in &report.traces {
        out.push_str(&tables::stages(report, trace));
    }
    out + "</section>\n"
}
