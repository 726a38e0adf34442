//! QED images between QEMU's tools and ours: made by the one, written by the other, read by both, against a plain vector of bytes.
//!
//! Where QEMU 10.0.2 is no judge:
//!
//! - it cannot open images with tables of one cluster;
//! - `qemu-img check` counts leaks that are not there once a file has as many clusters as a cluster has bytes, so files with clusters of 4 KiB stay
//!   under 16 MiB here;
//! - it writes a part of a zero cluster over a backing file as if the cluster were unallocated: the rest of it shows the backing file again, where
//!   the specification ("Zero data clusters") says zeroes. So in an image with a backing file that may have zero clusters, it writes whole clusters.

use crate::common::model::{Draw, Model, Request, write_ends};
use crate::common::qemu::{self, Found};
use crate::common::{Dir, Disk, PLAIN, Way, options, ways};
use block::{BackingFiles, ErrorKind, Format, Image, OpenOptions, qed};
use io_engine::Rng;
use std::path::Path;

const K: u64 = 1 << 10;
const M: u64 = 1 << 20;
const CLEAN: Found = Found { corruptions: 0, leaks: 0 };

/// What an image stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Below {
    Nothing,
    /// A raw file: its length in percent of the disk's, and whether the image says that it is raw.
    Raw(u64, bool),
    Qed,
}

/// A kind of image.
#[derive(Clone, Copy, Debug)]
struct Kind {
    cluster_bytes: u64,
    table: u64,
    below: Below,
    way: Way,
}

impl Kind {
    /// A good sample of cluster sizes, table sizes, backing files and ways.
    fn sample() -> Vec<Kind> {
        let geometries = [
            (4 * K, 2),
            (4 * K, 16),
            (8 * K, 4),
            (64 * K, 2),
            (64 * K, 4),
            (64 * K, 16),
            (M, 2),
            (M, 4),
            (2 * M, 2),
        ];
        let belows = [
            Below::Nothing,
            Below::Raw(60, true),
            Below::Raw(100, false),
            Below::Raw(130, true),
            Below::Qed,
        ];
        let ways = ways();
        let mut kinds = Vec::new();
        for (n, (cluster_bytes, table)) in geometries.into_iter().enumerate() {
            // Small clusters are quick, and meet every backing file; the others take turns.
            let few = if cluster_bytes <= 64 * K { 5 } else { 2 };
            for m in 0..few {
                let below = belows[(n + m) % belows.len()];
                let way = ways[(n * 3 + m) % ways.len()];
                kinds.push(Kind { cluster_bytes, table, below, way });
            }
        }
        // All of them take a minute, most of it syncs.
        match std::env::var_os("INTEROP_ALL") {
            Some(_) => kinds,
            None => kinds.into_iter().step_by(3).collect(),
        }
    }

    fn name(&self) -> String {
        format!("{self:?}")
    }

    /// Not a multiple of the cluster, and for small clusters several tables.
    fn disk_bytes(&self) -> u64 {
        match self.cluster_bytes {
            ..8192 => 9 * M + 1536,
            8192..M => 11 * M + 512,
            cluster => 4 * cluster + 3 * 512,
        }
    }

    fn draw(&self, discards: bool) -> Draw {
        let len_max = (3 * self.cluster_bytes).clamp(64 * K, 2 * M);
        let (disk_bytes, cluster_bytes) = (self.disk_bytes(), self.cluster_bytes);
        Draw { disk_bytes, cluster_bytes, len_max, zeroes: true, discards, aligned: false }
    }

    /// For QEMU, in an image that may have zero clusters.
    fn draw_qemu(&self, discards: bool) -> Draw {
        Draw { aligned: self.below != Below::Nothing, ..self.draw(discards) }
    }

