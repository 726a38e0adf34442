//! Every command, in all formats: called rightly, called wrongly, and asked for what is not there.

use crate::rows::{ANY_ORDER, Row, SAME, images, ours, run};
use crate::sandbox::has_qemu;

const VM_STATE: &str = "the state of a virtual machine in qcow2 images is not supported";
const PREALLOCATION: &str = "images with tables are not preallocated when they grow";
const FREED: &str =
    "without anything below, ours forgets a cluster that is zeroes: QEMU keeps a note";

/// What is the same whatever the format is.
const COMMON: &[Row] = &[
    ("read 8M 512", SAME),
    ("read 8M 0", SAME),
    ("read -v 100 33", SAME),
    ("read -p -C -v 7 20", SAME),
    ("write -P 1 100 50; read -v 96 64", SAME),
    ("write -P 5 511 2; read -P 5 511 2; read -v 500 32", SAME),
    ("write -q 0 192k; write -qz 1000 100k; read -P 0 1000 100k; read -P 0xcd 0 1000", SAME),
    ("write -z -u 0 64k; read -P 0 0 64k", SAME),
    ("write -s pattern 3 100k; read -v 0 40", SAME),
    ("write -s pattern 0 2; read -v 0 16", SAME),
    ("write -cz 0 64k; read -P 0 0 64k", SAME),
    ("write -f 0 512; write -zf 0 64k", SAME),
    ("write -zn 0 3G", SAME),
    ("write 8M 1", SAME),
    ("write -P 010 0 8; write -P 0xFF 8 8; write -P 08 8 8; read -v 0 16", SAME),
    ("readv -v 10 19", SAME),
    ("readv 8M 512 512", SAME),
    ("writev -P 3 1 1536; readv -P 3 1 1536; writev 512 512 0 1k; readv 512 512 512", SAME),
    ("writev 8M 512", SAME),
    ("aio_read -v 0 16; aio_flush", SAME),
    ("aio_write -P 4 0 512; aio_flush; read -v 0 16", SAME),
    ("aio_write -P 4 0 64k; aio_write -P 5 64k 64k; aio_write -P 6 100k 100; aio_flush", ANY_ORDER),
    ("aio_write -P 4 10 64k; aio_write -z 128k 64k; aio_read -P 0 512k 1k", ANY_ORDER),
    ("aio_write -z 8M 64k; aio_flush", SAME),
    ("aio_write 8M 64k; aio_flush", SAME),
    ("aio_write -q 1 1; aio_flush 1", SAME),
    ("flush; f", SAME),
    ("discard 0 64k", SAME),
    ("discard -q 0 64k; discard -C 0 64k; d 0 1k", SAME),
    ("discard 8M 64k", SAME),
    ("alloc 0; alloc 100 1k; alloc 0 64k; a 8M; alloc 7k 16M", SAME),
    ("write 64k 64k; alloc 0 1M; alloc 100k 64k; map", SAME),
    ("map; write 100 50; map; write 256k 1; map", SAME),
    ("truncate 8M; length; write -P 8 7M 64k; read -P 8 7M 64k; read -P 0 3M 64k", SAME),
    ("truncate 9E", SAME),
    ("info; i", SAME),
    ("reopen -r; write 0 512; discard 0 512; truncate 1M; aio_write 0 512; writev 0 1", SAME),
    ("reopen -r; reopen -w; write 0 512", SAME),
    ("write -q 0 512; reopen; read -P 0xcd 0 512", SAME),
    (
        "reopen -c none; write -P 3 5 70k; reopen -c writethrough; write -P 4 9 9; read -v 0 32",
        SAME,
    ),
];

