//! The shell as its callers use it, on images of all formats.
#![allow(clippy::disallowed_methods, reason = "a test has files of its own")]

use super::*;
use crate::{ImageArgs, OptionList, create};
use block::Format;
use std::cell::RefCell;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

const FORMATS: [Format; 3] = [Format::Raw, Format::Qed, Format::Qcow2];

/// An output that is looked at.
#[derive(Clone, Default)]
struct Seen(Rc<RefCell<Vec<u8>>>);

impl Write for Seen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One that is closed at its other end.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Test {
    dir: tempfile::TempDir,
    shell: Shell,
    out: Seen,
    err: Seen,
}

impl Test {
    fn new() -> Test {
        Test::with(false)
    }

    fn with(misaligned: bool) -> Test {
        let (out, err) = (Seen::default(), Seen::default());
        let options = ShellOptions {
            name: "qemu-io".into(),
            secrets: Secrets::default(),
            backing_files: BackingFiles::Refuse,
            misaligned,
        };
        let shell = Shell::new(options, Printer::new(out.clone(), err.clone())).unwrap();
        Test { dir: tempfile::tempdir().unwrap(), shell, out, err }
    }

    /// A new image of 1 MiB.
    fn image(&self, format: Format) -> PathBuf {
        let new = create::NewImage {
            path: self.dir.path().join(format!("a.{format}")),
            format,
            options: OptionList::default(),
            backing: None,
            backing_format: None,
            backing_unchecked: false,
            bytes: Some(1 << 20),
            secrets: Secrets::default(),
        };
        create::run(&new, true, &mut io::sink()).unwrap();
        new.path
    }

    fn args(&self, format: Format) -> OpenArgs {
        let path = self.dir.path().join(format!("a.{format}"));
        OpenArgs::new(ImageArgs { format: Some(format), ..ImageArgs::new(path) })
    }

    /// Makes and opens one.
    fn open(&mut self, format: Format) {
        self.image(format);
        let args = self.args(format);
        assert!(self.shell.open(args), "{}", self.said().1);
    }

    /// What was printed since the last time.
    fn said(&self) -> (String, String) {
        let take = |seen: &Seen| String::from_utf8(std::mem::take(&mut *seen.0.borrow_mut()));
        (take(&self.out).unwrap(), take(&self.err).unwrap())
    }

    /// Runs commands that print nothing.
    fn quietly(&mut self, lines: &[&str]) {
        for line in lines {
            assert_eq!(self.shell.run(line), Next::Command, "{line}");
            assert_eq!(self.said(), Default::default(), "{line}");
        }
    }
}

#[test]
fn any_range_of_bytes_is_written_and_read() {
    for (format, misaligned) in FORMATS.into_iter().flat_map(|f| [(f, false), (f, true)]) {
        let mut test = Test::with(misaligned);
        test.open(format);
        test.quietly(&[
            "write -qP 1 0 256k",
            "write -qP 2 100 50",
            "read -qP 1 0 100",
            "read -qP 2 100 50",
            "read -qP 1 150 2k",
            "write -qP 3 131071 2",
            "write -qP 4 511 1",
            "write -qP 5 512 513",
            "read -qP 1 150 361",
            "read -qP 4 511 1",
            "read -qP 5 512 513",
            "read -qP 1 1025 500",
            "write -qz 1000 100k",
            "read -qP 5 512 488",
            "read -qP 0 1000 100k",
            "read -qP 1 103400 100",
            "writev -qP 6 7 1 2 3 0 4k",
            "readv -qP 6 7 4k 1 2 3",
            "write -qz 20 3",
            "read -qP 0 20 3",
            "read -qP 6 23 3",
            "flush",
        ]);
        assert!(test.shell.finish());
        let args = OpenArgs { read_only: true, ..test.args(format) };
        assert!(test.shell.open(args));
        test.quietly(&["read -qP 3 131071 2", "read -qP 0 5000 10", "read -qP 6 7 13"]);
    }
}

#[test]
fn requests_in_the_background_side_by_side_undo_nothing() {
    for format in FORMATS {
        let mut test = Test::new();
        test.open(format);
        // More than there are tasks, many to one sector; and again when all have ended.
        for round in [1, 2] {
            let pattern = |at| (at * round) % 200 + 1;
            for at in 0..300 {
                let line = format!("aio_write -qP {} {} 7", pattern(at), at * 7);
                assert_eq!(test.shell.run(&line), Next::Command);
            }
            assert!(test.shell.is_busy());
            test.quietly(&["aio_flush"]);
            assert!(!test.shell.is_busy());
            for at in 0..300 {
                test.quietly(&[&format!("read -qP {} {} 7", pattern(at), at * 7)]);
            }
        }
    }
}

