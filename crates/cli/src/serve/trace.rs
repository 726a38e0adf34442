//! The file of `--trace`: where the time of requests went, as one JSON object. What the stages are: `docs/trace.md`.

use crate::text;
use export::blk::trace::{Path as Way, RequestType, Stage, Trace};
use export::histogram::Snapshot;
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// How a trace begins: nothing else is overwritten.
const START: &str = "{\"ferroblk_trace\":1,";

/// A trace's file, open. Taken away again if it is new and not kept.
#[derive(Debug)]
pub struct File {
    file: fs::File,
    path: PathBuf,
    is_new: bool,
}

impl File {
    /// Makes the file, or opens it if it is there and empty or a trace. So a word too few on the command line costs nobody an image.
    ///
    /// # Errors
    ///
    /// Why the file cannot be written, in one line.
    pub fn create(path: &Path) -> Result<File, String> {
        let failed = |error: io::Error| format!("{}: {error}", doing(path));
        let (mut file, is_new) = open(path).map_err(failed)?;
        let made = File { file: file.try_clone().map_err(failed)?, path: path.to_owned(), is_new };
        if !made.file.metadata().map_err(failed)?.is_file() {
            return Err(format!("{}: it is no regular file", doing(path)));
        }
        let mut found = Vec::new();
        file.by_ref().take(START.len() as u64).read_to_end(&mut found).map_err(failed)?;
        if !found.is_empty() && found != START.as_bytes() {
            return Err(format!("{}: it exists and is no trace", doing(path)));
        }
        Ok(made)
    }

    /// Lets the file stay.
    pub fn keep(mut self) -> File {
        self.is_new = false;
        self
    }

    /// Replaces what the file holds.
    ///
    /// # Errors
    ///
    /// The host's, in one line.
    pub fn write(&self, trace: &Trace) -> Result<(), String> {
        let text = document(trace);
        let written = self.file.write_all_at(text.as_bytes(), 0);
        let written = written.and_then(|()| self.file.set_len(text.len() as u64));
        written.map_err(|error| format!("{}: {error}", doing(&self.path)))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if self.is_new {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn doing(path: &Path) -> String {
    format!("writing the trace {}", text::escape(&path.to_string_lossy()))
}

/// The file, and whether it was made.
#[expect(clippy::disallowed_methods, reason = "a trace is no file of the stack")]
fn open(path: &Path) -> io::Result<(fs::File, bool)> {
    let mut options = fs::File::options();
    options.read(true).write(true);
    match options.clone().create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Ok((options.open(path)?, false))
        }
        made => Ok((made?, true)),
    }
}

/// The text of a trace. Its start is fixed, so that a trace is known by it.
fn document(trace: &Trace) -> String {
    let types = RequestType::ALL.iter().zip(&trace.types);
    let mut requests = vec![way("all", &trace.all())];
    requests.extend(types.filter(|(_, w)| w.sampled > 0).map(|(kind, w)| way(kind.name(), w)));
    let requests = Value::from(requests);
    format!("{START}\"one_in\":{},\"requests\":{requests}}}\n", trace.one_in)
}

fn way(name: &str, way: &Way) -> Value {
    let stages = Stage::ALL.iter().zip(&way.stages);
    let stages = stages.map(|(stage, times)| latency(stage.name(), times));
    json!({
        "type": name,
        "sampled": way.sampled,
        "at_once": way.at_once,
        "tasks": way.tasks,
        "total": latency("total", &way.total),
        "stages": stages.collect::<Vec<_>>(),
    })
}

/// The field names are those of every latency in the project's reports.
fn latency(stage: &str, times: &Snapshot) -> Value {
    let percentile = |per_mille| us(times.percentile_ns(per_mille));
    let buckets = times.buckets().map(|(upper, count)| json!([us(upper), count]));
    json!({
        "stage": stage,
        "count": times.count(),
        "min_us": us(times.min_ns()),
        "mean_us": times.mean_ns() / 1000.0,
        "p50_us": percentile(500),
        "p95_us": percentile(950),
        "p99_us": percentile(990),
        "p999_us": percentile(999),
        "max_us": us(times.max_ns()),
        "buckets": buckets.collect::<Vec<_>>(),
    })
}

#[expect(clippy::cast_precision_loss, reason = "2^53 ns are three months")]
fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use export::histogram::Histogram;
    use std::num::NonZeroU32;

    #[test]
    fn the_document_begins_as_a_trace_and_says_all_there_is() {
        let mut trace = Trace { one_in: NonZeroU32::MIN, types: Default::default() };
        let times = Histogram::default();
        times.record(1500);
        times.record(20);
        let write = &mut trace.types[RequestType::Write as usize];
        (write.sampled, write.tasks, write.total) = (2, 1, times.snapshot());
        write.stages[Stage::Mapped as usize] = times.snapshot();
        let text = document(&trace);
        assert!(text.starts_with(START), "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        let types: Vec<_> = value["requests"].as_array().unwrap().iter().collect();
        assert_eq!(
            (types.len(), &types[0]["type"], &types[1]["type"]),
            (2, &json!("all"), &json!("write"))
        );
        for way in types {
            assert_eq!(
                (&way["sampled"], &way["tasks"], &way["at_once"]),
                (&json!(2), &json!(1), &json!(0))
            );
            let mapped = &way["stages"][2];
            let expected = json!({
                "stage": "mapped", "count": 2, "min_us": 0.02, "mean_us": 0.76, "p50_us": 0.02,
                "p95_us": 1.5, "p99_us": 1.5, "p999_us": 1.5, "max_us": 1.5, "buckets": [[0.02, 1], [1.5, 1]],
            });
            assert_eq!(mapped, &expected);
            assert_eq!(way["stages"].as_array().unwrap().len(), 7);
            assert_eq!(way["total"]["count"], 2);
        }
    }
}
