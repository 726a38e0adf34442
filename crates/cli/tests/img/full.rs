//! Verbs that change an image where it lies, on a file system that has room for ever more of what they need: from none to enough.

use crate::sandbox::{Sandbox, has_qemu};

/// A verb and what it is tried on.
struct Case {
    /// Makes the images, by QEMU's tools, in the directory where it runs.
    setup: &'static str,
    /// What is tried.
    verb: &'static str,
    /// The image whose content must not change.
    image: &'static str,
    /// Images that must check clean but for leaks.
    clean: &'static str,
}

/// What came of it with so much room.
#[derive(Debug)]
struct Try {
    code: i32,
    checked: bool,
    is_same: bool,
    said: String,
}

/// Tries it with 0 KiB of room, 4, 8, ... up to what suffices. A try is a line `CODE CHECKED COMPARED WHAT-IT-SAID`.
fn tries(case: &Case) -> Option<Vec<Try>> {
    let files = Sandbox::new();
    let Case { setup, verb, image, clean } = case;
    let script = format!(
        "set -e
        mkdir master small
        cd master; {{ {setup}; }} > /dev/null; qemu-img convert -O raw {image} expected; cd ..
        room=0
        while [ $room -le 4096 ]; do
            mount -t tmpfs -o size=24M none small
            cp --sparse=always master/* small
            cd small
            left=$(df -k --output=avail . | tail -1)
            fallocate -l $((left - room))K fill
            code=0; $IMG {verb} > /dev/null 2> ../said || code=$?
            rm fill
            checked=0; for image in {clean}; do qemu-img check -q $image > /dev/null 2>&1 || [ $? = 3 ] || checked=1; done
            same=0; qemu-img compare -q -f raw expected {image} || same=$?
            echo $code $checked $same $(cat ../said)
            # The kernel may close the files of a ring after the process has ended.
            cd ..; umount -l small
            [ $code != 0 ] || exit 0
            if [ $room -lt 64 ]; then room=$((room + 4)); else room=$((room + 60)); fi
        done"
    );
    let ended = files.with_mounts(&script)?;
    assert_eq!(ended.code, 0, "{verb}: {ended:?}");
    let parse = |line: &str| {
        let mut words = line.splitn(4, ' ');
        let mut number = || words.next().unwrap().parse::<i32>().unwrap();
        let (code, checked, is_same) = (number(), number() == 0, number() == 0);
        Try { code, checked, is_same, said: words.next().unwrap_or_default().to_owned() }
    };
    Some(ended.stdout.lines().map(parse).collect())
}

/// Each try leaves the content as it was and the images clean; those without enough room say so; the last one does it.
fn assert_whole(cases: &[Case]) {
    if !has_qemu() {
        return;
    }
    for case in cases {
        let Some(tries) = tries(case) else { return };
        let verb = case.verb;
        let (last, short) = tries.split_last().unwrap();
        assert_eq!(last.code, 0, "{verb}: {last:?}");
        assert!(!short.is_empty(), "{verb} needs no room: the case shows nothing");
        for one in short {
            assert_eq!(one.code, 1, "{verb}: {one:?}");
            assert!(one.said.contains("No space left"), "{verb}: {one:?}");
        }
        for one in &tries {
            assert!(one.checked && one.is_same, "{verb}: {one:?}");
        }
    }
}

#[test]
fn commit_without_room() {
    assert_whole(&[
        Case {
            setup: "qemu-img create -f qcow2 base.qcow2 4M
                qemu-img create -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 6M
                qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 3M 300k' -c 'write -P 3 5M 64k' top.qcow2",
            verb: "commit top.qcow2",
            image: "top.qcow2",
            clean: "base.qcow2 top.qcow2",
        },
        Case {
            setup: "qemu-img create -f qed base.qed 4M
                qemu-img create -f qed -b base.qed -F qed top.qed 4M
                qemu-io -f qed -c 'write -P 1 0 1M' -c 'write -P 2 3M 300k' top.qed",
            verb: "commit top.qed",
            image: "top.qed",
            clean: "base.qed top.qed",
        },
        Case {
            setup: "truncate -s 4M base.raw
                qemu-img create -f qcow2 -b base.raw -F raw top.qcow2 4M
                qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 3M 300k' top.qcow2",
            verb: "commit top.qcow2",
            image: "top.qcow2",
            clean: "top.qcow2",
        },
    ]);
}

#[test]
fn rebase_without_room() {
    assert_whole(&[
        Case {
            setup: "qemu-img create -f qcow2 old.qcow2 4M; qemu-img create -f qcow2 new.qcow2 4M
                qemu-io -f qcow2 -c 'write -P 1 0 1M' old.qcow2
                qemu-img create -f qcow2 -b old.qcow2 -F qcow2 top.qcow2 4M
                qemu-io -f qcow2 -c 'write -P 2 64k 300k' top.qcow2",
            verb: "rebase -b new.qcow2 -F qcow2 top.qcow2",
            image: "top.qcow2",
            clean: "top.qcow2",
        },
        Case {
            setup: "qemu-img create -f qcow2 old.qcow2 4M; qemu-img create -f qcow2 new.qcow2 4M
                qemu-io -f qcow2 -c 'write -P 1 0 1M' old.qcow2
                qemu-img create -f qed -b old.qcow2 -F qcow2 top.qed 4M
                qemu-io -f qed -c 'write -P 2 64k 300k' top.qed",
            verb: "rebase -b new.qcow2 -F qcow2 top.qed",
            image: "top.qed",
            clean: "top.qed",
        },
    ]);
}

const WRITTEN: &str = "qemu-img create -f qcow2 -o cluster_size=4k a.qcow2 4M
    qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 3M 300k' a.qcow2";

#[test]
fn resize_without_room() {
    assert_whole(&[
        Case { setup: WRITTEN, verb: "resize a.qcow2 64G", image: "a.qcow2", clean: "a.qcow2" },
        Case {
            setup: "qemu-img create -f raw a.raw 1M; qemu-io -f raw -c 'write -P 1 64k 300k' a.raw",
            verb: "resize -f raw --preallocation=full a.raw +1M",
            image: "a.raw",
            clean: "",
        },
        Case {
            setup: "qemu-img create -f raw a.raw 1M; qemu-io -f raw -c 'write -P 1 64k 300k' a.raw",
            verb: "resize -f raw --preallocation=falloc a.raw +1M",
            image: "a.raw",
            clean: "",
        },
    ]);
}

#[test]
fn snapshots_and_bitmaps_without_room() {
    const SNAPSHOT: &str = "qemu-img create -f qcow2 -o cluster_size=4k a.qcow2 4M
        qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 3M 300k' a.qcow2
        qemu-img snapshot -c one a.qcow2";
    assert_whole(&[
        Case {
            setup: WRITTEN,
            verb: "snapshot -c one a.qcow2",
            image: "a.qcow2",
            clean: "a.qcow2",
        },
        Case {
            setup: SNAPSHOT,
            verb: "snapshot -c two a.qcow2",
            image: "a.qcow2",
            clean: "a.qcow2",
        },
        Case { setup: WRITTEN, verb: "bitmap --add a.qcow2 b", image: "a.qcow2", clean: "a.qcow2" },
    ]);
}

#[test]
fn amend_without_room() {
    assert_whole(&[Case {
        setup: "qemu-img create -f qcow2 -o cluster_size=512,compat=0.10 a.qcow2 4M
            qemu-io -f qcow2 -c 'write -P 1 0 1M' a.qcow2",
        verb: "amend -o compat=1.1,size=4G a.qcow2",
        image: "a.qcow2",
        clean: "a.qcow2",
    }]);
}

/// Until it is mended, only its content is as it was.
#[test]
fn repair_without_room() {
    assert_whole(&[Case {
        setup: "qemu-img create -f qcow2 -o cluster_size=4k a.qcow2 4M
            qemu-io -f qcow2 -c 'write -P 1 0 1M' a.qcow2
            table=$((0x$(od -An -tx1 -j48 -N8 a.qcow2 | tr -d ' ')))
            dd if=/dev/zero of=a.qcow2 bs=1 seek=$table count=8 conv=notrunc 2> /dev/null",
        verb: "check -q -r all a.qcow2",
        image: "a.qcow2",
        clean: "",
    }]);
}