#[test]
fn a_request_in_the_background_is_told_of_when_it_has_ended() {
    let mut test = Test::new();
    test.open(Format::Qcow2);
    // Submitted, and not more.
    test.quietly(&["aio_write -P 7 0 128k", "aio_read -P 9 512k 512"]);
    while test.shell.is_busy() {
        test.shell.breathe();
    }
    let (out, err) = test.said();
    assert!(out.contains("wrote 131072/131072 bytes at offset 0\n"), "{out}");
    assert!(out.contains("Pattern verification failed at offset 524288, 512 bytes\n"), "{out}");
    assert!(out.contains("read 512/512 bytes at offset 524288\n"), "{out}");
    assert_eq!(err, "");
    assert!(test.shell.finish(), "what fails in the background is no failure of a command");
}

#[test]
fn an_image_is_not_closed_under_requests() {
    for last in ["close", "reopen -r", "truncate 2M"] {
        let mut test = Test::new();
        test.open(Format::Qed);
        test.quietly(&["aio_write -q 0 256k"]);
        assert!(test.shell.is_busy());
        test.quietly(&[last]);
        assert!(!test.shell.is_busy(), "{last}");
        assert!(test.shell.finish());
        assert!(test.shell.open(test.args(Format::Qed)));
        test.quietly(&["read -qP 0xcd 0 256k"]);
    }
}

#[test]
fn an_image_that_cannot_be_reopened_stays_open() {
    let mut test = Test::new();
    test.open(Format::Raw);
    test.quietly(&["write -q 0 512"]);
    // Past the page cache and by threads that need it not: native AIO does.
    assert_eq!(test.shell.run("close"), Next::Command);
    let direct = ImageArgs { cache: block::CacheMode::None, ..test.args(Format::Raw).image };
    let engine = Some(EngineKind::Native);
    assert!(test.shell.open(OpenArgs { engine, ..OpenArgs::new(direct) }));
    assert_eq!(test.shell.run("reopen -c writeback"), Next::Command);
    assert!(test.said().1.contains("native AIO"));
    test.quietly(&["read -qP 0xcd 0 512", "write -qP 1 0 512"]);
    // Another reader keeps writers out.
    let reader = OpenArgs { read_only: true, ..test.args(Format::Raw) };
    test.quietly(&["reopen -r -c none"]);
    let mut other = Test::new();
    assert!(other.shell.open(reader));
    assert_eq!(test.shell.run("reopen -w"), Next::Command);
    assert!(test.said().1.contains("in use"));
    test.quietly(&["read -qP 1 0 512"]);
    other.quietly(&["close"]);
    // Its file is gone: both ways of opening it fail.
    fs::remove_file(test.dir.path().join("a.raw")).unwrap();
    assert_eq!(test.shell.run("reopen -r"), Next::Command);
    let (out, err) = test.said();
    assert!(out.is_empty() && err.starts_with("qemu-io: can't open device"), "{err}");
    assert!(!test.shell.finish());
}

#[test]
fn what_is_written_over_a_snapshot_is_gone() {
    for format in FORMATS {
        let mut test = Test::new();
        test.open(format);
        test.quietly(&["write -qP 1 0 64k", "close"]);
        let before = fs::read(test.dir.path().join(format!("a.{format}"))).unwrap();
        assert!(test.shell.open(OpenArgs { snapshot: true, ..test.args(format) }));
        test.quietly(&["read -qP 1 0 64k", "write -qP 2 100 1k", "read -qP 2 100 1k"]);
        assert_eq!(test.shell.run("reopen -r"), Next::Command);
        assert!(test.said().1.contains("(-s)"));
        test.quietly(&["close"]);
        assert_eq!(fs::read(test.dir.path().join(format!("a.{format}"))).unwrap(), before);
    }
}

#[test]
fn discards_can_be_ignored() {
    let mut test = Test::new();
    test.image(Format::Qcow2);
    let args = test.args(Format::Qcow2);
    assert!(test.shell.open(OpenArgs { discard: block::DiscardMode::Ignore, ..args }));
    test.quietly(&["write -q 0 128k", "discard -q 0 64k", "read -qP 0xcd 0 128k"]);
}

