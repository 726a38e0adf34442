//! A report as a file: written whole, and checked when read.

use super::{Report, VERSION};
use serde::Deserialize;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::{error, fmt};

/// Bytes of a file at most: a hundred times a large report.
const BYTES_MAX: u64 = 256 << 20;

/// Why a file is no report: one line, which names the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadError(String);

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl error::Error for ReadError {}

/// What every version has.
#[derive(Deserialize)]
struct Head {
    version: u32,
}

/// Writes it, with an end of line.
pub fn write(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    report.checked()?;
    serde_json::to_writer(&mut *out, report)?;
    out.write_all(b"\n")
}

/// Reads it from a file.
pub fn read(path: &Path) -> Result<Report, ReadError> {
    let name = super::number::printable(&path.display().to_string());
    let fail = |why: String| ReadError(format!("{name}: {why}"));
    let mut bytes = Vec::new();
    let read = open(path).and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut bytes));
    read.map_err(|e| fail(e.to_string()))?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(fail("too large for a report".into()));
    }
    parse(&bytes).map_err(fail)
}

/// Reads it from `bytes`; the error is one line.
pub fn parse(bytes: &[u8]) -> Result<Report, String> {
    let wrong = |e: serde_json::Error| format!("not a report of `ferroblk bench`: {e}");
    // The version first: a newer form may lack what this one needs, and that would be the less helpful message.
    let head: Head = serde_json::from_slice(bytes).map_err(wrong)?;
    if head.version != VERSION {
        let known = format!("this ferroblk reads version {VERSION}");
        return Err(format!("a report of version {}; {known}", head.version));
    }
    let report: Report = serde_json::from_slice(bytes).map_err(wrong)?;
    report.check().map_err(|e| format!("not a whole report: {e}"))?;
    Ok(report)
}

#[expect(clippy::disallowed_methods, reason = "a report is read once, before anything is measured")]
fn open(path: &Path) -> io::Result<File> {
    File::open(path)
}
