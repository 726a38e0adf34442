//! Medians, ratios, the table, the JSON file.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::cases::{Case, Content, Metric, Target};
use super::subject::{Role, Subject};

/// All measurements of one case, by subject.
#[derive(Debug, Default)]
pub struct Results(BTreeMap<&'static str, Vec<Value>>);

impl Results {
    /// Adds one measurement.
    pub fn add(&mut self, subject: &'static str, values: Value) {
        self.0.entry(subject).or_default().push(values);
    }

    /// The medians of a metric, by what each subject is in the comparison.
    fn medians(&self, subjects: &[Subject], metric: Metric) -> Medians {
        let of = |role| {
            let subject = subjects.iter().find(|s| s.role == role)?;
            self.median(subject.name, metric)
        };
        Medians {
            ours: of(Role::Ours),
            peer: of(Role::Peer),
            fio: of(Role::Bare),
            raw: of(Role::OurRaw),
        }
    }

    /// The median over the rounds, if the subject was measured by this metric.
    fn median(&self, subject: &str, metric: Metric) -> Option<f64> {
        let rounds = self.0.get(subject)?;
        median(rounds.iter().filter_map(|v| v[metric.key()].as_f64()).collect())
    }
}

/// The middle value, or the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

/// The medians of one metric.
#[derive(Clone, Copy, Debug, Default)]
struct Medians {
    ours: Option<f64>,
    peer: Option<f64>,
    fio: Option<f64>,
    raw: Option<f64>,
}

/// One row, worked out.
#[derive(Debug, PartialEq)]
struct Verdict {
    ratio: Option<f64>,
    target: String,
    passed: Option<bool>,
}

impl Verdict {
    fn ratio(&self) -> String {
        self.ratio.map_or(String::new(), |r| format!("{r:.3} x"))
    }

    fn mark(&self) -> &'static str {
        match self.passed {
            Some(true) => "pass",
            Some(false) => "MISS",
            None => "",
        }
    }
}

fn judge(target: Target, medians: Medians) -> Verdict {
    let ours = medians.ours;
    let ratio_to = |other: Option<f64>| Some(ours? / other.filter(|&v| v > 0.0)?);
    let at_least = |other, bound, name| {
        let ratio = ratio_to(other);
        (ratio, format!(">= {bound} x{name}"), ratio.map(|r| r >= bound))
    };
    let (ratio, target, passed) = match target {
        Target::PeerAtLeast(bound) => at_least(medians.peer, bound, ""),
        Target::FioAtLeast(bound) => at_least(medians.fio, bound, " fio"),
        Target::RawAtLeast(bound) => at_least(medians.raw, bound, " raw"),
        Target::PeerAtMost(bound) => {
            let ratio = ratio_to(medians.peer);
            (ratio, format!("<= {bound} x"), ratio.map(|r| r <= bound))
        }
        Target::Below(bound) => (None, format!("< {bound}"), ours.map(|v| v < bound)),
        Target::Shown => (ratio_to(medians.peer), String::new(), None),
    };
    Verdict { ratio, target, passed }
}

/// Prints the table of one case.
pub fn print(case: &Case, subjects: &[Subject], results: &Results) {
    println!("\n{}: {}", case.name, case.what);
    if case.content != Content::File {
        return print_formats(case, subjects, results);
    }
    let peer = subjects.iter().find(|s| s.role == Role::Peer).map_or("", |s| s.name);
    let fio = if case.fio { "fio" } else { "" };
    println!("  {:24}{:>12}{peer:>21}{fio:>12}{:>10}  {:15}", "", "ferroblk", "ratio", "target");
    for &(metric, target) in case.rows {
        let medians = results.medians(subjects, metric);
        let verdict = judge(target, medians);
        println!(
            "  {:24}{:>12}{:>21}{:>12}{:>10}  {:15} {}",
            metric.title(),
            number(medians.ours),
            number(medians.peer),
            number(medians.fio),
            verdict.ratio(),
            verdict.target,
            verdict.mark(),
        );
    }
}