#[test]
fn what_cannot_be_printed_is_a_failure_and_stops_nothing() {
    let test = Test::new();
    test.image(Format::Raw);
    let options = ShellOptions {
        name: "qemu-io".into(),
        secrets: Secrets::default(),
        backing_files: BackingFiles::Refuse,
        misaligned: false,
    };
    let mut shell = Shell::new(options, Printer::new(Closed, test.err.clone())).unwrap();
    assert!(shell.open(test.args(Format::Raw)));
    let _ = shell.run("length");
    let _ = shell.run("write 0 512");
    assert!(!shell.finish());
    assert!(test.said().1.starts_with("qemu-io: printing: "));
    assert_eq!(fs::read(test.dir.path().join("a.raw")).unwrap()[..512], [0xcd; 512]);
}

#[test]
fn what_is_typed_stays_on_its_line() {
    let mut test = Test::new();
    for line in ["\u{1b}[31m\nfoo", "help a\nb", "open -x\n"] {
        let _ = test.shell.run(line);
        let (out, err) = test.said();
        let text = format!("{out}{err}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(text.lines().all(|line| line != "foo" && line != "b"), "{text}");
    }
}

#[test]
fn nothing_that_is_typed_is_too_much() {
    for format in FORMATS {
        let mut test = Test::new();
        test.open(format);
        for line in ["read -q 1048064 513", "write -q 1048064 513", "write -qz 1M 1"] {
            let _ = test.shell.run(line);
            let verb = &line[..line.find(' ').unwrap()];
            assert_eq!(test.said().0, format!("{verb} failed: Input/output error\n"));
        }
        let huge = "9223372036854775807";
        for verb in ["read", "write", "write -z", "write -zn", "write -c", "readv", "writev"] {
            for args in [format!("{huge} 1"), format!("0 {huge}"), format!("{huge} {huge}")] {
                let _ = test.shell.run(&format!("{verb} {args}"));
            }
        }
        for line in ["aio_read", "aio_write", "aio_write -z", "discard", "alloc"] {
            let _ = test.shell.run(&format!("{line} {huge} 512"));
            let _ = test.shell.run(&format!("{line} 512 {huge}"));
        }
        let many = " 1".repeat(5000);
        let _ = test.shell.run(&format!("writev -qP 3 0{many}"));
        let _ = test.shell.run(&format!("truncate {huge}"));
        let _ = test.shell.run(&format!("read -P 1 -s {huge} -l {huge} 0 512"));
        let _ = test.shell.run(&"a".repeat(1 << 20));
        test.said();
        test.quietly(&["aio_flush"]);
        if format != Format::Raw {
            test.quietly(&["read -qP 3 0 5000"]);
        }
        assert!(!test.shell.finish());
    }
}

#[test]
fn whatever_is_typed_the_shell_lives() {
    // No word that waits, and none that takes the host's space.
    let words = "read write readv writev aio_read aio_write aio_flush flush discard alloc map info length close \
        reopen truncate help break zone_append -P -q -v -C -z -u -n -f -c -b -s -l -i -r -w -p -- - -zqu -x 0 1 7 \
        511 512 4k 64k 100k 1M 1048575 3G 8E -1 0x10 .5k 5x none writethrough é \u{1b}";
    let words: Vec<&str> = words.split_whitespace().collect();
    let mut rng = io_engine::Rng::new(7);
    for format in FORMATS {
        let mut test = Test::new();
        test.open(format);
        for n in 0..2000 {
            if n % 40 == 0 {
                // A disk of the first size again, that may be written.
                for line in ["close", "truncate 1M"] {
                    assert!(test.shell.disk.is_some() || test.shell.open(test.args(format)));
                    assert_eq!(test.shell.run(line), Next::Command);
                }
            }
            let mut pick = |from: &[&str]| from[rng.index(from.len())].to_owned();
            // Mostly one that reads or writes, of what may be a range.
            let mut line = pick(&words[..19]);
            for _ in 0..pick(&["0", "0", "1", "2", "4"]).parse::<u32>().unwrap() {
                line = line + " " + &pick(&words);
            }
            line += &pick(&["", " 0 1k", " 511 64k", " 64k 64k", " -P 7 100k 9", " -z 5 100k"]);
            assert_eq!(test.shell.run(&line), Next::Command, "{line}");
            if test.shell.disk.is_none() {
                let args = test.args(format);
                assert!(test.shell.open(args), "{line}: {}", test.said().1);
            }
        }
        let (out, err) = test.said();
        for text in ["wrote ", "read ", "discard ", "Parsing error: ", "Pattern verification"] {
            assert!(out.contains(text), "{text}");
        }
        for text in ["invalid option", "bad argument count"] {
            assert!(err.contains(text), "{text}");
        }
        let _ = test.shell.finish();
        assert!(test.shell.open(test.args(format)), "{}", test.said().1);
    }
}
