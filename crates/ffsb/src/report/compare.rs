//! Two reports against each other: which cells changed beyond noise.
//!
//! What is different about machine and settings comes first, and the baseline's own drift: where bare metal has
//! changed, so has the machine, and what follows is partly that. How a change is told from noise is in [`super::noise`].

use super::figures::{Better, Measure, Spread};
use super::noise::{Change, Noise};
use super::number::{change, figure, micros, percent, threads};
use super::{Report, table};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

/// What is compared of each cell.
pub const MEASURES: [Measure; 3] = [Measure::Iops, Measure::LatencyP99, Measure::CpuPerMb];

/// A part of a change that is worth a second look where repetitions are too few to tell.
const WORTH_REPEATING: f64 = 0.2;

/// A fact about the two that is not the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What, e.g. `kernel`.
    pub what: String,
    /// In the first; `None`: it is not said there.
    pub a: Option<String>,
    /// In the second.
    pub b: Option<String>,
}

/// A cell by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// Scenario.
    pub scenario: String,
    /// Subject.
    pub subject: String,
    /// Threads.
    pub threads: u32,
}

/// Whether a change is for the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Better in the second, beyond noise.
    Better,
    /// Worse in the second, beyond noise.
    Worse,
    /// Within noise.
    Same,
    /// Too few repetitions to tell.
    Unknown,
}

/// A figure of a cell in both.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Which cell.
    #[serde(flatten)]
    pub place: Place,
    /// Which figure.
    pub measure: Measure,
    /// In the first.
    pub a: Spread,
    /// In the second.
    pub b: Spread,
    /// Median of the second against that of the first; `None` if the first is 0.
    pub ratio: Option<f64>,
    /// What it means.
    pub verdict: Verdict,
}

/// A cell that could be measured in one of the two only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailureChange {
    /// Which cell.
    #[serde(flatten)]
    pub place: Place,
    /// Why it failed in the first; `None`: it did not.
    pub a: Option<String>,
    /// Why it failed in the second; `None`: it did not.
    pub b: Option<String>,
}

/// How much noise a figure has in a scenario, both reports together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScenarioNoise {
    /// Scenario.
    pub scenario: String,
    /// Which figure.
    pub measure: Measure,
    /// Relative standard deviation from run to run.
    pub deviation: f64,
    /// The smallest relative change that could be told in any of its cells; `None`: none could.
    pub smallest_change: Option<f64>,
}

/// What the baseline itself did from the first report to the second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Drift {
    /// Its IOPS in the second against the first, geometric mean over cells.
    pub ratio: f64,
    /// Cells that are in both.
    pub cells: usize,
    /// Of these, changed beyond noise.
    pub changed: usize,
}

/// Two reports, compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// What differs about machine, settings and subjects.
    pub differences: Vec<Difference>,
    /// The baseline's drift, if it is the same subject in both and was measured in both.
    pub drift: Option<Drift>,
    /// Every figure that is in both.
    pub rows: Vec<Row>,
    /// Cells that failed in one of the two, or in both for another reason.
    pub failures: Vec<FailureChange>,
    /// Cells that only the first has.
    pub only_in_a: Vec<Place>,
    /// Cells that only the second has.
    pub only_in_b: Vec<Place>,
    /// Noise by scenario and figure.
    pub noise: Vec<ScenarioNoise>,
}

