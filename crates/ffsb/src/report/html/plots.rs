//! The plots of the report, each a row of panels: one for each number of threads, over the same axis.

use super::escape::Text;
use super::panel::{Axis, Fill, Panel, Shape};
use crate::outcome::Latency;
use crate::report::figures::{Figures, Measure, Spread};
use crate::report::number::{SPACE, figure, micros, percent, short, threads};
use crate::report::{Report, Run, Trace};
use std::collections::BTreeMap;
use std::fmt::Write;

/// What the marks of a latency plot are, in order: figure, shape, name.
const MARKS: [(Measure, Shape, &str); 3] = [
    (Measure::LatencyP50, Shape::Line, "p50"),
    (Measure::LatencyP99, Shape::Diamond, "p99"),
    (Measure::LatencyP999, Shape::Triangle, "p99.9"),
];

/// What a bar has, by subject, threads and what it shows.
type OfBar<'f, T> = &'f dyn Fn(&Plots, usize, u32, Spread) -> T;

/// Draws plots, and gives each its own id.
#[derive(Debug)]
pub struct Plots<'a> {
    figures: &'a Figures<'a>,
    report: &'a Report,
    colours: Vec<usize>,
    /// Each server, and its colour.
    servers: Vec<(&'a str, usize)>,
    count: u32,
}