    /// Makes the backing file; gives its name and the disk with nothing else in it.
    fn make_below(&self, dir: &Dir, rng: &mut Rng) -> (Option<&'static str>, Model) {
        let bytes = self.disk_bytes();
        match self.below {
            Below::Nothing => (None, Model::over(bytes, &[])),
            Below::Raw(percent, _) => {
                let len = bytes * percent / 100 / 512 * 512;
                let mut base = vec![0; len as usize];
                for sector in base.chunks_mut(512) {
                    sector.fill(rng.bits() as u8);
                }
                dir.file("base", &base);
                (Some("base"), Model::over(bytes, &base))
            }
            Below::Qed => {
                let path = dir.path("base");
                qemu::img(&["create", "-q", "-f", "qed", path.to_str().unwrap(), "7M"]);
                let mut base = Model::over(7 * M, &[]);
                let draw = Draw { disk_bytes: 7 * M, ..self.draw(false) };
                qemu::io("qed", &path, &requests(draw, 8, rng, &mut base));
                (Some("base"), Model::over(bytes, &base.0))
            }
        }
    }

    /// Makes the image with qemu-img.
    fn make_qemu(&self, dir: &Dir, below: Option<&str>) -> std::path::PathBuf {
        let path = dir.path("test.qed");
        let geometry = format!("cluster_size={},table_size={}", self.cluster_bytes, self.table);
        let bytes = self.disk_bytes().to_string();
        let mut args = vec!["create", "-q", "-f", "qed", "-o", &geometry];
        match self.below {
            Below::Nothing => {}
            Below::Raw(..) => args.extend(["-F", "raw", "-b", below.unwrap()]),
            Below::Qed => args.extend(["-F", "qed", "-b", below.unwrap()]),
        }
        args.extend([path.to_str().unwrap(), &bytes]);
        qemu::img(&args);
        if let Below::Raw(_, false) = self.below {
            // Older versions of the tool leave this to be found from the file's first bytes; this one does not let us ask for that.
            let mut bytes = std::fs::read(&path).unwrap();
            assert_eq!(bytes[16], 5);
            bytes[16] = 1;
            std::fs::write(&path, &bytes).unwrap();
        }
        path
    }

    /// Makes the image with our driver.
    fn make_ours(&self, dir: &Dir, below: Option<&str>) -> std::path::PathBuf {
        let path = dir.path("test.qed");
        let raw = matches!(self.below, Below::Raw(_, true));
        let create = qed::CreateOptions {
            bytes: self.disk_bytes(),
            cluster_bytes: self.cluster_bytes,
            table_clusters: self.table,
            backing: below.map(|name| (name.as_bytes().to_vec(), raw)),
        };
        create_image(&path, create, self.way);
        path
    }
}

fn create_image(path: &Path, create: qed::CreateOptions, way: Way) {
    let create = block::CreateOptions::Qed(create);
    Image::create(path, &create, &options(Format::Qed, way, false)).unwrap();
}

/// Random requests in qemu-io's words, applied to the model.
fn requests(draw: Draw, count: usize, rng: &mut Rng, model: &mut Model) -> Vec<String> {
    let mut words = Vec::new();
    for _ in 0..count {
        let request = draw.request(rng);
        model.apply(request);
        words.push(qemu::words(request));
    }
    words
}

/// Opens, sends random requests, compares, closes.
fn write_ours(path: &Path, kind: &Kind, draw: Draw, rng: &mut Rng, model: &mut Model) {
    let disk = Disk::open(path, kind.way, false).unwrap();
    for _ in 0..25 {
        let request = draw.request(rng);
        model.send(&disk, request);
    }
    model.check(&disk, &kind.name());
    disk.close().unwrap();
}

fn check_read_only(path: &Path, kind: &Kind, model: &Model) {
    let before = std::fs::read(path).unwrap();
    let disk = Disk::open(path, kind.way, true).unwrap();
    model.check(&disk, &kind.name());
    disk.close().unwrap();
    assert!(std::fs::read(path).unwrap() == before, "{kind:?}: a read-only disk was written to");
}