/// How commands are called, and those that are not about an image's data: all formats see the same of it.
const CALLS: &[Row] = &[
    ("read 0 512", SAME),
    ("read -x 0 512", SAME),
    ("read 0", SAME),
    ("read 0 512 512", SAME),
    ("read -P 300 0 512", SAME),
    ("read -P 1 -s 100 -l 10 0 512", SAME),
    ("read -s 100 0 512", SAME),
    ("read -P 1 -l 600 0 512", SAME),
    ("read -P 0 -s 513 0 512", SAME),
    ("read -P 0 -s 512 0 512", SAME),
    ("read -l x -P 0 0 512", SAME),
    ("read -- -1 512", SAME),
    ("read 0 -1", SAME),
    ("read 0 3G", SAME),
    ("read 0 2147483136", SAME),
    ("read 9223372036854775807 1", SAME),
    ("read -b 1 512", SAME),
    ("read -br 0 512", SAME),
    ("write -n 0 512", SAME),
    ("write -u 0 512", SAME),
    ("write -zP 1 0 512", SAME),
    ("write -P 1 -s pattern 0 512", SAME),
    ("write -s none 0 512", SAME),
    ("write -s empty 0 512", SAME),
    ("write -s . 0 512", SAME),
    ("write -bz 0 512", SAME),
    ("write -fc 0 512", SAME),
    ("write -zr 0 512", SAME),
    ("write -c 1 64k", SAME),
    ("write -z 0 3G", SAME),
    ("write 0 3G", SAME),
    ("readv 0 512 3G", SAME),
    ("readv 0 1G 1G 1G", SAME),
    ("readv 0", SAME),
    ("readv -qP 9 0 512", SAME),
    ("writev -z 0 512", SAME),
    ("writev -C 0 512", SAME),
    ("aio_read -P 9 0 512; aio_flush", SAME),
    ("aio_read 8M 512; aio_flush; length", SAME),
    ("aio_read 0 3G", SAME),
    ("aio_read -i 0 512", SAME),
    ("aio_read x 512", SAME),
    ("aio_write -u 0 64k", SAME),
    ("aio_write -zP 1 0 64k; aio_flush", SAME),
    ("aio_write -z 0 64k 64k", SAME),
    ("aio_write -zr 0 64k", SAME),
    ("aio_write -i 0 512", SAME),
    ("aio_write -z 0 3G; aio_flush", SAME),
    ("aio_write -C 0 64k; aio_flush", SAME),
    ("flush 1", SAME),
    ("discard 0 3G", SAME),
    ("discard 0 512 512", SAME),
    ("alloc 0 1 1", SAME),
    ("alloc x", SAME),
    ("map 1", SAME),
    ("truncate -m x 4M", SAME),
    ("truncate -m", SAME),
    ("truncate x", SAME),
    ("length; l; length 1", SAME),
    ("open x", SAME),
    ("close; length", SAME),
    ("close; close", SAME),
    ("close; open", SAME),
    ("close; open -x x", SAME),
    ("close; open a b", SAME),
    ("close; open -t x a", SAME),
    ("close; open -d x a", SAME),
    ("close; open -i x a", SAME),
    ("close; open -o driver=raw none.raw", SAME),
    ("close; open -o driver=raw base.raw; length; read -P 1 0 1M", SAME),
    ("close; open -n -d ignore -o driver=raw base.raw; discard 0 64k; read -P 1 0 1M", SAME),
    ("close; open -s -o driver=raw base.raw; write 0 64k; read -P 0xcd 0 64k; map", SAME),
    ("close; open -r -o driver=raw,file.filename=base.raw; write 0 1; read -P 1 0 5", SAME),
    ("close; open -k -o driver=raw base.raw", SAME),
    ("close; open -U -o driver=raw base.raw", SAME),
    ("close; open -rU -o driver=raw base.raw; read 0 512", SAME),
    ("reopen -r -w", SAME),
    ("reopen -c x", SAME),
    ("reopen -o x=1", SAME),
    ("reopen 1", SAME),
    ("reopen -x", SAME),
    ("sleep 1; sleep 0x1", SAME),
    ("sleep", SAME),
    ("sleep 1k", SAME),
    ("sleep -1", SAME),
    ("help foo", SAME),
    ("help; ?; help length; help map", SAME),
    ("help read foo", SAME),
    ("sigraise 0; sigraise 65; length", SAME),
    ("sigraise x; sigraise 999; sigraise 2147483648; sigraise", SAME),
    ("sigraise 18; length", SAME),
    ("sigraise 15", SAME),
    ("abort", SAME),
    ("quit 1 2 3; length", SAME),
    ("foo; length; q; foo", SAME),
    ("READ 0 512", SAME),
    ("read\t0 512", SAME),
    ("'read' 0 512; \"read\" 0 512", SAME),
    ("", SAME),
    ("break a b; remove_break a; resume a", SAME),
    ("wait_break", SAME),
    ("zone_report 0 1; zone_open 0 1; zone_close 0 1; zone_finish 0 1; zone_reset 0 1", SAME),
    ("zone_append 0 512; zone_append 0 1 2; zone_report x 1", SAME),
];

