//! The seventeen images that tell whether a library reads qcow2: made by QEMU, read whole, written to, flushed, closed, and then checked by QEMU.

use super::kind::{Below, Data, Kind};
use super::{CLEAN, K, M};
use crate::common::model::{Draw, Model, Request};
use crate::common::qemu::{self, Found};
use crate::common::{Dir, Way, ways};
use std::path::PathBuf;

/// What is done to the image once there is something in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Nothing,
    Compress,
    Snapshot,
    Bitmap,
    Abort,
}

struct Row {
    name: &'static str,
    kind: Kind,
    then: Then,
}

fn rows(way: Way) -> Vec<Row> {
    let plain = Kind::plain(way);
    let row = |name, kind| Row { name, kind, then: Then::Nothing };
    vec![
        row("version 2", Kind { version: 2, ..plain }),
        row("version 3", plain),
        Row { then: Then::Compress, ..row("compressed, zlib", plain) },
        Row { then: Then::Compress, ..row("compressed, zstd", Kind { zstd: true, ..plain }) },
        row("extended L2", Kind { extended: true, ..plain }),
        row("data file", Kind { data: Data::Outside, ..plain }),
        row("raw data file", Kind { data: Data::OutsideRaw, ..plain }),
        row("LUKS", Kind { data: Data::Luks, ..plain }),
        Row { then: Then::Snapshot, ..row("snapshot", plain) },
        Row { then: Then::Bitmap, ..row("bitmap", plain) },
        Row { then: Then::Abort, ..row("dirty", Kind { lazy: true, ..plain }) },
        row("refcounts of 1 bit", Kind { refcount_bits: 1, ..plain }),
        row("refcounts of 64 bits", Kind { refcount_bits: 64, ..plain }),
        row("clusters of 512 bytes", Kind { cluster_bytes: 512, ..plain }),
        row("clusters of 2 MiB", Kind { cluster_bytes: 2 * M, ..plain }),
        row("raw backing file", Kind { below: Below::Raw(60), ..plain }),
        row("qcow2 backing file", Kind { below: Below::Qcow2, ..plain }),
    ]
}

impl Row {
    /// Makes the image, with something in it.
    fn make(&self, dir: &Dir, rng: &mut io_engine::Rng) -> (PathBuf, Model) {
        let mut model = self.kind.make_below(dir, rng);
        let path = self.kind.make_qemu(dir);
        let draw = Draw { discards: false, ..self.kind.draw() };
        let words = super::kind::requests(draw, 10, rng, &mut model);
        match self.then {
            Then::Abort => qemu::io_killed(self.kind.format(), &path, &words),
            _ => qemu::io(self.kind.format(), &path, &words),
        }
        let name = path.to_str().unwrap();
        match self.then {
            Then::Nothing => {}
            Then::Compress => {
                let plain = dir.path("plain.qcow2");
                std::fs::rename(&path, &plain).unwrap();
                let options = self.kind.qemu_options();
                let from = plain.to_str().unwrap();
                qemu::img(&[
                    "convert", "-c", "-O", "qcow2", "-o", &options, "-f", "qcow2", from, name,
                ]);
            }
            Then::Snapshot => drop(qemu::img(&["snapshot", "-q", "-c", "s", name])),
            Then::Bitmap => drop(qemu::img(&["bitmap", "--add", name, "b"])),
            Then::Abort => assert_eq!(std::fs::read(&path).unwrap()[79] & 1, 1, "not dirty"),
        }
        (path, model)
    }
}

#[test]
fn the_seventeen_images() {
    (0..17).for_each(try_row);
}

fn try_row(n: usize) {
    if !qemu::is_there() {
        return;
    }
    let ways = ways();
    let row = rows(ways[n % ways.len()]).remove(n);
    let Row { name, kind, then } = row;
    let dir = Dir::new();
    let mut rng = io_engine::Rng::new(n as u64);
    let (path, mut model) = row.make(&dir, &mut rng);
    kind.check_ours(&path, &model);
    let disk = kind.open(&path, false);
    model.check(&disk, name);
    for at in [4 * K, kind.disk_bytes() / 2 / 4096 * 4096] {
        model.send(&disk, Request::Write { at, len: 4 * K, pattern: 0x99 });
    }
    model.send(&disk, Request::Flush);
    disk.close().unwrap();
    let found = qemu::check(kind.format(), &path);
    // A bitmap that is not kept up to date is not there any more, and its clusters leak.
    let leaks = if then == Then::Bitmap { found.leaks } else { 0 };
    assert_eq!(found, Found { leaks, ..CLEAN }, "{name}");
    kind.check_qemu(&path, &model, name);
    kind.check_ours(&path, &model);
}