impl<'a> Plots<'a> {
    /// For the plots of one page. A subject's colour is that of its server; the baseline's is grey.
    pub fn new(figures: &'a Figures<'a>) -> Plots<'a> {
        let report = figures.report();
        let mut servers = vec![(report.subjects[report.baseline].server.as_str(), 0)];
        // Those that are in many reports have the same colour in all of them.
        let own = ["ferroblk", "qemu-storage-daemon", "qemu"];
        let mut free = own.len() + 1;
        let mut colours = Vec::new();
        for subject in &report.subjects {
            let known = servers.iter().find(|s| s.0 == subject.server);
            let colour = known.map(|s| s.1).unwrap_or_else(|| {
                let colour = own.iter().position(|s| *s == subject.server).map(|n| n + 1);
                colour.unwrap_or_else(|| {
                    free += 1;
                    free - 1
                })
            });
            if known.is_none() {
                servers.push((&subject.server, colour));
            }
            colours.push(colour);
        }
        Plots { figures, report, colours, servers, count: 0 }
    }

    fn panel(&mut self, title: String, description: String, axis: Axis) -> Panel {
        self.count += 1;
        Panel::new(format!("plot{}", self.count), title, description, axis)
    }

    fn name(&self, subject: usize) -> &'a str {
        &self.report.subjects[subject].name
    }

    fn spreads(&self, scenario: usize, counts: &[u32], measure: Measure) -> Vec<Spread> {
        let subjects = 0..self.report.subjects.len();
        let places = subjects.flat_map(|s| counts.iter().map(move |t| (s, *t)));
        places.filter_map(|(s, t)| self.figures.spread(scenario, s, t, measure)).collect()
    }

    /// Says in words what a panel of one figure shows.
    fn description(&self, scenario: usize, threads: u32, measure: Measure) -> String {
        let subjects = 0..self.report.subjects.len();
        let medians = subjects
            .filter_map(|s| Some((s, self.figures.spread(scenario, s, threads, measure)?.median)));
        let medians: Vec<(usize, f64)> = medians.collect();
        let most = medians.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        let least = medians.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        let Some((most, least)) = most.zip(least) else { return "Nothing was measured.".into() };
        let said = |v: f64| if measure.is_latency() { micros(v) } else { figure(v) };
        format!(
            "{} by subject. Highest: {}, {}. Lowest: {}, {}. The table below has all figures.",
            measure.label(),
            self.name(most.0),
            said(most.1),
            self.name(least.0),
            said(least.1)
        )
    }

    /// Transactions per second.
    pub fn throughput(&mut self, scenario: usize) -> String {
        let counts = self.figures.threads_in(scenario);
        let label = |plots: &Plots, subject, threads, spread: Spread| {
            let mb = plots.figures.spread(scenario, subject, threads, Measure::MbPerSecond);
            let mb = mb.filter(|m| m.median > 0.0).map(|m| format!(", {} MB/s", short(m.median)));
            format!("{}/s{}", short(spread.median), mb.unwrap_or_default())
        };
        let parts = |_: &Plots, _, _, spread: Spread| vec![(spread.median, Fill::Plain)];
        let head = "Throughput: transactions per second, and MB/s (10<sup>6</sup> bytes)";
        self.bars(scenario, &counts, Measure::Iops, head, &parts, &label)
    }

    /// CPU of workload and server.
    pub fn cpu_total(&mut self, scenario: usize) -> String {
        let counts = self.figures.threads_in(scenario);
        let label = |_: &Plots, _, _, spread: Spread| format!("{}{SPACE}%", figure(spread.median));
        let parts = |plots: &Plots, subject, threads, spread: Spread| {
            let part = |m| plots.figures.spread(scenario, subject, threads, m);
            let server = part(Measure::CpuServer).map_or(0.0, |s| s.median.min(spread.median));
            vec![(spread.median - server, Fill::Plain), (server, Fill::Hatched)]
        };
        let head = "CPU: % of one CPU, workload (plain) and server (striped)";
        self.bars(scenario, &counts, Measure::CpuTotal, head, &parts, &label)
    }

    /// CPU for each MB/s.
    pub fn cpu_per_mb(&mut self, scenario: usize) -> String {
        let counts = self.figures.threads_in(scenario);
        let label = |_: &Plots, _, _, spread: Spread| figure(spread.median);
        let parts = |_: &Plots, _, _, spread: Spread| vec![(spread.median, Fill::Plain)];
        let head = "What it costs: CPU % for each MB/s";
        self.bars(scenario, &counts, Measure::CpuPerMb, head, &parts, &label)
    }

    fn bars(
        &mut self,
        scenario: usize,
        counts: &[u32],
        measure: Measure,
        head: &str,
        parts: OfBar<Vec<(f64, Fill)>>,
        label: OfBar<String>,
    ) -> String {
        let subjects = 0..self.report.subjects.len();
        let places = subjects.flat_map(|s| counts.iter().map(move |t| (s, *t)));
        let labels = places.filter_map(|(s, t)| {
            Some(label(self, s, t, self.figures.spread(scenario, s, t, measure)?).chars().count())
        });
        let letters = labels.max().unwrap_or(0);
        let spreads = self.spreads(scenario, counts, measure);
        let axis = Axis::linear(spreads.iter().map(|s| s.max), letters);
        let mut panels = Vec::new();
        for threads in counts {
            let title = self.title(measure.label(), scenario, *threads);
            let description = self.description(scenario, *threads, measure);
            let mut panel = self.panel(title, description, axis);
            for subject in 0..self.report.subjects.len() {
                panel.row(self.name(subject), "");
                match self.figures.spread(scenario, subject, *threads, measure) {
                    Some(spread) => {
                        let colour = self.colours[subject];
                        let parts = parts(self, subject, *threads, spread);
                        let parts: Vec<_> = parts.iter().map(|p| (p.0, colour, p.1)).collect();
                        let label = label(self, subject, *threads, spread);
                        panel.bar(&parts, Some((spread.min, spread.max)), &label);
                    }
                    None => self.missing(&mut panel, scenario, subject, *threads),
                }
            }
            panels.push((*threads, panel.finish()));
        }
        figure_of(head, &panels)
    }

    fn title(&self, what: &str, scenario: usize, count: u32) -> String {
        format!("{what}, {}, {}", self.report.scenarios[scenario], threads(count))
    }

    fn missing(&self, panel: &mut Panel, scenario: usize, subject: usize, threads: u32) {
        match self.figures.cell(scenario, subject, threads).and_then(|c| c.failure.as_deref()) {
            Some(why) => panel.nothing(&format!("failed: {why}"), true),
            None => panel.nothing("not measured", false),
        }
    }

    /// How long blocks took: the distribution, and percentiles on it.
    pub fn latency(&mut self, scenario: usize) -> String {
        let counts = self.figures.threads_in(scenario);
        let measures = MARKS.map(|m| m.0);
        let mut values: Vec<f64> = measures
            .iter()
            .flat_map(|m| self.spreads(scenario, &counts, *m))
            .map(|s| s.median)
            .collect();
        let cells = self.report.cells.iter().filter(|c| c.scenario == scenario);
        for run in cells.flat_map(|c| &c.runs) {
            values.extend(ends(&run.latency.buckets));
        }
        if values.is_empty() {
            return String::new();
        }
        let axis = Axis::log(values.into_iter());
        let mut panels = Vec::new();
        for threads in &counts {
            let title = self.title("Latency of a block", scenario, *threads);
            let description = self.description(scenario, *threads, Measure::LatencyP99);
            let mut panel = self.panel(title, description, axis).with_ticks(micros);
            for subject in 0..self.report.subjects.len() {
                self.latency_row(&mut panel, scenario, subject, *threads);
            }
            panels.push((*threads, panel.finish()));
        }
        let head = "Latency of a block: distribution and percentiles (logarithmic axis)";
        figure_of(head, &panels)
    }

    fn latency_row(&self, panel: &mut Panel, scenario: usize, subject: usize, threads: u32) {
        let median = |m| Some(self.figures.spread(scenario, subject, threads, m)?.median);
        let p99 = median(Measure::LatencyP99);
        let note = p99.map(|v| format!("p99 {}", micros(v))).unwrap_or_default();
        panel.row(self.name(subject), &note);
        let runs = self.figures.cell(scenario, subject, threads).map_or(&[][..], |c| &c.runs);
        if p99.is_none() {
            return self.missing(panel, scenario, subject, threads);
        }
        let colour = self.colours[subject];
        panel.density(&joined(runs), colour);
        let marks: Vec<_> = MARKS.iter().filter_map(|m| Some((median(m.0)?, m.1, m.2))).collect();
        if let (Some(first), Some(last)) = (marks.first(), marks.last()) {
            panel.track(first.0, last.0);
        }
        for (value, shape, name) in marks {
            panel.mark(value, shape, colour, &format!("{name}: {}", micros(value)));
        }
    }

    /// One panel for each scenario: IOPS against the baseline, a mark for each number of threads.
    pub fn ratios(&mut self) -> String {
        let mut out = String::from("<div class=\"panels\">");
        let baseline = self.report.baseline;
        let others: Vec<usize> =
            (0..self.report.subjects.len()).filter(|s| *s != baseline).collect();
        // The same axis for all, so that scenarios can be compared by eye.
        let cells = self.report.cells.iter().filter(|c| c.subject != baseline);
        let all = cells.filter_map(|c| self.figures.ratio(c.scenario, c.subject, c.threads));
        let all: Vec<f64> = all.map(|r| r.median).collect();
        let axis = Axis::log(all.into_iter().chain([1.0]));
        for scenario in 0..self.report.scenarios.len() {
            let counts = self.figures.threads_in(scenario);
            let ratio = |s: usize, t: u32| Some(self.figures.ratio(scenario, s, t)?.median);
            let rows: Vec<(usize, Vec<Option<f64>>)> = others
                .iter()
                .map(|s| (*s, counts.iter().map(|t| ratio(*s, *t)).collect()))
                .collect();
            if rows.iter().all(|r| r.1.iter().all(Option::is_none)) {
                continue;
            }
            let svg = self.ratio_panel(scenario, axis, &counts, &rows);
            let name = Text(&self.report.scenarios[scenario]);
            let _ = write!(
                out,
                "<div class=\"panel\"><p><a href=\"#s{scenario}\">{name}</a></p>{svg}</div>"
            );
        }
        out + "</div>"
    }

    fn ratio_panel(
        &mut self,
        scenario: usize,
        axis: Axis,
        counts: &[u32],
        rows: &[(usize, Vec<Option<f64>>)],
    ) -> String {
        let base = self.name(self.report.baseline);
        let title = format!("IOPS against {base}, {}", self.report.scenarios[scenario]);
        let description = format!(
            "A row for each subject, a mark for each number of threads; the dashed line is {base}. The table below has all figures."
        );
        let panel = self.panel(title, description, axis).with_base(1.0);
        let mut panel = panel.with_ticks(percent);
        for (subject, ratios) in rows {
            let said = ratios.iter().map(|r| r.map_or("-".into(), figure_percent));
            let said: Vec<String> = said.collect();
            panel.row(self.name(*subject), &format!("{}{SPACE}%", said.join(" · ")));
            let known = || ratios.iter().flatten().copied();
            if known().next().is_none() {
                panel.nothing("not measured", false);
                continue;
            }
            panel.track(known().fold(f64::INFINITY, f64::min), known().fold(0.0, f64::max));
            for (n, ratio) in ratios.iter().enumerate() {
                if let Some(ratio) = ratio {
                    let says = format!("{}: {}", threads(counts[n]), percent(*ratio));
                    panel.mark(*ratio, Shape::nth(n), self.colours[*subject], &says);
                }
            }
        }
        panel.finish()
    }

    /// What the colours mean.
    pub fn legend(&self) -> String {
        let mut out = String::from("<ul class=\"legend\" aria-label=\"Colours\">");
        for (server, colour) in &self.servers {
            let _ = write!(
                out,
                "<li><svg viewBox=\"0 0 16 12\" aria-hidden=\"true\"><rect class=\"c{}\" width=\"16\" height=\"12\"/></svg>{}</li>",
                colour % 7,
                Text(server)
            );
        }
        out + "</ul>\n"
    }

    /// What the shapes in the ratio plots mean.
    pub fn thread_legend(&self) -> String {
        let shape = |(n, t): (usize, &u32)| (Shape::nth(n), threads(*t));
        shape_legend("Marks", self.figures.threads().iter().enumerate().map(shape))
    }

    /// What the shapes in the latency plots mean.
    pub fn latency_legend() -> String {
        shape_legend("Marks", MARKS.iter().map(|m| (m.1, m.2.to_owned())))
    }

    /// Mean time of each stage, one bar of parts for each trace.
    pub fn stages(&mut self) -> String {
        let names = stage_names(self.report);
        let total = |t: &Trace| t.stages.iter().map(|s| s.1.mean_us).sum::<f64>();
        let axis = Axis::linear(self.report.traces.iter().map(total), "999 ms".len());
        let title = "Where the time of a request goes".to_owned();
        let description = "A bar for each trace, of the mean time of its stages. The tables below have all figures.";
        let mut panel = self.panel(title, description.to_owned(), axis).with_ticks(micros);
        for trace in &self.report.traces {
            panel.row(&trace_name(self.report, trace), "");
            let part = |(name, l): &(String, Latency)| {
                let n = names.iter().position(|s| *s == name.as_str()).unwrap_or(0);
                (l.mean_us, stage_colour(n), Fill::nth(n))
            };
            let parts: Vec<_> = trace.stages.iter().map(part).collect();
            panel.bar(&parts, None, &micros(total(trace)));
        }
        let mut out = String::from("<figure><figcaption>Mean time of each stage</figcaption>");
        let _ = write!(
            out,
            "<div class=\"panels\"><div class=\"panel\">{}</div></div>",
            panel.finish()
        );
        out.push_str("<ul class=\"legend\" aria-label=\"Stages\">");
        for (n, name) in names.iter().enumerate() {
            let place = "width=\"16\" height=\"12\"";
            let pattern = Fill::nth(n).pattern();
            let over = pattern.map(|p| format!("<rect fill=\"url(#{p})\" {place}/>"));
            let _ = write!(
                out,
                "<li><svg viewBox=\"0 0 16 12\" aria-hidden=\"true\"><rect class=\"c{}\" {place}/>{}</svg>{}</li>",
                stage_colour(n),
                over.unwrap_or_default(),
                Text(name)
            );
        }
        out + "</ul></figure>\n"
    }

    /// The distribution of each stage of one trace.
    pub fn stage_latencies(&mut self, trace: &Trace) -> String {
        let marks = |l: &Latency| [l.p50_us, l.p99_us, l.p999_us];
        let values = trace
            .stages
            .iter()
            .flat_map(|(_, l)| marks(l).into_iter().chain(ends(&l.buckets)).collect::<Vec<_>>());
        let axis = Axis::log(values);
        let title = format!("Time of each stage, {}", trace_name(self.report, trace));
        let description = "A row for each stage: distribution, p50, p99 and p99.9.".to_owned();
        let mut panel = self.panel(title, description, axis).with_ticks(micros);
        let names = stage_names(self.report);
        for (name, latency) in &trace.stages {
            let colour = stage_colour(names.iter().position(|s| s == name).unwrap_or(0));
            panel.row(name, &format!("p99 {}", micros(latency.p99_us)));
            panel.density(&latency.buckets, colour);
            panel.track(latency.p50_us, latency.p999_us);
            for (value, mark) in marks(latency).into_iter().zip(MARKS) {
                panel.mark(value, mark.1, colour, &format!("{}: {}", mark.2, micros(value)));
            }
        }
        panel.finish()
    }
}

