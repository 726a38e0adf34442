//! In turns: one side makes the image, both write to it, each reads what the other wrote; and images with more in them than a disk.

use super::kind::{Below, Data, Kind, requests};
use super::{CLEAN, K, M};
use crate::common::model::{Draw, Model, Request};
use crate::common::qemu::{self, Found};
use crate::common::{Dir, ways};
use block::qcow2::create::Preallocation;
use io_engine::Rng;

#[test]
fn what_qemu_makes_and_writes_we_read_and_write_and_so_on_in_turns() {
    if !qemu::is_there() {
        return;
    }
    for (seed, kind) in Kind::sample(0).into_iter().enumerate() {
        let dir = Dir::new();
        let mut rng = Rng::new(seed as u64);
        let mut model = kind.make_below(&dir, &mut rng);
        let path = kind.make_qemu(&dir);
        kind.check_ours(&path, &model);
        for round in 0..2 {
            kind.write_qemu(&path, 10, &mut rng, &mut model);
            kind.check_ours(&path, &model);
            kind.write_ours(&path, 25, &mut rng, &mut model);
            kind.check_clean(&path, &format!("QEMU's, round {round}"));
            kind.check_qemu(&path, &model, &format!("QEMU's, round {round}"));
        }
    }
}

#[test]
fn what_we_make_and_write_qemu_reads_and_writes_and_so_on_in_turns() {
    if !qemu::is_there() {
        return;
    }
    for (seed, kind) in Kind::sample(1).into_iter().enumerate() {
        if kind.is_encrypted() {
            continue;
        }
        let dir = Dir::new();
        let mut rng = Rng::new(1000 + seed as u64);
        let mut model = kind.make_below(&dir, &mut rng);
        let path = kind.make_ours(&dir);
        kind.check_clean(&path, "ours, new");
        kind.check_qemu(&path, &model, "ours, new");
        for round in 0..2 {
            kind.write_ours(&path, 25, &mut rng, &mut model);
            kind.check_clean(&path, &format!("ours, round {round}"));
            kind.check_qemu(&path, &model, &format!("ours, round {round}"));
            kind.write_qemu(&path, 10, &mut rng, &mut model);
            kind.check_ours(&path, &model);
        }
    }
}

#[test]
fn compressed_clusters_are_read_and_overwritten() {
    if !qemu::is_there() {
        return;
    }
    for (seed, kind) in Kind::sample(0).into_iter().enumerate() {
        // qemu-img convert makes what has no backing file, and needs new clusters.
        let outside = matches!(kind.data, Data::Outside | Data::OutsideRaw);
        if outside || kind.is_encrypted() {
            continue;
        }
        let kind = Kind { below: Below::Nothing, preallocation: Preallocation::Off, ..kind };
        let dir = Dir::new();
        let mut rng = Rng::new(2000 + seed as u64);
        let mut model = Model::over(kind.disk_bytes(), &[]);
        // Half of it can be compressed, some of it cannot.
        for (n, sector) in model.0.chunks_mut(512).enumerate() {
            match n / 64 % 4 {
                0 => sector.iter_mut().for_each(|byte| *byte = rng.bits() as u8),
                1 => {}
                _ => sector.fill((n / 128) as u8),
            }
        }
        let raw = dir.file("disk.raw", &model.0);
        let path = dir.path("test.qcow2");
        let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
        let options = kind.qemu_options();
        qemu::img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, from, to]);
        kind.check_ours(&path, &model);
        for round in 0..2 {
            kind.write_ours(&path, 12, &mut rng, &mut model);
            kind.check_clean(&path, &format!("compressed, round {round}"));
            kind.check_qemu(&path, &model, &format!("compressed, round {round}"));
            kind.write_qemu(&path, 6, &mut rng, &mut model);
            kind.check_ours(&path, &model);
        }
    }
}

#[test]
fn snapshots_keep_what_they_hold() {
    if !qemu::is_there() {
        return;
    }
    for (seed, kind) in Kind::sample(1).into_iter().enumerate() {
        // A count of one bit has no room for a second reference, and data in another file none for a second place.
        let outside = matches!(kind.data, Data::Outside | Data::OutsideRaw);
        if kind.refcount_bits == 1 || outside || kind.is_encrypted() {
            continue;
        }
        let dir = Dir::new();
        let mut rng = Rng::new(3000 + seed as u64);
        let mut model = kind.make_below(&dir, &mut rng);
        let path = kind.make_qemu(&dir);
        let name = path.to_str().unwrap();
        let mut kept: Vec<Model> = Vec::new();
        for round in 0..3 {
            kind.write_qemu(&path, 5, &mut rng, &mut model);
            kind.write_ours(&path, 12, &mut rng, &mut model);
            kind.check_clean(&path, &format!("with snapshots, round {round}"));
            kind.check_qemu(&path, &model, &format!("with snapshots, round {round}"));
            kept.push(model.clone());
            qemu::img(&["snapshot", "-q", "-c", &format!("s{round}"), name]);
            kind.check_ours(&path, &model);
        }
        kind.write_ours(&path, 25, &mut rng, &mut model);
        for (round, kept) in kept.iter().enumerate() {
            let raw = dir.path("snapshot.raw");
            let (snapshot, to) = (format!("snapshot.name=s{round}"), raw.to_str().unwrap());
            qemu::img(&["convert", "-f", "qcow2", "-O", "raw", "-l", &snapshot, name, to]);
            kept.check_bytes(&std::fs::read(&raw).unwrap(), &format!("{kind:?}: snapshot {round}"));
            qemu::img(&["snapshot", "-q", "-d", &format!("s{round}"), name]);
        }
        kind.check_clean(&path, "snapshots deleted");
        kind.check_ours(&path, &model);
        kind.check_qemu(&path, &model, "snapshots deleted");
    }
}