/// Compares the second with the first. Cells are matched by the names of scenario and subject.
///
/// # Panics
/// If one of them does not pass [`Report::check`], as every one does that [`super::json`] has read.
pub fn compare(a: &Report, b: &Report) -> Comparison {
    let (cells_a, cells_b) = (by_place(a), by_place(b));
    let only = |one: &Cells, other: &Cells| {
        one.keys().filter(|p| !other.contains_key(p)).cloned().collect::<Vec<_>>()
    };
    let mut failures = Vec::new();
    for (place, (_, cell)) in &cells_a {
        if let Some((_, other)) = cells_b.get(place)
            && cell.failure != other.failure
        {
            let place = place.clone();
            failures.push(FailureChange {
                place,
                a: cell.failure.clone(),
                b: other.failure.clone(),
            });
        }
    }
    let (rows, noise) = rows(&cells_a, &cells_b);
    Comparison {
        differences: differences(a, b),
        drift: drift(a, b, &rows),
        rows,
        failures,
        only_in_a: only(&cells_a, &cells_b),
        only_in_b: only(&cells_b, &cells_a),
        noise,
    }
}

/// Cells by name, each with its place in the order of the report.
type Cells<'a> = BTreeMap<Place, (usize, &'a super::Cell)>;

fn by_place(report: &Report) -> Cells<'_> {
    let place = |c: &super::Cell| Place {
        scenario: report.scenarios[c.scenario].clone(),
        subject: report.subjects[c.subject].name.clone(),
        threads: c.threads,
    };
    report.cells.iter().enumerate().map(|(n, c)| (place(c), (n, c))).collect()
}

fn rows(a: &Cells, b: &Cells) -> (Vec<Row>, Vec<ScenarioNoise>) {
    let scenarios: BTreeSet<&String> =
        a.keys().filter(|p| b.contains_key(*p)).map(|p| &p.scenario).collect();
    let mut rows = Vec::new();
    let mut noises = Vec::new();
    for scenario in scenarios {
        for measure in MEASURES {
            let values = |cells: &Cells| {
                let here = cells.iter().filter(|(p, _)| p.scenario == *scenario);
                here.map(|(_, c)| c.1.values(measure)).collect::<Vec<_>>()
            };
            let noise = Noise::pooled(values(a).into_iter().chain(values(b)));
            let from = rows.len();
            for (place, (n, cell)) in a.iter().filter(|(p, _)| p.scenario == *scenario) {
                let other = b.get(place).map(|c| c.1.values(measure)).unwrap_or_default();
                let own = cell.values(measure);
                rows.extend(row(place, measure, &own, &other, noise).map(|row| (*n, row)));
            }
            let told = rows[from..].iter();
            let smallest = told.filter_map(|(_, r)| noise.smallest_change(r.a.count, r.b.count));
            noises.push(ScenarioNoise {
                scenario: scenario.clone(),
                measure,
                deviation: noise.deviation,
                smallest_change: smallest.min_by(f64::total_cmp),
            });
        }
    }
    // As the first report has them, the figures of a cell together.
    rows.sort_by_key(|(n, row)| (*n, row.measure));
    (rows.into_iter().map(|(_, row)| row).collect(), noises)
}

fn row(place: &Place, measure: Measure, a: &[f64], b: &[f64], noise: Noise) -> Option<Row> {
    let is_better_higher = measure.better() == Better::Higher;
    let verdict = match noise.judge(a, b) {
        Change::Unknown => Verdict::Unknown,
        Change::WithinNoise => Verdict::Same,
        change if (change == Change::Higher) == is_better_higher => Verdict::Better,
        _ => Verdict::Worse,
    };
    let (a, b) = (Spread::of(a)?, Spread::of(b)?);
    let ratio = (a.median > 0.0).then(|| b.median / a.median);
    Some(Row { place: place.clone(), measure, a, b, ratio, verdict })
}

