//! qcow2 in every verb, beside QEMU's tool: its options, secrets, image options, compression.

use crate::rows::{Row, SAME, ours, run};
use crate::sandbox::{Sandbox, assert_one_line, has_qemu};
use std::fs;

const MIB: u64 = 1 << 20;
const SECRET: &str = "--object secret,id=s,data=hello";

/// Data that is not compressed into nothing, and not into itself.
fn text(bytes: usize) -> Vec<u8> {
    (0u32..)
        .flat_map(|n| format!("{} ", n.wrapping_mul(2654435761)).into_bytes())
        .take(bytes)
        .collect()
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state.to_be_bytes()[0]
    };
    (0..bytes).map(|_| next()).collect()
}

fn raw_images(files: &Sandbox) {
    let data = &[2; 192 << 10];
    files.raw("a.raw", 10 * MIB, &[(MIB, &data[..65536]), (5 * MIB, data)]);
    files.raw("small.raw", MIB, &[]);
    files.raw("odd.raw", 1000, &[(0, &data[..1000])]);
    files.raw(
        "mixed.raw",
        3 * MIB + 1536,
        &[(0, &text(300_000)), (MIB, &noise(200_000)), (3 * MIB - 5000, &text(6536))],
    );
}

/// Images of all sorts.
fn images() -> Sandbox {
    let files = Sandbox::new();
    raw_images(&files);
    files.qemu_does("create -q -f qed a.qed 10M");
    files.qemu_io("qed", "a.qed", &["write -P 2 1M 64k", "write -P 2 5M 192k"]);
    let writes = ["write -P 2 1M 64k", "write -P 2 5M 192k", "write -z 2M 128k"];
    for (name, options) in [
        ("a.qcow2", ""),
        ("v2.qcow2", "-o compat=0.10"),
        ("fine.qcow2", "-o cluster_size=512,refcount_bits=1"),
        ("sub32.qcow2", "-o extended_l2=on,cluster_size=64k,refcount_bits=64,lazy_refcounts=on"),
        ("d.qcow2", "-o data_file=d.qcow2.data"),
        ("r.qcow2", "-o data_file=r.qcow2.data,data_file_raw=on"),
    ] {
        files.qemu_does(&format!("create -q -f qcow2 {options} {name} 10M"));
        let zeroes = if name == "v2.qcow2" { 2 } else { 3 };
        files.qemu_io("qcow2", name, &writes[..zeroes]);
    }
    files.qemu_does("create -q -f qcow2 -b a.raw -F raw o.qcow2 12M");
    let writes = ["write -P 3 1M 32k", "write -P 4 8M 128k", "write -z 5M 64k"];
    files.qemu_io("qcow2", "o.qcow2", &writes);
    files.qemu_does("create -q -f qcow2 -b o.qcow2 -F qcow2 p.qcow2 12M");
    files.qemu_io("qcow2", "p.qcow2", &["write -P 5 0 64k"]);
    files.qemu_does("convert -c -O qcow2 mixed.raw c.qcow2");
    files.qemu_does(
        "convert -c -O qcow2 -o compression_type=zstd,cluster_size=4k mixed.raw z.qcow2",
    );
    files
}

/// Images that are encrypted: slow to make, and to open.
fn secret_images() -> Sandbox {
    let files = Sandbox::new();
    raw_images(&files);
    let luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    files.qemu_does(&format!("create -q -f qcow2 {SECRET} -o {luks} e.luks.qcow2 10M"));
    files.qemu_does(&format!(
        "convert -q {SECRET} -O qcow2 -o {luks},cluster_size=4k,encrypt.cipher-alg=serpent-256,\
         encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256,\
         encrypt.hash-alg=sha1 a.raw f.luks.qcow2"
    ));
    files.qemu_does(&format!(
        "create -q -f qcow2 {SECRET} -o {luks} -b a.raw -F raw o.luks.qcow2 10M"
    ));
    let aes = "encrypt.format=aes,encrypt.key-secret=s";
    files.qemu_does(&format!("create -q -f qcow2 {SECRET} -o {aes} aes.luks.qcow2 10M"));
    files
}

