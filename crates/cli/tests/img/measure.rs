//! `measure` and `dd`, beside QEMU's tool.

use crate::rows::{Row, SAME, ours, run};
use crate::sandbox::{Sandbox, has_qemu};
use std::fs;

const MIB: u64 = 1 << 20;

fn images() -> Sandbox {
    let files = Sandbox::new();
    let data: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8 + 1).collect();
    files.raw("a.raw", 10 * MIB, &[(MIB, &data), (5 * MIB + 4096, &data[..5000])]);
    files.raw("odd.raw", 100_001, &[(0, &data[..100_001])]);
    for (name, options) in
        [("a.qcow2", ""), ("v2.qcow2", "-o compat=0.10"), ("fine.qcow2", "-o cluster_size=512")]
    {
        files.qemu_does(&format!("convert -O qcow2 {options} a.raw {name}"));
    }
    files.qemu_io("qcow2", "a.qcow2", &["write -z 0 128k", "write -P 7 2M 4k"]);
    files.qemu_does("snapshot -c before a.qcow2");
    files.qemu_does("snapshot -c 1 a.qcow2");
    files.qemu_io("qcow2", "a.qcow2", &["write -P 9 7M 1M"]);
    files.qemu_does("bitmap --add a.qcow2 one");
    files.qemu_does("bitmap --add -g 512 --disable a.qcow2 another");
    files.qemu_does("create -q -f qcow2 -b a.raw -F raw o.qcow2 12M");
    files.qemu_io("qcow2", "o.qcow2", &["write -P 3 1M 32k", "write -z 5M 64k"]);
    files.qemu_does("convert -c -O qcow2 a.raw c.qcow2");
    files
}

#[test]
fn measure() {
    if !has_qemu() {
        return;
    }
    let why = "QEMU measures no QED images";
    let rows: &[Row] = &[
        ("measure --size 10M", SAME),
        ("measure --size 10000001 --output json", SAME),
        ("measure a.raw -f raw", SAME),
        ("measure -O raw odd.raw -f raw", SAME),
        ("measure -O qcow2 -f raw odd.raw", SAME),
        ("measure -O qcow2 -f raw a.raw", SAME),
        ("measure -O qcow2 a.qcow2", SAME),
        ("measure -O qcow2 --output json a.qcow2", SAME),
        ("measure -O qcow2 v2.qcow2", SAME),
        ("measure -O qcow2 fine.qcow2", SAME),
        ("measure -O qcow2 -o cluster_size=2M fine.qcow2", SAME),
        ("measure -O qcow2 -o cluster_size=512 fine.qcow2", SAME),
        ("measure -O qcow2 c.qcow2", SAME),
        ("measure -O qcow2 o.qcow2", SAME),
        ("measure -O raw o.qcow2", SAME),
        ("measure -O qcow2 -l before a.qcow2", SAME),
        ("measure -O qcow2 -l 1 a.qcow2", SAME),
        ("measure -O qcow2 -l snapshot.name=1 a.qcow2", SAME),
        ("measure -O qcow2 -l none a.qcow2", SAME),
        ("measure -O qcow2 -o compat=0.10 a.qcow2", SAME),
        ("measure -O qcow2 -o compat=v3 a.qcow2", ours(0, "bitmaps size", "create takes v3 too")),
        ("measure -O qcow2 -o preallocation=full a.qcow2", SAME),
        ("measure -O qcow2 -o preallocation=falloc a.qcow2", SAME),
        ("measure -O qcow2 -o preallocation=metadata a.qcow2", SAME),
        ("measure -O qcow2 -o backing_file=x,backing_fmt=raw a.qcow2", SAME),
        ("measure -O qcow2 -o refcount_bits=1 --size 5G", SAME),
        ("measure -O qcow2 -o refcount_bits=64,cluster_size=512 --size 5G", SAME),
        ("measure -O qcow2 -o refcount_bits=64,cluster_size=2M --size 5P", SAME),
        ("measure -O qcow2 -o extended_l2=on,cluster_size=16k --size 7T", SAME),
        ("measure -O qcow2 -o extended_l2=on,compat=0.10 --size 1M", SAME),
        ("measure -O qcow2 -o data_file=x,data_file_raw=on --size 1M", SAME),
        ("measure -O qcow2 -o lazy_refcounts=on,compression_type=zstd --size 1M", SAME),
        ("measure -O qcow2 --size 1", SAME),
        ("measure -O qcow2 --size 0", SAME),
        ("measure -O qcow2 --size 1T", SAME),
        ("measure -O qcow2 -o @luks @secret --size 1G", SAME),
        ("measure -O qcow2 -o @luks,encrypt.cipher-alg=aes-128 @secret --size 1G", SAME),
        ("measure -O qcow2 -o @luks,cluster_size=512 @secret -f raw a.raw", SAME),
        ("measure -O qcow2 -o @luks --size 1G", SAME),
        ("measure -O qcow2 --size 64P", SAME),
        ("measure -O qcow2 --size 8E", SAME),
        ("measure -O qcow2 --size x", SAME),
        ("measure -O qcow2 -o cluster_size=1000 --size 1M", SAME),
        ("measure -O qcow2 -o cluster_size=4M --size 1M", SAME),
        ("measure -O qcow2 -o refcount_bits=3 --size 1M", SAME),
        ("measure -O qcow2 -o refcount_bits=8,compat=0.10 --size 1M", SAME),
        ("measure -O qcow2 -o extended_l2=on,cluster_size=4k --size 1M", SAME),
        ("measure -O qcow2 -o preallocation=some --size 1M", SAME),
        ("measure -O qcow2 -o nothing=1 --size 1M", SAME),
        ("measure", SAME),
        ("measure --size 10M a.qcow2", SAME),
        ("measure --size 10M -f qcow2", SAME),
        ("measure --size 10M -l before", SAME),
        ("measure -O none --size 10M", SAME),
        ("measure --output none --size 10M", SAME),
        ("measure none.qcow2", SAME),
        (
            "measure -O qed --size 10M",
            ours(0, "required size: 327680\nfully allocated size: 11075584\n", why),
        ),
        ("measure -O qed -f raw a.raw", ours(0, "required size: 983040\n", why)),
    ];
    run(&images(), rows);
}

