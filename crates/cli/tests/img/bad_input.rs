//! What makes no sense, is not there or is somebody else's: refused with QEMU's exit codes, in one line, and nothing is changed.

use crate::rows::{Row, SAME, assert_alike, ours, run};
use crate::sandbox::{Sandbox, has_qemu};
use crate::verbs::images;
use std::fs::File;

#[test]
fn command_lines() {
    if !has_qemu() {
        return;
    }
    let rows: &[Row] = &[
        ("nope", SAME),
        ("create", SAME),
        ("create new.raw", SAME),
        ("create -f qed new.qed", SAME),
        ("create new.raw 5X", SAME),
        ("create new.raw 9E", SAME),
        ("create new.raw -5", SAME),
        ("create new.raw 1M 2M", SAME),
        ("create -f nope new.raw 1M", SAME),
        ("create -f qed -o size=10M new.qed 20M", SAME),
        ("create -f qed -o size= new.qed", SAME),
        ("create -o nope=1 new.raw 1M", SAME),
        ("create -o cluster_size=4k new.raw 1M", SAME),
        ("create -f qed -o cluster_size=abc new.qed 1M", SAME),
        ("create -b a.raw -F raw new.raw", SAME),
        ("create -f qed -b a.raw new.qed", SAME),
        ("create -f qed -b a.raw -F nope new.qed", SAME),
        ("create -f qed -b a.raw -F qed new.qed", SAME),
        ("create -f qed -b none.raw -F raw new.qed", SAME),
        ("create -f qed -b none.raw -F raw new.qed 1M", SAME),
        ("create -f qed -u -b a.raw -F raw new.qed", SAME),
        ("create -f qed -u -b a.raw new.qed 1M", SAME),
        ("create -f qed -b new.qed -F qed new.qed 1M", SAME),
        ("create nowhere/new.raw 1M", SAME),
        ("create sub 1M", SAME),
        ("create --nope new.raw 1M", SAME),
        ("info", SAME),
        ("info a.raw a.qed", SAME),
        ("info --output xml a.raw", SAME),
        ("info none.raw", SAME),
        ("info sub", SAME),
        ("info -f qed a.raw", SAME),
        ("info -f nope a.raw", SAME),
        ("map none.raw", SAME),
        ("map -s xx a.raw", SAME),
        ("map -l xx a.raw", SAME),
        ("map -f qed a.raw", SAME),
        ("map sub/nbd.qed", SAME),
        ("resize", SAME),
        ("resize a.raw", SAME),
        ("resize none.raw 1M", SAME),
        ("resize -f raw a.raw 5X", SAME),
        ("resize -f raw a.raw +-5", SAME),
        ("resize -f raw a.raw -1M", SAME),
        ("resize -f raw a.raw 1000", SAME),
        ("resize -f raw --shrink a.raw 0", SAME),
        ("resize -f raw --shrink a.raw -100M", SAME),
        ("resize -f raw --preallocation bad a.raw 20M", SAME),
        ("resize -f raw --preallocation full --shrink a.raw 1M", SAME),
        ("resize -f raw --preallocation falloc a.raw 10M", SAME),
        ("resize -f qed --preallocation full a.qed 20M", SAME),
        ("resize -f qed a.qed 65T", SAME),
        ("resize -f qed a.qed 5M", SAME),
        ("check", SAME),
        ("check none.qed", SAME),
        ("check -r bogus a.qed", SAME),
        ("check -p a.qed", SAME),
        ("check -f qed a.raw", SAME),
        ("check -f nope a.qed", SAME),
        ("check -T bogus a.qed", SAME),
        ("check -U -r all a.qed", SAME),
        ("compare a.raw", SAME),
        ("compare a.raw a.raw a.raw", SAME),
        ("compare a.raw none.raw", SAME),
        ("compare none.raw a.raw", SAME),
        ("compare -f nope a.raw a.raw", SAME),
        ("compare -F qed a.raw a.raw", SAME),
        ("compare --nope a.raw a.raw", SAME),
        ("convert a.raw", SAME),
        ("convert none.raw new.raw", SAME),
        ("convert -f qed a.raw new.raw", SAME),
        ("convert -O nope a.raw new.raw", SAME),
        ("convert a.raw nowhere/new.raw", SAME),
        ("convert a.raw a.raw", SAME),
        ("convert a.raw sub", SAME),
        ("convert -c -O qed a.raw new.qed", SAME),
        ("convert -S 100 a.raw new.raw", SAME),
        ("convert -S 1G a.raw new.raw", SAME),
        ("convert -S xx a.raw new.raw", SAME),
        ("convert -m 0 a.raw new.raw", SAME),
        ("convert -m 17 a.raw new.raw", SAME),
        ("convert -m x a.raw new.raw", SAME),
        ("convert -t bogus a.raw new.raw", ours(1, "", "QEMU leaves a new image behind")),
        ("convert -T bogus a.raw new.raw", SAME),
        ("convert --target-is-zero a.raw big.raw", SAME),
        ("convert -n a.raw none.raw", SAME),
        ("convert -n a.raw small.raw", SAME),
        ("convert -n -o size=1M a.raw big.raw", SAME),
        ("convert -n -O qed a.raw big.raw", SAME),
        (
            "convert -O qed -B none.raw -F raw a.raw new.qed",
            ours(1, "", "QEMU leaves a new image behind"),
        ),
        ("convert -O qed -B a.raw a.qed new.qed", SAME),
        ("convert -B a.raw -F raw a.qed new.raw", SAME),
        ("convert -o nope=1 a.raw new.raw", SAME),
        ("convert sub/nbd.qed new.raw", SAME),
        ("resize plain 2M", ours(1, "", "a format is never guessed of what will be written")),
        ("map plain", ours(1, "", "a format is told by the name, or with -f")),
        (
            "create -f qed -o cluster_size=5000 new.qed 1M",
            ours(1, "", "QEMU leaves an empty file behind"),
        ),
        (
            "create -f qed -o table_size=3 new.qed 1M",
            ours(1, "", "QEMU leaves an empty file behind"),
        ),
        ("create -f qed new.qed 65T", ours(1, "", "QEMU leaves an empty file behind")),
    ];
    run(&images(), rows);
}