#[test]
fn create() {
    if !has_qemu() {
        return;
    }
    let rows: &[Row] = &[
        ("create -f qcow2 new.qcow2 64M", SAME),
        ("create -f qcow2 -q new.qcow2 64M", SAME),
        ("create -f qcow2 a.qcow2 1M", SAME),
        ("create -f qcow2 new.qcow2 0", SAME),
        ("create -f qcow2 new.qcow2 1001", SAME),
        ("create -f qcow2 new.qcow2 1T", SAME),
        ("create -f qcow2 -o compat=0.10 new.qcow2 64M", SAME),
        ("create -f qcow2 -o compat=v2,cluster_size=512 new.qcow2 1M", SAME),
        ("create -f qcow2 -o compat=v3 new.qcow2 64M", SAME),
        ("create -f qcow2 -o compat=1.1,cluster_size=2M new.qcow2 64M", SAME),
        ("create -f qcow2 -o cluster_size=512 new.qcow2 64M", SAME),
        ("create -f qcow2 -o refcount_bits=1 new.qcow2 64M", SAME),
        ("create -f qcow2 -o refcount_bits=64,cluster_size=0x1000 new.qcow2 64M", SAME),
        ("create -f qcow2 -o extended_l2=on new.qcow2 64M", SAME),
        ("create -f qcow2 -o extended_l2=true,cluster_size=16k new.qcow2 64M", SAME),
        ("create -f qcow2 -o lazy_refcounts=on new.qcow2 64M", SAME),
        ("create -f qcow2 -o lazy_refcounts new.qcow2 64M", SAME),
        ("create -f qcow2 -o lazy_refcounts=y,extended_l2=no new.qcow2 64M", SAME),
        ("create -f qcow2 -o compression_type=zstd new.qcow2 64M", SAME),
        ("create -f qcow2 -o compression_type=zlib,compat=0.10 new.qcow2 64M", SAME),
        ("create -f qcow2 -o preallocation=off new.qcow2 4M", SAME),
        ("create -f qcow2 -o preallocation=metadata new.qcow2 4M", SAME),
        ("create -f qcow2 -o preallocation=falloc new.qcow2 4M", SAME),
        ("create -f qcow2 -o preallocation=full new.qcow2 4M", SAME),
        (
            "create -f qcow2 -o preallocation=metadata,extended_l2=on -b a.raw -F raw new.qcow2",
            SAME,
        ),
        ("create -f qcow2 -o data_file=new.data new.qcow2 4M", SAME),
        ("create -f qcow2 -o data_file=new.data,data_file_raw=on new.qcow2 4M", SAME),
        ("create -f qcow2 -o data_file=new.data,data_file_raw=off new.qcow2 4M", SAME),
        ("create -f qcow2 -o data_file=new.data,preallocation=full new.qcow2 4M", SAME),
        ("create -f qcow2 -o nocow=on,extent_size_hint=1M new.qcow2 4M", SAME),
        ("create -f raw -o nocow=off,extent_size_hint=1M new.raw 4M", SAME),
        ("create -f qed -o nocow=on new.qed 4M", SAME),
        ("create -f qcow2 -o encryption=off new.qcow2 4M", SAME),
        ("create -f qcow2 -b a.raw -F raw new.qcow2", SAME),
        ("create -f qcow2 -b a.raw -F raw new.qcow2 20M", SAME),
        ("create -f qcow2 -b o.qcow2 -F qcow2 new.qcow2", SAME),
        ("create -f qcow2 -b a.qed -F qed new.qcow2", SAME),
        ("create -f qed -b a.qcow2 -F qcow2 new.qed", SAME),
        ("create -f qcow2 -o backing_file=a.raw,backing_fmt=raw new.qcow2", SAME),
        ("create -f qcow2 -u -b none.raw -F raw new.qcow2 10M", SAME),
    ];
    run(&images(), rows);
}

