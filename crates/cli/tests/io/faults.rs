//! Images under a fault filter, and disks without a file.

use crate::rows::{Expect, SAME, images, ours, run_all};
use crate::sandbox::{Sandbox, Tool, has_qemu};
use std::fs;

/// What is given to the filter of `a.qcow2`, and commands.
type Faulty = (&'static str, &'static [&'static str], Expect);

const LATER: &str = "entries are written by a flush or at the end, not by the write itself";

#[rustfmt::skip]
const QCOW2: &[Faulty] = &[
    ("", &["write -P 1 0 64k", "read -P 1 0 64k"], SAME),
    ("inject-error.0.event=write_aio,inject-error.0.once=on", &["write 0 64k", "write 64k 64k", "read 0 64k"], SAME),
    ("inject-error.0.event=write_aio,inject-error.0.once=on,inject-error.0.errno=28", &["write 0 64k"], SAME),
    ("inject-error.0.event=pwritev,inject-error.0.errno=13,inject-error.0.iotype=discard", &["write 0 64k"], SAME),
    ("inject-error.0.event=read_aio,inject-error.0.once=on", &["write -P 1 0 64k", "read 0 64k", "read -P 1 0 64k"], SAME),
    ("inject-error.0.event=read_aio,inject-error.0.state=2,inject-error.0.once=on,set-state.0.event=read_aio,set-state.0.new_state=2",
        &["write 0 64k", "read 0 4k", "read 0 4k", "read 0 4k"], SAME),
    ("inject-error.0.event=none,inject-error.0.iotype=read", &["length"], SAME),
    ("inject-error.0.event=none,inject-error.0.sector=0,inject-error.0.iotype=flush", &["write 0 4k", "flush"], SAME),
    ("inject-error.0.event=vmstate_load", &["write 0 4k", "read 0 4k"], SAME),
    ("align=4096", &["write -P 1 512 512", "read -P 0 0 512", "read -P 1 512 512", "read -P 0 1k 64k"], SAME),
    ("inject-error.0.event=none,inject-error.0.errno=0", &["write 0 4k", "read 0 4k"], SAME),
    ("inject-error.0.event=write_bio", &["length"], SAME),
    ("inject-error.0.event=none,inject-error.0.iotype=append", &["length"], SAME),
    ("inject-error.0.event=none,inject-error.0.errno=EIO", &["length"], SAME),
    ("inject-error.0.event=none,inject-error.0.once=maybe", &["length"], SAME),
    ("inject-error.0.errno=5", &["length"], SAME),
    ("set-state.0.event=none", &["length"], SAME),
    ("inject-error.0.event=none,inject-error.0.colour=red", &["length"], SAME),
    ("align=1000", &["length"], SAME),
    ("inject-error.0.event=l2_update,inject-error.0.once=on", &["write 0 64k", "flush"],
        ours(1, "os error 5", LATER)),
    ("inject-error.0.event=flush_to_disk,inject-error.0.once=on", &["write 0 64k", "flush", "flush"],
        ours(1, "an earlier flush failed", "after a failed sync nothing is promised any more")),
    ("max-transfer=4096", &["length"], ours(1, "'file.max-transfer'", "limits are not supported")),
];

#[test]
fn errors_on_demand() {
    if !has_qemu() {
        return;
    }
    let files = images();
    let rules = "[set-state]\nevent = \"read_aio\"\nstate = \"1\"\nnew_state = \"2\"\n\
                 [inject-error]\nevent = \"read_aio\"\nstate = \"2\"\nerrno = \"6\"\nonce = \"on\"\n# the end\n";
    fs::write(files.path("rules"), rules).unwrap();
    fs::write(files.path("norules"), "[inject-error]\nevent = \"x\"\n").unwrap();
    let below =
        "driver=qcow2,file.driver=blkdebug,file.image.driver=file,file.image.filename=a.qcow2";
    let lists: Vec<String> = QCOW2
        .iter()
        .map(|(rules, ..)| {
            let rules = rules.split(',').filter(|rule| !rule.is_empty());
            rules.fold(below.to_owned(), |list, rule| format!("{list},file.{rule}"))
        })
        .collect();
    let mut rows: Vec<(Vec<&str>, Expect)> = Vec::new();
    for ((_, commands, expect), list) in QCOW2.iter().zip(&lists) {
        let mut args = vec!["--image-opts"];
        args.extend(commands.iter().flat_map(|command| ["-c", command]));
        args.push(list);
        rows.push((args, *expect));
    }
    let reads = ["-c", "write 0 4k", "-c", "read 0 4k", "-c", "read 0 4k"];
    let sectors = "driver=raw,file.driver=blkdebug,file.image.filename=a.raw,\
        file.inject-error.0.event=none,file.inject-error.0.sector=8,file.inject-error.0.errno=12";
    let mut args = vec!["--image-opts"];
    args.extend(["-c", "write 0 4k", "-c", "write 4k 1k", "-c", "read 3k 2k", "-c", "read 5k 1k"]);
    args.extend(["-c", "discard 0 64k", "-c", "write -z 0 8k", "-c", "flush", sectors]);
    rows.push((args, SAME));
    let aside = ["-s", "-f", "raw", "-c", "length", "null-co://"];
    rows.push((aside.to_vec(), ours(1, "-s", "over a file only")));
    for (format, name) in [
        ("qcow2", "blkdebug:rules:a.qcow2"),
        ("qed", "blkdebug:rules:a.qed"),
        ("raw", "blkdebug:rules:a.raw"),
        ("qcow2", "blkdebug::a.qcow2"),
        ("qcow2", "blkdebug:norules:a.qcow2"),
        ("qcow2", "blkdebug:missing:a.qcow2"),
        ("qcow2", "blkdebug:a.qcow2"),
        ("raw", "null-co://"),
        ("raw", "null-co://x"),
    ] {
        let mut args = vec!["-f", format];
        args.extend(reads);
        args.push(name);
        rows.push((args, SAME));
    }
    run_all(&files, rows);
}

/// Events that a disk with tables comes to, and what each image is asked for meanwhile.
const EVENTS: &[&str] = &[
    "write_aio",
    "cow_read",
    "cow_write",
    "l2_load",
    "l2_update",
    "l2_alloc_write",
    "l1_update",
    "refblock_load",
    "refblock_update",
    "refblock_alloc",
    "refblock_alloc_hookup",
    "refblock_alloc_write_table",
    "refblock_alloc_switch_table",
    "cluster_alloc",
    "flush_to_os",
    "flush_to_disk",
    "pwritev",
    "pwritev_zero",
    "pwritev_done",
];

/// What is asked for, with where data of 2 is when all of it was done. In the short one nothing comes later that could make good what failed.
type Work = (&'static [&'static str], &'static [&'static str]);

