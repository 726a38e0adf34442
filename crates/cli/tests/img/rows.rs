//! Command lines, given to both tools.

use crate::sandbox::{Ended, Sandbox, assert_one_line, format_of};
use serde_json::Value;
use std::fs;
use std::path::Path;

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

/// Spells out what many rows have: a secret, an encrypted target, an encrypted image that is named by options.
fn spelled_out(args: &str) -> String {
    let opened = args.split(' ').map(|arg| match arg.strip_prefix("@open:") {
        Some(name) => format!("driver=qcow2,file.filename={name}.luks.qcow2,encrypt.key-secret=s"),
        None => arg.to_owned(),
    });
    let luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let spelled = opened.collect::<Vec<_>>().join(" ").replace("@luks", luks);
    spelled.replace("@secret", "--object secret,id=s,data=hello")
}

fn run_one(files: &Sandbox, args: &str, expect: Expect) {
    let args = &spelled_out(args);
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
    let is_finding = ["ERROR ", "Leaked "].iter().any(|word| theirs.stderr.starts_with(word));
    let is_answer = !theirs.stdout.is_empty() && (theirs.stderr.is_empty() || is_finding);
    if theirs.code == 0 || is_answer {
        assert_eq!(normal(&ours.stdout), normal(&theirs.stdout), "{shown}");
    }
    // What a repair has done is told by its numbers.
    let is_repair =
        theirs.code == 0 && theirs.stdout.contains("inconsistencies were found and repaired");
    assert!(ours.stderr.is_empty() == theirs.stderr.is_empty() || is_repair, "{shown}");
    assert_complaint(ours, shown);
}

fn assert_complaint(ours: &Ended, shown: &str) {
    // What a check finds is told line by line, and ends it with a code of its own.
    let is_finding = ["ERROR ", "LEAK "].iter().any(|word| ours.stderr.starts_with(word));
    if is_finding {
        assert!(!ours.stderr.trim_end().chars().any(|c| c.is_control() && c != '\n'), "{shown}");
    } else if !ours.stderr.is_empty() {
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
    let (mut is_qed, mut is_specific) = (false, false);
    for line in stdout.lines() {
        let line = line.rsplit('\r').next().unwrap_or_default();
        is_qed = line == "file format: qed" || is_qed && !line.starts_with("file format: ");
        is_specific =
            line == "Format specific information:" || is_specific && line.starts_with(' ');
        // A time.
        let line = if line.starts_with("Run completed in ") { "Run completed" } else { line };
        // What ours tells of QED images beyond QEMU; and the space in use.
        if is_specific && is_qed || line.trim_start().starts_with("disk size: ") {
            continue;
        }
        lines.push(line);
    }
    lines.join("\n")
}

fn strip(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(strip),
        Value::Object(fields) => {
            fields.remove("actual-size");
            if fields.get("format").is_some_and(|format| format == "qed") {
                fields.remove("format-specific");
            }
            fields.values_mut().for_each(strip);
        }
        _ => {}
    }
}

/// A description without what depends on where things are in the file, and on what is drawn by lot or measured.
fn without_chance(described: &str) -> String {
    let by_chance = ["file length: ", "uuid: ", "iters: ", "master key iters: "];
    let lines = described.lines().filter(|line| {
        let line = line.trim_start();
        !by_chance.iter().any(|start| line.starts_with(start))
    });
    lines.collect::<Vec<_>>().join("\n")
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
        assert_eq!(
            without_chance(&described(ours)),
            without_chance(&described(theirs)),
            "{shown}{name}"
        );
        let open = |path: &Path| match name.contains("luks") {
            true => {
                format!("driver={format},file.filename={},encrypt.key-secret=s", path.display())
            }
            false => format!("driver={format},file.filename={}", path.display()),
        };
        let compare = format!(
            "compare --object secret,id=s,data=hello --image-opts {} {}",
            open(&our_path),
            open(&their_path)
        );
        let compared = ours.qemu(&compare);
        // What stands on something that is not there, or is encrypted, nobody can read.
        let not_even_theirs = || {
            ours.qemu(&compare.replace(our_path.to_str().unwrap(), their_path.to_str().unwrap()))
        };
        assert!(
            compared.code == 0 || compared.code == 2 && not_even_theirs().code == 2,
            "{shown}{name}: {compared:?}"
        );
        if format == "qcow2" {
            let check =
                format!("check --object secret,id=s,data=hello --image-opts {}", open(&our_path));
            let our_check = ours.qemu(&check);
            // A repair that was not asked for is not made by either.
            let their_code = || theirs.qemu(&check.replace(our_path.to_str().unwrap(), &name)).code;
            assert!(
                our_check.code == 0 || our_check.code == their_code(),
                "{shown}{name}: {our_check:?}"
            );
        }
        if format == "qed" {
            // QED has no list of what is free: a cluster that became zeroes is a leak. What QEMU leaks, we may.
            let check = format!("check -f qed {name}");
            let [our_check, their_check] = [ours.qemu(&check), theirs.qemu(&check)];
            let is_good = our_check.code == 0 || our_check.code == their_check.code;
            assert!(is_good, "{shown}{name}: {their_check:?}, {our_check:?}");
        }
    }
}