#[test]
fn create_refuses_what_cannot_be() {
    if !has_qemu() {
        return;
    }
    let rows: &[Row] = &[
        ("create -f qcow2 -o compat=2 new.qcow2 1M", SAME),
        ("create -f qcow2 -o compat=v4 new.qcow2 1M", SAME),
        ("create -f qcow2 -o refcount_bits=3 new.qcow2 1M", SAME),
        ("create -f qcow2 -o refcount_bits=128 new.qcow2 1M", SAME),
        ("create -f qcow2 -o refcount_bits=0 new.qcow2 1M", SAME),
        ("create -f qcow2 -o refcount_bits=x new.qcow2 1M", SAME),
        ("create -f qcow2 -o refcount_bits=4294967312 new.qcow2 1M", SAME),
        ("create -f qcow2 -o cluster_size=256 new.qcow2 1M", SAME),
        ("create -f qcow2 -o cluster_size=4M new.qcow2 1M", SAME),
        ("create -f qcow2 -o cluster_size=5000 new.qcow2 1M", SAME),
        ("create -f qcow2 -o cluster_size=0 new.qcow2 1M", SAME),
        ("create -f qcow2 -o compression_type=lzo new.qcow2 1M", SAME),
        ("create -f qcow2 -o compression_type=zstd,compat=0.10 new.qcow2 1M", SAME),
        ("create -f qcow2 -o compat=0.10,lazy_refcounts=on new.qcow2 1M", SAME),
        ("create -f qcow2 -o compat=0.10,refcount_bits=8 new.qcow2 1M", SAME),
        ("create -f qcow2 -o compat=0.10,data_file=new.data new.qcow2 1M", SAME),
        ("create -f qcow2 -o extended_l2=on,compat=0.10 new.qcow2 1M", SAME),
        ("create -f qcow2 -o extended_l2=on,cluster_size=8k new.qcow2 1M", SAME),
        ("create -f qcow2 -o lazy_refcounts=maybe new.qcow2 1M", SAME),
        ("create -f qcow2 -o data_file_raw=on new.qcow2 1M", SAME),
        ("create -f qcow2 -o data_file=new.data,data_file_raw=on -b a.raw -F raw new.qcow2", SAME),
        ("create -f qcow2 -o preallocation=bogus new.qcow2 1M", SAME),
        ("create -f qcow2 -o preallocation=metadata -b a.raw -F raw new.qcow2", SAME),
        ("create -f qcow2 -o nope=1 new.qcow2 1M", SAME),
        ("create -f qcow2 -o table_size=4 new.qcow2 1M", SAME),
        ("create -f qcow2 -o nocow=maybe new.qcow2 1M", SAME),
        ("create -f qcow2 -b a.raw new.qcow2", SAME),
        ("create -f qcow2 -b a.raw -F qcow2 new.qcow2", SAME),
        ("create -f qcow2 -b new.qcow2 -F qcow2 new.qcow2 1M", SAME),
        ("create -f qcow2 -o cluster_size=512 new.qcow2 1P", SAME),
        ("create -f qcow2 -o encrypt.key-secret=s @secret new.qcow2 1M", SAME),
        ("create -f qcow2 -o encrypt.format=luks new.qcow2 1M", SAME),
        ("create -f qcow2 -o encrypt.format=luks,encrypt.key-secret=nope new.qcow2 1M", SAME),
        ("create -f qcow2 -o encrypt.format=bogus,encrypt.key-secret=s @secret new.qcow2 1M", SAME),
        (
            "create -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encryption=on @secret new.qcow2 1M",
            SAME,
        ),
        (
            "create -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=nope @secret new.qcow2 1M",
            SAME,
        ),
        (
            "create -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s --object secret,id=t,data=hello new.qcow2 1M",
            SAME,
        ),
        ("create -f qcow2 --object secret,id=s,file=none.txt new.qcow2 1M", SAME),
        ("create -f qcow2 --object secret,id=s new.qcow2 1M", SAME),
        ("create -f qcow2 --object secret,data=hello new.qcow2 1M", SAME),
        ("create -f qcow2 --object nope,id=s new.qcow2 1M", SAME),
        ("create -f qcow2 --object secret,id=s,data=?,format=base64 new.qcow2 1M", SAME),
    ];
    run(&images(), rows);
}

#[test]
fn info() {
    if !has_qemu() {
        return;
    }
    let files = images();
    for (image, at, bits) in [("dirty.qcow2", 79, 1), ("corrupt.qcow2", 79, 2)] {
        fs::copy(files.path("a.qcow2"), files.path(image)).unwrap();
        files.poke(image, at, &[bits]);
    }
    files.qemu_does("create -q -f qcow2 -u -b nbd:localhost:1 -F raw nbd.qcow2 10M");
    files.qemu_does("create -q -f qcow2 -u -b ../no/such.vmdk -F vmdk vmdk.qcow2 10M");
    fs::copy(files.path("a.qcow2"), files.path("bits.qcow2")).unwrap();
    for add in ["--add bits.qcow2 one", "--add --disable -g 128k bits.qcow2 two"] {
        files.qemu_does(&format!("bitmap {add}"));
    }
    // A writer that was killed.
    fs::copy(files.path("bits.qcow2"), files.path("used.qcow2")).unwrap();
    files.qemu_io_killed("used.qcow2", "write -P 1 0 64k");
    let names = [
        "bits.qcow2",
        "used.qcow2",
        "a.qcow2",
        "v2.qcow2",
        "fine.qcow2",
        "sub32.qcow2",
        "d.qcow2",
        "r.qcow2",
        "o.qcow2",
        "p.qcow2",
        "c.qcow2",
        "z.qcow2",
        "dirty.qcow2",
        "corrupt.qcow2",
        "nbd.qcow2",
        "vmdk.qcow2",
    ];
    let rows: Vec<String> = names
        .iter()
        .flat_map(|name| [format!("info {name}"), format!("info --output json {name}")])
        .collect();
    let rows: Vec<Row> = rows.iter().map(|row| (&*row.clone().leak(), SAME)).collect();
    run(&files, &rows);
    let rows: &[Row] = &[
        ("info -f qcow2 a.qcow2", SAME),
        ("info -f raw a.qcow2", SAME),
        ("info -f qcow2 a.raw", SAME),
        ("info -U a.qcow2", SAME),
        ("info --backing-chain p.qcow2", SAME),
        ("info --backing-chain --output json p.qcow2", SAME),
        ("info --image-opts driver=qcow2,file.filename=a.qcow2", SAME),
        (
            "info --image-opts --output json file.driver=file,file.filename=a.qcow2,driver=qcow2",
            SAME,
        ),
        ("info --image-opts file.filename=a.qcow2", SAME),
        ("info --image-opts driver=raw,file.filename=a.qcow2", SAME),
        ("info --image-opts driver=qcow2,file.filename=none.qcow2", SAME),
        ("info --image-opts driver=qcow2", SAME),
        ("info --image-opts a.qcow2", SAME),
        ("info -f qcow2 --image-opts driver=qcow2,file.filename=a.qcow2", SAME),
        ("info --image-opts driver=qcow2,file.filename=a.qcow2,nope=1", SAME),
    ];
    run(&files, rows);
}

