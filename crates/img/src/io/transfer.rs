//! `read`, `write`, `readv`, `writev`: one request, waited for.

use super::buffer::Buffer;
use super::disk::{Disk, Zeroes};
use super::report::{Report, dump, errno_text, explain};
use super::{Call, Printer, REQUEST_MAX, Shell, Stop};
use block::{Error, Result as BlockResult, SECTOR};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ops::Range;
use std::rc::Rc;

/// What QEMU writes if it is told nothing.
pub(super) const FILLING: u8 = 0xcd;

/// What becomes of a request that has ended well.
#[derive(Clone, Debug, Default)]
pub(super) struct Showing {
    /// Nothing is told of it.
    pub is_quiet: bool,
    /// In one line.
    pub is_terse: bool,
    /// What was read is shown.
    pub dumps: bool,
    /// What was read must be this byte, in this range of it.
    pub pattern: Option<(u8, Range<u64>)>,
}

/// A request under way.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// Of which disk.
    pub disk: Rc<Disk>,
    pub at: u64,
    pub buffer: Rc<Buffer>,
    pub showing: Showing,
}

impl Request {
    /// Shows what was read, in `ns` nanoseconds. Whether it is what was expected.
    pub fn show_read(&self, printer: &Printer, ns: u64) -> bool {
        let (at, len) = (self.at, self.buffer.len());
        let mut is_right = true;
        if let Some((pattern, range)) = &self.showing.pattern {
            is_right = self.buffer.is_all(range.clone(), *pattern);
            if !is_right {
                let (from, len) = (at + range.start, range.end - range.start);
                printer
                    .say(&format!("Pattern verification failed at offset {from}, {len} bytes\n"));
            }
        }
        if self.showing.dumps && !self.showing.is_quiet {
            self.buffer.all(0..len, |from, piece| {
                printer.say(&dump(piece, at + from));
                true
            });
        }
        self.show("read", len, printer, ns);
        is_right
    }

    /// Reports `len` bytes.
    pub fn show(&self, verb: &'static str, len: u64, printer: &Printer, ns: u64) {
        let is_terse = self.showing.is_terse;
        if !self.showing.is_quiet {
            printer.say(&Report { verb, at: self.at, len, ns, is_terse }.text());
        }
    }
}

/// Tells why a request failed.
pub(super) fn show_failure(printer: &Printer, name: &str, verb: &str, error: &Error) {
    let (why, story) = explain(error);
    printer.say(&format!("{verb} failed: {why}\n"));
    if let Some(story) = story {
        printer.complain(&format!("{name}: {story}"));
    }
}

impl Shell {
    /// Does what a request asks for, tells it if that fails, and how many nanoseconds it took.
    pub(super) fn timed(
        &self,
        verb: &str,
        work: impl Future<Output = BlockResult<()>> + 'static,
    ) -> Result<u64, Stop> {
        let started = self.session.context().now_ns();
        let done = self.session.run(work);
        let ns = self.session.context().now_ns() - started;
        done.map(|()| ns).map_err(|error| {
            show_failure(&self.printer, &self.options.name, verb, &error);
            Stop::Failed
        })
    }

    /// A request of these pieces. No memory is taken for one that does not lie on the disk.
    pub(super) fn request(
        &self,
        verb: &str,
        at: u64,
        lens: &[u64],
        showing: Showing,
    ) -> Result<Request, Stop> {
        let disk = self.disk();
        let misaligned = if self.options.misaligned { 16 } else { 0 };
        let buffer = disk
            .check_range(at, lens.iter().sum())
            .and_then(|()| Buffer::new(at, lens, disk.takes_sectors(), misaligned));
        match buffer {
            Ok(buffer) => Ok(Request { disk, at, buffer: Rc::new(buffer), showing }),
            Err(error) => {
                show_failure(&self.printer, &self.options.name, verb, &error);
                Err(Stop::Failed)
            }
        }
    }

    /// The lengths of a request of several pieces.
    pub(super) fn lengths(&self, words: &[&str]) -> Result<Vec<u64>, Stop> {
        let (mut lens, mut sum) = (Vec::new(), 0);
        for word in words {
            let len = self.number(word)?;
            if len > REQUEST_MAX {
                let what = format!("Argument '{word}' exceeds maximum size {REQUEST_MAX}");
                return Err(self.refuse(&what));
            }
            sum += len;
            if sum > REQUEST_MAX {
                let what =
                    format!("The total number of bytes exceed the maximum size {REQUEST_MAX}");
                return Err(self.refuse(&what));
            }
            lens.push(len);
        }
        Ok(lens)
    }

    /// Refuses what is not made of whole sectors.
    fn check_sectors(&self, at: u64, len: u64) -> Result<(), Stop> {
        for (name, value) in [("offset", at), ("count", len)] {
            if !value.is_multiple_of(SECTOR) {
                let what = format!("{value} is not a sector-aligned value for '{name}'");
                return Err(self.refuse(&what));
            }
        }
        Ok(())
    }

