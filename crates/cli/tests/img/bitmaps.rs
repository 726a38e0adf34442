//! Persistent bitmaps, and `bench`, beside QEMU's tool.

use crate::rows::{Row, SAME, ours, run};
use crate::sandbox::{Sandbox, has_qemu};

fn images() -> Sandbox {
    let files = Sandbox::new();
    files.qemu_does("create -q -f qcow2 a.qcow2 10M");
    files.qemu_does("bitmap --add a.qcow2 on");
    files.qemu_does("bitmap --add -g 4k a.qcow2 fine");
    files.qemu_io("qcow2", "a.qcow2", &["write -P 1 1M 70k", "write -P 1 8M 1k"]);
    files.qemu_does("bitmap --disable a.qcow2 fine");
    files.qemu_io("qcow2", "a.qcow2", &["write -P 2 3M 4k"]);
    files.qemu_does("bitmap --add --disable a.qcow2 off");
    files.qemu_does("create -q -f qcow2 b.qcow2 10M");
    files.qemu_does("bitmap --add -g 1M b.qcow2 on");
    files.qemu_io("qcow2", "b.qcow2", &["write -P 3 5M 64k"]);
    files.qemu_does("create -q -f qcow2 large.qcow2 20M");
    files.qemu_does("bitmap --add large.qcow2 on");
    files.qemu_does("create -q -f qcow2 broken.qcow2 10M");
    files.qemu_does("bitmap --add --disable broken.qcow2 good");
    files.qemu_does("bitmap --add broken.qcow2 bad");
    files.qemu_io_killed("broken.qcow2", "write 0 64k");
    files.qemu_does("create -q -f qcow2 bad.qcow2 10M");
    files.qemu_does("bitmap --add bad.qcow2 bad");
    files.qemu_io_killed("bad.qcow2", "write 0 64k");
    files.qemu_does("create -q -f qcow2 -o compat=0.10 v2.qcow2 10M");
    files.qemu_does("create -q -f qcow2 plain.qcow2 10M");
    files.raw("a.raw", 10 << 20, &[(4096, b"data")]);
    files.qemu_does("snapshot -c s a.qcow2");
    files
}

#[test]
fn bitmap() {
    if !has_qemu() {
        return;
    }
    let one = "bitmap --add plain.qcow2 x";
    let rows: &[Row] = &[
        (one, SAME),
        ("bitmap --add -f qcow2 -g 1M plain.qcow2 x", SAME),
        ("bitmap --add --granularity 2G plain.qcow2 x", SAME),
        ("bitmap --add --disable plain.qcow2 x", SAME),
        ("bitmap --add --disable --enable plain.qcow2 x", SAME),
        ("bitmap --add --remove --add plain.qcow2 x", SAME),
        ("bitmap --add --merge on a.qcow2 x", SAME),
        ("bitmap --add --disable --merge on --merge fine a.qcow2 x", SAME),
        ("bitmap --remove a.qcow2 fine", SAME),
        ("bitmap --remove --add -g 64k a.qcow2 fine", SAME),
        ("bitmap --clear a.qcow2 fine", SAME),
        ("bitmap --disable a.qcow2 on", SAME),
        ("bitmap --enable a.qcow2 off", SAME),
        ("bitmap --enable a.qcow2 on", SAME),
        ("bitmap --merge fine a.qcow2 off", SAME),
        ("bitmap --merge on a.qcow2 fine", SAME),
        ("bitmap --merge on a.qcow2 on", SAME),
        ("bitmap --merge on -b b.qcow2 -F qcow2 a.qcow2 fine", SAME),
        ("bitmap --add --merge on -b b.qcow2 -F qcow2 plain.qcow2 x", SAME),
        ("bitmap --merge fine -b a.qcow2 b.qcow2 on", SAME),
        ("bitmap --image-opts --add driver=qcow2,file.filename=plain.qcow2 x", SAME),
        ("bitmap --remove broken.qcow2 bad", SAME),
        ("bitmap --add broken.qcow2 another", SAME),
        // What cannot be.
        ("bitmap --add a.qcow2 on", SAME),
        ("bitmap --remove a.qcow2 none", SAME),
        ("bitmap --clear a.qcow2 none", SAME),
        ("bitmap --enable a.qcow2 none", SAME),
        ("bitmap --disable a.qcow2 none", SAME),
        ("bitmap --merge none a.qcow2 on", SAME),
        ("bitmap --merge on a.qcow2 none", SAME),
        ("bitmap --merge on -b large.qcow2 -F qcow2 a.qcow2 on", SAME),
        ("bitmap --merge none -b b.qcow2 -F qcow2 a.qcow2 on", SAME),
        ("bitmap --merge on --add a.qcow2 late", SAME),
        ("bitmap --disable --add a.qcow2 late", SAME),
        ("bitmap --clear broken.qcow2 bad", SAME),
        ("bitmap --merge bad broken.qcow2 good", SAME),
        ("bitmap --add -g 1000 plain.qcow2 x", SAME),
        ("bitmap --add -g 256 plain.qcow2 x", SAME),
        ("bitmap --add -g 4G plain.qcow2 x", SAME),
        ("bitmap --clear -g 1M a.qcow2 on", SAME),
        ("bitmap --clear -b b.qcow2 a.qcow2 on", SAME),
        ("bitmap --merge on -F qcow2 a.qcow2 on", SAME),
        ("bitmap a.qcow2 on", SAME),
        ("bitmap --add a.qcow2", SAME),
        ("bitmap --add a.qcow2 x y", SAME),
        ("bitmap --add v2.qcow2 x", SAME),
        ("bitmap --add -f raw a.raw x", SAME),
        ("bitmap --add none.qcow2 x", SAME),
    ];
    run(&images(), rows);
}