#[test]
fn map() {
    if !has_qemu() {
        return;
    }
    let rows: &[Row] = &[
        ("map a.qcow2", SAME),
        ("map --output json a.qcow2", SAME),
        ("map --output json v2.qcow2", SAME),
        ("map --output json fine.qcow2", SAME),
        ("map --output json sub32.qcow2", SAME),
        ("map o.qcow2", SAME),
        ("map --output json o.qcow2", SAME),
        ("map --output json p.qcow2", SAME),
        ("map p.qcow2", SAME),
        ("map d.qcow2", SAME),
        ("map --output json d.qcow2", SAME),
        ("map c.qcow2", SAME),
        ("map --output json c.qcow2", SAME),
        ("map --output json z.qcow2", SAME),
        ("map -s 256k -l 1M --output json c.qcow2", SAME),
    ];
    run(&images(), rows);
}

#[test]
fn compare() {
    if !has_qemu() {
        return;
    }
    let rows: &[Row] = &[
        ("compare a.raw a.qcow2", SAME),
        ("compare a.qed a.qcow2", SAME),
        ("compare a.qcow2 sub32.qcow2", SAME),
        ("compare fine.qcow2 v2.qcow2", SAME),
        ("compare d.qcow2 a.raw", SAME),
        ("compare r.qcow2 r.qcow2.data -F raw", SAME),
        ("compare c.qcow2 mixed.raw", SAME),
        ("compare z.qcow2 c.qcow2", SAME),
        ("compare z.qcow2 a.qcow2", SAME),
        ("compare o.qcow2 p.qcow2", SAME),
        ("compare -s a.qcow2 o.qcow2", SAME),
    ];
    run(&images(), rows);
}

#[test]
fn convert() {
    if !has_qemu() {
        return;
    }
    let rows: &[Row] = &[
        ("convert -O qcow2 a.raw new.qcow2", SAME),
        ("convert -O qcow2 a.qed new.qcow2", SAME),
        ("convert -O qed a.qcow2 new.qed", SAME),
        ("convert -O raw a.qcow2 new.raw", SAME),
        ("convert -f qcow2 -O qcow2 a.qcow2 new.qcow2", SAME),
        ("convert -O raw sub32.qcow2 new.raw", SAME),
        ("convert -O raw fine.qcow2 new.raw", SAME),
        ("convert -O qcow2 -o cluster_size=512,refcount_bits=2 v2.qcow2 new.qcow2", SAME),
        ("convert -O qcow2 -o extended_l2=on mixed.raw new.qcow2", SAME),
        ("convert -O qcow2 -o compat=0.10 mixed.raw new.qcow2", SAME),
        ("convert -O qcow2 -o lazy_refcounts=on,refcount_bits=64 mixed.raw new.qcow2", SAME),
        ("convert -O qcow2 -o preallocation=metadata mixed.raw new.qcow2", SAME),
        ("convert -O qcow2 -o preallocation=full mixed.raw new.qcow2", SAME),
        ("convert -O qcow2 -o data_file=new.data mixed.raw new.qcow2", SAME),
        ("convert -O qcow2 -o data_file=new.data,data_file_raw=on a.raw new.qcow2", SAME),
        ("convert -O qcow2 odd.raw new.qcow2", SAME),
        ("convert -O qcow2 -S 0 small.raw new.qcow2", SAME),
        ("convert -O qcow2 -S 512 mixed.raw new.qcow2", SAME),
        ("convert -O qcow2 -m 16 -W mixed.raw new.qcow2", SAME),
        ("convert -O qcow2 -t none -T none mixed.raw new.qcow2", SAME),
        ("convert -O qcow2 -t writethrough mixed.raw new.qcow2", SAME),
        ("convert -p -O qcow2 mixed.raw new.qcow2", SAME),
        ("convert p.qcow2 new.raw", SAME),
        ("convert -O qcow2 p.qcow2 new.qcow2", SAME),
        ("convert -O qcow2 -B a.raw -F raw o.qcow2 new.qcow2", SAME),
        ("convert -O qcow2 -B o.qcow2 -F qcow2 p.qcow2 new.qcow2", SAME),
        ("convert -O qcow2 -o backing_file=a.raw,backing_fmt=raw o.qcow2 new.qcow2", SAME),
        ("convert -n -O qcow2 mixed.raw a.qcow2", SAME),
        ("convert -n -O qcow2 mixed.raw sub32.qcow2", SAME),
        ("convert -n -O qcow2 mixed.raw d.qcow2", SAME),
        ("convert -n -O qcow2 mixed.raw small.raw", SAME),
        ("convert c.qcow2 new.raw", SAME),
        ("convert z.qcow2 new.raw", SAME),
        ("convert d.qcow2 new.raw", SAME),
        ("convert -O qcow2 a.raw odd.raw c.qcow2 new.qcow2", SAME),
        ("convert -n --target-image-opts mixed.raw driver=qcow2,file.filename=a.qcow2", SAME),
        ("convert --target-image-opts mixed.raw driver=qcow2,file.filename=a.qcow2", SAME),
        ("convert -O qcow2 -o encrypt.format=luks mixed.raw new.qcow2", SAME),
    ];
    run(&images(), rows);
}