/// Stages do not have the baseline's grey.
fn stage_colour(n: usize) -> usize {
    1 + n % 6
}

/// Percent, the sign left out.
fn figure_percent(ratio: f64) -> String {
    percent(ratio).trim_end_matches('%').trim_end_matches(SPACE).to_owned()
}

/// Whose trace it is.
pub fn trace_name(report: &Report, trace: &Trace) -> String {
    let (subject, scenario) = (&report.subjects[trace.subject], &report.scenarios[trace.scenario]);
    format!("{}, {scenario}, {}", subject.name, threads(trace.threads))
}

/// The names of stages, in the order they come.
fn stage_names(report: &Report) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in report.traces.iter().flat_map(|t| &t.stages) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
}

/// The least and the greatest bound of a bucket that is not empty.
fn ends(buckets: &[(f64, u64)]) -> impl Iterator<Item = f64> + use<> {
    let first = buckets.iter().find(|b| b.1 > 0).map(|b| b.0);
    let last = buckets.iter().rfind(|b| b.1 > 0).map(|b| b.0);
    first.into_iter().chain(last)
}

/// The distributions of all repetitions as one.
fn joined(runs: &[Run]) -> Vec<(f64, u64)> {
    let mut all: BTreeMap<u64, u64> = BTreeMap::new();
    for (bound, count) in runs.iter().flat_map(|r| &r.latency.buckets) {
        // Bits of positive floats are in the order of the floats.
        *all.entry(bound.max(0.0).to_bits()).or_default() += count;
    }
    all.into_iter().map(|(bits, count)| (f64::from_bits(bits), count)).collect()
}

fn figure_of(head: &str, panels: &[(u32, String)]) -> String {
    let mut out = format!("<figure><figcaption>{head}</figcaption><div class=\"panels\">");
    for (count, svg) in panels {
        let title = threads(*count);
        let _ = write!(out, "<div class=\"panel\"><p>{title}</p>{svg}</div>");
    }
    out + "</div></figure>\n"
}

fn shape_legend(label: &str, shapes: impl Iterator<Item = (Shape, String)>) -> String {
    let mut out = format!("<ul class=\"legend\" aria-label=\"{label}\">");
    for (shape, name) in shapes {
        let drawn = shape.draw(8.0, 6.0);
        let _ = write!(
            out,
            "<li><svg viewBox=\"0 0 16 12\" aria-hidden=\"true\"><g class=\"c0\">{drawn}</g></svg>{}</li>",
            Text(&name)
        );
    }
    out + "</ul>\n"
}