#[rustfmt::skip]
const WORK: &[Work] = &[
    (&["write -P 2 256k 64k", "write -P 2 12M 4k", "flush"], &["read -P 2 256k 64k", "read -P 2 12M 4k"]),
    (&[
        "write -P 2 256k 64k", "write -P 2 4M 4k", "write -P 2 300k 100", "write -z 1M 64k", "flush",
        "write -P 2 10M 1M", "discard 256k 64k", "write -P 2 12M 4k", "flush",
    ], &["read -P 2 4M 4k", "read -P 2 10M 1M", "read -P 2 12M 4k"]),
];

/// Whatever I/O fails, once or from then on: what was there before is there, what was done without an error as well, and the image has no errors but
/// leaks.
#[test]
fn no_failed_io_damages_an_image() {
    if !has_qemu() {
        return;
    }
    let files = Sandbox::new();
    for (name, options) in [
        ("a.qcow2", "-f qcow2"),
        ("fine.qcow2", "-f qcow2 -o cluster_size=512"),
        ("a.qed", "-f qed"),
    ] {
        files.img_does(&format!("create -q {options} {name} 16M"));
        let format = crate::rows::format_of(name);
        let fill = ["-f", format, "-c", "write -q -P 1 0 256k", "-c", "write -q -P 1 8M 64k", name];
        assert_eq!(files.run(Tool::Ours, &fill).code, 0);
        let mut cases = Vec::new();
        for event in EVENTS {
            let all = WORK.iter().flat_map(|work| [(*event, "on", work), (*event, "off", work)]);
            cases.extend(all);
        }
        let failing: usize = std::thread::scope(|scope| {
            let parts = cases.chunks(cases.len().div_ceil(4)).map(|part| {
                let files = &files;
                let fails = |(event, once, work): &&(&str, &str, &Work)| {
                    one_fault(files, name, event, once, work)
                };
                scope.spawn(move || part.iter().filter(fails).count())
            });
            parts.collect::<Vec<_>>().into_iter().map(|part| part.join().unwrap()).sum()
        });
        // The test would be of no use if hardly any of them came to pass.
        assert!(failing >= cases.len() / 3, "{name}: only {failing} of {} failed", cases.len());
    }
}

/// Tells whether anything failed.
fn one_fault(files: &Sandbox, name: &str, event: &str, once: &str, work: &Work) -> bool {
    let copy = files.copy_for(&[name]);
    let format = crate::rows::format_of(name);
    let list = format!(
        "driver={format},file.driver=blkdebug,file.image.driver=file,file.image.filename={name},\
         file.inject-error.0.event={event},file.inject-error.0.once={once}"
    );
    let (commands, done) = work;
    let mut args = vec!["--image-opts"];
    args.extend(commands.iter().flat_map(|command| ["-c", command]));
    args.push(&list);
    let ended = copy.run(Tool::Ours, &args);
    let shown = format!("{name}: {event}, once={once}, {commands:?}: {ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{shown}");
    let check = copy.img(&format!("check -f {format} {name}"));
    assert!(matches!(check.code, 0 | 3), "{shown}\n{check:?}");
    let mut reads = vec!["-f", format, "-c", "read -P 1 0 256k", "-c", "read -P 1 8M 64k"];
    if ended.code == 0 {
        reads.extend(done.iter().flat_map(|read| ["-c", read]));
    }
    reads.push(name);
    let read = copy.run(Tool::Qemu, &reads);
    assert!(read.code == 0 && !read.stdout.contains("failed"), "{shown}\n{read:?}");
    ended.code != 0
}