/// One line for each subject, then one for each target.
fn print_formats(case: &Case, subjects: &[Subject], results: &Results) {
    let mut metrics: Vec<Metric> = case.rows.iter().map(|&(metric, _)| metric).collect();
    metrics.dedup();
    let titles = metrics.iter().map(|m| format!("{:>24}", m.title()));
    println!("  {:28}{}", "", titles.collect::<String>());
    for subject in subjects {
        let name = match subject.role {
            Role::Ours | Role::Peer => format!("{}, {}", subject.name, subject.format),
            _ => subject.name.to_owned(),
        };
        let values = metrics.iter().map(|&m| number(results.median(subject.name, m)));
        let values: String = values.map(|value| format!("{value:>24}")).collect();
        println!("  {name:28}{values}");
    }
    for &(metric, target) in case.rows {
        let verdict = judge(target, results.medians(subjects, metric));
        let to = if matches!(target, Target::RawAtLeast(_)) { "our raw" } else { "the peer's" };
        if verdict.ratio.is_some() && metric != Metric::AllocatingPercent {
            let (title, ratio, mark) = (metric.title(), verdict.ratio(), verdict.mark());
            println!("  {title}: {ratio} {to}  {} {mark}", verdict.target);
        }
    }
}

fn number(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(v) if v >= 1000.0 => format!("{v:.0}"),
        Some(v) => format!("{v:.2}"),
    }
}

/// Everything that was measured, with what it was measured on.
pub fn to_json(all: &[(&Case, Vec<Subject>, Results)], rounds: usize, seconds: f64) -> String {
    let cases = all.iter().map(|(case, subjects, results)| {
        let rows = case.rows.iter().map(|&(metric, target)| {
            let medians = results.medians(subjects, metric);
            let verdict = judge(target, medians);
            json!({
                "metric": metric.key(), "ferroblk": medians.ours, "peer": medians.peer, "fio": medians.fio, "raw": medians.raw,
                "ratio": verdict.ratio, "target": verdict.target, "passed": verdict.passed,
            })
        });
        let rows: Vec<Value> = rows.collect();
        let peer = subjects.iter().find(|s| s.role == Role::Peer).map(|s| s.name);
        json!({
            "case": case.name, "what": case.what, "peer": peer, "medians": rows, "rounds": results.0,
        })
    });
    let cases: Vec<Value> = cases.collect();
    let whole =
        json!({ "machine": machine(), "rounds": rounds, "seconds": seconds, "cases": cases });
    format!("{whole:#}\n")
}

fn machine() -> Value {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let models = cpuinfo.lines().filter_map(|l| l.strip_prefix("model name")?.split_once(": "));
    let models: Vec<&str> = models.map(|(_, name)| name).collect();
    json!({
        "cpu": models.first(), "cpus": models.len(),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_of_an_odd_and_between_the_middles_of_an_even_count() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 100.0]), Some(3.0));
    }

    #[test]
    fn a_target_is_judged_against_its_own_reference_and_not_at_all_without_one() {
        let judge = |target, ours, peer, other| {
            judge(target, Medians { ours, peer, fio: other, raw: other }).passed
        };
        let (some, none) = (Some(10.0), None);
        assert_eq!(judge(Target::PeerAtLeast(2.0), some, Some(5.0), none), Some(true));
        assert_eq!(judge(Target::PeerAtLeast(2.1), some, Some(5.0), none), Some(false));
        assert_eq!(judge(Target::PeerAtMost(0.5), some, Some(20.0), none), Some(true));
        assert_eq!(judge(Target::PeerAtMost(0.5), some, Some(19.0), none), Some(false));
        assert_eq!(judge(Target::FioAtLeast(0.9), some, Some(1.0), Some(11.0)), Some(true));
        assert_eq!(judge(Target::FioAtLeast(0.95), some, Some(1.0), Some(11.0)), Some(false));
        assert_eq!(judge(Target::RawAtLeast(0.9), some, Some(1.0), Some(11.0)), Some(true));
        assert_eq!(judge(Target::RawAtLeast(0.95), some, Some(1.0), Some(11.0)), Some(false));
        assert_eq!(judge(Target::RawAtLeast(0.9), some, some, none), None);
        assert_eq!(judge(Target::Below(0.05), Some(0.04), none, none), Some(true));
        assert_eq!(judge(Target::PeerAtLeast(2.0), none, some, none), None);
        assert_eq!(judge(Target::PeerAtLeast(2.0), some, Some(0.0), none), None);
    }
}
