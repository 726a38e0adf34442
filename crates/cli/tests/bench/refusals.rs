//! What cannot be measured is refused at once, in one line, and changes nothing.

use crate::common::Scratch;

const PROFILE: &str = "time = 1\n[filesystem]\nlocation = x\nnum_files = 1\n[end]\n[threadgroup]\nnum_threads = 1\nstat_weight = 1\n[end]\n";

fn refuses(files: &[(&str, &str)], args: &[&str], code: i32, words: &[&str]) {
    let scratch = Scratch::new();
    for (name, text) in files {
        std::fs::write(scratch.path(name), text).unwrap();
    }
    scratch.refuses(&[&["bench"], args].concat(), code, words);
}

#[test]
fn a_word_that_is_not_known_is_named() {
    for (args, code, words) in [
        (
            &["--matrix", "colour=red"][..],
            1,
            &["matrix `colour=red`", "device, server, format"][..],
        ),
        (&["--matrix", "format=vmdk"], 1, &["`vmdk`", "raw, qcow2, qed"]),
        (&["--matrix", "threads=0"], 1, &["`0`", "from 1 to 1024"]),
        (&["--scenario", "random-write-9k"], 2, &["random-write-9k", "random-write-8k"]),
        (&["--scenario", "mixed-8k,mixed-8k"], 1, &["mixed-8k", "twice"]),
        (&["--quick", "--seconds", "1"], 2, &["--quick", "--seconds"]),
        (&["--scenario", "mixed-8k", "--seconds", "0"], 2, &["'0'", "--seconds"]),
        (&["--scenario", "mixed-8k", "--scale", "0"], 2, &["--scale", "full size"]),
        (&["--scenario", "mixed-8k", "--baseline", "spdk"], 1, &["baseline spdk", "bare "]),
        (&["run", "mixed-8k"], 1, &["mixed-8k", "--dir, --vhost-user or --file"]),
        (&["run", "mixed-9k", "--dir", "."], 1, &["mixed-9k", "no such scenario", "mixed-8k"]),
        (&["run", "mixed-8k", "--dir", "nowhere"], 1, &["location nowhere", "No such file"]),
        (&["run", "mixed-8k", "--vhost-user", "no.sock", "--destroy"], 1, &["no.sock"]),
        (&["profile", "mixed-9k"], 2, &["mixed-9k", "mixed-8k"]),
        (&["compare", "a.json", "b.json"], 1, &["a.json", "No such file"]),
    ] {
        refuses(&[], args, code, words);
    }
}

#[test]
fn a_place_that_does_not_do_is_named() {
    let read = ["--scenario", "random-read-8k", "--matrix", "device=bare"];
    for (more, words) in [
        (&["--dir", "nowhere"][..], &["nowhere: No such file"][..]),
        (&["--dir", "/dev/null"], &["/dev/null: Not a directory"]),
        (&["--size", "1M", "--scale", "1024"], &["1 MiB is too small", "random-read-8k needs"]),
        (&["--output", "no/where"], &["no/where: No such file"]),
        (&["--json", "no/where"], &["no/where: No such file"]),
    ] {
        refuses(
            &[],
            &[
                &read[..],
                &["--scale", "1024"][..if more.contains(&"--scale") { 0 } else { 2 }],
                more,
            ]
            .concat(),
            1,
            words,
        );
    }
    // More than the host has.
    let huge = PROFILE
        .replace("num_files = 1", "num_files = 4000000000\nmin_filesize = 1t\nmax_filesize = 1t");
    let words = ["MiB are free", "huge needs"];
    refuses(&[("huge.ffsb", &huge)], &["huge.ffsb", "--matrix", "device=bare"], 1, &words);
}

#[test]
fn a_profile_that_is_wrong_is_named_with_its_line() {
    let wrong = |from: &str, to: &str| PROFILE.replace(from, to);
    for (text, words) in [
        (wrong("stat_weight", "stat_wait"), ["p.ffsb:8: ", "stat_wait"]),
        (wrong("stat_weight = 1", "stat_weight = -1"), ["p.ffsb:8: ", "-1"]),
        (wrong("time = 1", "time = 0"), ["p.ffsb: ", "nothing to measure"]),
    ] {
        refuses(&[("p.ffsb", &text)], &["p.ffsb", "--matrix", "device=bare"], 1, &words);
    }
    let groups = format!("{PROFILE}[threadgroup]\nnum_threads = 1\nstat_weight = 1\n[end]\n");
    let args = ["p.ffsb", "--matrix", "device=bare", "threads=1,2"];
    refuses(&[("p.ffsb", &groups)], &args, 1, &["p: threads=", "2 thread groups"]);
    refuses(&[], &["none.ffsb"], 1, &["none.ffsb: No such file"]);
}

#[test]
fn a_server_that_is_not_installed_is_said_with_its_package() {
    let only = |args: &[&str]| {
        let scratch = Scratch::new();
        let mut command =
            scratch.ferroblk(&["bench", "--scenario", "random-read-8k", "--scale", "1024"]);
        command.args(args).env("PATH", scratch.dir());
        scratch.refused(command, 1)
    };
    let line = only(&["--matrix", "server=ferroblk,qemu-storage-daemon"]);
    assert!(line.contains("qemu-storage-daemon is not installed: package qemu-utils"), "{line}");
    let line = only(&["--baseline", "qemu-storage-daemon"]);
    assert!(
        line.contains("baseline qemu-storage-daemon: qemu-storage-daemon is not installed"),
        "{line}"
    );
}
