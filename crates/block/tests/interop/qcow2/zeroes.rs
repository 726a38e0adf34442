//! Zero clusters, with and without a place of their own, over what would show through; and the end of large disks.

use super::kind::{Below, Kind, create_image};
use super::{K, M};
use crate::common::model::{Model, Request, write_ends};
use crate::common::{Dir, Disk, PLAIN, qemu, ways};
use block::qcow2::CreateOptions;

#[test]
fn a_part_of_a_zero_cluster_is_written_and_the_rest_stays_zero() {
    if !qemu::is_there() {
        return;
    }
    for (n, way) in ways().into_iter().enumerate() {
        let dir = Dir::new();
        let kind = Kind { below: Below::Raw(100), extended: n % 2 == 1, ..Kind::plain(way) };
        let base = dir.file("base", &vec![9; M as usize]);
        let path = kind.make_qemu(&dir);
        // Plain zero clusters; then some that keep what was allocated for them; then such as were given back.
        let said = ["write -z 0 256k", "write -P 5 512k 256k", "write -z 512k 256k"];
        let more = ["write -P 6 768k 256k", "write -z -u 768k 256k", "write -z 300k 2k"];
        let words: Vec<String> = said.iter().chain(&more).map(|word| word.to_string()).collect();
        qemu::io("qcow2", &path, &words);
        let mut model = Model::over(kind.disk_bytes(), &std::fs::read(base).unwrap());
        for (at, len) in [(0, 256 * K), (512 * K, 512 * K), (300 * K, 2 * K)] {
            model.apply(Request::Zeroes { at, len, unmap: false });
        }
        kind.check_ours(&path, &model);
        let disk = kind.open(&path, false);
        for at in [0, 512 * K, 768 * K] {
            for within in [4 * K, 64 * K, 191 * K, 250 * K] {
                model.send(&disk, Request::Write { at: at + within, len: 2 * K, pattern: 7 });
            }
            model.send(&disk, Request::Zeroes { at: at + 60 * K, len: 8 * K, unmap: true });
            model.send(&disk, Request::Zeroes { at: at + 128 * K, len: 64 * K, unmap: false });
        }
        model.check(&disk, "zero clusters");
        disk.close().unwrap();
        kind.check_clean(&path, "zero clusters");
        kind.check_qemu(&path, &model, "zero clusters");
    }
}

#[test]
fn chains_by_relative_and_absolute_names() {
    if !qemu::is_there() {
        return;
    }
    for (way, absolute) in ways().into_iter().flat_map(|way| [(way, false), (way, true)]) {
        let dir = Dir::new();
        std::fs::create_dir(dir.path("below")).unwrap();
        let name = |file: &str, relative: &str| match absolute {
            true => dir.path(file).to_str().unwrap().to_owned(),
            // Relative to the image that names it, not to where we are.
            false => relative.to_owned(),
        };
        let base: Vec<u8> = (0..6 * M).map(|n| (n / 512 % 251) as u8).collect();
        dir.file("below/base.raw", &base);
        let middle = dir.path("below/middle.qed");
        let (below, path) = (name("below/base.raw", "base.raw"), middle.to_str().unwrap());
        qemu::img(&["create", "-q", "-f", "qed", "-F", "raw", "-b", &below, path, "8M"]);
        let mut model = Model::over(8 * M, &base);
        let write = Request::Write { at: M + 512, len: 300 * K, pattern: 7 };
        model.apply(write);
        qemu::io("qed", &middle, &[qemu::words(write)]);
        let upper = dir.path("upper.qcow2");
        let (below, path) = (name("below/middle.qed", "below/middle.qed"), upper.to_str().unwrap());
        let options = "compat=0.10,cluster_size=4096";
        let args = ["create", "-q", "-f", "qcow2", "-o", options, "-F", "qed", "-b", &below, path];
        qemu::img(&[&args[..], &["7M"]].concat());
        model.0.resize(7 * M as usize, 0);
        let zeroes = Request::Write { at: 5 * M, len: 128 * K, pattern: 3 };
        model.apply(zeroes);
        qemu::io("qcow2", &upper, &[qemu::words(zeroes)]);
        let top = dir.path("top.qcow2");
        let backing = block::qcow2::BackingFile {
            name: name("upper.qcow2", "upper.qcow2").into_bytes(),
            format: Some(b"qcow2".to_vec()),
        };
        let create = CreateOptions {
            cluster_bytes: 16 * K,
            extended_l2: true,
            backing: Some(backing),
            ..CreateOptions::new(10 * M)
        };
        create_image(&top, create, way);
        model.0.resize(10 * M as usize, 0);
        let disk = Disk::open(&top, way, false).unwrap();
        model.check(&disk, "chain, new");
        for at in [5 * M + 4096, 6 * M - 512, 7 * M - 512, 8 * M - 512] {
            model.send(&disk, Request::Write { at, len: 1024, pattern: 9 });
        }
        model.send(&disk, Request::Zeroes { at: M, len: 100 * K, unmap: true });
        model.check(&disk, "chain");
        disk.close().unwrap();
        let kind = Kind::plain(way);
        kind.check_qemu(&top, &model, "chain");
        kind.check_clean(&top, "chain");
        assert!(std::fs::read(dir.path("below/base.raw")).unwrap() == base);
    }
}

#[test]
fn the_end_of_large_disks() {
    if !qemu::is_there() {
        return;
    }
    // What an L1 table of 32 MiB maps, as far as QEMU's own sizes go.
    for (cluster_bytes, extended) in [(512, false), (4 * K, false), (64 * K, true), (2 * M, false)]
    {
        let entries = cluster_bytes / if extended { 16 } else { 8 };
        let bytes = (entries * cluster_bytes).saturating_mul(4 * M).min((1 << 62) - 512 * K);
        let dir = Dir::new();
        let path = dir.path("large.qcow2");
        let create =
            CreateOptions { cluster_bytes, extended_l2: extended, ..CreateOptions::new(bytes) };
        create_image(&path, create, PLAIN);
        let reads = write_ends(&path, bytes, 8192);
        qemu::io("qcow2", &path, &reads);
    }
}
