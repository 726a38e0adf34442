//! `ferroblk io`: commands that read, write and look at an image, one by one: what `qemu-io` does, in its words and with its exit codes.
//!
//! ```text
//!   a line --words--> Command (table) --run--> Disk: any range of bytes --> BlockNode
//!                        |                        |
//!                        |                        `-- aio_*: a task of its own, which prints when it has ended
//!                        `-- what it prints: Printer, shared with those tasks
//! ```
//!
//! What a command prints on success, and where it is called wrongly, is `qemu-io`'s to the letter, as scripts compare it; what explains a command
//! (`help write`) is our own. Errors of the host are told by their numbers' words; errors that no number tells get one more line on stderr.
//!
//! Invariants:
//!
//! - a command that fails changes the exit code, and stops none that follow;
//! - no request is under way when an image is closed, reopened or gets another size;
//! - no range reaches an image before it is known to lie on its disk, and no memory is taken for one that does not.

mod aio;
mod args;
mod buffer;
mod disk;
mod files;
mod guide;
mod look;
mod others;
mod printer;
mod report;
mod table;
#[cfg(test)]
mod tests;
mod transfer;

use crate::{Secrets, Session, escape};
use args::{BadOption, NotANumber};
use block::{BackingFiles, Error, Result as BlockResult};
use disk::Disk;
pub use disk::OpenArgs;
pub use files::{discard_named, engine_named};
use io_engine::EngineKind;
pub use printer::Printer;
use std::rc::Rc;
use table::{Command, Needs};

/// Bytes of one request at most: whole sectors, and a number that fits 32 bits with a sign.
const REQUEST_MAX: u64 = 2_147_483_136;

/// How the I/O of requests goes on while somebody waits for something else: in turns of so many nanoseconds.
const TURN_NS: u64 = 5_000_000;

/// What is to be done after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// The next one, whether it could be done or not.
    Command,
    /// Nothing: it was the last one.
    Quit,
    /// This process gets a signal.
    Signal(i32),
    /// This process aborts.
    Abort,
}

/// Why a command did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// It has said why.
    Failed,
    /// It was not to.
    Next(Next),
}

/// A command as it was called.
#[derive(Debug)]
struct Call<'a> {
    command: &'static Command,
    /// What follows its name.
    words: &'a [&'a str],
}

/// How a [`Shell`] is set up.
#[derive(Debug)]
pub struct ShellOptions {
    /// The name at the start of complaints.
    pub name: String,
    /// What may open images.
    pub secrets: Secrets,
    /// Whether the files are opened that images name.
    pub backing_files: BackingFiles,
    /// Memory of requests begins this far from where it should.
    pub misaligned: bool,
}

/// What commands are given to.
#[derive(Debug)]
pub struct Shell {
    options: ShellOptions,
    session: Session,
    engine: Option<EngineKind>,
    disk: Option<Rc<Disk>>,
    pending: Rc<aio::Pending>,
    printer: Rc<Printer>,
    has_failed: bool,
}

impl Shell {
    /// One without an image.
    ///
    /// # Errors
    ///
    /// The host's, if no I/O can be done at all.
    pub fn new(options: ShellOptions, printer: Printer) -> BlockResult<Shell> {
        Ok(Shell {
            options,
            session: Session::new()?,
            engine: None,
            disk: None,
            pending: Rc::default(),
            printer: Rc::new(printer),
            has_failed: false,
        })
    }

