//! The tables of the report: every figure that a plot shows, and those that none does.

use super::escape::Text;
use super::plots::trace_name;
use crate::report::figures::{Figures, Measure, Spread};
use crate::report::findings::{Effect, Findings, blame};
use crate::report::number::{change, figure, micros, percent, threads};
use crate::report::{Report, Trace};
use std::fmt::Write;

/// A table that may be wider than the page: it scrolls by itself, also with the keyboard.
fn scrolling(label: &str, table: &str) -> String {
    let label = Text(label);
    format!(
        "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{label}\"><table>{table}</table></div>\n"
    )
}

fn head_row(out: &mut String, heads: &[&str]) {
    out.push_str("<thead><tr>");
    for head in heads {
        let _ = write!(out, "<th scope=\"col\">{}</th>", Text(head));
    }
    out.push_str("</tr></thead>");
}

/// A median, and below it half the range.
fn with_range(spread: Spread, text: fn(f64) -> String) -> String {
    let median = text(spread.median);
    let range = spread.half_range().map(|r| format!("<small>±{}</small>", percent(r)));
    format!("<td>{median}{}</td>", range.unwrap_or_default())
}

/// All figures of a scenario: a group of rows for each number of threads.
pub fn scenario(figures: &Figures, scenario: usize) -> String {
    let report = figures.report();
    let guest = [Measure::Vcpu0, Measure::Vcpu1];
    let is_shown = |m: &Measure| {
        let is_measured = |t: &u32| {
            (0..report.subjects.len()).any(|s| figures.spread(scenario, s, *t, *m).is_some())
        };
        !guest.contains(m) || figures.threads().iter().any(is_measured)
    };
    let measures: Vec<Measure> = Measure::ALL.into_iter().filter(is_shown).collect();
    let name = &report.scenarios[scenario];
    let mut out = format!(
        "<caption>{}: all figures <span class=\"muted\">(median; ± half the range from the lowest to the highest run, in % of it)</span></caption>",
        Text(name)
    );
    let mut heads = vec!["subject", "of baseline"];
    heads.extend(measures.iter().map(|m| m.label()));
    head_row(&mut out, &heads);
    for count in figures.threads_in(scenario) {
        let _ = write!(
            out,
            "<tbody><tr><th class=\"group\" scope=\"rowgroup\" colspan=\"{}\">{}</th></tr>",
            heads.len(),
            threads(count)
        );
        for (subject, named) in report.subjects.iter().enumerate() {
            let Some(cell) = figures.cell(scenario, subject, count) else { continue };
            let _ = write!(out, "<tr><th scope=\"row\">{}</th>", Text(&named.name));
            if cell.runs.is_empty() {
                let why = cell.failure.as_deref().unwrap_or("not measured");
                let _ = write!(
                    out,
                    "<td class=\"text bad\" colspan=\"{}\">failed: {}</td></tr>",
                    heads.len() - 1,
                    Text(why)
                );
                continue;
            }
            let ratio = figures.ratio(scenario, subject, count);
            out.push_str(&ratio.map_or_else(nothing, |r| with_range(r, percent)));
            for measure in &measures {
                let spread = figures.spread(scenario, subject, count, *measure);
                let text = if measure.is_latency() { micros } else { figure };
                out.push_str(&spread.map_or_else(nothing, |s| with_range(s, text)));
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody>");
    }
    scrolling(&format!("All figures of {name}"), &out)
}

fn nothing() -> String {
    "<td>-</td>".into()
}

/// Every ratio to the baseline: scenarios side by side, a group of rows for each number of threads.
pub fn ratios(figures: &Figures) -> String {
    let report = figures.report();
    let base = &report.subjects[report.baseline].name;
    let mut out = format!(
        "<caption>IOPS in % of {} <span class=\"muted\">(ratio of medians; blue: near or above, orange: far below)</span></caption>",
        Text(base)
    );
    let mut heads = vec!["subject"];
    heads.extend(report.scenarios.iter().map(String::as_str));
    head_row(&mut out, &heads);
    for count in figures.threads() {
        let _ = write!(
            out,
            "<tbody><tr><th class=\"group\" scope=\"rowgroup\" colspan=\"{}\">{}</th></tr>",
            heads.len(),
            threads(*count)
        );
        for (subject, named) in report.subjects.iter().enumerate() {
            if subject == report.baseline {
                continue;
            }
            let _ = write!(out, "<tr><th scope=\"row\">{}</th>", Text(&named.name));
            for scenario in 0..report.scenarios.len() {
                let ratio = figures.ratio(scenario, subject, *count).map(|r| r.median);
                let failed =
                    figures.cell(scenario, subject, *count).and_then(|c| c.failure.as_ref());
                let _ = match (ratio, failed) {
                    (Some(r), _) => {
                        write!(out, "<td class=\"r{}\">{}</td>", shade(r), percent(r))
                    }
                    (None, Some(_)) => write!(out, "<td class=\"bad\">failed</td>"),
                    (None, None) => write!(out, "{}", nothing()),
                };
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody>");
    }
    scrolling("Ratios to the baseline", &out)
}

/// Which of five shades a ratio has.
fn shade(ratio: f64) -> u8 {
    match ratio {
        r if r >= 0.95 => 4,
        r if r >= 0.85 => 3,
        r if r >= 0.70 => 2,
        r if r >= 0.50 => 1,
        _ => 0,
    }
}

/// Who is nearest in each scenario, and what costs most there.
pub fn nearest(report: &Report, findings: &Findings, figures: &Figures) -> String {
    let counts = figures.threads();
    let base = Text(&report.subjects[report.baseline].name);
    let mut out = format!(
        "<caption>Nearest to {base} in each scenario <span class=\"muted\">(IOPS in % of {base})</span></caption>"
    );
    let counts_named: Vec<String> =
        counts.iter().map(|t| threads(*t).replace(' ', "\u{a0}")).collect();
    let mut heads = vec!["scenario", "nearest", "mean"];
    heads.extend(counts_named.iter().map(String::as_str));
    heads.extend(["level with it, within noise", "the setting that costs most"]);
    out.push_str("<thead><tr>");
    for head in &heads {
        let is_text = matches!(*head, "nearest") || head.contains("noise") || head.contains("cost");
        let class = if is_text { " class=\"text\"" } else { "" };
        let _ = write!(out, "<th scope=\"col\"{class}>{}</th>", Text(head));
    }
    out.push_str("</tr></thead><tbody>");
    for row in &findings.nearest {
        let name = |s: usize| &report.subjects[s].name;
        let _ = write!(
            out,
            "<tr><th scope=\"row\"><a href=\"#s{}\">{}</a></th><td class=\"text\">{}</td><td>{}</td>",
            row.scenario,
            Text(&report.scenarios[row.scenario]),
            Text(name(row.subject)),
            percent(row.ratio)
        );
        for count in counts {
            let ratio = row.by_threads.iter().find(|r| r.0 == *count).map(|r| percent(r.1));
            let _ = write!(out, "<td>{}</td>", ratio.unwrap_or_else(|| "-".into()));
        }
        let level: Vec<&str> = row.level.iter().map(|s| name(*s).as_str()).collect();
        let level = match () {
            () if row.is_unknown => "too few repetitions to tell".to_owned(),
            () if level.is_empty() => "none".to_owned(),
            () => level.join(", "),
        };
        let blamed = findings.largest_in(row.scenario).map(|(e, t)| blame(e, &t));
        let _ = write!(
            out,
            "<td class=\"text\">{}</td><td class=\"text\">{}</td></tr>",
            Text(&level),
            Text(&blamed.unwrap_or_else(|| "none beyond noise".into()))
        );
    }
    scrolling("Nearest to the baseline", &(out + "</tbody>"))
}

/// What each setting costs.
pub fn effects(report: &Report, effects: &[Effect]) -> String {
    let mut out = String::from(
        "<caption>What each setting costs <span class=\"muted\">(pairs of subjects that differ in nothing else; \
         geometric mean over scenarios and threads)</span></caption><thead><tr><th scope=\"col\">setting</th>\
         <th scope=\"col\" class=\"text\">change</th><th scope=\"col\">transactions/s</th><th scope=\"col\">CPU %/MB/s</th>\
         <th scope=\"col\" class=\"text\">most in</th><th scope=\"col\">beyond noise</th></tr></thead><tbody>",
    );
    for effect in effects {
        let worst = effect.by_scenario.iter().min_by(|a, b| a.1.ratio().total_cmp(&b.1.ratio()));
        let worst = worst.map(|(s, t)| format!("{}: {}", report.scenarios[*s], change(t.ratio())));
        let told = if effect.all.is_unknown() {
            "too few repetitions".to_owned()
        } else {
            format!("{} of {} pairs", effect.all.lower, effect.all.pairs)
        };
        let _ = write!(
            out,
            "<tr><th scope=\"row\">{}</th><td class=\"text\">{} instead of {}</td><td>{}</td><td>{}</td>\
             <td class=\"text\">{}</td><td>{told}</td></tr>",
            effect.setting.name(),
            Text(&effect.worse),
            Text(&effect.better),
            change(effect.all.ratio()),
            effect.cpu_ratio.map_or_else(|| "-".into(), change),
            Text(&worst.unwrap_or_default()),
        );
    }
    scrolling("What each setting costs", &(out + "</tbody>"))
}

/// What the names of subjects stand for.
pub fn subjects(report: &Report) -> String {
    let mut out = String::from("<caption>What was compared</caption>");
    out.push_str("<thead><tr>");
    for head in ["subject", "server", "device", "format", "cache", "aio"] {
        let _ = write!(out, "<th scope=\"col\" class=\"text\">{head}</th>");
    }
    out.push_str("</tr></thead><tbody>");
    for (n, s) in report.subjects.iter().enumerate() {
        let mark = if n == report.baseline { " (baseline)" } else { "" };
        let _ = write!(out, "<tr><th scope=\"row\">{}{mark}</th>", Text(&s.name));
        for value in [&s.server, &s.device, &s.format, &s.cache, &s.aio] {
            let _ = write!(out, "<td class=\"text\">{}</td>", Text(value));
        }
        out.push_str("</tr>");
    }
    scrolling("What was compared", &(out + "</tbody>"))
}

/// Cells that could not be measured, and why.
pub fn failures(report: &Report) -> Option<String> {
    let mut rows = String::new();
    for cell in &report.cells {
        let Some(why) = &cell.failure else { continue };
        let _ = write!(
            rows,
            "<tr><th scope=\"row\">{}</th><td class=\"text\">{}</td><td>{}</td><td class=\"text bad\">{}</td></tr>",
            Text(&report.scenarios[cell.scenario]),
            Text(&report.subjects[cell.subject].name),
            cell.threads,
            Text(why)
        );
    }
    if rows.is_empty() {
        return None;
    }
    let head = "<caption>What could not be measured</caption><thead><tr><th scope=\"col\">scenario</th>\
         <th scope=\"col\" class=\"text\">subject</th><th scope=\"col\">threads</th>\
         <th scope=\"col\" class=\"text\">why</th></tr></thead><tbody>";
    Some(scrolling("What could not be measured", &format!("{head}{rows}</tbody>")))
}

/// Every stage of a trace.
pub fn stages(report: &Report, trace: &Trace) -> String {
    let name = trace_name(report, trace);
    let cost = match trace.cost_percent {
        Some(cost) => format!("tracing cost {} of the throughput", percent(cost / 100.0)),
        None => "what tracing cost was not measured".into(),
    };
    let caption = Text(&name);
    let mut out = format!("<caption>{caption} <span class=\"muted\">({cost})</span></caption>");
    head_row(&mut out, &["stage", "count", "mean", "p50", "p95", "p99", "p99.9", "max"]);
    out.push_str("<tbody>");
    for (stage, l) in &trace.stages {
        let count = figure(l.count as f64);
        let _ = write!(out, "<tr><th scope=\"row\">{}</th><td>{count}</td>", Text(stage));
        for us in [l.mean_us, l.p50_us, l.p95_us, l.p99_us, l.p999_us, l.max_us] {
            let _ = write!(out, "<td>{}</td>", micros(us));
        }
        out.push_str("</tr>");
    }
    scrolling(&format!("Stages, {name}"), &(out + "</tbody>"))
}