#[test]
fn what_qemu_writes_we_read() {
    if !qemu::is_there() {
        return;
    }
    for (seed, kind) in Kind::sample().into_iter().enumerate() {
        let dir = Dir::new();
        let mut rng = Rng::new(seed as u64);
        let (below, mut model) = kind.make_below(&dir, &mut rng);
        let path = kind.make_qemu(&dir, below);
        check_read_only(&path, &kind, &model);
        // No zero clusters yet.
        let draw = Draw { zeroes: kind.below == Below::Nothing, ..kind.draw(false) };
        qemu::io("qed", &path, &requests(draw, 12, &mut rng, &mut model));
        qemu::io("qed", &path, &requests(kind.draw_qemu(false), 12, &mut rng, &mut model));
        let name = format!("{kind:?}: QEMU's own image");
        model.check_bytes(&qemu::contents("qed", &path), &name);
        check_read_only(&path, &kind, &model);
        let disk = Disk::open(&path, kind.way, false).unwrap();
        model.check(&disk, &kind.name());
        disk.close().unwrap();
    }
}

#[test]
fn a_part_of_a_zero_cluster_is_written_and_the_rest_stays_zero() {
    if !qemu::is_there() {
        return;
    }
    for way in ways() {
        let dir = Dir::new();
        let base = dir.file("base", &vec![9; M as usize]);
        let kind = Kind { cluster_bytes: 64 * K, table: 2, below: Below::Raw(100, true), way };
        let path = kind.make_ours(&dir, Some("base"));
        qemu::io("qed", &path, &["write -z 0 256k".into()]);
        let mut model = Model::over(kind.disk_bytes(), &std::fs::read(base).unwrap());
        model.apply(Request::Zeroes { at: 0, len: 256 * K, unmap: false });
        let disk = Disk::open(&path, way, false).unwrap();
        for at in [4 * K, 64 * K, 191 * K, 250 * K] {
            model.send(&disk, Request::Write { at, len: 2 * K, pattern: 7 });
        }
        disk.close().unwrap();
        model.check_bytes(&qemu::contents("qed", &path), "written by us, as QEMU reads it");
    }
}

#[test]
fn what_we_write_qemu_reads_and_so_on_in_turns() {
    if !qemu::is_there() {
        return;
    }
    for (seed, kind) in Kind::sample().into_iter().enumerate() {
        let dir = Dir::new();
        let mut rng = Rng::new(1000 + seed as u64);
        let (below, mut model) = kind.make_below(&dir, &mut rng);
        let path = kind.make_ours(&dir, below);
        assert_eq!(qemu::check("qed", &path), CLEAN, "{kind:?}: new");
        let discards = seed % 2 == 1;
        let draw = kind.draw(discards);
        for round in 0..2 {
            write_ours(&path, &kind, draw, &mut rng, &mut model);
            let found = qemu::check("qed", &path);
            // What was freed and not used again: the format has no place to note it.
            let leaks = if discards { found.leaks } else { 0 };
            assert_eq!(found, Found { corruptions: 0, leaks }, "{kind:?}: round {round}");
            let name = format!("{kind:?}: round {round}, as QEMU reads it");
            model.check_bytes(&qemu::contents("qed", &path), &name);
            let words = requests(kind.draw_qemu(discards), 8, &mut rng, &mut model);
            qemu::io("qed", &path, &words);
            assert_eq!(qemu::check("qed", &path).corruptions, 0, "{kind:?}: after QEMU, {round}");
            check_read_only(&path, &kind, &model);
        }
    }
}

#[test]
fn tables_of_one_cluster_which_qemu_refuses() {
    for (n, cluster_bytes) in [4 * K, 64 * K, M].into_iter().enumerate() {
        for way in ways().into_iter().skip(n % 2).step_by(2) {
            let kind = Kind { cluster_bytes, table: 1, below: Below::Nothing, way };
            let dir = Dir::new();
            let mut rng = Rng::new(cluster_bytes);
            let path = kind.make_ours(&dir, None);
            let mut model = Model::over(kind.disk_bytes(), &[]);
            for _ in 0..2 {
                write_ours(&path, &kind, kind.draw(true), &mut rng, &mut model);
                check_read_only(&path, &kind, &model);
            }
        }
    }
}

