//! Traces of `ferroblk serve --trace`: what came to one between two looks. What the stages are: `docs/trace.md`.

use crate::outcome::Latency;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The stages of all requests of a server so far, or of a part of its time.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Stages(Vec<Stage>);

#[derive(Clone, Debug, Default, PartialEq)]
struct Stage {
    name: String,
    sum_us: f64,
    /// Upper bounds in nanoseconds, and how many fell below.
    buckets: BTreeMap<u64, u64>,
}

#[derive(Deserialize)]
struct Document {
    requests: Vec<Requests>,
}

#[derive(Deserialize)]
struct Requests {
    r#type: String,
    stages: Vec<Times>,
}

#[derive(Deserialize)]
struct Times {
    stage: String,
    count: u64,
    mean_us: f64,
    buckets: Vec<(f64, u64)>,
}

impl Stages {
    /// Reads the file of a trace.
    pub fn read(path: &Path) -> Result<Stages, String> {
        let bad = |why: String| format!("the trace {}: {why}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        Stages::parse(&text).map_err(bad)
    }

    fn parse(text: &str) -> Result<Stages, String> {
        let document: Document = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let all = document.requests.into_iter().find(|requests| requests.r#type == "all");
        let stages = all.ok_or("it has no requests of type all")?.stages;
        let stage = |times: Times| Stage {
            name: times.stage,
            sum_us: times.mean_us * times.count as f64,
            buckets: times
                .buckets
                .into_iter()
                .map(|(upper, count)| (nanos(upper), count))
                .collect(),
        };
        Ok(Stages(stages.into_iter().map(stage).collect()))
    }

    /// What came after `before` was read.
    pub fn since(mut self, before: &Stages) -> Stages {
        for (stage, old) in self.0.iter_mut().zip(&before.0) {
            stage.sum_us = (stage.sum_us - old.sum_us).max(0.0);
            for (upper, gone) in &old.buckets {
                // The last bound is the longest duration there was then: its bucket may end further up now.
                if let Some((_, count)) = stage.buckets.range_mut(upper..).next() {
                    *count = count.saturating_sub(*gone);
                }
            }
        }
        self
    }

    /// Adds another time of the same workload.
    pub fn add(&mut self, other: Stages) {
        if self.0.is_empty() {
            *self = other;
            return;
        }
        for (stage, more) in self.0.iter_mut().zip(other.0) {
            stage.sum_us += more.sum_us;
            for (upper, count) in more.buckets {
                *stage.buckets.entry(upper).or_default() += count;
            }
        }
    }

    /// Requests that were followed.
    pub fn sampled(&self) -> u64 {
        self.0.first().map_or(0, Stage::count)
    }

    /// Each stage as a distribution. Percentiles and the longest are upper ends of buckets.
    pub fn latencies(&self) -> Vec<(String, Latency)> {
        self.0.iter().map(|stage| (stage.name.clone(), stage.latency())).collect()
    }
}

impl Stage {
    fn count(&self) -> u64 {
        self.buckets.values().sum()
    }

    fn latency(&self) -> Latency {
        let count = self.count();
        if count == 0 {
            return Latency::default();
        }
        let filled = || self.buckets.iter().filter(|(_, count)| **count > 0);
        let at = |per_mille: u64| {
            let wanted = (count * per_mille).div_ceil(1000).max(1);
            let mut sum = 0;
            let found = filled().find(|(_, count)| {
                sum += **count;
                sum >= wanted
            });
            found.map_or(0.0, |(upper, _)| micros(*upper))
        };
        Latency {
            count,
            mean_us: self.sum_us / count as f64,
            p50_us: at(500),
            p95_us: at(950),
            p99_us: at(990),
            p999_us: at(999),
            max_us: at(1000),
            buckets: filled().map(|(upper, count)| (micros(*upper), *count)).collect(),
        }
    }
}

fn micros(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn nanos(us: f64) -> u64 {
    (us * 1000.0).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(count: u64, mean: f64, buckets: &str) -> Stages {
        let stage =
            format!(r#"{{"stage":"seen","count":{count},"mean_us":{mean},"buckets":{buckets}}}"#);
        let text = format!(r#"{{"requests":[{{"type":"all","stages":[{stage}]}}]}}"#);
        Stages::parse(&text).unwrap()
    }

    #[test]
    fn a_difference_has_what_came_between() {
        // What was the longest then, 2.9, is in the bucket that ends at 3.0.
        let before = document(10, 2.0, "[[1.5,4],[2.9,6]]");
        let after = document(30, 4.0, "[[1.5,4],[3.0,16],[9.0,10]]");
        let mut between = after.since(&before);
        let (name, latency) = &between.latencies()[0];
        assert_eq!((name.as_str(), latency.count), ("seen", 20));
        assert_eq!((latency.mean_us, latency.p50_us, latency.p99_us), (5.0, 3.0, 9.0));
        assert_eq!(latency.buckets, [(3.0, 10), (9.0, 10)]);
        between.add(document(2, 1.0, "[[1.0,2]]"));
        assert_eq!(between.sampled(), 22);
        assert_eq!(between.latencies()[0].1.mean_us, 102.0 / 22.0);
        assert_eq!(Stages::default().sampled(), 0);
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        assert!(Stages::parse("{}").is_err());
        assert_eq!(
            Stages::parse(r#"{"requests":[]}"#).unwrap_err(),
            "it has no requests of type all"
        );
    }
}