/// The bits are what they should be: to QEMU, which shows them as `map` of an NBD export.
#[test]
fn merged_bits_are_right() {
    if !has_qemu() {
        return;
    }
    let files = images();
    files.ours_does("bitmap --add --merge on --merge fine a.qcow2 sum");
    files.ours_does("bitmap --merge on -b b.qcow2 -F qcow2 a.qcow2 fine");
    files.ours_does("bitmap --disable a.qcow2 on");
    files.ours_does("convert --bitmaps -O qcow2 a.qcow2 copy.qcow2");
    for image in ["a.qcow2", "copy.qcow2"] {
        for (bitmap, expected) in [
            ("on", &[(1 << 20, 128 << 10), (3 << 20, 64 << 10), (8 << 20, 64 << 10)][..]),
            ("sum", &[(1 << 20, 128 << 10), (3 << 20, 64 << 10), (8 << 20, 64 << 10)]),
            ("fine", &[(1 << 20, 72 << 10), (5 << 20, 1 << 20), (8 << 20, 4 << 10)]),
            ("off", &[]),
        ] {
            assert_eq!(files.dirty(image, bitmap), expected, "{image} {bitmap}");
        }
    }
    files.ours_does("bitmap --clear a.qcow2 fine");
    assert_eq!(files.dirty("a.qcow2", "fine"), []);
}

#[test]
fn convert_with_snapshots_and_bitmaps() {
    if !has_qemu() {
        return;
    }
    let why = "what could not be completed is removed";
    let rows: &[Row] = &[
        ("convert -l s -O qcow2 a.qcow2 new.qcow2", SAME),
        ("convert -l 1 a.qcow2 new.raw", SAME),
        ("convert -l snapshot.id=1 a.qcow2 new.raw", SAME),
        ("convert -l snapshot.id=1,snapshot.name=s a.qcow2 new.raw", SAME),
        ("convert -l snapshot.id=2,snapshot.name=s a.qcow2 new.raw", SAME),
        ("convert -l snapshot.foo=1 a.qcow2 new.raw", SAME),
        ("convert -l s a.qcow2 b.qcow2 new.raw", SAME),
        ("convert -l none a.qcow2 new.raw", SAME),
        ("convert -l s plain.qcow2 new.raw", SAME),
        ("convert -l s -f raw a.raw new.raw", SAME),
        ("convert --bitmaps -O qcow2 a.qcow2 new.qcow2", SAME),
        ("convert --bitmaps -c -O qcow2 -o cluster_size=4k a.qcow2 new.qcow2", SAME),
        ("convert --bitmaps -O qcow2 plain.qcow2 new.qcow2", SAME),
        ("convert --bitmaps -l s -O qcow2 a.qcow2 new.qcow2", SAME),
        ("convert --bitmaps -n -O qcow2 a.qcow2 plain.qcow2", SAME),
        ("convert --bitmaps -O qcow2 v2.qcow2 new.qcow2", SAME),
        ("convert --bitmaps -O qcow2 -f raw a.raw new.qcow2", SAME),
        ("convert --bitmaps -O qcow2 a.qcow2 b.qcow2 new.qcow2", SAME),
        ("convert --skip-broken-bitmaps -O qcow2 a.qcow2 new.qcow2", SAME),
        ("convert --bitmaps -O qcow2 broken.qcow2 new.qcow2", SAME),
        ("convert --bitmaps --skip-broken-bitmaps -O qcow2 bad.qcow2 new.qcow2", SAME),
        ("convert --bitmaps -O raw a.qcow2 new.raw", ours(1, "", why)),
        ("convert --bitmaps -O qcow2 -o compat=0.10 a.qcow2 new.qcow2", ours(1, "", why)),
    ];
    run(&images(), rows);
}

