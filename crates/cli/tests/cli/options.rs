//! Arguments that are wrong in themselves: exit code 2, and nothing was touched.

use crate::common::Scratch;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

#[test]
fn numbers_out_of_range_are_refused() {
    let scratch = Scratch::with_image();
    for (option, values) in [
        ("--queues", &["0", "257", "65536", "-1", "x", "", "1.5", "18446744073709551617"][..]),
        ("--queue-size", &["0", "1", "3", "2048", "65536", "-2", "x", ""]),
        ("--iothreads", &["0", "65", "-1", "x", ""]),
        ("--poll-max-us", &["1000001", "-1", "x", ""]),
    ] {
        for value in values {
            scratch.refuses(&["serve", "a.raw", &format!("{option}={value}")], 2, &[option]);
        }
    }
}

#[test]
fn the_largest_numbers_are_served() {
    let scratch = Scratch::with_image();
    let args = ["--queues", "256", "--queue-size", "1024", "--iothreads", "64"];
    scratch.serve(&[&["a.raw"][..], &args].concat()).stop();
}

#[test]
fn words_that_name_nothing_are_refused() {
    let scratch = Scratch::with_image();
    for (option, value) in [
        ("--format", "qcow3"),
        ("--format", "RAW"),
        ("--cache", "fast"),
        ("--cache", ""),
        ("--aio", "uring"),
        ("--discard", "on"),
        ("--detect-zeroes", "yes"),
        ("--serial", "a serial of 21 bytes."),
    ] {
        scratch.refuses(&["serve", "a.raw", option, value], 2, &[option]);
    }
    scratch.refuses(&["serve", "a.raw", "--nonsense"], 2, &["--nonsense"]);
    scratch.refuses(&["serve", "a.raw", "b.raw"], 2, &["b.raw"]);
    scratch.refuses(&["serve"], 2, &["<IMAGE>"]);
    scratch.refuses(&["sreve", "a.raw"], 2, &["sreve"]);
}

#[test]
fn bad_sizes_create_nothing() {
    let scratch = Scratch::new();
    let bad = ["1e3", "-1", "1.5G", "8EiB", "0x10", "", "1M ", " 1M", "G", "1GB", "8E"];
    for size in bad {
        scratch.refuses(&["serve", "a.raw", &format!("--create={size}")], 2, &["--create"]);
    }
    // A size in itself, but not one of whole sectors that a file can have: found only when tried.
    let size = ["serve", "a.raw", "--create", "9223372036854775807"];
    scratch.refuses(&size, 1, &["creating a.raw"]);
}

#[test]
fn options_that_exclude_each_other_are_refused() {
    let scratch = Scratch::new();
    let args = ["serve", "a.raw", "--create", "1M", "--read-only"];
    scratch.refuses(&args, 2, &["--create", "--read-only"]);
}

#[test]
fn whatever_a_name_holds_the_complaint_is_one_line() {
    let scratch = Scratch::new();
    for name in ["a\nferroblk: b", "\n\n", "a\r\u{1b}[2Jb", "\u{7f}\u{85}", "a\tb.raw", "-"] {
        scratch.refuses(&["serve", "--", name], 1, &["opening "]);
        scratch.refuses(&["serve", "-f", "raw", "--", name], 1, &["opening ", "No such file"]);
        for option in ["--queues", "--queue-size", "--serial", "--create", "--aio", "--cache"] {
            let value = format!("{option}={}", name.repeat(21));
            scratch.refuses(&["serve", "x.raw", &value], 2, &[option]);
        }
        scratch.refuses(&["man", "--", name], 1, &["no command"]);
        let socket = format!("--vhost-user-blk={name}/x.sock");
        scratch.refuses(&["serve", "x.raw", &socket], 1, &["No such file"]);
    }
    scratch.refuses(&["serve", "a\nb.raw"], 1, &[r"a\nb.raw"]);
    scratch.refuses(&["a\nb"], 2, &[r"a\nb"]);
    scratch.refuses(&["serve", "x.raw", "--a\nb"], 2, &[r"--a\nb"]);
}

#[test]
fn names_that_are_not_utf8_are_names_and_texts_that_are_not_are_refused() {
    let scratch = Scratch::new();
    let odd = OsStr::from_bytes(b"\xff\xfe.raw");
    let serve = [OsStr::new("serve"), odd];
    let line = scratch.refused(scratch.ferroblk(&serve), 1);
    assert!(line.contains("No such file"), "{line}");
    let serial = [OsStr::new("serve"), OsStr::new("a.raw"), OsStr::new("--serial"), odd];
    scratch.refused(scratch.ferroblk(&serial), 2);
    // It makes and serves such a file, too.
    let mut command = scratch.ferroblk(&serve);
    command.args(["--create", "1M"]);
    let socket = scratch.dir().join(OsStr::from_bytes(b"\xff\xfe.raw.sock"));
    let server = crate::common::Server::start(command, socket);
    assert!(server.socket.exists());
    server.stop();
    assert!(scratch.dir().join(odd).exists());
}

#[test]
fn an_empty_name_is_refused() {
    let scratch = Scratch::with_image();
    scratch.refuses(&["serve", "", "-f", "raw"], 2, &["<IMAGE>"]);
    scratch.refuses(&["serve", "a.raw", "--vhost-user-blk", ""], 2, &["--vhost-user-blk"]);
}

#[test]
fn options_that_a_format_cannot_have_are_refused() {
    let scratch = Scratch::with_image();
    let words = ["opening a.raw", "only a qcow2 image"];
    scratch.refuses(&["serve", "a.raw", "--discard-no-unref"], 1, &words);
    let words = ["opening a.raw", "only an image with tables"];
    scratch.refuses(&["serve", "a.raw", "--l2-cache-size", "1M"], 1, &words);
    let args = ["serve", "b.qed", "--create", "1M", "--discard-no-unref"];
    scratch.refuses(&args, 1, &["opening b.qed", "only a qcow2 image"]);
    scratch.refuses(&["serve", "b.qed", "--l2-cache-size", "x"], 2, &["--l2-cache-size"]);
}