/// Of QED the figures are those of the file that `convert` makes.
#[test]
fn qed_is_measured_exactly() {
    let files = Sandbox::new();
    files.raw("a.raw", 9 * MIB + 512, &[(MIB, &[1; 100_000]), (5 * MIB - 1, &[2; 2])]);
    files.raw("b.raw", 300 << 20, &[(0, &[1; 100]), (200 << 20, &[2; 9000])]);
    for name in ["a.raw", "b.raw"] {
        for options in ["", "-o cluster_size=4k,table_size=1", "-o cluster_size=1M,table_size=2"] {
            let said = files.ours_does(&format!("measure -O qed {options} -f raw {name}"));
            files.ours_does(&format!("convert -O qed {options} -f raw {name} new.qed"));
            let bytes = fs::metadata(files.path("new.qed")).unwrap().len();
            assert!(said.starts_with(&format!("required size: {bytes}\n")), "{options}: {said}");
            files.ours_does(&format!("convert -S 0 -O qed {options} -f raw {name} new.qed"));
            let bytes = fs::metadata(files.path("new.qed")).unwrap().len();
            let end = format!("fully allocated size: {bytes}\n");
            assert!(said.ends_with(&end), "{options}: {bytes}, {said}");
        }
    }
}

#[test]
fn dd() {
    if !has_qemu() {
        return;
    }
    let rows: &[Row] = &[
        ("dd -f raw if=a.raw of=new.raw", SAME),
        ("dd -f raw if=odd.raw of=new.raw", SAME),
        ("dd -f raw bs=1000 if=odd.raw of=new.raw", SAME),
        ("dd -f raw bs=1000 count=7 if=odd.raw of=new.raw", SAME),
        ("dd -f raw bs=1000 count=77 skip=7 if=odd.raw of=new.raw", SAME),
        ("dd -f raw bs=1 skip=3 if=odd.raw of=new.raw", SAME),
        ("dd -f raw bs=513 skip=20 count=100 if=odd.raw of=new.raw", SAME),
        ("dd -f raw bs=4k skip=1000 if=odd.raw of=new.raw", SAME),
        ("dd -f raw bs=4k skip=1000 -O qcow2 if=odd.raw of=new.qcow2", SAME),
        ("dd -f raw bs=4k count=0 if=odd.raw of=new.raw", SAME),
        ("dd -f raw bs=4k count=2 skip=4 if=odd.raw of=new.raw", SAME),
        ("dd -f raw bs=2147483647 count=1 if=odd.raw of=new.raw", SAME),
        ("dd -f raw bs=3M skip=1 -O qcow2 if=a.raw of=new.qcow2", SAME),
        ("dd -f qcow2 bs=1M if=a.qcow2 of=new.raw", SAME),
        ("dd -f qcow2 -U bs=1M if=a.qcow2 of=new.raw", SAME),
        ("dd -f qcow2 bs=1M if=o.qcow2 -O qed of=new.qed", SAME),
        ("dd if=a.qcow2 bs=64k -O qcow2 of=v2.qcow2", SAME),
        ("dd --image-opts if=driver=qcow2,file.filename=a.qcow2 of=new.raw", SAME),
        ("dd -f raw if=a.raw of=new.raw bs=1k bs=2k count=3", SAME),
        ("dd if=a.raw", SAME),
        ("dd of=new.raw", SAME),
        ("dd", SAME),
        ("dd if=a.raw of=new.raw bs=0", SAME),
        ("dd if=a.raw of=new.raw bs=2G", SAME),
        ("dd if=a.raw of=new.raw count=x", SAME),
        ("dd if=a.raw of=new.raw skip=-1", SAME),
        ("dd if=a.raw of=new.raw conv=notrunc", SAME),
        ("dd -f raw -O none if=a.raw of=new.raw", SAME),
        ("dd -f raw if=none.raw of=new.raw", SAME),
        ("dd -f raw if=a.raw of=none/new.raw", SAME),
        ("dd -f raw if=a.raw of=a.raw", ours(1, "", "a source is never written")),
    ];
    run(&images(), rows);
}