fn differences(a: &Report, b: &Report) -> Vec<Difference> {
    let mut all = Vec::new();
    let mut differ = |what: &str, a: Option<&str>, b: Option<&str>| {
        if a != b {
            let owned = |v: Option<&str>| v.map(str::to_owned);
            all.push(Difference { what: what.to_owned(), a: owned(a), b: owned(b) });
        }
    };
    differ("ferroblk", Some(&a.ferroblk), Some(&b.ferroblk));
    let baseline = |r: &'_ Report| r.subjects.get(r.baseline).map(|s| s.name.clone());
    differ("baseline", baseline(a).as_deref(), baseline(b).as_deref());
    for (one, other) in [(&a.machine, &b.machine), (&a.settings, &b.settings)] {
        let find = |list: &[(String, String)], what: &str| {
            list.iter().find(|(w, _)| w == what).map(|(_, v)| v.clone())
        };
        for (what, value) in one {
            differ(what, Some(value), find(other, what).as_deref());
        }
        for (what, value) in other.iter().filter(|(w, _)| find(one, w).is_none()) {
            differ(what, None, Some(value));
        }
    }
    for one in &a.subjects {
        if let Some(other) = b.subjects.iter().find(|s| s.name == one.name) {
            let words = |s: &super::Subject| {
                [&s.server, &s.device, &s.format, &s.cache, &s.aio].map(String::as_str).join(" ")
            };
            let what = format!("subject {}", one.name);
            differ(&what, Some(&words(one)), Some(&words(other)));
        }
    }
    for remark in a.remarks.iter().filter(|r| !b.remarks.contains(r)) {
        differ("remark", Some(remark), None);
    }
    for remark in b.remarks.iter().filter(|r| !a.remarks.contains(r)) {
        differ("remark", None, Some(remark));
    }
    all
}

fn drift(a: &Report, b: &Report, rows: &[Row]) -> Option<Drift> {
    let name = &a.subjects.get(a.baseline)?.name;
    if b.subjects.get(b.baseline).map(|s| &s.name) != Some(name) {
        return None;
    }
    let own: Vec<&Row> = rows
        .iter()
        .filter(|r| r.measure == Measure::Iops && r.place.subject == *name)
        .filter(|r| r.ratio.is_some_and(|ratio| ratio > 0.0))
        .collect();
    let sum: f64 = own.iter().filter_map(|r| r.ratio).map(f64::ln).sum();
    let changed = own.iter().filter(|r| matches!(r.verdict, Verdict::Better | Verdict::Worse));
    (!own.is_empty()).then(|| Drift {
        ratio: (sum / own.len() as f64).exp(),
        cells: own.len(),
        changed: changed.count(),
    })
}

