//! All commands, and how each is called.

use super::{Call, Shell, Stop, aio, files, look, others, transfer};

/// What a command needs before it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// Nothing.
    Nothing,
    /// An open image.
    Image,
    /// One that may be written.
    Writable,
}

/// A command.
#[derive(Debug)]
pub(super) struct Command {
    pub name: &'static str,
    /// Another name for it.
    pub short: Option<&'static str>,
    /// Words that it may have.
    pub words: (usize, Option<usize>),
    pub needs: Needs,
    /// How it is called.
    pub args: Option<&'static str>,
    /// What it does, in a line.
    pub about: &'static str,
    pub run: fn(&mut Shell, &Call<'_>) -> Result<(), Stop>,
}

impl Command {
    /// The line that says how it is called.
    pub fn usage(&self) -> String {
        match self.args {
            Some(args) => format!("{} {args} -- {}\n", self.name, self.about),
            None => format!("{} -- {}\n", self.name, self.about),
        }
    }
}

/// The command of this name.
pub(super) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name || command.short == Some(name))
}

macro_rules! command {
    ($name:literal $(/ $short:literal)?, $min:literal .. $($max:literal)?, $needs:ident, $args:expr, $about:literal, $run:path) => {
        Command {
            name: $name,
            short: command!(@option $($short)?),
            words: ($min, command!(@option $($max)?)),
            needs: Needs::$needs,
            args: $args,
            about: $about,
            run: $run,
        }
    };
    (@option) => { None };
    (@option $value:literal) => { Some($value) };
}

/// By name.
pub(super) static COMMANDS: &[Command] = &[
    command!(
        "abort",
        0..0,
        Nothing,
        None,
        "simulate a program crash using abort(3)",
        others::abort
    ),
    command!("aio_flush", 0..0, Image, None, "completes all outstanding aio requests", aio::flush),
    command!(
        "aio_read",
        2..,
        Image,
        Some("[-Ciqrv] [-P pattern] off len [len..]"),
        "asynchronously reads a number of bytes",
        aio::read
    ),
    command!(
        "aio_write",
        2..,
        Writable,
        Some("[-Cfiqruz] [-P pattern] off len [len..]"),
        "asynchronously writes a number of bytes",
        aio::write
    ),
    command!(
        "alloc" / "a",
        1..2,
        Image,
        Some("offset [count]"),
        "checks if offset is allocated in the file",
        look::alloc
    ),
    command!(
        "break",
        2..2,
        Image,
        Some("event tag"),
        "sets a breakpoint on event and tags the stopped request as tag",
        others::breakpoint
    ),
    command!("close" / "c", 0..0, Image, None, "close the current open file", files::close),
    command!(
        "discard" / "d",
        2..,
        Writable,
        Some("[-Cq] off len"),
        "discards a number of bytes at a specified offset",
        look::discard
    ),
    command!("flush" / "f", 0..0, Image, None, "flush all in-core file state to disk", look::flush),
    command!(
        "help" / "?",
        0..1,
        Nothing,
        Some("[command]"),
        "help for one or all commands",
        others::help
    ),
    command!(
        "info" / "i",
        0..0,
        Image,
        None,
        "prints information about the current file",
        look::info
    ),
    command!(
        "length" / "l",
        0..0,
        Image,
        None,
        "gets the length of the current file",
        look::length
    ),
    command!("map", 0..0, Image, Some(""), "prints the allocated areas of a file", look::map),
    command!(
        "open" / "o",
        1..,
        Nothing,
        Some("[-rsCnkU] [-t cache] [-d discard] [-o options] [path]"),
        "open the file specified by path",
        files::open
    ),
    command!("quit" / "q", 0.., Nothing, None, "exit the program", others::quit),
    command!(
        "read" / "r",
        2..,
        Image,
        Some("[-abCqrv] [-P pattern [-s off] [-l len]] off len"),
        "reads a number of bytes at a specified offset",
        transfer::read
    ),
    command!(
        "readv",
        2..,
        Image,
        Some("[-Cqrv] [-P pattern] off len [len..]"),
        "reads a number of bytes at a specified offset",
        transfer::readv
    ),
    command!(
        "remove_break",
        1..1,
        Image,
        Some("tag"),
        "remove a breakpoint by tag",
        others::breakpoint
    ),
    command!(
        "reopen",
        0..,
        Image,
        Some("[(-r|-w)] [-c cache] [-o options]"),
        "reopens an image with new options",
        files::reopen
    ),
    command!(
        "resume",
        1..1,
        Image,
        Some("tag"),
        "resumes the request tagged as tag",
        others::breakpoint
    ),
    command!("sigraise", 1..1, Nothing, Some("signal"), "raises a signal", others::sigraise),
    command!(
        "sleep",
        1..1,
        Nothing,
        None,
        "waits for the given value in milliseconds",
        others::sleep
    ),
    command!(
        "truncate" / "t",
        1..3,
        Writable,
        Some("[-m prealloc_mode] off"),
        "truncates the current file at the given offset",
        look::truncate
    ),
    command!(
        "wait_break",
        1..1,
        Image,
        Some("tag"),
        "waits for the suspension of a request",
        others::breakpoint
    ),
    command!(
        "write" / "w",
        2..,
        Writable,
        Some("[-bcCfnqruz] [-P pattern | -s source_file] off len"),
        "writes a number of bytes at a specified offset",
        transfer::write
    ),
    command!(
        "writev",
        2..,
        Writable,
        Some("[-Cfqr] [-P pattern] off len [len..]"),
        "writes a number of bytes at a specified offset",
        transfer::writev
    ),
    command!(
        "zone_append",
        3..4,
        Image,
        Some("offset len [len..]"),
        "append write a number of bytes at a specified offset",
        others::zone
    ),
    command!(
        "zone_close",
        2..2,
        Image,
        Some("offset len"),
        "close a range of zones in zone block device",
        others::zone
    ),
    command!(
        "zone_finish",
        2..2,
        Image,
        Some("offset len"),
        "finish a range of zones in zone block device",
        others::zone
    ),
    command!(
        "zone_open",
        2..2,
        Image,
        Some("offset len"),
        "explicit open a range of zones in zone block device",
        others::zone
    ),
    command!(
        "zone_report",
        2..2,
        Image,
        Some("offset number"),
        "report zone information",
        others::zone
    ),
    command!(
        "zone_reset",
        2..2,
        Image,
        Some("offset len"),
        "reset a zone write pointer in zone block device",
        others::zone
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_in_order_and_found_by_both_names() {
        assert!(COMMANDS.is_sorted_by_key(|command| command.name));
        assert_eq!(find("w").unwrap().name, "write");
        assert_eq!(find("?").unwrap().name, "help");
        assert!(find("").is_none() && find("wri").is_none());
        assert_eq!(find("map").unwrap().usage(), "map  -- prints the allocated areas of a file\n");
    }
}
