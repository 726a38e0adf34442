//! Writes a made-up report into a directory, in every form: for whoever works on how it looks.
//!
//! `cargo run -p ffsb --example report -- DIRECTORY`

use ffsb::report::{Report, csv, html, json, table};
use std::io::{self, Write};
use std::path::Path;

#[path = "../tests/report/sample.rs"]
#[allow(dead_code)]
mod sample;

fn main() -> io::Result<()> {
    let dir = std::env::args_os().nth(1).ok_or_else(|| io::Error::other("which directory?"))?;
    for (name, report) in [("report", sample::report()), ("guest", sample::guest())] {
        type Form = fn(&mut dyn Write, &Report) -> io::Result<()>;
        let forms: [(&str, Form); 4] = [
            ("html", html::write),
            ("json", json::write),
            ("csv", csv::write),
            ("txt", |out, report| table::write(out, report, 120)),
        ];
        for (ending, write) in forms {
            let path = Path::new(&dir).join(format!("{name}.{ending}"));
            let mut bytes = Vec::new();
            write(&mut bytes, &report)?;
            save(&path, &bytes)?;
            println!("{}: {} bytes", path.display(), bytes.len());
        }
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "an example writes where it is told")]
fn save(path: &Path, bytes: &[u8]) -> io::Result<()> {
    std::fs::write(path, bytes)
}