#[test]
fn convert_compresses() {
    if !has_qemu() {
        return;
    }
    let rows: &[Row] = &[
        ("convert -c -O qcow2 mixed.raw new.qcow2", SAME),
        ("convert -c -O qcow2 -o compression_type=zstd mixed.raw new.qcow2", SAME),
        ("convert -c -O qcow2 -o cluster_size=512 mixed.raw new.qcow2", SAME),
        ("convert -c -O qcow2 -o cluster_size=4k,compression_type=zstd mixed.raw new.qcow2", SAME),
        ("convert -c -O qcow2 -o cluster_size=2M mixed.raw new.qcow2", SAME),
        ("convert -c -O qcow2 -o extended_l2=on mixed.raw new.qcow2", SAME),
        ("convert -c -O qcow2 -o compat=0.10 mixed.raw new.qcow2", SAME),
        ("convert -c -O qcow2 -S 0 mixed.raw new.qcow2", SAME),
        ("convert -c -m 1 -O qcow2 mixed.raw new.qcow2", SAME),
        ("convert -c -m 16 -W -O qcow2 mixed.raw new.qcow2", SAME),
        ("convert -c -p -O qcow2 mixed.raw new.qcow2", SAME),
        ("convert -c -t none -O qcow2 mixed.raw new.qcow2", SAME),
        ("convert -c -O qcow2 a.raw mixed.raw new.qcow2", SAME),
        ("convert -c -O qcow2 odd.raw new.qcow2", SAME),
        ("convert -c -O qcow2 odd.raw mixed.raw odd.raw new.qcow2", SAME),
        ("convert -c -O qcow2 c.qcow2 new.qcow2", SAME),
        ("convert -c -O qcow2 -B a.raw -F raw o.qcow2 new.qcow2", SAME),
        ("convert -c -O qcow2 -B o.qcow2 -F qcow2 p.qcow2 new.qcow2", SAME),
        ("convert -c -n -O qcow2 a.raw fresh.qcow2", SAME),
        (
            "convert -c -O qcow2 -o data_file=new.data a.raw new.qcow2",
            ours(1, "", "QEMU finds out late, and leaves the files behind"),
        ),
        (
            "convert -c -n -O qcow2 mixed.raw a.qcow2",
            ours(0, "", "QEMU compresses no cluster that the source ends in"),
        ),
        (
            "convert -c -n -O qcow2 mixed.raw c.qcow2",
            ours(0, "", "QEMU compresses no cluster that is there already"),
        ),
        ("convert -c -O raw mixed.raw new.raw", SAME),
        ("convert -c -O qed mixed.raw new.qed", SAME),
    ];
    let files = images();
    files.qemu_does("create -q -f qcow2 -o extended_l2=on fresh.qcow2 12M");
    run(&files, rows);
}