/// Locks an image as a virtual machine does that has it for itself.
fn lock(files: &Sandbox, name: &str) -> File {
    let file = File::options().read(true).write(true).open(files.path(name)).unwrap();
    io_engine::lock_image(&file, false).unwrap();
    file
}

#[test]
fn an_image_in_use_is_left_alone_as_qemu_leaves_it() {
    if !has_qemu() {
        return;
    }
    for (format, rows) in [
        (
            "raw",
            &[
                "info a.raw",
                "info -U a.raw",
                "map a.raw",
                "compare a.raw a.qed",
                "resize -f raw a.raw +1M",
                "create a.raw 1M",
                "convert -f raw a.raw new.raw",
                "convert -U -f raw a.raw new.raw",
                "convert -f raw full.raw a.raw",
                "convert -f raw a.raw a.raw",
                "convert -n -f raw full.raw a.raw",
            ][..],
        ),
        (
            "qed",
            &[
                "info a.qed",
                "info -U a.qed",
                "map a.qed",
                "map -U a.qed",
                "check a.qed",
                "check -U a.qed",
                "check -r all a.qed",
                "compare a.raw a.qed",
                "compare -U a.raw a.qed",
                "resize -f qed a.qed +1M",
                "create -f qed a.qed 1M",
                "convert -f qed a.qed new.raw",
                "convert -O qed full.raw a.qed",
            ],
        ),
    ] {
        let files = images();
        let name = format!("a.{format}");
        for args in rows {
            let (theirs, our) = (files.copy_for(args), files.copy_for(args));
            let locks = [lock(&theirs, &name), lock(&our, &name)];
            let (their_end, our_end) = (theirs.qemu(args), our.ours(args));
            let shown = format!("qemu-img {args}\n  QEMU: {their_end:?}\n  ours: {our_end:?}\n");
            assert_alike(&their_end, &our_end, &shown);
            drop(locks);
            let look = |files: &Sandbox| std::fs::read(files.path(&name)).unwrap();
            assert!(look(&our) == look(&files), "{shown}it was written to");
        }
    }
}

/// Each is refused before anything is opened: the line names the option.
#[test]
fn what_is_not_supported_says_so_by_name() {
    let files = Sandbox::new();
    files.raw("a.raw", 1 << 20, &[]);
    files.raw("b.vmdk", 1 << 20, &[(0, b"KDMV")]);
    for (args, code, word) in [
        ("info b.vmdk", 1, "vmdk"),
        ("map b.vmdk", 1, "-f"),
        ("info --image-opts driver=raw,offset=512,file.filename=a.raw", 1, "'offset'"),
        ("info --image-opts driver=nbd,file.filename=a.raw", 1, "'nbd'"),
        ("info --object secret,id=s a.raw", 1, "--object"),
        ("info --object tls-creds-x509,id=s,dir=x a.raw", 1, "--object"),
        ("compare --image-opts a b", 2, "--image-opts"),
        ("convert --target-image-opts a.raw file.filename=new.raw", 1, "--no-create"),
        ("convert -O vmdk a.raw new.vmdk", 1, "'vmdk'"),
        ("info -f vpc a.raw", 1, "'vpc'"),
        ("create -f luks new.luks 1M", 1, "'luks'"),
        ("bitmap --add a.raw b", 1, "no bitmaps"),
        ("rebase -b x a.raw", 1, "no backing file"),
    ] {
        for (program, ended) in [("qemu-img", files.ours(args)), ("ferroblk", files.ferroblk(args))]
        {
            assert_eq!((ended.code, ended.stdout.as_str()), (code, ""), "{args}: {ended:?}");
            crate::sandbox::assert_one_line(&ended.stderr, program, args);
            assert!(ended.stderr.contains(word), "{args}: {}", ended.stderr);
        }
        assert_eq!(files.names(), ["a.raw", "b.vmdk"], "{args}");
    }
}
