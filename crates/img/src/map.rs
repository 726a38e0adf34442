//! `map`: where a disk's data is, in which file of a chain and where in it.

use crate::open::shown;
use crate::status::{Depth, Kind, Status, status};
use crate::{Code, Failure, ImageArgs, Output, Session, escape};
use block::{BlockNode, Image, Result};
use std::io::Write;
use std::rc::Rc;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct MapOptions {
    /// Of which image.
    pub image: ImageArgs,
    /// For whom.
    pub output: Output,
    /// From where on, in bytes of the disk.
    pub start: u64,
    /// How far at most, in bytes.
    pub max_len: Option<u64>,
}

/// Entries that are found before they are printed.
const BATCH: usize = 4096;

/// A run of the disk that is alike throughout.
#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u64,
    status: Status,
}

impl Entry {
    /// Whether `next`, which follows, is more of the same.
    fn continues(&self, next: &Status) -> bool {
        let this = &self.status;
        let same = |a: &Status| (a.kind, a.depth, a.present, a.offset.is_some(), a.is_compressed);
        same(this) == same(next)
            && this.offset.is_none_or(|offset| next.offset == Some(offset + this.len))
    }
}

/// Prints it.
pub fn run(options: &MapOptions, out: &mut dyn Write) -> std::result::Result<Code, Failure> {
    let image = options.image.open_to_look()?;
    let session = Session::new()?;
    let node = session.attach(&image)?;
    let files = names(&image);
    let end = match options.max_len {
        Some(len) => options.start.saturating_add(len).min(image.disk_bytes()),
        None => image.disk_bytes(),
    };
    if options.output == Output::Human {
        writeln!(out, "{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to")?;
    }
    let mut at = options.start;
    let mut entry: Option<Entry> = None;
    let mut printer = Printer { options, files: &files, is_first: true, out };
    while at < end {
        for found in find(&session, &node, at, end)? {
            at += found.len;
            match &mut entry {
                Some(last) if last.continues(&found) => last.status.len += found.len,
                last => {
                    let before = last.replace(Entry { start: at - found.len, status: found });
                    before.map_or(Ok(()), |entry| printer.print(&entry))?;
                }
            }
        }
    }
    // QEMU prints one entry even where there is nothing.
    let nothing = Status {
        kind: Kind::Unallocated,
        len: 0,
        depth: 0,
        present: false,
        offset: None,
        is_compressed: false,
    };
    printer.print(&entry.unwrap_or(Entry { start: options.start, status: nothing }))?;
    if options.output == Output::Json {
        writeln!(out, "]")?;
    }
    Ok(0)
}

/// The files that the data of a chain is in, the topmost first.
fn names(image: &Image) -> Vec<String> {
    let chain = std::iter::successors(Some(image), |image| image.backing());
    let data_of = |image: &Image| image.data_file().map_or(image.path(), Image::path).to_owned();
    chain.map(|image| escape(&shown(&data_of(image)))).collect()
}

/// Some runs from `at` on.
fn find(session: &Session, node: &Rc<BlockNode>, at: u64, end: u64) -> Result<Vec<Status>> {
    let node = node.clone();
    session.run(async move {
        let mut found = Vec::new();
        let mut at = at;
        while at < end && found.len() < BATCH {
            let next = status(&node, at, end - at, Depth::All).await?;
            at += next.len;
            found.push(next);
        }
        Ok(found)
    })
}

/// As C's `%#x`: no prefix for 0.
fn hex(n: u64) -> String {
    if n == 0 { "0".into() } else { format!("{n:#x}") }
}

struct Printer<'a> {
    options: &'a MapOptions,
    files: &'a [String],
    is_first: bool,
    out: &'a mut dyn Write,
}

impl Printer<'_> {
    fn print(&mut self, entry: &Entry) -> std::result::Result<(), Failure> {
        let status = &entry.status;
        let (len, is_data) = (status.len, status.kind == Kind::Data);
        match self.options.output {
            Output::Human => {
                if is_data && status.offset.is_none() {
                    let what = format!(
                        "the data at {:#x} is compressed or encrypted: only --output json has a word for that",
                        entry.start
                    );
                    return Err(Failure::new(what));
                }
                if is_data {
                    let file = self.files.get(status.depth as usize).map_or("", String::as_str);
                    let [at, len, offset] = [entry.start, len, status.offset.unwrap_or(0)].map(hex);
                    writeln!(self.out, "{at:<16}{len:<16}{offset:<16}{file}")?;
                }
            }
            Output::Json => {
                let before = if self.is_first { "[" } else { ",\n" };
                let (start, depth, present) = (entry.start, status.depth, status.present);
                let (zero, compressed) = (status.kind == Kind::Zero, status.is_compressed);
                write!(
                    self.out,
                    "{before}{{ \"start\": {start}, \"length\": {len}, \"depth\": {depth}, \
                     \"present\": {present}, \"zero\": {zero}, \"data\": {is_data}, \
                     \"compressed\": {compressed}"
                )?;
                if let Some(offset) = status.offset {
                    write!(self.out, ", \"offset\": {offset}")?;
                }
                write!(self.out, "}}")?;
            }
        }
        self.is_first = false;
        Ok(())
    }
}
