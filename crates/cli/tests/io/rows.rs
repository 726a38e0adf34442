//! Images and commands for them, given to both tools.

use crate::sandbox::{Ended, Sandbox, Tool};
use std::fs;

/// Rows that run at a time.
const SIDE_BY_SIDE: usize = 4;

/// How the tools are to agree.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// In everything.
    Same,
    /// In everything but the order of results: requests in the background end in any.
    AnyOrder,
    /// Ours is meant to do something else, for a reason: it ends with this code, and prints this among other things.
    Ours { why: &'static str, code: i32, prints: &'static str },
}

pub const SAME: Expect = Expect::Same;
pub const ANY_ORDER: Expect = Expect::AnyOrder;

pub const fn ours(code: i32, prints: &'static str, why: &'static str) -> Expect {
    Expect::Ours { why, code, prints }
}

/// Commands for one image, separated by semicolons.
pub type Row = (&'static str, Expect);

/// The images of which [`run`] knows the name.
pub fn images() -> Sandbox {
    let files = Sandbox::new();
    for (name, format, options) in [
        ("a.raw", "raw", ""),
        ("a.qcow2", "qcow2", ""),
        ("v2.qcow2", "qcow2", "-o compat=0.10 "),
        ("fine.qcow2", "qcow2", "-o cluster_size=512 "),
        ("sub.qcow2", "qcow2", "-o extended_l2=on,compression_type=zstd "),
        ("a.qed", "qed", ""),
        ("fine.qed", "qed", "-o cluster_size=4k,table_size=2 "),
    ] {
        files.img_does(&format!("create -q -f {format} {options}{name} 1M"));
    }
    fs::write(files.path("base.raw"), vec![1; 1 << 20]).unwrap();
    fs::write(files.path("odd.raw"), vec![1; 1000]).unwrap();
    fs::write(files.path("pattern"), b"abc").unwrap();
    fs::write(files.path("empty"), b"").unwrap();
    files.img_does("create -q -f qcow2 -b base.raw -F raw over.qcow2 2M");
    files.img_does("create -q -f qed -b base.raw -F raw over.qed 2M");
    let luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let secret = "--object secret,id=s,data=hello";
    files.img_does(&format!("create -q {secret} -f qcow2 -o {luks} luks.qcow2 1M"));
    files
}

/// Runs all rows on the image `name`, each on fresh copies of the files. Fails with all that are not as expected.
pub fn run(files: &Sandbox, name: &str, rows: &[Row]) {
    let secret = ["--object", "secret,id=s,data=hello", "--image-opts"];
    let options = format!("driver=qcow2,file.filename={name},encrypt.key-secret=s");
    let is_encrypted = name.starts_with("luks");
    let rows = rows.iter().map(|(commands, expect)| {
        let commands = commands.split(';').flat_map(|command| ["-c", command.trim()]);
        let mut args: Vec<&str> =
            if is_encrypted { secret.into() } else { vec!["-f", format_of(name)] };
        args.extend(commands);
        args.push(if is_encrypted { &options } else { name });
        (args, *expect)
    });
    run_all(files, rows.collect());
}

/// Runs command lines.
pub fn run_all(files: &Sandbox, rows: Vec<(Vec<&str>, Expect)>) {
    let is_bad = |(args, expect): &&(Vec<&str>, Expect)| {
        std::panic::catch_unwind(|| run_one(files, args, *expect)).is_err()
    };
    // Most of the time is spent starting programs.
    let failed: Vec<_> = std::thread::scope(|scope| {
        let parts = rows.chunks(rows.len().div_ceil(SIDE_BY_SIDE).max(1)).map(|part| {
            scope
                .spawn(move || part.iter().filter(is_bad).map(|(args, _)| args).collect::<Vec<_>>())
        });
        let parts: Vec<_> = parts.collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "{} of {}: {failed:#?}", failed.len(), rows.len());
}

fn run_one(files: &Sandbox, args: &[&str], expect: Expect) {
    let (theirs, our) = (files.copy_for(args), files.copy_for(args));
    let (their_end, our_end) = (theirs.run(Tool::Qemu, args), our.run(Tool::Ours, args));
    let shown = format!("qemu-io {args:?}\n  QEMU: {their_end:?}\n  ours: {our_end:?}\n");
    assert_told(&our_end, &shown);
    match expect {
        Expect::Same | Expect::AnyOrder => {
            let is_sorted = matches!(expect, Expect::AnyOrder);
            assert_alike(&their_end, &our_end, is_sorted, &shown);
            assert_same_files(&theirs, &our, &shown);
        }
        Expect::Ours { why, code, prints } => {
            assert_eq!(our_end.code, code, "{shown}{why}");
            let printed = format!("{}{}", our_end.stdout, our_end.stderr);
            assert!(printed.contains(prints), "{shown}{why}");
            let differs = their_end.code != our_end.code
                || without_time(&their_end.stdout) != without_time(&our_end.stdout)
                || their_end.stderr.is_empty() != our_end.stderr.is_empty();
            assert!(differs, "{shown}there is no difference any more: {why}");
        }
    }
}

/// Compares how two programs ended. Of complaints only that there are some: their words are our own.
pub fn assert_alike(theirs: &Ended, ours: &Ended, is_sorted: bool, shown: &str) {
    assert_eq!(ours.code, theirs.code, "{shown}");
    let [mut our_lines, mut their_lines] = [ours, theirs].map(|ended| without_time(&ended.stdout));
    if is_sorted {
        our_lines.sort();
        their_lines.sort();
    }
    assert_eq!(our_lines, their_lines, "{shown}");
    assert_eq!(ours.stderr.is_empty(), theirs.stderr.is_empty(), "{shown}");
}

/// A complaint is lines of what shows itself, and not a panic's.
fn assert_told(ours: &Ended, shown: &str) {
    assert!(!ours.stderr.contains("panicked"), "{shown}");
    assert!(!ours.stderr.chars().any(|c| c.is_control() && c != '\n'), "{shown}");
}

/// Lines without what was measured.
fn without_time(stdout: &str) -> Vec<String> {
    let lines = stdout.lines().map(|line| {
        let is_terse = line.split(',').count() == 5 && line.contains(",1,0:");
        match line.split_once(" ops; ") {
            Some((before, after)) => {
                // `00.00 sec (1.5 MiB/sec and 7.0000 ops/sec)`
                let kept: String = after.chars().filter(|c| "()/.;:".contains(*c)).collect();
                let shape = kept.replacen("..", ".", 1);
                assert!(shape.ends_with("/)") && after.contains("/sec and "), "{line}");
                format!("{before} ops;")
            }
            None if is_terse => line.split(',').take(2).collect::<Vec<_>>().join(","),
            None => line.to_owned(),
        }
    });
    lines.collect()
}

/// The format that a file's name stands for.
pub fn format_of(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((_, "qed")) => "qed",
        Some((_, "qcow2")) => "qcow2",
        _ => "raw",
    }
}

/// Every file must be the same to QEMU: the same bytes, or a good image with the same content.
pub fn assert_same_files(theirs: &Sandbox, ours: &Sandbox, shown: &str) {
    assert_eq!(ours.names(), theirs.names(), "{shown}");
    for name in ours.names() {
        let [our_path, their_path] = [ours.path(&name), theirs.path(&name)];
        if fs::read(&our_path).unwrap() == fs::read(&their_path).unwrap() {
            continue;
        }
        let format = format_of(&name);
        let open = |path: &std::path::Path| match name.contains("luks") {
            true => {
                format!("driver={format},file.filename={},encrypt.key-secret=s", path.display())
            }
            false => format!("driver={format},file.filename={}", path.display()),
        };
        let secret = "--object secret,id=s,data=hello --image-opts";
        let compared =
            ours.img(&format!("compare {secret} {} {}", open(&our_path), open(&their_path)));
        assert_eq!(compared.code, 0, "{shown}{name}: {compared:?}");
        if format != "raw" {
            let checked = ours.img(&format!("check {secret} {}", open(&our_path)));
            // QED has no list of what is free, so that to QEMU what becomes zeroes is a leak.
            let is_good = checked.code == 0 || format == "qed" && checked.code == 3;
            assert!(is_good, "{shown}{name}: {checked:?}");
        }
    }
}
