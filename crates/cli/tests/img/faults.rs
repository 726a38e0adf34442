//! Images under filters, without a file, and named by JSON.

use crate::rows::{Row, SAME, ours, run};
use crate::sandbox::{Sandbox, has_qemu};

const SHOWN: &str = "filters are not shown: the disk is that of the format above";

#[rustfmt::skip]
const ROWS: &[Row] = &[
    // No file.
    ("info -f raw null-co://", SAME),
    ("info -f raw --output=json null-co://", ours(0, "null-co", "whether it is dirty is always told")),
    ("info --image-opts driver=raw,file.driver=null-co,file.size=1G", ours(0, "1 GiB", "a name is made up for it")),
    ("map --output=json --image-opts driver=null-co,size=3M,read-zeroes=on", SAME),
    ("map --image-opts driver=null-co,size=3M,read-zeroes=on", SAME),
    ("convert -O qcow2 --image-opts driver=null-co,size=3M,read-zeroes=on new.qcow2", SAME),
    ("convert -O raw --image-opts driver=raw,file.driver=null-co,file.size=1000,file.read-zeroes=on new.raw", SAME),
    ("convert -n -f qcow2 -O raw a.qcow2 null-co://", SAME),
    ("convert -n -f qcow2 --target-image-opts a.qcow2 driver=null-co,size=16M", SAME),
    ("convert -n -f qcow2 --target-image-opts a.qcow2 driver=null-co,size=1M", SAME),
    ("convert -f qcow2 -O raw a.qcow2 null-co://", SAME),
    ("compare --image-opts driver=null-co,size=4M,read-zeroes=on driver=raw,file.driver=null-co,file.size=4M,file.read-zeroes=on", SAME),
    ("compare --image-opts driver=null-co,size=4M,read-zeroes=on driver=qcow2,file.filename=a.qcow2", SAME),
    ("info null-co:", SAME),
    ("info null-co://x", SAME),
    ("info --image-opts driver=null-co,size=1M,colour=red", SAME),
    ("create -f raw null-co:// 1M", SAME),
    ("resize -f raw null-co:// 2G", SAME),
    // JSON.
    (r#"info json:{"driver":"qcow2","file":{"driver":"file","filename":"a.qcow2"}}"#, SAME),
    (r#"info json:{"driver":"qcow2","file.driver":"file","file.filename":"a.qcow2"}"#, SAME),
    (r#"info -f qcow2 json:{"file":{"filename":"a.qcow2"}}"#, SAME),
    (r#"check json:{"driver":"qcow2","file":{"filename":"a.qcow2"}}"#, SAME),
    (r#"map --output=json json:{"driver":"raw","file":{"filename":"a.raw"}}"#, SAME),
    (r#"convert -O raw json:{"driver":"qcow2","file":{"filename":"a.qcow2"}} new.raw"#, SAME),
    (r#"compare json:{"driver":"qcow2","file":{"filename":"a.qcow2"}} json:{"driver":"raw","file":{"filename":"a.raw"}}"#, SAME),
    (r#"resize json:{"driver":"qcow2","file":{"filename":"a.qcow2"}} 32M"#, SAME),
    (r#"snapshot -l json:{"driver":"qcow2","file":{"filename":"a.qcow2"}}"#, SAME),
    (r#"info json:{"driver":"null-co","size":4096}"#, ours(0, "4 KiB", "a name is made up for it")),
    (r#"info json:{"driver":"qcow2","file":{"filename":"a.qcow2"},"colour":"red"}"#, SAME),
    (r#"info json:{"driver":"qcow2","file":{"filename":"a.qcow2","colour":{"deep":1}}}"#, SAME),
    (r#"info json:{"driver":"qcow2","file":{"filename":"a.qcow2"},"file":{"filename":"a.raw"}}"#, SAME),
    (r#"info json:{"driver":"qcow2","file":{"filename":null}}"#, SAME),
    ("info json:{", SAME),
    ("info json:[]", SAME),
    ("info json:", SAME),
    (r#"create -f raw json:{"driver":"raw","file":{"filename":"new.raw"}} 1M"#, SAME),
    ("create -f raw json:new.raw 1M", SAME),
    // Faults.
    ("info blkdebug::a.qcow2", ours(0, "image: a.qcow2", SHOWN)),
    ("check -f qcow2 blkdebug::a.qcow2", SAME),
    ("convert -f qcow2 -O raw blkdebug::a.qcow2 new.raw", SAME),
    ("convert -f qcow2 -O raw blkdebug:missing:a.qcow2 new.raw", SAME),
    ("convert -O raw --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=a.qcow2,file.inject-error.0.event=read_aio new.raw",
        ours(1, "", "no half of a target is left behind")),
    ("compare --image-opts driver=raw,file.driver=blkdebug,file.image.filename=a.raw,file.inject-error.0.event=read_aio driver=raw,file.filename=a.raw", SAME),
    ("convert -n --image-opts --target-image-opts driver=raw,file.filename=a.raw driver=qcow2,file.driver=blkdebug,file.image.filename=a.qcow2,file.inject-error.0.event=write_aio", SAME),
    ("check --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=a.qcow2,file.inject-error.0.event=none,file.inject-error.0.iotype=read", SAME),
    ("check --image-opts driver=qcow2,file.driver=blkdebug,file.config=missing,file.image.filename=a.qcow2", SAME),
    // Not for what the image stands on.
    ("convert -O raw --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=o.qcow2,file.inject-error.0.event=read_aio new.raw", SAME),
    ("info --backing-chain --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=o.qcow2", ours(0, "image: a.raw", SHOWN)),
];

#[test]
fn names_and_filters() {
    if !has_qemu() {
        return;
    }
    let files = Sandbox::new();
    files.raw("a.raw", 8 << 20, &[(0, &[1; 4096]), (3 << 20, &[2; 70_000])]);
    files.ours_does("convert -f raw -O qcow2 a.raw a.qcow2");
    files.ours_does("create -q -f qcow2 -b a.raw -F raw o.qcow2");
    run(&files, ROWS);
}

#[test]
fn an_image_can_name_no_options() {
    let files = Sandbox::new();
    files.raw("a.raw", 1 << 20, &[]);
    let json = r#"json:{"driver":"raw","file":{"filename":"a.raw"}}"#;
    for name in [json, "blkdebug::a.raw", "null-co://"] {
        for format in ["qcow2", "qed"] {
            let image = format!("o.{format}");
            files.ours_does(&format!("create -q -u -f {format} -b {name} -F raw {image} 1M"));
            // With what it stands on allowed, as `qemu-img` has it.
            for verb in ["map", "convert -O raw", "compare"] {
                let other = if verb == "map" { "" } else { " new.raw" };
                let ended = files.ours(&format!("{verb} {image}{other}"));
                assert!(ended.code > 0, "{verb} {image}: {ended:?}");
                assert!(ended.stderr.contains("is not a plain path"), "{verb} {image}: {ended:?}");
                assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
            }
            std::fs::remove_file(files.path(&image)).unwrap();
        }
    }
}
