//! What a disk has done, as one line: for people, or a JSON object.

use export::blk::{Count, Statistics};
use img::human_size;
use serde_json::{Value, json};
use std::io::Write;

/// Prints the line. Who read the ready line may be gone by now; that is no reason to end the disk, or to end it otherwise.
pub fn print(statistics: &Statistics, as_json: bool) {
    let line = if as_json { object(statistics).to_string() } else { text(statistics) };
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
        tracing::info!("printing statistics: {error}");
    }
}

fn text(statistics: &Statistics) -> String {
    let of = |name: &str, count: Count| {
        format!("{} {name} of {}", count.requests, human_size(count.bytes))
    };
    let mut line = format!(
        "served: {}, {}, {} flushes, {}, {}, {} failed",
        of("reads", statistics.reads),
        of("writes", statistics.writes),
        statistics.flushes.requests,
        of("writes of zeroes", statistics.zeroes),
        of("discards", statistics.discards),
        statistics.failed,
    );
    if let Some(bytes) = statistics.table_bytes {
        line += &format!("; tables: {} of RAM", human_size(bytes));
    }
    line
}

fn object(statistics: &Statistics) -> Value {
    let of = |count: Count| json!({ "requests": count.requests, "bytes": count.bytes });
    json!({ "served": {
        "reads": of(statistics.reads),
        "writes": of(statistics.writes),
        "flushes": of(statistics.flushes),
        "write_zeroes": of(statistics.zeroes),
        "discards": of(statistics.discards),
        "failed": statistics.failed,
        "table_bytes": statistics.table_bytes,
    } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_all_there_is() {
        let reads = Count { requests: 3, bytes: 12288 };
        let mut statistics = Statistics { reads, failed: 2, ..Statistics::default() };
        let line = "served: 3 reads of 12 KiB, 0 writes of 0 B, 0 flushes, 0 writes of zeroes of 0 B, 0 discards of 0 B, 2 failed";
        assert_eq!(text(&statistics), line);
        assert_eq!(object(&statistics)["served"]["table_bytes"], Value::Null);
        statistics.table_bytes = Some(65536);
        assert_eq!(text(&statistics), format!("{line}; tables: 64 KiB of RAM"));
        let served = &object(&statistics)["served"];
        assert_eq!(served["reads"], json!({ "requests": 3, "bytes": 12288 }));
        assert_eq!((&served["failed"], &served["table_bytes"]), (&json!(2), &json!(65536)));
    }
}