    /// The state of a virtual machine, which qcow2 images have behind their disk, is nothing that we handle.
    fn refuse_vm_state(&self, verb: &str) -> Stop {
        if self.disk().node.qcow2().is_some() {
            self.complain_named("-b: the state of a virtual machine is not supported");
        }
        self.refuse(&format!("{verb} failed: {}", errno_text(Errno::NOTSUP)))
    }

    /// The first bytes of a file, at most `len`.
    fn file_pattern(&self, path: &str, len: u64) -> Result<Vec<u8>, Stop> {
        let failed = |error: Errno| self.complain(&format!("{path}: {}", errno_text(error)));
        let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let file = file.map_err(failed)?;
        let (mut bytes, mut piece) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            let left = len - bytes.len() as u64;
            let take = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
            match rustix::io::read(&file, &mut piece[..take]) {
                Ok(0) if bytes.is_empty() => {
                    return Err(self.complain(&format!("{path}: file is empty")));
                }
                Ok(0) => return Ok(bytes),
                Ok(got) => bytes.extend(&piece[..got]),
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

#[derive(Debug, Default)]
struct ReadOptions<'a> {
    showing: Showing,
    pattern: Option<u8>,
    pattern_len: Option<u64>,
    pattern_start: Option<u64>,
    vm_state: bool,
    registered: bool,
    operands: Vec<&'a str>,
}

impl<'a> ReadOptions<'a> {
    fn parse(shell: &Shell, call: &Call<'a>, spec: &str) -> Result<ReadOptions<'a>, Stop> {
        let mut said = ReadOptions::default();
        let operands = call.options(shell, spec, |letter, value| {
            match letter {
                'b' => said.vm_state = true,
                'C' => said.showing.is_terse = true,
                'l' => said.pattern_len = Some(shell.number(value)?),
                'P' => said.pattern = Some(shell.pattern(value)?),
                'q' => said.showing.is_quiet = true,
                'r' => said.registered = true,
                's' => said.pattern_start = Some(shell.number(value)?),
                'v' => said.showing.dumps = true,
                // -p has no meaning any more.
                _ => {}
            }
            Ok(())
        })?;
        said.operands = operands;
        Ok(said)
    }
}

/// `read`.
pub(super) fn read(shell: &mut Shell, call: &Call<'_>) -> Result<(), Stop> {
    let mut said = ReadOptions::parse(shell, call, "bCl:pP:qrs:v")?;
    let [at, len_text] = said.operands[..] else { return Err(shell.usage(call)) };
    let at = shell.number(at)?;
    let len = shell.number(len_text)?;
    if len > REQUEST_MAX {
        let what = format!("length cannot exceed {REQUEST_MAX}, given {len_text}");
        return Err(shell.refuse(&what));
    }
    if said.pattern.is_none() && (said.pattern_len.is_some() || said.pattern_start.is_some()) {
        return Err(shell.usage(call));
    }
    let start = said.pattern_start.unwrap_or(0);
    let end = said.pattern_len.map_or(Some(len), |pattern_len| start.checked_add(pattern_len));
    let Some(end) = end.filter(|end| start <= *end && *end <= len) else {
        return Err(shell.refuse("pattern verification range exceeds end of read data"));
    };
    said.showing.pattern = said.pattern.map(|pattern| (pattern, start..end));
    if said.vm_state {
        shell.check_sectors(at, len)?;
        if said.registered {
            let what = "I/O buffer registration is not supported when reading from vmstate";
            return Err(shell.refuse(what));
        }
        return Err(shell.refuse_vm_state("read"));
    }
    read_now(shell, "read", at, &[len], said.showing)
}

/// `readv`.
pub(super) fn readv(shell: &mut Shell, call: &Call<'_>) -> Result<(), Stop> {
    let mut said = ReadOptions::parse(shell, call, "CP:qrv")?;
    let [at, lens @ ..] = said.operands.as_slice() else { return Err(shell.usage(call)) };
    if lens.is_empty() {
        return Err(shell.usage(call));
    }
    let at = shell.number(at)?;
    let lens = shell.lengths(lens)?;
    said.showing.pattern = said.pattern.map(|pattern| (pattern, 0..lens.iter().sum()));
    read_now(shell, "readv", at, &lens, said.showing)
}

fn read_now(
    shell: &Shell,
    verb: &str,
    at: u64,
    lens: &[u64],
    showing: Showing,
) -> Result<(), Stop> {
    let request = shell.request(verb, at, lens, showing)?;
    let work = request.clone();
    let ns = shell.timed(verb, async move { work.disk.read(work.at, &work.buffer).await })?;
    match request.show_read(&shell.printer, ns) {
        true => Ok(()),
        false => Err(Stop::Failed),
    }
}

#[derive(Debug, Default)]
struct WriteOptions<'a> {
    showing: Showing,
    vm_state: bool,
    compressed: bool,
    zeroes: bool,
    how: Zeroes,
    registered: bool,
    pattern: Option<u8>,
    file: Option<&'a str>,
}

impl<'a> WriteOptions<'a> {
    fn parse(
        shell: &Shell,
        call: &Call<'a>,
        spec: &str,
    ) -> Result<(WriteOptions<'a>, Vec<&'a str>), Stop> {
        let mut said = WriteOptions::default();
        let operands = call.options(shell, spec, |letter, value| {
            match letter {
                'b' => said.vm_state = true,
                'c' => said.compressed = true,
                'C' => said.showing.is_terse = true,
                'f' => said.how.fua = true,
                'n' => said.how.no_fallback = true,
                'P' => said.pattern = Some(shell.pattern(value)?),
                'q' => said.showing.is_quiet = true,
                'r' => said.registered = true,
                's' => said.file = Some(value),
                'u' => said.how.unmap = true,
                'z' => said.zeroes = true,
                // -p has no meaning any more.
                _ => {}
            }
            Ok(())
        })?;
        Ok((said, operands))
    }

    /// What does not go together, in the words for it.
    fn contradiction(&self) -> Option<&'static str> {
        let sources = [self.zeroes, self.pattern.is_some(), self.file.is_some()];
        let is_plain = !self.vm_state && !self.compressed;
        let rules = [
            (self.vm_state && self.zeroes, "-b and -z cannot be specified at the same time"),
            (self.how.fua && !is_plain, "-f and -b or -c cannot be specified at the same time"),
            (self.how.no_fallback && !self.zeroes, "-n requires -z to be specified"),
            (self.how.unmap && !self.zeroes, "-u requires -z to be specified"),
            (
                self.zeroes && self.registered,
                "cannot combine zero write with registered I/O buffer",
            ),
            (
                sources.iter().filter(|is_said| **is_said).count() > 1,
                "Only one of -z, -P, and -s can be specified at the same time",
            ),
        ];
        rules.iter().find(|(is_broken, _)| *is_broken).map(|(_, words)| *words)
    }
}

/// `write`.
pub(super) fn write(shell: &mut Shell, call: &Call<'_>) -> Result<(), Stop> {
    let (said, operands) = WriteOptions::parse(shell, call, "bcCfnpP:qrs:uz")?;
    let [at, len_text] = operands[..] else { return Err(shell.usage(call)) };
    if let Some(words) = said.contradiction() {
        return Err(shell.refuse(words));
    }
    let at = shell.number(at)?;
    let len = shell.number(len_text)?;
    if len > REQUEST_MAX && !said.how.no_fallback {
        let what = format!("length cannot exceed {REQUEST_MAX} without -n, given {len_text}");
        return Err(shell.refuse(&what));
    }
    if said.vm_state || said.compressed {
        shell.check_sectors(at, len)?;
    }
    if said.vm_state {
        return Err(shell.refuse_vm_state("write"));
    }
    let data = match said.file {
        Some(path) => shell.file_pattern(path, len)?,
        None => vec![said.pattern.unwrap_or(FILLING)],
    };
    // Zeroes need no memory, and so their range is looked at here.
    let in_memory = if said.zeroes { 0 } else { len };
    shell.disk().check_range(at, len).map_err(|error| {
        show_failure(&shell.printer, &shell.options.name, "write", &error);
        Stop::Failed
    })?;
    let request = shell.request("write", at, &[in_memory], said.showing.clone())?;
    request.buffer.fill(&data);
    let (work, how) = (request.clone(), said.how);
    let ns =
        match (said.zeroes, said.compressed) {
            (true, _) => {
                shell.timed("write", async move { work.disk.write_zeroes(at, len, how).await })
            }
            (false, true) => shell
                .timed("write", async move { work.disk.write_compressed(at, &work.buffer).await }),
            (false, false) => shell
                .timed("write", async move { work.disk.write(at, &work.buffer, how.fua).await }),
        }?;
    request.show("wrote", len, &shell.printer, ns);
    Ok(())
}

/// `writev`.
pub(super) fn writev(shell: &mut Shell, call: &Call<'_>) -> Result<(), Stop> {
    let (said, operands) = WriteOptions::parse(shell, call, "CfqrP:")?;
    let [at, lens @ ..] = operands.as_slice() else { return Err(shell.usage(call)) };
    if lens.is_empty() {
        return Err(shell.usage(call));
    }
    let at = shell.number(at)?;
    let lens = shell.lengths(lens)?;
    let request = shell.request("writev", at, &lens, said.showing)?;
    request.buffer.fill(&[said.pattern.unwrap_or(FILLING)]);
    let (work, fua) = (request.clone(), said.how.fua);
    let ns = shell.timed("writev", async move { work.disk.write(at, &work.buffer, fua).await })?;
    request.show("wrote", request.buffer.len(), &shell.printer, ns);
    Ok(())
}