#[test]
fn secrets() {
    if !has_qemu() {
        return;
    }
    let rows: &[Row] = &[
        ("create -f qcow2 -b e.luks.qcow2 -F qcow2 new.qcow2", SAME),
        ("info e.luks.qcow2", SAME),
        ("info --output json e.luks.qcow2", SAME),
        ("info f.luks.qcow2", SAME),
        ("info --output json f.luks.qcow2", SAME),
        ("info o.luks.qcow2", SAME),
        ("info aes.luks.qcow2", SAME),
        ("info --output json aes.luks.qcow2", SAME),
        ("convert -c @secret -O qcow2 -o @luks mixed.raw new.luks.qcow2", SAME),
        ("convert -n @secret --target-image-opts -O qcow2 a.raw @open:e", SAME),
        ("map e.luks.qcow2", SAME),
        ("compare e.luks.qcow2 a.raw", SAME),
        ("convert -n -O qcow2 mixed.raw e.luks.qcow2", SAME),
        ("convert f.luks.qcow2 new.raw", SAME),
        ("convert @secret f.luks.qcow2 new.raw", SAME),
        ("create -f qcow2 @secret -o @luks new.luks.qcow2 4M", SAME),
        (
            "create -f qcow2 --object secret,id=s,data=aGVsbG8=,format=base64 -o @luks,encrypt.cipher-alg=twofish-256,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256,encrypt.hash-alg=sha512,cluster_size=4k new.luks.qcow2 4M",
            SAME,
        ),
        ("create -f qcow2 @secret -o @luks -b a.raw -F raw new.luks.qcow2", SAME),
        (
            "create -f qcow2 @secret -o encrypt.format=aes,encrypt.key-secret=s new.luks.qcow2 1M",
            ours(1, "", "a new image is not made with a broken cipher"),
        ),
        (
            "create -f qcow2 @secret -o encrypt.format=luks,encrypt.key-secret=s,preallocation=metadata new.luks.qcow2 1M",
            ours(1, "", "what QEMU allocates reads as noise"),
        ),
        (
            "info @secret --image-opts @open:e",
            ours(0, "image: e.luks.qcow2", "QEMU shows the options as JSON, which is no name"),
        ),
        ("map @secret --output json --image-opts @open:f", SAME),
        ("map @secret --image-opts @open:f", SAME),
        ("map @secret --output json --image-opts @open:o", SAME),
        ("compare @secret --image-opts @open:f driver=raw,file.filename=a.raw", SAME),
        ("compare @secret --image-opts @open:o driver=raw,file.filename=a.raw", SAME),
        ("compare @secret --image-opts @open:aes driver=raw,file.filename=a.raw", SAME),
        (
            "compare --object secret,id=s,data=wrong --image-opts @open:f driver=raw,file.filename=a.raw",
            SAME,
        ),
        (
            "compare @secret --image-opts driver=qcow2,file.filename=f.luks.qcow2,encrypt.key-secret=t driver=raw,file.filename=a.raw",
            SAME,
        ),
        ("convert @secret --image-opts -O raw @open:f new.raw", SAME),
        ("convert @secret --image-opts -O raw @open:aes new.raw", SAME),
        ("convert @secret --image-opts -O raw @open:o new.raw", SAME),
        ("convert @secret -O qcow2 -o @luks mixed.raw new.luks.qcow2", SAME),
        (
            "convert @secret --image-opts -O qcow2 -o @luks,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv @open:f new.luks.qcow2",
            SAME,
        ),
        ("convert @secret -n --target-image-opts mixed.raw @open:e", SAME),
        ("convert --object secret,id=s,data=wrong --image-opts -O raw @open:f new.raw", SAME),
        ("check @secret --image-opts @open:f", SAME),
        ("check e.luks.qcow2", ours(0, "No errors", "QEMU wants the secret for a look at tables")),
    ];
    run(&secret_images(), rows);
}

#[test]
fn resize() {
    if !has_qemu() {
        return;
    }
    let files = images();
    fs::copy(files.path("a.qcow2"), files.path("snap.qcow2")).unwrap();
    files.qemu_does("snapshot -c one snap.qcow2");
    fs::copy(files.path("a.qcow2"), files.path("bits.qcow2")).unwrap();
    files.qemu_does("bitmap --add bits.qcow2 one");
    let rows: &[Row] = &[
        ("resize a.qcow2 20M", SAME),
        ("resize -f qcow2 a.qcow2 +1G", SAME),
        ("resize -q a.qcow2 +512", SAME),
        ("resize a.qcow2 10M", SAME),
        ("resize a.qcow2 +1000", SAME),
        ("resize --shrink a.qcow2 4M", SAME),
        ("resize --shrink a.qcow2 -1M", SAME),
        ("resize --shrink a.qcow2 64k", SAME),
        ("resize a.qcow2 4M", SAME),
        ("resize a.qcow2 0", SAME),
        ("resize v2.qcow2 1G", SAME),
        ("resize --shrink v2.qcow2 3M", SAME),
        ("resize fine.qcow2 100M", SAME),
        ("resize --shrink sub32.qcow2 5200k", SAME),
        ("resize o.qcow2 14M", SAME),
        ("resize --shrink o.qcow2 9M", SAME),
        ("resize --shrink c.qcow2 1M", SAME),
        ("resize d.qcow2 12M", SAME),
        ("resize --shrink d.qcow2 3M", SAME),
        ("resize bits.qcow2 12M", SAME),
        ("resize --shrink bits.qcow2 3M", SAME),
        ("resize snap.qcow2 12M", SAME),
        ("resize --shrink snap.qcow2 3M", SAME),
        (
            "resize --preallocation metadata a.qcow2 12M",
            ours(1, "", "space is not allocated in advance when a disk grows"),
        ),
    ];
    run(&files, rows);
}

/// A list without the times at which its snapshots were made.
fn without_dates(list: &str) -> Vec<String> {
    let line = |line: &str| match line.split_once(':') {
        Some((start, _)) if line.contains("-") && start.len() > 16 => {
            line[..34.min(line.len())].to_owned()
        }
        _ => line.to_owned(),
    };
    list.lines().map(line).collect()
}

