//! Longer stories, as QEMU's own tests tell them: what one tool has written, the other reads; chains, compressed data, the end of the disk.

use crate::rows::{ANY_ORDER, Row, SAME, format_of, images, run};
use crate::sandbox::{Sandbox, Tool, has_qemu};

#[test]
fn edges_of_clusters_and_disk() {
    if !has_qemu() {
        return;
    }
    let files = images();
    let rows: &[Row] = &[
        (
            "write -P 165 0 64k; write -P 166 61440 8k; write -P 167 65535 2; write -z 65000 1000; \
             read -P 165 0 61440; read -P 166 61440 3560; read -P 0 65000 1000; \
             read -P 166 66000 3632; read -v 65530 16; map",
            SAME,
        ),
        (
            "write -P 1 1048064 512; write -P 2 1048575 1; read -P 1 1048064 511; \
             read -P 2 1048575 1; read 1048575 2; write 1048064 513; readv 1M 1; discard 1M 1; \
             write -z 1048575 2",
            SAME,
        ),
        (
            "truncate 3M; write -P 3 1048000 1M; truncate 4M; read -P 3 1048000 1M; \
             read -P 0 2096576 2M; reopen -r; read -P 3 1048000 1M; write 0 1; length",
            SAME,
        ),
        (
            "write -P 1 0 1M; write -zu 64k 64k; write -P 2 96k 1; write -z 256k 64k; \
             write -P 3 300k 5; read -P 1 0 64k; read -P 0 64k 32k; read -P 2 96k 1; \
             read -P 0 98305 32767; read -P 3 300k 5; read -P 0 256k 44k; read -P 1 320k 704k",
            SAME,
        ),
        (
            "aio_write -P 1 0 300k; aio_write -P 2 300k 300k; aio_write -P 3 600k 300k; \
             aio_flush; aio_read -P 1 0 300k; aio_read -P 2 300k 300k; aio_read -P 3 600k 300k; \
             aio_flush; read -P 0 900k 1k; flush",
            ANY_ORDER,
        ),
    ];
    for name in ["a.raw", "a.qcow2", "fine.qcow2", "v2.qcow2", "sub.qcow2", "fine.qed"] {
        run(&files, name, rows);
    }
}

/// Runs commands, all of which must do what they say.
fn does(files: &Sandbox, tool: Tool, name: &str, commands: &[&str]) {
    let mut args = vec!["-f", format_of(name)];
    args.extend(commands.iter().flat_map(|command| ["-c", command]));
    args.push(name);
    let ended = files.run(tool, &args);
    let is_good = ended.code == 0 && ended.stderr.is_empty() && !ended.stdout.contains("failed");
    assert!(is_good, "{tool:?} {name} {commands:?}: {ended:?}");
}

#[test]
fn what_one_writes_the_other_reads() {
    if !has_qemu() {
        return;
    }
    let files = images();
    for name in ["a.raw", "a.qcow2", "fine.qcow2", "sub.qcow2", "v2.qcow2", "a.qed", "over.qcow2"] {
        for (writer, reader) in [(Tool::Ours, Tool::Qemu), (Tool::Qemu, Tool::Ours)] {
            let files = files.copy();
            let writes = [
                "write -P 1 3 200k",
                "aio_write -P 2 300k 100k",
                "aio_write -P 3 500001 7",
                "aio_flush",
                "write -z 100k 50k",
                "writev -P 4 700k 1 2 3 4096",
            ];
            does(&files, writer, name, &writes);
            let reads = [
                "read -P 1 3 102397",
                "read -P 0 100k 50k",
                "read -P 1 150k 51203",
                "read -P 2 300k 100k",
                "read -P 3 500001 7",
                "read -P 4 700k 4102",
            ];
            does(&files, reader, name, &reads);
            if name != "a.raw" {
                files.img_does(&format!("check -q {name}"));
            }
        }
    }
}

#[test]
fn compressed_clusters_in_both_directions() {
    if !has_qemu() {
        return;
    }
    let files = images();
    for name in ["a.qcow2", "sub.qcow2", "v2.qcow2"] {
        for (writer, reader) in [(Tool::Ours, Tool::Qemu), (Tool::Qemu, Tool::Ours)] {
            let files = files.copy();
            let commands = [
                "write -cP 1 0 64k",
                "write -c -s pattern 64k 128k",
                "write -P 2 100 100",
                "flush",
            ];
            does(&files, writer, name, &commands);
            let commands = ["read -P 1 0 100", "read -P 2 100 100", "read -P 1 200 65336", "map"];
            does(&files, reader, name, &commands);
            let compressed = files.img(&format!("map --output json {name}")).stdout;
            assert!(compressed.contains("\"compressed\": true"), "{compressed}");
            files.img_does(&format!("check -q {name}"));
        }
    }
}

#[test]
fn a_chain_of_three() {
    if !has_qemu() {
        return;
    }
    let files = images();
    files.img_does("create -q -f qed -b over.qcow2 -F qcow2 top.qed 3M");
    does(&files, Tool::Ours, "over.qcow2", &["write -P 2 64k 64k", "write -z 256k 64k"]);
    does(&files, Tool::Ours, "top.qed", &["write -P 3 100k 1k", "write -z 512k 1M"]);
    for tool in [Tool::Qemu, Tool::Ours] {
        let reads = [
            "read -P 1 0 64k",
            "read -P 2 64k 36k",
            "read -P 3 100k 1k",
            "read -P 2 101k 27k",
            "read -P 1 128k 128k",
            "read -P 0 256k 64k",
            "read -P 1 320k 192k",
            "read -P 0 512k 2560k",
        ];
        does(&files, tool, "top.qed", &reads);
    }
}

#[test]
fn one_that_is_killed_leaves_an_image_that_opens() {
    if !has_qemu() {
        return;
    }
    let files = images();
    for name in ["a.qcow2", "a.qed"] {
        let files = files.copy();
        let args = ["-f", format_of(name), "-c", "write -P 1 0 64k", "-c", "flush"];
        let killed = [&args[..], &["-c", "write -P 2 128k 64k", "-c", "sigraise 9", name]].concat();
        assert_eq!(files.run(Tool::Ours, &killed).code, 128 + 9);
        does(&files, Tool::Qemu, name, &["read -P 1 0 64k"]);
        does(&files, Tool::Ours, name, &["read -P 1 0 64k"]);
    }
}