    /// The names of all commands.
    pub fn names() -> impl Iterator<Item = &'static str> {
        table::COMMANDS.iter().map(|command| command.name)
    }

    /// Opens an image, if none is open. Says why, if it cannot; tells whether it could.
    pub fn open(&mut self, args: OpenArgs) -> bool {
        let is_open = files::open_image(self, args).is_ok();
        self.has_failed |= !is_open;
        is_open
    }

    /// Does what a line says.
    pub fn run(&mut self, line: &str) -> Next {
        let words = args::words(line);
        let [name, words @ ..] = words.as_slice() else { return Next::Command };
        let done = match table::find(name) {
            Some(command) => self.call(&Call { command, words }, name),
            None => Err(self.complain(&format!("command \"{name}\" not found"))),
        };
        match done {
            Ok(()) => Next::Command,
            Err(Stop::Next(next)) => next,
            Err(Stop::Failed) => {
                self.has_failed = true;
                Next::Command
            }
        }
    }

    fn call(&mut self, call: &Call<'_>, name: &str) -> Result<(), Stop> {
        let command = call.command;
        if command.needs != Needs::Nothing && self.disk.is_none() {
            return Err(self.complain("no file open, try 'help open'"));
        }
        let (count, (min, max)) = (call.words.len(), command.words);
        if count < min || max.is_some_and(|max| count > max) {
            let expected = match max {
                None => format!("at least {min}"),
                Some(max) if max == min => min.to_string(),
                Some(max) => format!("between {min} and {max}"),
            };
            let what =
                format!("bad argument count {count} to {name}, expected {expected} arguments");
            return Err(self.complain(&what));
        }
        let is_read_only = self.disk.as_ref().is_some_and(|disk| disk.args.read_only);
        if command.needs == Needs::Writable && is_read_only {
            return Err(self.complain_named("Block node is read-only"));
        }
        (command.run)(self, call)
    }

    /// Whether requests run in the background.
    pub fn is_busy(&self) -> bool {
        self.pending.is_busy()
    }

    /// Lets requests in the background go on for a few milliseconds.
    pub fn breathe(&mut self) {
        let context = self.session.context().clone();
        let until = context.now_ns() + TURN_NS;
        let turn = self.session.run(async move {
            context.sleep_until(until).await;
            Ok(())
        });
        if let Err(error) = turn {
            self.fail_with(&error);
        }
    }

    /// Ends all requests and closes the image. Whether all commands could be done.
    pub fn finish(&mut self) -> bool {
        if files::close_image(self).is_err() {
            self.has_failed = true;
        }
        if let Some(error) = self.printer.failed() {
            self.printer.complain(&format!("{}: printing: {error}", self.options.name));
            self.has_failed = true;
        }
        !self.has_failed
    }

    /// Waits for the requests in the background.
    fn drain(&mut self) -> Result<(), Stop> {
        let (context, pending) = (self.session.context().clone(), self.pending.clone());
        let done = self.session.run(async move {
            pending.wait(&context).await;
            Ok(())
        });
        done.map_err(|error| self.fail_with(&error))
    }

    /// The open image.
    fn disk(&self) -> Rc<Disk> {
        self.disk.clone().expect("commands that need an image are not called without one")
    }

    /// Prints text.
    fn say(&self, text: &str) {
        self.printer.say(text);
    }

    /// Prints a line, and fails.
    fn refuse(&self, line: &str) -> Stop {
        self.say(&format!("{}\n", escape(line)));
        Stop::Failed
    }

    /// Prints a line on stderr, and fails.
    fn complain(&self, line: &str) -> Stop {
        self.printer.complain(line);
        Stop::Failed
    }

    /// As [`Shell::complain`], with the program's name before it.
    fn complain_named(&self, line: &str) -> Stop {
        self.complain(&format!("{}: {line}", self.options.name))
    }

    /// Tells the whole story of an error on stderr, and fails.
    fn fail_with(&self, error: &Error) -> Stop {
        self.complain_named(&printer::story(error))
    }

    /// Prints how a command is called, and fails.
    fn usage(&self, call: &Call<'_>) -> Stop {
        self.say(&call.command.usage());
        Stop::Failed
    }

    /// A size in bytes.
    fn number(&self, text: &str) -> Result<u64, Stop> {
        args::number(text).map_err(|error| {
            let why = match error {
                NotANumber::Invalid => "non-numeric argument, or extraneous/unrecognized suffix",
                NotANumber::TooLarge => "argument too large",
            };
            self.refuse(&format!("Parsing error: {why} -- {text}"))
        })
    }

    /// A byte.
    fn pattern(&self, text: &str) -> Result<u8, Stop> {
        args::pattern(text)
            .ok_or_else(|| self.refuse(&format!("{text} is not a valid pattern byte")))
    }
}

impl<'a> Call<'a> {
    /// Takes the options from the words, and gives each to `take`; what is left are the operands.
    fn options(
        &self,
        shell: &Shell,
        spec: &str,
        mut take: impl FnMut(char, &'a str) -> Result<(), Stop>,
    ) -> Result<Vec<&'a str>, Stop> {
        let parsed = args::options(self.words, spec);
        for (letter, value) in &parsed.options {
            take(*letter, value)?;
        }
        let what = match parsed.bad {
            None => return Ok(parsed.operands),
            Some(BadOption::Unknown(letter)) => format!("invalid option -- '{letter}'"),
            Some(BadOption::NeedsValue(letter)) => {
                format!("option requires an argument -- '{letter}'")
            }
        };
        shell.complain(&format!("{}: {what}", self.command.name));
        Err(shell.usage(self))
    }
}