/// A disk of 64 KiB clusters with a pattern at three places, made and then killed by qemu-io.
fn killed_by_qemu(dir: &Dir) -> (std::path::PathBuf, Model) {
    let path = dir.path("killed.qed");
    qemu::img(&["create", "-q", "-f", "qed", path.to_str().unwrap(), "8M"]);
    let mut model = Model::over(8 * M, &[]);
    let mut words = Vec::new();
    for (n, at) in [0, 3 * M + 512, 7 * M].into_iter().enumerate() {
        let request = Request::Write { at, len: 100 * K, pattern: 11 + n as u8 };
        model.apply(request);
        words.push(qemu::words(request));
    }
    qemu::io_killed("qed", &path, &words);
    (path, model)
}

fn needs_check(path: &Path) -> bool {
    std::fs::read(path).unwrap()[16] & 2 != 0
}

#[test]
fn an_image_that_qemu_did_not_close_is_checked_and_marked_clean() {
    if !qemu::is_there() {
        return;
    }
    for way in ways() {
        let dir = Dir::new();
        let (path, mut model) = killed_by_qemu(&dir);
        assert!(needs_check(&path), "QEMU was to leave it marked");
        let kind = Kind { cluster_bytes: 64 * K, table: 4, below: Below::Nothing, way };
        check_read_only(&path, &kind, &model);
        assert!(needs_check(&path));
        let disk = Disk::open(&path, way, false).unwrap();
        assert!(!needs_check(&path));
        model.check(&disk, "mended");
        model.send(&disk, Request::Write { at: 5 * M, len: 200 * K, pattern: 77 });
        disk.close().unwrap();
        assert_eq!(qemu::check("qed", &path), CLEAN);
        model.check_bytes(&qemu::contents("qed", &path), "mended, as QEMU reads it");
    }
}

#[test]
fn what_a_crash_of_qemu_may_leave_is_mended() {
    if !qemu::is_there() {
        return;
    }
    let dir = Dir::new();
    let (path, mut model) = killed_by_qemu(&dir);
    // The last cluster's data did not make it, nor did the length; leaked ones did.
    let mut bytes = std::fs::read(&path).unwrap();
    let word = |at: usize, bytes: &[u8]| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
    let l1 = word(40, &bytes) as usize;
    let l2 = word(l1, &bytes) as usize;
    let beyond = bytes.len() as u64 + 8 * 64 * K;
    let entry = l2 + 8 * (2 * M / (64 * K)) as usize;
    assert_eq!(word(entry, &bytes), 0);
    bytes[entry..entry + 8].copy_from_slice(&beyond.to_le_bytes());
    bytes.extend(vec![0x99; 64 * K as usize]);
    std::fs::write(&path, &bytes).unwrap();
    let disk = Disk::open(&path, PLAIN, false).unwrap();
    model.check(&disk, "mended");
    // Space that would have been that cluster's is used, and belongs to one place only.
    for n in 0..20 {
        model.send(&disk, Request::Write { at: 4 * M + n * 64 * K, len: 512, pattern: 5 });
    }
    model.check(&disk, "mended and written to");
    disk.close().unwrap();
    assert_eq!(qemu::check("qed", &path), CLEAN);
    model.check_bytes(&qemu::contents("qed", &path), "mended, as QEMU reads it");
}

#[test]
fn an_image_that_we_did_not_close_is_mended_by_qemu() {
    if !qemu::is_there() {
        return;
    }
    for (n, way) in ways().into_iter().enumerate() {
        let dir = Dir::new();
        let below = [Below::Nothing, Below::Raw(60, true)][n % 2];
        let kind = Kind { cluster_bytes: 64 * K, table: 4, below, way };
        let mut rng = Rng::new(n as u64);
        let (name, mut model) = kind.make_below(&dir, &mut rng);
        let path = kind.make_ours(&dir, name);
        let disk = Disk::open(&path, way, false).unwrap();
        for _ in 0..20 {
            model.send(&disk, kind.draw(false).request(&mut rng));
        }
        model.send(&disk, Request::Flush);
        // Not flushed, so nobody counts on it.
        disk.write(2 * M, &[1; 512]).unwrap();
        // The file as a killed server leaves it.
        let left = dir.path("left.qed");
        std::fs::copy(&path, &left).unwrap();
        assert!(needs_check(&left), "{kind:?}");
        disk.close().unwrap();
        assert!(!needs_check(&path), "{kind:?}");
        let leaks = qemu::repair("qed", &left).leaks;
        assert_eq!(qemu::check("qed", &left), Found { corruptions: 0, leaks }, "{kind:?}");
        assert!(!needs_check(&left), "{kind:?}");
        let found = qemu::contents("qed", &left);
        let (from, to) = (2 * M as usize, 2 * M as usize + 512);
        assert!(found[from..to] == model.0[from..to] || found[from..to] == [1; 512], "{kind:?}");
        model.0[from..to].copy_from_slice(&found[from..to]);
        model.check_bytes(&found, &kind.name());
    }
}

