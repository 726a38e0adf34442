//! Clusters that are discarded and keep their place: QEMU's driver and ours do the same to the same image.

use super::kind::Kind;
use super::{K, M};
use crate::common::model::{Model, Request};
use crate::common::{Dir, Disk, qemu, ways};
use block::OpenOptions;
use io_engine::Rng;
use std::path::Path;

fn map(path: &Path) -> String {
    qemu::img(&["map", "--output=json", "-f", "qcow2", path.to_str().unwrap()])
}

fn open(kind: &Kind, path: &Path) -> Disk {
    let options = OpenOptions { discard_no_unref: true, ..kind.options(false) };
    Disk::open_with(path, kind.way.engine, &options).unwrap()
}

#[test]
fn discarded_clusters_keep_their_place_as_in_qemu() {
    if !qemu::is_there() {
        return;
    }
    for (n, way) in ways().into_iter().enumerate() {
        let dir = Dir::new();
        let kind = Kind { extended: n % 2 == 1, ..Kind::plain(way) };
        let ours = kind.make_qemu(&dir);
        qemu::io("qcow2", &ours, &["write -P 5 0 1M".into(), "write -P 6 2M 1M".into()]);
        let theirs = dir.path("theirs.qcow2");
        std::fs::copy(&ours, &theirs).unwrap();
        let words =
            ["discard 128k 256k", "discard 2M 64k", "write -z -u 640k 128k", "write -P 7 192k 64k"];
        let reopen = ["reopen -o discard=unmap,discard-no-unref=on"];
        let words: Vec<String> = reopen.iter().chain(&words).map(|w| w.to_string()).collect();
        qemu::io("qcow2", &theirs, &words);
        let disk = open(&kind, &ours);
        disk.discard(128 * K, 256 * K).unwrap();
        disk.discard(2 * M, 64 * K).unwrap();
        disk.write_zeroes(640 * K, 128 * K, true).unwrap();
        disk.write(192 * K, &[7; 64 << 10]).unwrap();
        disk.close().unwrap();
        let (map, expected) = (map(&ours), map(&theirs));
        assert_eq!(map, expected, "{kind:?}");
        let kept = r#""present": true, "zero": true, "data": false, "compressed": false, "offset""#;
        assert!(map.contains(kept), "{map}");
        kind.check_clean(&ours, "discarded");
        assert!(qemu::contents("qcow2", &ours) == qemu::contents("qcow2", &theirs));
    }
}

#[test]
fn any_requests_leave_an_image_that_qemu_finds_clean() {
    if !qemu::is_there() {
        return;
    }
    for (n, way) in ways().into_iter().enumerate() {
        let dir = Dir::new();
        let kind = Kind { extended: n % 2 == 0, ..Kind::plain(way) };
        let path = kind.make_ours(&dir);
        let (mut rng, mut model) = (Rng::new(n as u64), Model::over(kind.disk_bytes(), &[]));
        for _ in 0..3 {
            let disk = open(&kind, &path);
            for _ in 0..60 {
                model.send(&disk, kind.draw().request(&mut rng));
            }
            let (at, len) = (64 * K * rng.below(8), 256 * K);
            model.send(&disk, Request::Discard { at, len });
            model.check(&disk, "discards");
            disk.close().unwrap();
            kind.check_clean(&path, "discards");
            kind.check_qemu(&path, &model, "discards");
            // And QEMU writes to what was kept.
            kind.write_qemu(&path, 20, &mut rng, &mut model);
            kind.check_ours(&path, &model);
        }
    }
}
