//! `amend`, beside QEMU's tool.

use crate::rows::{Row, SAME, ours, run};
use crate::sandbox::{Sandbox, has_qemu};
use std::fs;

const SECRET: &str = "--object secret,id=s,data=hello";

fn images() -> Sandbox {
    let files = Sandbox::new();
    files.raw("a.raw", 10 << 20, &[(0, &[1; 1 << 20]), (6 << 20, &[1; 1 << 20])]);
    let writes = ["write -P 2 1M 64k", "write -z 3M 1M", "write -P 2 5M 192k", "write -z 5M 64k"];
    for (name, options) in [
        ("a.qcow2", ""),
        ("v2.qcow2", "-o compat=0.10"),
        ("lazy.qcow2", "-o lazy_refcounts=on"),
        ("narrow.qcow2", "-o refcount_bits=8"),
        ("sub32.qcow2", "-o extended_l2=on"),
        ("fine.qcow2", "-o cluster_size=512"),
        ("zstd.qcow2", "-o compression_type=zstd"),
        ("d.qcow2", "-o data_file=d.qcow2.data"),
        ("r.qcow2", "-o data_file=r.qcow2.data,data_file_raw=on"),
    ] {
        files.qemu_does(&format!("create -q -f qcow2 {options} {name} 10M"));
        files.qemu_io("qcow2", name, &writes[..if name == "v2.qcow2" { 1 } else { 4 }]);
    }
    files.qemu_does("create -q -f qcow2 -b a.raw -F raw o.qcow2 10M");
    files.qemu_io(
        "qcow2",
        "o.qcow2",
        &["write -P 3 1M 64k", "write -z 512k 64k", "write -z 6M 64k"],
    );
    files.qemu_does("create -q -f qcow2 -o compat=0.10 -b a.raw -F raw v2.o.qcow2 10M");
    files.qemu_does("create -q -f qcow2 snap.qcow2 10M");
    files.qemu_io("qcow2", "snap.qcow2", &writes);
    files.qemu_does("snapshot -c s snap.qcow2");
    files.qemu_does("create -q -f qcow2 marked.qcow2 10M");
    files.qemu_does("bitmap --add marked.qcow2 b");
    files.qemu_does("create -q -f qed a.qed 10M");
    files
}

#[test]
fn amend() {
    if !has_qemu() {
        return;
    }
    let width = "the width of reference counts is not changed";
    let rows: &[Row] = &[
        ("amend -o compat=0.10 a.qcow2", SAME),
        ("amend -p -o compat=0.10 a.qcow2", SAME),
        ("amend -o compat=v2 a.qcow2", SAME),
        ("amend -o compat=1.1 a.qcow2", SAME),
        ("amend -q -o compat=1.1 v2.qcow2", SAME),
        ("amend -o compat=v3,lazy_refcounts=on v2.qcow2", SAME),
        ("amend -o compat=0.10 v2.qcow2", SAME),
        ("amend -o compat=0.10 o.qcow2", SAME),
        ("amend -o compat=1.1 v2.o.qcow2", SAME),
        ("amend -o compat=0.10 lazy.qcow2", SAME),
        ("amend -o compat=0.10 fine.qcow2", SAME),
        ("amend -t none -o compat=0.10 a.qcow2", SAME),
        ("amend --force -o compat=0.10 a.qcow2", SAME),
        ("amend --image-opts -o compat=0.10 driver=qcow2,file.filename=a.qcow2", SAME),
        ("amend -o lazy_refcounts=on a.qcow2", SAME),
        ("amend -o lazy_refcounts=off lazy.qcow2", SAME),
        ("amend -o lazy_refcounts=off a.qcow2", SAME),
        ("amend -o size=20M a.qcow2", SAME),
        ("amend -o size=2M a.qcow2", SAME),
        ("amend -o size=0 a.qcow2", SAME),
        ("amend -o size=20M,compat=0.10 o.qcow2", SAME),
        ("amend -o size=5M,compat=1.1 v2.o.qcow2", SAME),
        ("amend -o refcount_bits=16 a.qcow2", SAME),
        ("amend -o refcount_bits=8 narrow.qcow2", SAME),
        ("amend -o data_file_raw=off r.qcow2", SAME),
        ("amend -o data_file_raw=on r.qcow2", SAME),
        ("amend -o data_file=other.data d.qcow2", SAME),
        ("amend -o help a.qcow2", SAME),
        ("amend -f qcow2 -o help", SAME),
        // What cannot be.
        ("amend -o size=1000 a.qcow2", SAME),
        ("amend -o compat=0.10,lazy_refcounts=on a.qcow2", SAME),
        ("amend -o lazy_refcounts=on v2.qcow2", SAME),
        ("amend -o refcount_bits=8 v2.qcow2", SAME),
        ("amend -o refcount_bits=3 a.qcow2", SAME),
        ("amend -o compat=0.10 narrow.qcow2", SAME),
        ("amend -o compat=0.10 sub32.qcow2", SAME),
        ("amend -o compat=0.10 d.qcow2", SAME),
        ("amend -o data_file_raw=on d.qcow2", SAME),
        ("amend -o data_file=x a.qcow2", SAME),
        ("amend -o data_file= a.qcow2", SAME),
        ("amend -o cluster_size=4k a.qcow2", SAME),
        ("amend -o extended_l2=on a.qcow2", SAME),
        ("amend -o preallocation=full a.qcow2", SAME),
        ("amend -o encryption=on a.qcow2", SAME),
        ("amend -o encrypt.format=luks a.qcow2", SAME),
        ("amend -o encrypt.iter-time=10 a.qcow2", SAME),
        ("amend -o backing_file=x a.qcow2", SAME),
        ("amend -o backing_fmt=raw o.qcow2", SAME),
        ("amend -o nothing=1 a.qcow2", SAME),
        ("amend -o nocow=on a.qcow2", SAME),
        ("amend -f qed -o size=20M a.qed", SAME),
        ("amend -f raw -o size=20M a.raw", SAME),
        ("amend a.qcow2", SAME),
        ("amend -o compat=0.10", SAME),
        ("amend -o compat=1.1 none.qcow2", SAME),
        ("amend -t never -o compat=1.1 a.qcow2", SAME),
        ("amend -o refcount_bits=64 a.qcow2", ours(1, "", width)),
        ("amend -o compat=0.10 snap.qcow2", ours(1, "", "snapshots may have zero clusters")),
        ("amend -o compat=0.10 marked.qcow2", ours(1, "", "bitmaps would be lost")),
        ("amend -o compat=0.10 zstd.qcow2", ours(1, "", "nothing could read what is compressed")),
    ];
    run(&images(), rows);
}

