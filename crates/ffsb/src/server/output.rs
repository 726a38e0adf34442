//! What a child process says: whether it is ready, and its last line, which is why it failed.

use std::io::{BufRead, BufReader, Read};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Bytes of a line that are kept.
const LINE_MAX: usize = 500;

#[derive(Debug, Default)]
struct Said {
    ready: bool,
    /// Lines on standard output.
    lines: u64,
    last: String,
}

/// The collected output of a child. Its pipes are read to their end, so that it never finds one full.
#[derive(Debug)]
pub(crate) struct Output {
    said: Arc<Mutex<Said>>,
    readers: Vec<JoinHandle<()>>,
}

impl Output {
    /// Collects what comes through the child's pipes. A line of standard output that begins with `ready:` means that it is.
    pub fn collect(child: &mut Child) -> Output {
        let said = Arc::new(Mutex::new(Said::default()));
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            readers.push(read_lines(stdout, Arc::clone(&said), true));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.push(read_lines(stderr, Arc::clone(&said), false));
        }
        Output { said, readers }
    }

    /// The ready line has come.
    pub fn is_ready(&self) -> bool {
        lock(&self.said).ready
    }

    /// Lines on standard output so far.
    pub fn lines(&self) -> u64 {
        lock(&self.said).lines
    }

    /// The pipes are closed: the child has ended.
    pub fn has_ended(&self) -> bool {
        self.readers.iter().all(JoinHandle::is_finished)
    }

    /// `: ` and the last line so far, or nothing.
    pub fn last_words(&self) -> String {
        match lock(&self.said).last.as_str() {
            "" => String::new(),
            last => format!(": {last}"),
        }
    }

    /// As [`Output::last_words`], of a child that has ended: everything it said is in.
    pub fn final_words(&mut self) -> String {
        for reader in self.readers.drain(..) {
            // A reader that panicked has nothing to add.
            let _ = reader.join();
        }
        self.last_words()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a pipe of a child process is read by a thread of its own"
)]
fn read_lines(
    pipe: impl Read + Send + 'static,
    said: Arc<Mutex<Said>>,
    tells_ready: bool,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while next_line(&mut pipe, &mut line) {
            let text = String::from_utf8_lossy(&line);
            let text = text.trim();
            let mut said = lock(&said);
            if tells_ready {
                said.lines += 1;
                said.ready |= text.starts_with("ready:");
            } else if !text.is_empty() {
                text.clone_into(&mut said.last);
            }
        }
    })
}

/// Reads a line, of which the beginning is kept; false at the end.
fn next_line(pipe: &mut impl BufRead, line: &mut Vec<u8>) -> bool {
    line.clear();
    loop {
        let Ok(some) = pipe.fill_buf() else { return false };
        let end = some.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(some.len(), |end| end + 1);
        if taken == 0 {
            return !line.is_empty();
        }
        let room = LINE_MAX.saturating_sub(line.len());
        line.extend(some.iter().take(taken.min(room)));
        pipe.consume(taken);
        if end.is_some() {
            return true;
        }
    }
}

fn lock(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_and_the_last_one_needs_no_end() {
        let long = "x".repeat(3 * LINE_MAX);
        let text = format!("one\n{long}\n\nlast");
        let mut pipe = BufReader::with_capacity(7, text.as_bytes());
        let mut lines = Vec::new();
        let mut line = Vec::new();
        while next_line(&mut pipe, &mut line) {
            lines.push(String::from_utf8(line.clone()).unwrap().trim_end().to_owned());
        }
        assert_eq!(lines, ["one", &long[..LINE_MAX], "", "last"]);
    }
}