#[test]
fn snapshots() {
    if !has_qemu() {
        return;
    }
    let files = images();
    for name in ["a.qcow2", "sub32.qcow2", "o.qcow2", "c.qcow2"] {
        files.qemu_does(&format!("snapshot -c one {name}"));
        files.qemu_io("qcow2", name, &["write -P 9 64k 192k", "write -P 9 1M 4k"]);
        files.qemu_does(&format!("snapshot -c two-of-a-long-name {name}"));
        files.qemu_io("qcow2", name, &["write -z 128k 64k"]);
    }
    let rows: &[Row] = &[
        ("snapshot a.qcow2", SAME),
        ("snapshot -l a.qcow2", SAME),
        ("snapshot -l -q a.qcow2", SAME),
        ("snapshot -l -U a.qcow2", SAME),
        ("snapshot -l v2.qcow2", SAME),
        ("snapshot -l a.raw", SAME),
        ("snapshot -l --image-opts driver=qcow2,file.filename=a.qcow2", SAME),
        ("info a.qcow2", SAME),
        ("info --output json a.qcow2", SAME),
        ("check a.qcow2", SAME),
        (
            "map --output json a.qcow2",
            ours(0, "\"zero\": true", "QEMU tells which place zeroes have, where nothing is read"),
        ),
        ("snapshot -a one a.qcow2", SAME),
        ("snapshot -a 2 a.qcow2", SAME),
        ("snapshot -a one sub32.qcow2", SAME),
        ("snapshot -a two-of-a-long-name o.qcow2", SAME),
        ("snapshot -a one c.qcow2", SAME),
        ("snapshot -q -d one a.qcow2", SAME),
        ("snapshot -d 2 a.qcow2", SAME),
        ("snapshot -d one sub32.qcow2", SAME),
        ("snapshot -d one o.qcow2", SAME),
        ("snapshot -d one c.qcow2", SAME),
        ("snapshot -a nope a.qcow2", SAME),
        ("snapshot -d nope a.qcow2", SAME),
        ("snapshot -l -c x a.qcow2", SAME),
        ("snapshot -a x -d x a.qcow2", SAME),
        ("snapshot -U -c x a.qcow2", SAME),
        ("snapshot -c x none.qcow2", SAME),
        ("snapshot -c x a.raw", SAME),
        ("snapshot -c x a.qed", SAME),
        ("snapshot -c x d.qcow2", SAME),
        // Refcounts of one bit.
        ("snapshot -c x fine.qcow2", SAME),
        ("snapshot", SAME),
    ];
    run(&files, rows);
    // What is made has its own time, so it is compared without.
    for name in ["a.qcow2", "v2.qcow2", "sub32.qcow2", "o.qcow2", "c.qcow2"] {
        let args = format!("snapshot -c new {name}");
        let (theirs, our) = (files.copy_for(&args), files.copy_for(&args));
        theirs.qemu_does(&args);
        our.ours_does(&args);
        our.qemu_does(&format!("check {name}"));
        let list = format!("snapshot -l {name}");
        let lists = [our.ours_does(&list), our.qemu_does(&list), theirs.qemu_does(&list)];
        let [by_us, of_ours, of_theirs] = lists.each_ref().map(|list| without_dates(list));
        assert_eq!(by_us, of_ours, "{lists:?}");
        assert_eq!(by_us, of_theirs, "{lists:?}");
        our.qemu_io("qcow2", name, &["write -P 7 0 1M"]);
        our.qemu_does(&format!("snapshot -a new {name}"));
        our.qemu_does(&format!("check {name}"));
        our.qemu_does(&format!("compare {name} {}", theirs.path(name).display()));
    }
}