#[test]
fn bitmaps_are_not_believed_any_more_once_we_have_written() {
    if !qemu::is_there() {
        return;
    }
    for way in ways() {
        let (dir, kind) = (Dir::new(), Kind::plain(way));
        let mut rng = Rng::new(4000);
        let path = kind.make_qemu(&dir);
        let name = path.to_str().unwrap();
        let mut model = Model::over(kind.disk_bytes(), &[]);
        qemu::img(&["bitmap", "--add", name, "one"]);
        kind.write_qemu(&path, 6, &mut rng, &mut model);
        kind.check_clean(&path, "with a bitmap");
        kind.check_ours(&path, &model);
        kind.write_ours(&path, 12, &mut rng, &mut model);
        // Unless the bitmap was brought up to date, its clusters are leaks now.
        assert_eq!(qemu::check("qcow2", &path).corruptions, 0);
        kind.check_qemu(&path, &model, "with a bitmap");
        let info = qemu::img(&["info", name]);
        let is_believed = info.contains("name: one") && !info.contains("in-use");
        assert!(!is_believed || qemu::check("qcow2", &path) == CLEAN, "{info}");
    }
}

#[test]
fn an_image_that_we_did_not_close_opens_in_qemu_with_what_was_flushed_and_at_most_leaks() {
    if !qemu::is_there() {
        return;
    }
    for (seed, kind) in Kind::sample(0).into_iter().enumerate() {
        let dir = Dir::new();
        let mut rng = Rng::new(5000 + seed as u64);
        let mut model = kind.make_below(&dir, &mut rng);
        let path = kind.make_ours(&dir);
        // The copy beside it needs the same files, and a data file goes on to change.
        if matches!(kind.data, Data::Outside | Data::OutsideRaw) {
            continue;
        }
        let disk = kind.open(&path, false);
        for _ in 0..20 {
            model.send(&disk, kind.draw().request(&mut rng));
        }
        model.send(&disk, Request::Flush);
        // Not flushed, so nobody counts on it.
        let (at, len) = (kind.disk_bytes() / 2 / 512 * 512, 512);
        disk.write(at, &[1; 512]).unwrap();
        let left = dir.path("left.qcow2");
        std::fs::copy(&path, &left).unwrap();
        disk.close().unwrap();
        let found = qemu::check(kind.format(), &left);
        assert_eq!(found.corruptions, 0, "{kind:?}");
        let bytes = qemu::contents(kind.format(), &left);
        let place = at as usize..at as usize + len;
        let is_either =
            bytes[place.clone()] == model.0[place.clone()] || bytes[place.clone()] == [1; 512];
        assert!(is_either, "{kind:?}");
        model.0[place.clone()].copy_from_slice(&bytes[place]);
        model.check_bytes(&bytes, &format!("{kind:?}: not closed"));
        // We go on with it, and whatever leaked is for a repair to find.
        kind.write_ours(&left, 8, &mut rng, &mut model);
        let found = qemu::repair(kind.format(), &left);
        assert_eq!(found, Found { corruptions: 0, leaks: 0 }, "{kind:?}");
        kind.check_qemu(&left, &model, "not closed, gone on with");
    }
}

#[test]
fn requests_of_more_than_one_table() {
    if !qemu::is_there() {
        return;
    }
    // A table maps 32 KiB, or 2 MiB.
    for (n, (cluster_bytes, table)) in [(512, 32 * K), (4 * K, 2 * M)].into_iter().enumerate() {
        for (m, len) in [table, table + 512, 3 * table - 512].into_iter().enumerate() {
            let way = ways()[(n + m) % ways().len()];
            let kind = Kind { cluster_bytes, ..Kind::plain(way) };
            let dir = Dir::new();
            let path = dir.path("test.qcow2");
            let bytes = 4 * table + 1536;
            let size = bytes.to_string();
            let options = format!("cluster_size={cluster_bytes}");
            let name = path.to_str().unwrap();
            qemu::img(&["create", "-q", "-f", "qcow2", "-o", &options, name, &size]);
            let mut model = Model::over(bytes, &[]);
            for at in [512, 0, table - 512] {
                let disk = kind.open(&path, false);
                model.send(&disk, Request::Write { at, len, pattern: 1 + m as u8 });
                model.send(&disk, Request::Flush);
                model.send(&disk, Request::Zeroes { at: at + 512, len: len - 512, unmap: m == 0 });
                model.send(&disk, Request::Write { at: at + 1024, len: len / 2, pattern: 101 });
                model.send(&disk, Request::Discard { at: at + len / 4, len: len / 2 });
                model.check(&disk, "long");
                disk.close().unwrap();
                kind.check_clean(&path, "long");
                kind.check_qemu(&path, &model, "long");
            }
        }
    }
}