#[test]
fn what_is_refused_changes_nothing() {
    if !has_qemu() {
        return;
    }
    let files = images();
    for (name, option) in [
        ("snap.qcow2", "compat=0.10,size=20M"),
        ("marked.qcow2", "compat=0.10,size=20M"),
        ("narrow.qcow2", "compat=0.10,size=20M"),
        ("a.qcow2", "compat=0.10,lazy_refcounts=on,size=20M"),
    ] {
        // Opening may write what is the same again.
        let info = files.qemu_does(&format!("info {name}"));
        let ended = files.ours(&format!("amend -o {option} {name}"));
        assert_eq!(ended.code, 1, "{name}: {ended:?}");
        assert_eq!(files.qemu_does(&format!("info {name}")), info);
    }
}

/// Secrets that were added open it to QEMU, those that were removed do not; and what they were cannot be got from the file.
#[test]
fn key_slots() {
    if !has_qemu() {
        return;
    }
    let files = Sandbox::new();
    files.raw("a.raw", 1 << 20, &[(4096, b"data")]);
    let luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    files.qemu_does(&format!("convert {SECRET} -O qcow2 -o {luks} a.raw e.qcow2"));
    let objects =
        format!("{SECRET} --object secret,id=t,data=second --object secret,id=u,data=third");
    let open = |id: &str| format!("driver=qcow2,file.filename=e.qcow2,encrypt.key-secret={id}");
    let amend = |id: &str, options: &str| {
        files.ours(&format!("amend {objects} --image-opts -o {options} {}", open(id)))
    };
    let opens = |id: &str| {
        let raw = "driver=raw,file.filename=a.raw";
        let ended = files.qemu(&format!("compare {objects} --image-opts {raw} {}", open(id)));
        assert!(ended.code == 0 || ended.code == 2, "{ended:?}");
        ended.code == 0
    };
    let add =
        |id: &str| format!("encrypt.state=active,encrypt.new-secret={id},encrypt.iter-time=10");
    assert_eq!(amend("s", &add("t")).code, 0);
    assert_eq!(amend("t", &format!("{},encrypt.keyslot=2", add("u"))).code, 0);
    assert_eq!([opens("s"), opens("t"), opens("u")], [true; 3]);
    let before = fs::read(files.path("e.qcow2")).unwrap();
    assert_eq!(amend("t", "encrypt.state=inactive,encrypt.old-secret=s").code, 0);
    assert_eq!([opens("s"), opens("t"), opens("u")], [false, true, true]);
    let after = fs::read(files.path("e.qcow2")).unwrap();
    let changed = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    assert!(changed > 100_000, "the material is overwritten: {changed}");
    assert_eq!(amend("u", "encrypt.state=inactive,encrypt.keyslot=1").code, 0);
    assert_eq!([opens("s"), opens("t"), opens("u")], [false, false, true]);
    files.qemu_does(&format!("check {objects} --image-opts {}", open("u")));
    // The last one stays, and nothing is done by halves.
    for options in [
        "encrypt.state=inactive,encrypt.keyslot=2",
        "encrypt.state=inactive,encrypt.old-secret=u",
        "encrypt.state=inactive,encrypt.old-secret=s",
        "encrypt.state=inactive,encrypt.keyslot=7",
        "encrypt.state=inactive,encrypt.keyslot=8",
        "encrypt.state=inactive",
        "encrypt.state=active",
        "encrypt.state=none,encrypt.new-secret=t",
        "encrypt.new-secret=t",
        "encrypt.state=active,encrypt.new-secret=v",
        "encrypt.state=active,encrypt.new-secret=t,encrypt.keyslot=5,encrypt.iter-time=10",
    ] {
        let before = fs::read(files.path("e.qcow2")).unwrap();
        assert_eq!(amend("u", options).code, 1, "{options}");
        assert!(before == fs::read(files.path("e.qcow2")).unwrap(), "{options}");
    }
    assert_eq!(amend("s", &add("t")).code, 1);
}