#[test]
fn check() {
    if !has_qemu() {
        return;
    }
    let files = images();
    for name in ["leak.qcow2", "low.qcow2", "copied.qcow2", "beyond.qcow2", "dirty.qcow2"] {
        fs::copy(files.path("a.qcow2"), files.path(name)).unwrap();
    }
    let be = |name: &str, at: u64| files.peek(name, at).swap_bytes();
    let table = be("a.qcow2", 48);
    let block = be("a.qcow2", table);
    let l2_at = be("a.qcow2", be("a.qcow2", 40)) & 0xff_ffff_ffff_fe00;
    // A cluster that nothing refers to; data that is not counted; a flag that does not agree; data that is nowhere.
    fs::File::options()
        .write(true)
        .open(files.path("leak.qcow2"))
        .unwrap()
        .set_len(2 << 20)
        .unwrap();
    files.poke("leak.qcow2", block + 2 * 20, &[0, 1]);
    let data = be("a.qcow2", l2_at + 8 * 16) & 0xff_ffff_ffff_fe00;
    files.poke("low.qcow2", block + 2 * (data >> 16), &[0, 0]);
    files.poke("copied.qcow2", l2_at + 8 * 16, &data.to_be_bytes());
    files.poke("beyond.qcow2", l2_at + 8 * 16, &(1u64 << 63 | 0x7fff_0000).to_be_bytes());
    files.poke("dirty.qcow2", 79, &[1]);
    let rows: &[Row] = &[
        ("check a.qcow2", SAME),
        ("check --output json a.qcow2", SAME),
        ("check -q a.qcow2", SAME),
        ("check -f qcow2 v2.qcow2", SAME),
        ("check --output json fine.qcow2", SAME),
        ("check --output json sub32.qcow2", SAME),
        ("check c.qcow2", SAME),
        ("check --output json c.qcow2", SAME),
        ("check z.qcow2", SAME),
        ("check d.qcow2", SAME),
        ("check r.qcow2", SAME),
        ("check p.qcow2", SAME),
        ("check -r all a.qcow2", SAME),
        ("check -r leaks a.qcow2", SAME),
        ("check leak.qcow2", SAME),
        ("check --output json leak.qcow2", SAME),
        ("check -q leak.qcow2", SAME),
        ("check -r leaks leak.qcow2", SAME),
        ("check -r all --output json leak.qcow2", SAME),
        ("check low.qcow2", SAME),
        ("check --output json low.qcow2", SAME),
        ("check -r leaks low.qcow2", ours(2, "2 errors", "QEMU fails when it cannot do it")),
        (
            "check -r all low.qcow2",
            ours(0, "    2 corruptions", "QEMU forgets one of those it found"),
        ),
        ("check copied.qcow2", SAME),
        ("check -r all copied.qcow2", SAME),
        ("check beyond.qcow2", ours(2, "1 errors", "an entry that is wrong is one error")),
        ("check dirty.qcow2", SAME),
        ("check -r all dirty.qcow2", SAME),
    ];
    run(&files, rows);
}

/// The bytes of a compressed image do not depend on how many pieces were under way.
#[test]
fn compression_gives_the_same_file_every_time() {
    let files = Sandbox::new();
    files.raw(
        "a.raw",
        9 * MIB,
        &[(0, &text(3_000_000)), (4 * MIB, &noise(1_000_000)), (6 * MIB, &text(2_000_000))],
    );
    let made: Vec<Vec<u8>> = ["-m 1", "-m 16", "-W", "-t none"]
        .iter()
        .map(|how| {
            files.ours_does(&format!("convert -c {how} -O qcow2 a.raw b.qcow2"));
            fs::read(files.path("b.qcow2")).unwrap()
        })
        .collect();
    assert!(made.windows(2).all(|pair| pair[0] == pair[1]));
    assert!(made[0].len() < 4_500_000, "{}", made[0].len());
    files.ours_does("compare a.raw b.qcow2");
}

/// A cluster that the source ends in is the target's from there on.
#[test]
fn compression_leaves_alone_what_follows_the_source() {
    let files = Sandbox::new();
    let (before, source) = (vec![0xEE; MIB as usize], text((200 << 10) + 512));
    fs::write(files.path("before.raw"), &before).unwrap();
    fs::write(files.path("a.raw"), &source).unwrap();
    files.ours_does("convert -O qcow2 before.raw b.qcow2");
    files.ours_does("convert -c -n -O qcow2 a.raw b.qcow2");
    files.ours_does("convert b.qcow2 after.raw");
    let expected = [&source[..], &before[source.len()..]].concat();
    assert!(fs::read(files.path("after.raw")).unwrap() == expected);
    assert!(files.ours_does("map --output json b.qcow2").contains("\"compressed\": true"));
    assert!(files.ours_does("check b.qcow2").contains("No errors"));
}

/// A secret is opened from a file as from the command line, and never shown.
#[test]
fn secrets_stay_secret() {
    let files = Sandbox::new();
    fs::write(files.path("key.txt"), "hidden-words").unwrap();
    let luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let by_file = "--object secret,id=s,file=key.txt";
    files.ours_does(&format!("create -q {by_file} -f qcow2 -o {luks} a.qcow2 1M"));
    files.raw("a.raw", MIB, &[]);
    let opened = |object: &str| {
        let opts = "driver=qcow2,file.filename=a.qcow2,encrypt.key-secret=s driver=raw,file.filename=a.raw";
        files.ours(&format!("compare {object} --image-opts {opts}"))
    };
    assert_eq!(opened(by_file).code, 0);
    assert_eq!(opened("--object secret,id=s,data=hidden-words").code, 0);
    for object in [
        "--object secret,id=s,data=hidden-word",
        "--object secret,id=t,data=hidden-words",
        "--object secret,id=s,data=hidden-words,format=hex",
        "--object secret,id=s,data=hidden-words,nope=hidden-words",
        "--object secret,id=s,hidden-words",
        "",
    ] {
        let ended = opened(object);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{object}: {ended:?}");
        assert_one_line(&ended.stderr, "qemu-img", object);
        assert!(!ended.stderr.contains("hidden"), "{object}: {}", ended.stderr);
    }
}