#[test]
fn a_part_of_a_compressed_cluster_is_zeroed_and_the_rest_stays() {
    if !qemu::is_there() {
        return;
    }
    for (n, way) in ways().into_iter().enumerate() {
        for extended in [true, false] {
            let kind = Kind { extended, zstd: n % 2 == 1, ..Kind::plain(way) };
            let dir = Dir::new();
            let mut model = Model::over(kind.disk_bytes(), &vec![7; M as usize]);
            let raw = dir.file("disk.raw", &model.0);
            let path = dir.path("test.qcow2");
            let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
            let options = kind.qemu_options();
            qemu::img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, from, to]);
            let disk = kind.open(&path, false);
            // Whole subclusters, in several clusters.
            for (cluster, unmap) in [(1, true), (3, false)] {
                let at = cluster * 64 * K + 4 * K;
                model.send(&disk, Request::Zeroes { at, len: 8 * K, unmap });
            }
            model.send(&disk, Request::Discard { at: 5 * 64 * K + 8 * K, len: 2 * K });
            model.send(&disk, Request::Discard { at: 7 * 64 * K, len: 64 * K });
            model.check(&disk, &format!("{kind:?}"));
            disk.close().unwrap();
            kind.check_clean(&path, "compressed, zeroed");
            kind.check_qemu(&path, &model, "compressed, zeroed");
        }
    }
}

#[test]
fn counts_outgrow_their_blocks_and_their_table() {
    if !qemu::is_there() {
        return;
    }
    // A refcount table of one cluster is enough for files of 2 MiB, and of 8.
    for (refcount_bits, bytes) in [(64, 5 * M), (16, 10 * M)] {
        let kind = Kind { cluster_bytes: 512, refcount_bits, ..Kind::plain(ways()[0]) };
        let dir = Dir::new();
        let path = dir.path("test.qcow2");
        let options = kind.qemu_options();
        let (name, size) = (path.to_str().unwrap(), bytes.to_string());
        qemu::img(&["create", "-q", "-f", "qcow2", "-o", &options, name, &size]);
        let mut model = Model::over(bytes, &[]);
        let disk = kind.open(&path, false);
        for (n, at) in (0..bytes).step_by(128 * K as usize).enumerate() {
            model.send(&disk, Request::Write { at, len: 128 * K, pattern: 1 + n as u8 });
            if n % 8 == 0 {
                model.send(&disk, Request::Flush);
            }
        }
        model.check(&disk, "grown");
        disk.close().unwrap();
        kind.check_clean(&path, "grown");
        kind.check_qemu(&path, &model, "grown");
        // And back, as far as that goes: nothing leaks.
        let disk = kind.open(&path, false);
        model.send(&disk, Request::Discard { at: 512, len: bytes - 1024 });
        model.send(&disk, Request::Write { at: bytes / 2, len: 64 * K, pattern: 7 });
        disk.close().unwrap();
        kind.check_clean(&path, "grown and emptied");
        kind.check_qemu(&path, &model, "grown and emptied");
    }
}

#[test]
fn an_image_that_qemu_did_not_close_is_counted_anew_before_we_write_to_it() {
    if !qemu::is_there() {
        return;
    }
    for (seed, kind) in Kind::sample(1).into_iter().enumerate() {
        let outside = matches!(kind.data, Data::Outside | Data::OutsideRaw);
        if kind.version == 2 || outside || kind.preallocation != Preallocation::Off {
            continue;
        }
        let kind = Kind { lazy: true, ..kind };
        let dir = Dir::new();
        let mut rng = Rng::new(6000 + seed as u64);
        let mut model = kind.make_below(&dir, &mut rng);
        let path = kind.make_qemu(&dir);
        let is_dirty = || std::fs::read(&path).unwrap()[79] & 1 != 0;
        for round in 0..2 {
            // Killed within: of what it did not flush all is in the file, and its counts are not.
            let draw = Draw { discards: false, ..kind.draw() };
            let words = requests(draw, 8, &mut rng, &mut model);
            qemu::io_killed(kind.format(), &path, &words);
            assert!(is_dirty(), "{kind:?}: QEMU was to leave it marked");
            kind.check_ours(&path, &model);
            assert!(is_dirty(), "{kind:?}");
            let disk = kind.open(&path, false);
            assert!(!is_dirty(), "{kind:?}");
            model.check(&disk, &format!("{kind:?}: mended"));
            for _ in 0..12 {
                model.send(&disk, kind.draw().request(&mut rng));
            }
            disk.close().unwrap();
            kind.check_clean(&path, &format!("mended, round {round}"));
            kind.check_qemu(&path, &model, &format!("mended, round {round}"));
        }
    }
}
