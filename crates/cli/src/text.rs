//! Text for people: what is one line stays one line, whatever a file is called.
//!
//! File names, sockets and the messages of others may hold anything. A newline in one would make a line that we never
//! wrote, an escape sequence would write on the terminal, a mark of writing direction would show a name backwards.

pub use img::escape;
use std::io::{self, Write};

/// Where log lines go: stderr, each escaped as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Log;

impl Write for Log {
    /// Takes one line: the log hands over whole ones.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        // A log that cannot be written must not end the disk.
        let _ = writeln!(io::stderr(), "{}", escape(text));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