#[test]
fn requests_of_more_than_one_table_and_of_as_many_clusters_as_a_cluster_has_bytes() {
    if !qemu::is_there() {
        return;
    }
    let (cluster, table) = (4 * K, 2);
    // A table maps 4 MiB; cs - 1, cs and cs + 1 clusters are 16 MiB and a cluster less or more.
    let lens = [4 * M, 4 * M + cluster, 4 * M + 512, 16 * M - cluster, 16 * M, 16 * M + cluster];
    for (n, len) in lens.into_iter().enumerate() {
        let way = ways()[n % ways().len()];
        let dir = Dir::new();
        let path = dir.path("long.qed");
        let create = qed::CreateOptions {
            bytes: 20 * M + 512,
            cluster_bytes: cluster,
            table_clusters: table,
            backing: None,
        };
        create_image(&path, create, way);
        let mut model = Model::over(20 * M + 512, &[]);
        // New clusters first, then some that are there already.
        for at in [[cluster, 0], [0, 3 * M + 512]][n % 2] {
            let disk = Disk::open(&path, way, false).unwrap();
            model.send(&disk, Request::Write { at, len, pattern: 1 + n as u8 });
            model.send(&disk, Request::Flush);
            model.send(&disk, Request::Write { at: at + 512, len: len - 512, pattern: 101 });
            model.check(&disk, "long");
            disk.close().unwrap();
            // Leaks are not to be believed here, corruptions are.
            assert_eq!(qemu::check("qed", &path).corruptions, 0, "{len} at {at}");
            model.check_bytes(&qemu::contents("qed", &path), "long, as QEMU reads it");
        }
        let disk = Disk::open(&path, way, false).unwrap();
        model.send(&disk, Request::Zeroes { at: 512, len, unmap: false });
        model.send(&disk, Request::Write { at: 0, len, pattern: 102 });
        model.send(&disk, Request::Discard { at: 1024, len });
        model.check(&disk, "long, discarded");
        disk.close().unwrap();
        model.check_bytes(&qemu::contents("qed", &path), "long, discarded, as QEMU reads it");
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
        let name = |file: &str| match absolute {
            true => dir.path(file).to_str().unwrap().to_owned(),
            // Relative to the image that names it, not to where we are.
            false => file.rsplit('/').next().unwrap().to_owned(),
        };
        let base: Vec<u8> = (0..6 * M).map(|n| (n / 512 % 251) as u8).collect();
        dir.file("below/base.raw", &base);
        let middle = dir.path("below/middle.qed");
        let below = name("below/base.raw");
        let path = middle.to_str().unwrap();
        qemu::img(&["create", "-q", "-f", "qed", "-F", "raw", "-b", &below, path, "8M"]);
        let mut model = Model::over(8 * M, &base);
        let write = Request::Write { at: M + 512, len: 300 * K, pattern: 7 };
        let zeroes = Request::Zeroes { at: 5 * M, len: 128 * K, unmap: false };
        [write, zeroes].into_iter().for_each(|request| model.apply(request));
        qemu::io("qed", &middle, &[qemu::words(write), qemu::words(zeroes)]);
        let below = if absolute { name("below/middle.qed") } else { "below/middle.qed".into() };
        let top = dir.path("top.qed");
        let create = qed::CreateOptions {
            cluster_bytes: 16 * K,
            backing: Some((below.into_bytes(), false)),
            ..qed::CreateOptions::new(10 * M)
        };
        create_image(&top, create, way);
        model.0.resize(10 * M as usize, 0);
        let disk = Disk::open(&top, way, false).unwrap();
        model.check(&disk, "chain, new");
        model.send(&disk, Request::Write { at: 5 * M + 4096, len: 512, pattern: 9 });
        model.send(&disk, Request::Write { at: 6 * M - 512, len: 1024, pattern: 10 });
        model.send(&disk, Request::Write { at: 8 * M - 512, len: 1024, pattern: 12 });
        model.send(&disk, Request::Zeroes { at: M, len: 100 * K, unmap: true });
        model.check(&disk, "chain");
        disk.close().unwrap();
        model.check_bytes(&qemu::contents("qed", &top), "chain, as QEMU reads it");
        assert_eq!(qemu::check("qed", &top), CLEAN);
        assert!(std::fs::read(dir.path("below/base.raw")).unwrap() == base);
        // Nothing of it without consent.
        qemu::wait_for_starts();
        let refuse =
            OpenOptions { backing_files: BackingFiles::Refuse, ..options(Format::Qed, way, true) };
        assert_eq!(Image::open(&top, &refuse).unwrap_err().kind(), ErrorKind::BadRequest);
    }
}

