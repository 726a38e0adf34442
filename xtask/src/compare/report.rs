//! Medians, ratios, the table, the JSON file.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::cases::{Case, Metric, Target};
use super::subject::Subject;

/// All measurements of one case, by subject.
#[derive(Debug, Default)]
pub struct Results(BTreeMap<&'static str, Vec<Value>>);

impl Results {
    /// Adds one measurement.
    pub fn add(&mut self, subject: &'static str, values: Value) {
        self.0.entry(subject).or_default().push(values);
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

/// One row, worked out.
#[derive(Debug, PartialEq)]
struct Verdict {
    ratio: Option<f64>,
    target: String,
    passed: Option<bool>,
}

fn judge(target: Target, ours: Option<f64>, peer: Option<f64>, fio: Option<f64>) -> Verdict {
    let ratio_to = |other: Option<f64>| Some(ours? / other.filter(|&v| v > 0.0)?);
    let (ratio, target, passed) = match target {
        Target::PeerAtLeast(bound) => {
            let ratio = ratio_to(peer);
            (ratio, format!(">= {bound} x"), ratio.map(|r| r >= bound))
        }
        Target::PeerAtMost(bound) => {
            let ratio = ratio_to(peer);
            (ratio, format!("<= {bound} x"), ratio.map(|r| r <= bound))
        }
        Target::FioAtLeast(bound) => {
            let ratio = ratio_to(fio);
            (ratio, format!(">= {bound} x fio"), ratio.map(|r| r >= bound))
        }
        Target::Below(bound) => (None, format!("< {bound}"), ours.map(|v| v < bound)),
        Target::Shown => (ratio_to(peer), String::new(), None),
    };
    Verdict { ratio, target, passed }
}

/// Prints the table of one case.
pub fn print(case: &Case, subjects: &[Subject], results: &Results) {
    println!("\n{}: {}", case.name, case.what);
    let peer = subjects.last().map_or("", Subject::name);
    let fio = if case.fio { "fio" } else { "" };
    println!("  {:24}{:>12}{peer:>21}{fio:>12}{:>10}  {:15}", "", "ferroblk", "ratio", "target");
    for &(metric, target) in case.rows {
        let get = |name| results.median(name, metric);
        let (ours, theirs, bare) = (get("ferroblk"), get(peer), get("fio"));
        let verdict = judge(target, ours, theirs, bare);
        let mark = match verdict.passed {
            Some(true) => "pass",
            Some(false) => "MISS",
            None => "",
        };
        let ratio = verdict.ratio.map_or(String::new(), |r| format!("{r:.3} x"));
        println!(
            "  {:24}{:>12}{:>21}{:>12}{ratio:>10}  {:15} {mark}",
            metric.title(),
            number(ours),
            number(theirs),
            number(bare.filter(|_| case.fio)),
            verdict.target,
        );
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
pub fn to_json(
    all: &[(&Case, Results)],
    subjects: &[Subject],
    rounds: usize,
    seconds: f64,
) -> String {
    let peer = subjects.last().map_or("", Subject::name);
    let cases = all.iter().map(|(case, results)| {
        let rows = case.rows.iter().map(|&(metric, target)| {
            let get = |name| results.median(name, metric);
            let verdict = judge(target, get("ferroblk"), get(peer), get("fio"));
            json!({
                "metric": metric.key(), "ferroblk": get("ferroblk"), "peer": get(peer), "fio": get("fio"),
                "ratio": verdict.ratio, "target": verdict.target, "passed": verdict.passed,
            })
        });
        let rows: Vec<Value> = rows.collect();
        json!({ "case": case.name, "what": case.what, "medians": rows, "rounds": results.0 })
    });
    let cases: Vec<Value> = cases.collect();
    let whole = json!({
        "machine": machine(), "peer": peer, "rounds": rounds, "seconds": seconds, "cases": cases,
    });
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
        let judge = |target, ours, peer, fio| judge(target, ours, peer, fio).passed;
        let (some, none) = (Some(10.0), None);
        assert_eq!(judge(Target::PeerAtLeast(2.0), some, Some(5.0), none), Some(true));
        assert_eq!(judge(Target::PeerAtLeast(2.1), some, Some(5.0), none), Some(false));
        assert_eq!(judge(Target::PeerAtMost(0.5), some, Some(20.0), none), Some(true));
        assert_eq!(judge(Target::PeerAtMost(0.5), some, Some(19.0), none), Some(false));
        assert_eq!(judge(Target::FioAtLeast(0.9), some, Some(1.0), Some(11.0)), Some(true));
        assert_eq!(judge(Target::FioAtLeast(0.95), some, Some(1.0), Some(11.0)), Some(false));
        assert_eq!(judge(Target::Below(0.05), Some(0.04), none, none), Some(true));
        assert_eq!(judge(Target::PeerAtLeast(2.0), none, some, none), None);
        assert_eq!(judge(Target::PeerAtLeast(2.0), some, Some(0.0), none), None);
    }
}
