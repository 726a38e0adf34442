//! Bitmaps of images that are encrypted, or have their data in another file: we begin one, QEMU records in it, and we go on.

use super::kind::{Data, Kind};
use super::{K, M};
use crate::common::model::{Model, Request};
use crate::common::{Dir, Disk, qemu, ways};
use std::ops::Range;

fn dirty(disk: &Disk) -> Vec<Range<u64>> {
    let node = disk.node.clone();
    let runs = disk.context.block_on(async move {
        let (image, mut runs, mut from) = (node.qcow2().unwrap(), Vec::new(), 0);
        while let Some(run) = image.next_dirty(b"one", from).await? {
            from = run.end;
            runs.push(run);
        }
        block::Result::Ok(runs)
    });
    runs.unwrap().unwrap()
}

#[test]
fn a_bitmap_goes_from_hand_to_hand() {
    if !qemu::is_there() {
        return;
    }
    let all = [Data::Inside, Data::Outside, Data::OutsideRaw, Data::Luks, Data::Aes];
    for (way, data) in ways().into_iter().cycle().zip(all) {
        let dir = Dir::new();
        let kind = Kind { data, zstd: true, ..Kind::plain(way) };
        let path = kind.make_ours(&dir);
        let mut model = Model::over(kind.disk_bytes(), &[]);
        let disk = kind.open(&path, false);
        model.send(&disk, Request::Write { at: 0, len: 64 * K, pattern: 1 });
        let node = disk.node.clone();
        let added = disk
            .context
            .block_on(async move { node.qcow2().unwrap().add_bitmap(b"one", 4 * K, true).await });
        added.unwrap().unwrap();
        model.send(&disk, Request::Write { at: 100 * K, len: 8 * K, pattern: 2 });
        model.send(&disk, Request::Zeroes { at: M, len: 128 * K, unmap: true });
        disk.close().unwrap();
        kind.check_clean(&path, "ours");
        let theirs = Request::Write { at: 600 * K, len: 4 * K, pattern: 3 };
        qemu::io(kind.format(), &path, &[qemu::words(theirs)]);
        model.apply(theirs);
        kind.check_clean(&path, "theirs");
        let disk = kind.open(&path, false);
        model.send(&disk, Request::Write { at: 2 * M + 512, len: 512, pattern: 4 });
        model.check(&disk, "again ours");
        disk.close().unwrap();
        kind.check_clean(&path, "again ours");
        kind.check_qemu(&path, &model, "again ours");
        let disk = kind.open(&path, true);
        let expected = [100 * K..108 * K, 600 * K..604 * K, M..M + 128 * K, 2 * M..2 * M + 4 * K];
        assert_eq!(dirty(&disk), expected, "{kind:?}");
        disk.close().unwrap();
    }
}