#[test]
fn all_formats_alike() {
    if !has_qemu() {
        return;
    }
    let files = images();
    for name in ["a.raw", "a.qcow2", "a.qed"] {
        run(&files, name, COMMON);
    }
}

#[test]
fn calls() {
    if !has_qemu() {
        return;
    }
    run(&images(), "a.raw", CALLS);
}

#[test]
fn raw() {
    if !has_qemu() {
        return;
    }
    let files = images();
    let rows: &[Row] = &[
        ("readv -v 10 7 9 0 3; writev -P 3 1 512 1k; readv -P 3 1 512 512 512", SAME),
        ("write -q 0 64k; flush; sigraise 9", SAME),
        ("read -b 0 512", SAME),
        ("write -b 0 512", SAME),
        ("write -bc 0 512", SAME),
        ("write -c 0 64k", SAME),
        ("write -zn 0 64k; write -zn 100 1000", SAME),
        ("write 1048575 1; write 1048575 2; write 1M 0", SAME),
        ("discard 1 511; discard 0 0", SAME),
        ("truncate 1000; length; write -P 3 990 34; read -v 980 44", SAME),
        ("truncate -m full 2M; length", SAME),
        ("truncate -m falloc 2M; truncate 512 -m off; length", SAME),
        ("truncate -m full 1k", SAME),
        ("write 0 1M; discard 64k 64k; read -P 0 64k 64k; map", SAME),
    ];
    run(&files, "a.raw", rows);
    run(
        &files,
        "odd.raw",
        &[
            ("length; read -v 990 34; map; alloc 0 2k", SAME),
            ("write -P 3 990 34; read -v 980 44", SAME),
            ("write -z 500 524; read -P 0 500 524", SAME),
            ("truncate 999; length; read -P 1 0 999; read -v 995 10", SAME),
        ],
    );
}

#[test]
fn qcow2() {
    if !has_qemu() {
        return;
    }
    let files = images();
    let common: &[Row] = &[
        ("write -c 0 64k; read -P 0xcd 0 64k; map; alloc 0", SAME),
        ("write -c 0 512; write -c 32k 64k; write -c 1M 64k; write -c 960k 128k", SAME),
        ("readv -v 10 7 9 0 3; writev -P 3 1 512 1k; readv -P 3 1 512 512 512", SAME),
        ("write -q 0 64k; flush; sigraise 9", SAME),
        ("write -c 0 0; write -c 512k 512k; read -P 0xcd 512k 512k", SAME),
        ("write -c 0 128k; write -c 64k 64k", SAME),
        ("write 0 512; write -c 0 64k", SAME),
        ("write -cs pattern 0 64k; read -v 0 32; write -P 3 100 100; read -v 96 16", SAME),
        ("truncate 1000", SAME),
        ("truncate 512k; length; map", SAME),
        ("truncate 1M; truncate 1536; length", SAME),
        ("write 0 64k; discard 100 1000; read -P 0xcd 0 64k", SAME),
        ("write -b 0 512", ours(1, "-b", VM_STATE)),
        ("read -b 0 512", ours(1, "-b", VM_STATE)),
        ("truncate -m falloc 4M", ours(1, "preallocation", PREALLOCATION)),
    ];
    for name in ["a.qcow2", "v2.qcow2", "sub.qcow2", "over.qcow2"] {
        run(&files, name, common);
    }
    run(
        &files,
        "a.qcow2",
        &[
            ("write 0 64k; write -zn 100 1000", SAME),
            ("write -zn 100 1000", SAME),
            ("write -zn 100 1000; map", ours(0, "1 MiB (0x100000) bytes not", FREED)),
            ("write -P 1 0 1M; write -zn 64k 1000", SAME),
            ("write -P 1 0 1M; write -z 64k 64k; write -zn 70k 5; write -zn 65k 1k; map", SAME),
            ("write 0 1M; write -z 64k 64k; map", SAME),
            ("write -zn 0 1M; map", ours(0, "not allocated", FREED)),
            ("write 0 1M; discard 64k 64k; map", ours(0, "not allocated", FREED)),
            ("write 0 1M; write -zu 64k 64k; map", ours(0, "not allocated", FREED)),
        ],
    );
    run(
        &files,
        "v2.qcow2",
        &[
            ("write -zn 0 64k", SAME),
            ("write 0 64k; write -z 100 1000; read -P 0 100 1000; map", SAME),
            ("info", SAME),
        ],
    );
    run(
        &files,
        "fine.qcow2",
        &[
            ("write -P 1 0 1M; write -P 2 100 5k; discard 1k 10k; read -P 0 1k 10k", SAME),
            ("write -c 0 1M; read -P 0xcd 0 1M; map", SAME),
            ("info; map", SAME),
        ],
    );
}

