//! Text for people: what is one line stays one line, whatever a file is called.
//!
//! File names, sockets and the messages of others may hold anything. A newline in one would make a line that we never
//! wrote, an escape sequence would write on the terminal, a mark of writing direction would show a name backwards.

use std::io::{self, Write};

/// `text` with every character escaped that does not simply show itself.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // Line and paragraph separators, and what turns the direction of writing round.
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.extend(c.escape_default());
            }
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

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

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn nothing_leaves_its_line_and_letters_stay() {
        assert_eq!(escape("a b'c\"d\\e é 漢字 🦀"), "a b'c\"d\\e é 漢字 🦀");
        assert_eq!(escape("a\nb\r\t\u{1b}[31m\0\u{7f}"), r"a\nb\r\t\u{1b}[31m\u{0}\u{7f}");
        assert_eq!(escape("\u{85}\u{2028}\u{202e}x"), r"\u{85}\u{2028}\u{202e}x");
    }
}
