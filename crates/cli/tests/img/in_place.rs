//! `convert --in-place`: one file, two formats.

use crate::sandbox::{Sandbox, assert_one_line, has_qemu};
use crate::verbs::images;
use std::fs;

#[test]
fn an_image_becomes_qcow2_and_qed_again() {
    if !has_qemu() {
        return;
    }
    let files = images();
    fs::copy(files.path("p.qed"), files.path("p")).unwrap();
    let said = files.ferroblk("convert --in-place -O qcow2 p");
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.stdout.starts_with("Image converted in place to qcow2: "), "{said:?}");
    files.qemu_does("check -f qcow2 p");
    files.qemu_does("compare -f qcow2 -F qed p p.qed");
    let said = files.ferroblk("convert --in-place -q -f qcow2 -O qed p");
    assert_eq!((said.code, said.stdout.as_str()), (0, ""), "{said:?}");
    files.qemu_does("compare -f qed -F qed p p.qed");
    files.ours_does("check -f qed -r all p");
    files.qemu_does("check -f qed p");
}

#[test]
fn what_cannot_become_another_format_is_left_alone() {
    let files = Sandbox::new();
    files.raw("a.raw", 1 << 20, &[(0, b"nothing")]);
    files.ours_does("create -q -f qed a.qed 1M");
    files.ours_does("create -q -f qed -o cluster_size=4M large.qed 1G");
    for (args, word) in [
        ("-O qcow2 a.raw", "QED"),
        ("-O qed a.raw", "qcow2"),
        ("-O qed a.qed", "qcow2"),
        ("-O raw a.qed", "'raw'"),
        ("a.qed", "'raw'"),
        ("-f qcow2 -O qcow2 a.qed", "already"),
        ("-O qcow2 large.qed", "cluster"),
        ("-O qcow2 none.qed", "none.qed"),
        ("-O qcow2 a.qed a.raw", "one image"),
    ] {
        let look =
            || ["a.raw", "a.qed", "large.qed"].map(|name| fs::read(files.path(name)).unwrap());
        let before = look();
        let ended = files.ferroblk(&format!("convert --in-place {args}"));
        assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{args}: {ended:?}");
        assert_one_line(&ended.stderr, "ferroblk", args);
        assert!(ended.stderr.contains(word), "{args}: {ended:?}");
        assert!(look() == before, "{args}");
    }
}