#[test]
fn qcow2_over_another() {
    if !has_qemu() {
        return;
    }
    let files = images();
    run(
        &files,
        "over.qcow2",
        &[
            ("map; alloc 0 2M; read -P 1 0 1M; read -P 0 1M 1M", SAME),
            ("write -P 2 100 50; read -P 1 0 100; read -P 2 100 50; read -P 1 150 100k; map", SAME),
            ("write -z 0 64k; map; read -P 0 0 64k; read -P 1 64k 64k", SAME),
            ("write -zu 10k 1M; read -P 1 0 10k; read -P 0 10k 1M", SAME),
            ("write -zn 100 1000", SAME),
            (
                "discard 0 64k; read -P 0 0 64k; map",
                ours(
                    1,
                    "2 MiB (0x200000) bytes not",
                    "ours discards what the image has: it hides nothing below",
                ),
            ),
            ("write 0 64k; discard 0 64k; read -P 0 0 64k; map", SAME),
            ("write -c 64k 64k; read -P 1 0 64k; read -P 0xcd 64k 64k; map", SAME),
            (
                "write 0 64k; write -z 0 64k; write -cP 5 0 64k; read -P 5 0 64k",
                ours(0, "read 65536", "QEMU compresses no cluster of zeroes that keeps its room"),
            ),
            ("truncate 4M; read -P 0 2M 2M; truncate 512k; truncate 1M; read -P 0 512k 512k", SAME),
            ("aio_read -P 1 0 1M; aio_write -P 5 512k 7; aio_flush; read -P 5 512k 7", ANY_ORDER),
        ],
    );
}

#[test]
fn qcow2_encrypted() {
    if !has_qemu() {
        return;
    }
    let files = images();
    run(
        &files,
        "luks.qcow2",
        &[
            ("write -P 1 100 50; read -v 96 64; map", SAME),
            ("write -P 1 0 128k; write -z 1000 3000; read -P 0 1000 3000; read -P 1 4000 96", SAME),
            ("reopen -r; read -P 0 0 1M", SAME),
            (
                "write -c 0 64k",
                ours(1, "Invalid argument", "ours does not compress encrypted data"),
            ),
        ],
    );
}

#[test]
fn qed() {
    if !has_qemu() {
        return;
    }
    let files = images();
    let kept = "QEMU's QED driver discards nothing";
    let common: &[Row] = &[
        ("write -c 0 64k; write -b 0 512; read -b 0 512", SAME),
        ("write -zn 0 64k; write -zn 100 1000", SAME),
        ("truncate 100; length", SAME),
        (
            "readv -v 10 7 9 0 3; writev -P 3 1 512 1k; readv -P 3 1 512 512 512",
            ours(0, "read 1536/1536", "QEMU ends with a failed assertion"),
        ),
        ("write 0 64k; discard 100 1000; read -P 0xcd 0 64k", SAME),
        ("truncate 512k; length", ours(0, "512 KiB", "QEMU cannot shrink QED images")),
        ("truncate -m falloc 4M", SAME),
        ("write 0 64k; discard 0 64k; read -P 0xcd 0 64k", ours(1, "verification failed", kept)),
    ];
    for name in ["a.qed", "fine.qed"] {
        run(&files, name, common);
        run(&files, name, &[("info; map; write 0 1M; write -z 512k 64k; map", SAME)]);
    }
    run(&files, "a.qed", &[("write -z 0 64k; map", ours(0, "1 MiB (0x100000) bytes not", FREED))]);
    run(
        &files,
        "over.qed",
        &[
            ("map; alloc 0 2M; read -P 1 0 1M; read -P 0 1M 1M", SAME),
            ("write -P 2 100 50; read -P 1 0 100; read -P 2 100 50; read -P 1 150 100k; map", SAME),
            ("write -z 0 64k; map; read -P 0 0 64k; read -P 1 64k 64k", SAME),
            ("write -zu 10k 1M; read -P 1 0 10k; read -P 0 10k 1M", SAME),
        ],
    );
}