/// Unlike QEMU's tool, which copies the disk and some bitmaps before it finds out.
#[test]
fn a_target_that_has_a_bitmap_of_the_name_is_left_as_it_is() {
    if !has_qemu() {
        return;
    }
    let files = images();
    let before = std::fs::read(files.path("b.qcow2")).unwrap();
    let ended = files.ours("convert --bitmaps -n -O qcow2 a.qcow2 b.qcow2");
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("'on' already"), "{ended:?}");
    assert_eq!(files.dirty("b.qcow2", "on"), [(5 << 20, 1 << 20)]);
    assert!(before == std::fs::read(files.path("b.qcow2")).unwrap());
}

#[test]
fn bench() {
    if !has_qemu() {
        return;
    }
    let rows: &[Row] = &[
        ("bench -c 10 -f raw a.raw", SAME),
        ("bench -c 10 a.qcow2", SAME),
        ("bench -q -c 10 a.qcow2", SAME),
        ("bench -U -c 10 a.qcow2", SAME),
        ("bench -c 300 -d 100 -s 64k -S 4k -o 1M a.qcow2", SAME),
        ("bench -c 10 -d 2 -s 8192 -S 4096 -w --pattern 5 --flush-interval 3 -o 1M a.qcow2", SAME),
        ("bench -c 40 -d 4 -w --flush-interval 4 --no-drain --pattern 0x41 a.qcow2", SAME),
        ("bench -c 40 -d 4 -w --flush-interval 4 --no-drain --pattern 65 a.qcow2", SAME),
        ("bench -c 5 -s 100 -o 7 a.qcow2", SAME),
        ("bench -c 50 -d 9 -s 100 -o 7 -S 90 --pattern 7 -w a.qcow2", SAME),
        ("bench -c 3 -S 0 a.qcow2", SAME),
        ("bench -c 30 -s 1M -o 9M a.qcow2", SAME),
        ("bench -i threads -c 3 a.qcow2", SAME),
        ("bench -i native -c 3 a.qcow2", SAME),
        ("bench -n -c 3 a.qcow2", SAME),
        ("bench -i none -c 3 a.qcow2", SAME),
        ("bench -t none -c 3 a.qcow2", SAME),
        ("bench -t unsafe -w -c 3 a.qcow2", SAME),
        ("bench -t never -c 3 a.qcow2", SAME),
        ("bench --flush-interval 3 -c 1 a.qcow2", SAME),
        ("bench -w --flush-interval 3 -c 1 a.qcow2", SAME),
        ("bench -c 0x10 -d 0x2 a.qcow2", SAME),
        ("bench -c 0 a.qcow2", SAME),
        ("bench -c 1k a.qcow2", SAME),
        ("bench -c x a.qcow2", SAME),
        ("bench -d 0 a.qcow2", SAME),
        ("bench -s 0 a.qcow2", SAME),
        ("bench -s 2G a.qcow2", SAME),
        ("bench -S -1 a.qcow2", SAME),
        ("bench -w --pattern 256 -c 1 a.qcow2", SAME),
        ("bench -w -U -c 1 a.qcow2", SAME),
        ("bench -c 1 -o 11M a.qcow2", SAME),
        ("bench -c 20 -s 512k -S 1000k a.qcow2", SAME),
        ("bench", SAME),
        ("bench -c 1 none.qcow2", SAME),
    ];
    run(&images(), rows);
}