impl Comparison {
    /// Figures with this verdict.
    pub fn with(&self, verdict: Verdict) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |r| r.verdict == verdict)
    }

    /// Something is worse beyond noise, or fails that did not.
    pub fn is_worse(&self) -> bool {
        let fails_now = |f: &FailureChange| f.a.is_none() && f.b.is_some();
        self.with(Verdict::Worse).next().is_some() || self.failures.iter().any(fails_now)
    }

    /// Writes it as JSON, with an end of line.
    pub fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, self)?;
        out.write_all(b"\n")
    }

    /// Writes it for people, on lines of `width` columns where words allow.
    pub fn write_text(&self, out: &mut dyn Write, width: usize) -> io::Result<()> {
        self.write_differences(out, width)?;
        if let Some(drift) = &self.drift {
            let text = format!(
                "The baseline itself: {} transactions/s in B, changed beyond noise in {} of {} cells{}.",
                change(drift.ratio).replace("as much", "as many").replace("less", "fewer"),
                drift.changed,
                drift.cells,
                // One in many may be chance.
                if drift.changed * 4 >= drift.cells { "; the machine is not the same" } else { "" }
            );
            table::paragraph(out, "", &text, width)?;
        }
        for (title, verdict) in [("Worse in B", Verdict::Worse), ("Better in B", Verdict::Better)] {
            let rows: Vec<&Row> = self.with(verdict).collect();
            writeln!(out, "\n{title}, beyond noise: {}", rows.len())?;
            for row in rows {
                table::paragraph(out, "  ", &row.sentence(), width)?;
            }
        }
        let same = self.with(Verdict::Same).count();
        writeln!(out, "\nWithin noise: {same} of {} figures", self.rows.len())?;
        self.write_unknown(out, width)?;
        self.write_noise(out, width)?;
        self.write_failures(out, width)?;
        for (name, places) in [("A", &self.only_in_a), ("B", &self.only_in_b)] {
            if !places.is_empty() {
                writeln!(out, "\nOnly in {name}: {} cells", places.len())?;
                for place in places {
                    table::paragraph(out, "  ", &place.sentence(), width)?;
                }
            }
        }
        Ok(())
    }

    fn write_differences(&self, out: &mut dyn Write, width: usize) -> io::Result<()> {
        if self.differences.is_empty() {
            return writeln!(out, "Machine and settings are the same.");
        }
        writeln!(out, "Not the same in A and B:")?;
        for difference in &self.differences {
            let said = |v: &Option<String>| v.clone().unwrap_or_else(|| "(not said)".into());
            let (a, b) = (said(&difference.a), said(&difference.b));
            table::paragraph(out, "  ", &format!("{}: {a} -> {b}", difference.what), width)?;
        }
        Ok(())
    }

    fn write_unknown(&self, out: &mut dyn Write, width: usize) -> io::Result<()> {
        let unknown: Vec<&Row> = self.with(Verdict::Unknown).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let text = format!(
            "Cannot be told: {} figures, for want of repetitions (2 in each report, of several cells, are the least; 5 are good).",
            unknown.len()
        );
        writeln!(out)?;
        table::paragraph(out, "", &text, width)?;
        let far = |r: &&&Row| r.ratio.is_some_and(|r| (r - 1.0).abs() >= WORTH_REPEATING);
        let far: Vec<&&Row> = unknown.iter().filter(far).collect();
        if !far.is_empty() {
            let text = format!(
                "Of these, {} differ by {} or more and are worth repeating:",
                far.len(),
                percent(WORTH_REPEATING)
            );
            table::paragraph(out, "", &text, width)?;
            for row in far {
                table::paragraph(out, "  ", &row.sentence(), width)?;
            }
        }
        Ok(())
    }

    fn write_noise(&self, out: &mut dyn Write, width: usize) -> io::Result<()> {
        let told = |n: &&ScenarioNoise| n.smallest_change.is_some() && n.measure == Measure::Iops;
        let known: Vec<String> = self
            .noise
            .iter()
            .filter(told)
            .filter_map(|n| Some(format!("{} {}", n.scenario, percent(n.smallest_change?))))
            .collect();
        if known.is_empty() {
            return Ok(());
        }
        let text = format!("Smallest change of IOPS that can be told: {}.", known.join(", "));
        table::paragraph(out, "", &text, width)
    }

    fn write_failures(&self, out: &mut dyn Write, width: usize) -> io::Result<()> {
        for failure in &self.failures {
            let place = failure.place.sentence();
            let text = match (&failure.a, &failure.b) {
                (None, Some(why)) => format!("FAILS NOW: {place}: {why}"),
                (Some(why), None) => format!("no longer fails: {place} (was: {why})"),
                (Some(was), Some(is)) => format!("fails otherwise: {place}: {is} (was: {was})"),
                (None, None) => continue,
            };
            table::paragraph(out, "", &text, width)?;
        }
        Ok(())
    }
}

impl Place {
    fn sentence(&self) -> String {
        format!("{}, {}, {}", self.scenario, self.subject, threads(self.threads))
    }
}

impl Row {
    fn sentence(&self) -> String {
        let shown = |s: Spread| {
            let text = |v| if self.measure.is_latency() { micros(v) } else { figure(v) };
            let range = format!(" ({} to {})", text(s.min), text(s.max));
            text(s.median) + if s.count > 1 { &range } else { "" }
        };
        let ratio = self.ratio.map_or_else(|| "from 0".into(), change);
        let what = self.measure.label();
        let place = self.place.sentence();
        format!("{place}: {what} {} -> {}, {ratio}", shown(self.a), shown(self.b))
    }
}
