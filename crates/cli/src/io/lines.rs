//! Commands from standard input: on a terminal with editing, history and names completed by the tab key.
//!
//! ```text
//!   main thread: ask --> the reader's thread reads one line --> main thread, which did I/O meanwhile
//! ```
//!
//! A line is read only when it is asked for: what is typed while a command runs is not echoed in the middle of its output.

use block::Error;
use img::Failure;
use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::Validator;
use rustyline::{Config, Context, Editor, Helper};
use std::io::{BufRead, IsTerminal, Read, Write};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

/// Longer lines end the input: nobody has typed them.
const LINE_MAX: u64 = 1 << 20;

/// Lines that somebody else reads.
#[derive(Debug)]
pub struct Lines {
    asked: Sender<()>,
    read: Receiver<Option<String>>,
    /// Printed before each line that does not come from a terminal, as `qemu-io` does it.
    prompt: Option<&'static str>,
}

impl Lines {
    /// Starts the reader. `names` are completed.
    pub fn start(prompt: &'static str, names: Vec<&'static str>) -> Result<Lines, Failure> {
        let (asked, asks) = channel();
        let (send, read) = channel();
        let is_terminal = std::io::stdin().is_terminal();
        let work = move || match is_terminal {
            true => read_terminal(prompt, names, &asks, &send),
            false => read_input(&asks, &send),
        };
        let thread = std::thread::Builder::new().name("input".into());
        #[expect(clippy::disallowed_methods, reason = "a tool's, which waits for its user")]
        let started = thread.spawn(work);
        started.map_err(|error| Failure::from(Error::io("starting a thread", error)))?;
        Ok(Lines { asked, read, prompt: (!is_terminal).then_some(prompt) })
    }

    /// Asks for one line.
    pub fn ask(&self) {
        if let Some(prompt) = self.prompt {
            let mut out = std::io::stdout();
            let _ = out.write_all(prompt.as_bytes()).and_then(|()| out.flush());
        }
        // A reader that is gone says so when it is waited for.
        let _ = self.asked.send(());
    }

    /// Waits for the line; `None` at the end of the input.
    pub fn wait(&self) -> Option<String> {
        self.read.recv().ok().flatten()
    }

    /// The line, if it is there already.
    pub fn poll(&self) -> Option<Option<String>> {
        match self.read.try_recv() {
            Ok(line) => Some(line),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(None),
        }
    }
}

fn read_input(asks: &Receiver<()>, send: &Sender<Option<String>>) {
    let mut input = std::io::stdin().lock();
    while asks.recv().is_ok() {
        let mut line = Vec::new();
        let read = input.by_ref().take(LINE_MAX).read_until(b'\n', &mut line);
        let is_line = matches!(read, Ok(bytes) if bytes > 0)
            && (line.ends_with(b"\n") || (line.len() as u64) < LINE_MAX);
        let line = is_line.then(|| {
            let line = line.strip_suffix(b"\n").unwrap_or(&line);
            String::from_utf8_lossy(line).into_owned()
        });
        if send.send(line).is_err() {
            return;
        }
    }
}

fn read_terminal(
    prompt: &str,
    names: Vec<&'static str>,
    asks: &Receiver<()>,
    send: &Sender<Option<String>>,
) {
    let config = Config::builder().auto_add_history(true).build();
    let editor = Editor::<Names, MemHistory>::with_history(config, MemHistory::new());
    let Ok(mut editor) = editor else {
        // Not even a terminal's simplest commands: it is read as a file is.
        return read_input(asks, send);
    };
    editor.set_helper(Some(Names(names)));
    while asks.recv().is_ok() {
        // An error is the end of the input, or Ctrl-C, which ends the program as anywhere.
        let line = editor.readline(prompt).ok();
        if send.send(line).is_err() {
            return;
        }
    }
}

/// Names of commands, completed where a line begins.
#[derive(Debug)]
struct Names(Vec<&'static str>);

impl Names {
    fn matching(&self, typed: &str) -> Vec<String> {
        let found = self.0.iter().filter(|name| name.starts_with(typed));
        found.map(|name| (*name).to_owned()).collect()
    }
}

impl Completer for Names {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        Ok((0, self.matching(line.get(..at).unwrap_or(line))))
    }
}

impl Helper for Names {}
impl Highlighter for Names {}
impl Validator for Names {}
impl Hinter for Names {
    type Hint = String;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_completed_and_nothing_behind_it() {
        let names = Names(img::io::Shell::names().collect());
        assert_eq!(names.matching("write"), ["write", "writev"]);
        assert!(names.matching("write 0").is_empty());
    }
}