#[test]
fn who_has_an_image_open_for_writing_keeps_the_other_out() {
    if !qemu::is_there() {
        return;
    }
    let dir = Dir::new();
    let base = dir.file("base", &vec![1; M as usize]);
    let kind = Kind { cluster_bytes: 64 * K, table: 4, below: Below::Raw(100, true), way: PLAIN };
    let path = kind.make_ours(&dir, Some("base"));
    let read = ["read 0 512".to_owned()];
    let disk = Disk::open(&path, PLAIN, false).unwrap();
    let said = qemu::io_fails("qed", &path, &read);
    assert!(said.contains("lock"), "{said}");
    assert_eq!(Disk::open(&path, PLAIN, true).unwrap_err().kind(), ErrorKind::Locked);
    // The backing file is read by us, and written by nobody.
    assert!(qemu::io_fails("raw", &base, &["write 0 512".into()]).contains("lock"));
    disk.close().unwrap();
    qemu::io("qed", &path, &read);
    {
        let _holder = qemu::Holder::new("qed", &path, false);
        for read_only in [true, false] {
            let error = Disk::open(&path, PLAIN, read_only).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
        }
    }
    let _holder = qemu::Holder::new("qed", &path, true);
    Disk::open(&path, PLAIN, true).unwrap().close().unwrap();
    assert_eq!(Disk::open(&path, PLAIN, false).unwrap_err().kind(), ErrorKind::Locked);
}

#[test]
fn the_end_of_the_largest_disks() {
    if !qemu::is_there() {
        return;
    }
    for (cluster_bytes, table) in
        [(4 * K, 1), (4 * K, 2), (4 * K, 16), (64 * K, 4), (64 * K, 16), (M, 1), (64 * M, 16)]
    {
        let entries = u128::from(table * cluster_bytes / 8);
        let most = entries * entries * u128::from(cluster_bytes);
        let bytes = u64::try_from(most).unwrap_or(u64::MAX).min((1 << 63) - 512);
        let dir = Dir::new();
        let path = dir.path("large.qed");
        let create = |bytes| qed::CreateOptions {
            bytes,
            cluster_bytes,
            table_clusters: table,
            backing: None,
        };
        if u128::from(bytes) == most {
            let error = qed::new_image(&create(bytes + 512)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadRequest);
        }
        create_image(&path, create(bytes), PLAIN);
        let reads = write_ends(&path, bytes, 4096);
        // QEMU's largest disk is a little smaller than ours, and it has no tables of one cluster.
        if table > 1 && bytes < 1 << 62 {
            qemu::io("qed", &path, &reads);
        }
    }
}
