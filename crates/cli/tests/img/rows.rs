//! Command lines, given to both tools.

use crate::sandbox::{Ended, Sandbox, assert_one_line, format_of};
use serde_json::Value;
use std::fs;

/// How the tools are to agree.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// In everything.
    Same,
    /// Ours is meant to do something else, for a reason: it ends with this code, and prints this among other things.
    Ours { why: &'static str, code: i32, prints: &'static str },
}

/// A command line without the program's name.
pub type Row = (&'static str, Expect);

pub const SAME: Expect = Expect::Same;

pub const fn ours(code: i32, prints: &'static str, why: &'static str) -> Expect {
    Expect::Ours { why, code, prints }
}

/// Runs all rows, each on fresh copies of the files. Fails with all that are not as expected.
pub fn run(files: &Sandbox, rows: &[Row]) {
    let failed: Vec<_> = rows
        .iter()
        .filter(|(args, expect)| {
            std::panic::catch_unwind(|| run_one(files, args, *expect)).is_err()
        })
        .map(|(args, _)| *args)
        .collect();
    assert!(failed.is_empty(), "{} of {}: {failed:#?}", failed.len(), rows.len());
}

fn run_one(files: &Sandbox, args: &str, expect: Expect) {
    let (theirs, our) = (files.copy_for(args), files.copy_for(args));
    let (their_end, our_end) = (theirs.qemu(args), our.ours(args));
    let shown = format!("qemu-img {args}\n  QEMU: {their_end:?}\n  ours: {our_end:?}\n");
    match expect {
        Expect::Same => {
            assert_alike(&their_end, &our_end, &shown);
            assert_same_files(&theirs, &our, &shown);
        }
        Expect::Ours { why, code, prints } => {
            assert_eq!(our_end.code, code, "{shown}{why}");
            assert!(our_end.stdout.contains(prints), "{shown}{why}");
            let differs = their_end.code != our_end.code
                || normal(&their_end.stdout) != normal(&our_end.stdout)
                || theirs.names() != our.names();
            assert!(differs, "{shown}there is no difference any more: {why}");
            assert_complaint(&our_end, &shown);
        }
    }
}

/// Compares how two programs ended.
pub fn assert_alike(theirs: &Ended, ours: &Ended, shown: &str) {
    assert_eq!(ours.code, theirs.code, "{shown}");
    // What a tool that fails has printed before is of no use to anybody; but `check` and `compare` answer by their codes.
    let is_answer = !theirs.stdout.is_empty() && theirs.stderr.is_empty();
    if theirs.code == 0 || is_answer {
        assert_eq!(normal(&ours.stdout), normal(&theirs.stdout), "{shown}");
    }
    assert_eq!(ours.stderr.is_empty(), theirs.stderr.is_empty(), "{shown}");
    assert_complaint(ours, shown);
}

fn assert_complaint(ours: &Ended, shown: &str) {
    if !ours.stderr.is_empty() {
        assert_one_line(&ours.stderr, "qemu-img", shown);
    }
}

/// What is printed, without what may differ: space in use, progress, and what ours tells of QED images beyond QEMU.
fn normal(stdout: &str) -> String {
    if let Ok(mut value) = serde_json::from_str::<Value>(stdout) {
        strip(&mut value);
        return value.to_string();
    }
    let mut lines = Vec::new();
    let mut is_specific = false;
    for line in stdout.lines() {
        let line = line.rsplit('\r').next().unwrap_or_default();
        is_specific =
            line == "Format specific information:" || is_specific && line.starts_with(' ');
        if !is_specific && !line.trim_start().starts_with("disk size: ") {
            lines.push(line);
        }
    }
    lines.join("\n")
}

fn strip(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(strip),
        Value::Object(fields) => {
            fields.remove("actual-size");
            fields.remove("format-specific");
            fields.values_mut().for_each(strip);
        }
        _ => {}
    }
}

/// Every file must be the same to QEMU: the same bytes, or a good image with the same content.
fn assert_same_files(theirs: &Sandbox, ours: &Sandbox, shown: &str) {
    assert_eq!(ours.names(), theirs.names(), "{shown}");
    for name in ours.names() {
        let [our_path, their_path] = [ours.path(&name), theirs.path(&name)];
        if fs::read(&our_path).unwrap() == fs::read(&their_path).unwrap() {
            continue;
        }
        let format = format_of(&name);
        // Each over its own backing file: so QEMU opens them where they are.
        let described =
            |sandbox: &Sandbox| normal(&sandbox.qemu_does(&format!("info -f {format} {name}")));
        let without_length = |text: String| {
            let lines = text.lines().filter(|line| !line.contains("file length: "));
            lines.collect::<Vec<_>>().join("\n")
        };
        assert_eq!(
            without_length(described(ours)),
            without_length(described(theirs)),
            "{shown}{name}"
        );
        let compare = format!(
            "compare -f {format} -F {format} {} {}",
            our_path.display(),
            their_path.display()
        );
        let compared = ours.qemu(&compare);
        assert_eq!(compared.code, 0, "{shown}{name}: {compared:?}");
        if format == "qed" {
            // QED has no list of what is free: a cluster that became zeroes is a leak. What QEMU leaks, we may.
            let check = format!("check -f qed {name}");
            let [our_check, their_check] = [ours.qemu(&check), theirs.qemu(&check)];
            let is_good = our_check.code == 0 || our_check.code == their_check.code;
            assert!(is_good, "{shown}{name}: {their_check:?}, {our_check:?}");
        }
    }
}
