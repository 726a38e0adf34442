//! Snapshots: what they keep, what they cost, what a power cut leaves of them.

mod bad;
mod interop;
mod power;

use crate::qcow2::header::Compression;
use crate::qcow2::{BackingFile, CreateOptions, NewSnapshot, Snapshot, deflate};
use crate::testing::rig::{Rig, image, range};
use crate::{BlockNode, DiskOffset, ErrorKind, Result};
use io_engine::Rng;
use io_engine::sim::{SimDisk, SimOptions};
use sim::ImageFile;
use sim::qcow2::check;

const K4: u64 = 4096;

/// What is done with snapshots.
#[derive(Clone, Debug)]
pub enum Change {
    Create(&'static str),
    Apply(String),
    Delete(String),
}

impl Rig {
    pub fn change(&self, change: Change) -> Result<()> {
        self.run(move |node| async move {
            let image = node.qcow2().unwrap();
            match &change {
                Change::Create(name) => {
                    let name = name.as_bytes();
                    let new =
                        NewSnapshot { name, seconds: 1_700_000_000, nanos: 5, vm_clock_ns: 7 };
                    image.create_snapshot(&new).await.map(drop)
                }
                Change::Apply(which) => image.apply_snapshot(which.as_bytes()).await,
                Change::Delete(which) => image.delete_snapshot(which.as_bytes()).await,
            }
        })
    }

    pub fn snapshots(&self) -> Vec<Snapshot> {
        let all = self.run(|node| async move { node.qcow2().unwrap().snapshots().await });
        all.unwrap()
    }

    /// What the disk was when a snapshot was made.
    pub fn shown(disk: &SimDisk, backing: Option<&SimDisk>, which: &[u8]) -> Vec<u8> {
        let rig = Rig::open_over(disk, backing, 1, true).unwrap();
        let which = which.to_vec();
        let show = |node: std::rc::Rc<BlockNode>| async move {
            node.qcow2().unwrap().show_snapshot(&which).await
        };
        rig.run(show).unwrap();
        let all = rig.all();
        rig.close().unwrap();
        all
    }

    pub fn disk_size(&self) -> u64 {
        self.node.qcow2().unwrap().disk_bytes()
    }

    pub fn all(&self) -> Vec<u8> {
        match self.disk_size() {
            0 => Vec::new(),
            bytes => self.read(0, bytes).unwrap(),
        }
    }
}

/// An image with other bytes in the place of its header.
struct Patched<'a> {
    disk: &'a SimDisk,
    header: [u8; 512],
}

impl ImageFile for Patched<'_> {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_at(&self, at: u64, into: &mut [u8]) {
        self.disk.read_at(at, into);
        for (n, byte) in into.iter_mut().enumerate() {
            *byte = self.header.get(at as usize + n).copied().unwrap_or(*byte);
        }
    }
}

/// The disk as it was when a snapshot was made: the image with that one's L1 table as its own, read by the independent reader.
pub fn content_of(disk: &SimDisk, snapshot: &Snapshot, backing: Option<&SimDisk>) -> Vec<u8> {
    let l1 = (snapshot.l1_table, snapshot.l1_entries);
    content_at(disk, l1, snapshot.disk_bytes.unwrap(), backing)
}

/// The disk of this size that an L1 table, with so many entries, is for.
pub fn content_at(
    disk: &SimDisk,
    (l1, entries): (u64, u32),
    size: u64,
    backing: Option<&SimDisk>,
) -> Vec<u8> {
    let mut header = [0; 512];
    disk.read_at(0, &mut header);
    header[24..32].copy_from_slice(&size.to_be_bytes());
    header[36..40].copy_from_slice(&entries.to_be_bytes());
    header[40..48].copy_from_slice(&l1.to_be_bytes());
    // The snapshots are none of its business.
    header[60..72].fill(0);
    let file = Patched { disk, header };
    let image = sim::qcow2::Qcow2::open(&file).unwrap();
    let mut content = vec![0; size as usize];
    let below = |at: u64, into: &mut [u8]| {
        into.fill(0);
        if let Some(backing) = backing.filter(|backing| at < backing.len()) {
            let len = (into.len() as u64).min(backing.len() - at) as usize;
            backing.read_at(at, &mut into[..len]);
        }
    };
    image.read_disk(0, &mut content, below).unwrap();
    content
}

pub fn logged(options: &CreateOptions) -> SimDisk {
    image(options, SimOptions { log: true, ..SimOptions::default() })
}

fn options(bytes: u64) -> CreateOptions {
    CreateOptions { cluster_bytes: K4, ..CreateOptions::new(bytes) }
}

#[track_caller]
pub fn is_clean(disk: &SimDisk) {
    let report = check(disk);
    assert!(report.is_sound(), "{report:?}");
    assert_eq!((report.leaked_clusters, report.leaked_beyond_file), (0, 0), "{report:?}");
    assert!(!report.is_dirty);
}

/// It cannot be done, and nothing in the file is different.
fn is_refused(rig: &Rig, disk: &SimDisk, change: Change) {
    // The first one makes the file what it says it is.
    for round in 0..2 {
        let before = disk.contents();
        let error = rig.change(change.clone()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadRequest, "{error}");
        assert!(round == 0 || disk.contents() == before, "{change:?}");
    }
}

#[test]
fn a_snapshot_keeps_what_was_there() {
    let disk = logged(&options(4 << 20));
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(0, &[1; 3 * K4 as usize]).unwrap();
    rig.write(3 << 20, &[2; 512]).unwrap();
    let before = rig.all();
    rig.change(Change::Create("first")).unwrap();
    is_clean(&disk);
    let taken = check(&disk).referenced_clusters;
    rig.write(K4 + 512, &[3; 512]).unwrap();
    rig.write_zeroes(0, K4, true).unwrap();
    rig.discard(3 << 20, K4).unwrap();
    rig.flush().unwrap();
    let after = rig.all();
    let snapshots = rig.snapshots();
    let [one] = &snapshots[..] else { panic!("{snapshots:?}") };
    assert_eq!((&one.id[..], &one.name[..]), (&b"1"[..], &b"first"[..]));
    assert_eq!((one.seconds, one.nanos, one.vm_clock_ns), (1_700_000_000, 5, 7));
    assert_eq!((one.disk_bytes, one.vm_state_bytes, one.icount), (Some(4 << 20), 0, None));
    assert!(content_of(&disk, one, None) == before);
    rig.change(Change::Create("second")).unwrap();
    rig.change(Change::Apply("first".into())).unwrap();
    is_clean(&disk);
    assert!(rig.all() == before);
    rig.change(Change::Apply("2".into())).unwrap();
    assert!(rig.all() == after);
    rig.change(Change::Delete("1".into())).unwrap();
    rig.change(Change::Delete("second".into())).unwrap();
    is_clean(&disk);
    assert!(rig.snapshots().is_empty());
    // Everything is the disk's alone again: it is overwritten in place.
    let log = disk.write_log().len();
    rig.write(2 * K4, &[4; K4 as usize]).unwrap();
    rig.flush().unwrap();
    assert!(disk.write_log().len() - log < 8, "in place, and nothing to be committed");
    rig.close().unwrap();
    is_clean(&disk);
    assert!(check(&disk).referenced_clusters < taken);
    let rig = Rig::open(&disk, 2).unwrap();
    assert!(rig.read(2 * K4, K4).unwrap() == [4; K4 as usize]);
}

#[test]
fn identifiers_are_counted_and_names_may_be_the_same() {
    let disk = logged(&options(1 << 20));
    let rig = Rig::open(&disk, 1).unwrap();
    for name in ["7", "a", "", "a"] {
        rig.change(Change::Create(name)).unwrap();
    }
    rig.change(Change::Delete("a".into())).unwrap();
    rig.change(Change::Create("b")).unwrap();
    let ids: Vec<Vec<u8>> = rig.snapshots().into_iter().map(|one| one.id).collect();
    assert_eq!(ids, [b"1", b"3", b"4", b"5"]);
    rig.change(Change::Delete("7".into())).unwrap();
    let error = rig.change(Change::Apply("7".into())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadRequest, "{error}");
    let long: &str = Box::leak("n".repeat(256).into_boxed_str());
    for name in [long, "a\0b"] {
        let error = rig.change(Change::Create(name)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadRequest, "{error}");
    }
    rig.close().unwrap();
    is_clean(&disk);
}

#[test]
fn counts_that_are_too_narrow_are_found_before_anything_is_changed() {
    for (refcount_bits, most) in [(1, 0), (2, 2), (4, 14)] {
        let disk = logged(&CreateOptions { refcount_bits, ..options(1 << 20) });
        let rig = Rig::open(&disk, 1).unwrap();
        rig.write(0, &[1; K4 as usize]).unwrap();
        for _ in 0..most {
            rig.change(Change::Create("more")).unwrap();
        }
        is_refused(&rig, &disk, Change::Create("too many"));
        assert_eq!(rig.snapshots().len(), most);
        if most > 0 {
            is_refused(&rig, &disk, Change::Apply("1".into()));
        }
        // It can go on.
        rig.write(0, &[2; 512]).unwrap();
        rig.close().unwrap();
        is_clean(&disk);
    }
}

#[test]
fn compressed_clusters_are_counted_for_each_stream() {
    let disk = logged(&options(1 << 20));
    let rig = Rig::open(&disk, 1).unwrap();
    for cluster in 0..40u64 {
        let data: Vec<u8> = (0..K4).map(|n| (n * cluster / 7) as u8).collect();
        let stream = deflate(Compression::Zlib, 1, &data).unwrap();
        let write = move |node: std::rc::Rc<BlockNode>| async move {
            node.write_compressed(DiskOffset(cluster * K4), &stream).await
        };
        rig.run(write).unwrap();
    }
    let before = rig.all();
    rig.change(Change::Create("one")).unwrap();
    is_clean(&disk);
    for cluster in [0, 7, 8, 20] {
        rig.write(cluster * K4 + 512, &[9; 512]).unwrap();
    }
    rig.flush().unwrap();
    rig.change(Change::Create("two")).unwrap();
    let after = rig.all();
    rig.change(Change::Apply("one".into())).unwrap();
    assert!(rig.all() == before);
    rig.change(Change::Delete("one".into())).unwrap();
    is_clean(&disk);
    rig.change(Change::Apply("two".into())).unwrap();
    rig.change(Change::Delete("two".into())).unwrap();
    assert!(rig.all() == after);
    rig.close().unwrap();
    is_clean(&disk);
}

#[test]
fn a_count_of_streams_that_does_not_fit_is_found_before_anything_is_changed() {
    // Streams of so few bytes that dozens are in a cluster, whose count goes to 255.
    let disk = logged(&CreateOptions { refcount_bits: 8, ..options(1 << 20) });
    let rig = Rig::open(&disk, 1).unwrap();
    let stream = deflate(Compression::Zlib, 9, &[7; K4 as usize]).unwrap();
    for cluster in 0..60u64 {
        let stream = stream.clone();
        let write = move |node: std::rc::Rc<BlockNode>| async move {
            node.write_compressed(DiskOffset(cluster * K4), &stream).await
        };
        rig.run(write).unwrap();
    }
    rig.flush().unwrap();
    let mut made = 0;
    while made < 20 && rig.change(Change::Create("more")).is_ok() {
        made += 1;
    }
    is_refused(&rig, &disk, Change::Create("more"));
    assert!((1..8).contains(&made), "{made}");
    rig.close().unwrap();
    is_clean(&disk);
}

/// What a run at random does.
struct Run {
    seed: u64,
    rng: Rng,
    disk: SimDisk,
    backing: Option<SimDisk>,
    is_v2: bool,
    narrow: bool,
    model: Vec<u8>,
    /// Identifiers and contents.
    kept: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::new(seed);
        let bytes = 512 * (1 + rng.below(4096));
        let version = if rng.chance(200) { 2 } else { 3 };
        let extended_l2 = version == 3 && rng.chance(250);
        let cluster_bytes = match extended_l2 {
            true => 16384,
            false => [512, 512, 1024, 4096, 8192, 65536][rng.index(6)],
        };
        let width = if version == 3 { [2, 4, 16, 16, 64][rng.index(5)] } else { 16 };
        let backing = rng.chance(300).then(|| {
            let bytes: Vec<u8> =
                (0..rng.below(bytes * 5 / 4)).map(|n| (n / 512 % 251) as u8 | 1).collect();
            SimDisk::with_contents(SimOptions::default(), &bytes)
        });
        let create = CreateOptions {
            version,
            cluster_bytes,
            refcount_bits: width,
            extended_l2,
            backing: backing
                .is_some()
                .then(|| BackingFile { name: b"base".to_vec(), format: Some(b"raw".to_vec()) }),
            ..CreateOptions::new(bytes)
        };
        let align = [1, 512, 4096][rng.index(3)];
        let disk = image(&create, SimOptions { align, ..SimOptions::default() });
        let mut model = vec![0; bytes as usize];
        if let Some(backing) = &backing {
            let len = (backing.len() as usize).min(model.len());
            backing.read_at(0, &mut model[..len]);
        }
        let kept = Vec::new();
        Run { seed, rng, disk, backing, is_v2: version == 2, narrow: width == 2, model, kept }
    }

    fn go(&mut self) {
        for _ in 0..3 {
            let seed = self.rng.bits();
            let rig = Rig::open_over(&self.disk, self.backing.as_ref(), seed, false).unwrap();
            for _ in 0..8 {
                self.requests(&rig);
                let size = rig.disk_size();
                self.change(&rig);
                let tells = || format!("seed {}, size {size}", self.seed);
                assert!(rig.all() == self.model, "{}", tells());
                let report = check(&self.disk);
                assert!(report.is_sound(), "{}: {report:?}", tells());
            }
            rig.close().unwrap();
            self.check_closed();
        }
    }

    fn check_closed(&mut self) {
        is_clean(&self.disk);
        let rig = Rig::open_over(&self.disk, self.backing.as_ref(), 0, true).unwrap();
        assert!(rig.all() == self.model, "seed {}", self.seed);
        let snapshots = rig.snapshots();
        assert_eq!(snapshots.len(), self.kept.len());
        for (snapshot, (id, content)) in snapshots.iter().zip(&self.kept) {
            assert_eq!(&snapshot.id, id);
            let found = content_of(&self.disk, snapshot, self.backing.as_ref());
            assert!(found == *content, "seed {}: snapshot {id:?}", self.seed);
            let found = Rig::shown(&self.disk, self.backing.as_ref(), id);
            assert!(found == *content, "seed {}: snapshot {id:?}, by us", self.seed);
        }
    }

    fn requests(&mut self, rig: &Rig) {
        let size = self.model.len() as u64;
        for _ in 0..self.rng.index(8) {
            if size == 0 {
                break;
            }
            let max = if self.rng.chance(200) { 400 } else { 24 };
            let (at, len) = range(&mut self.rng, size, max);
            let place = at as usize..(at + len) as usize;
            match self.rng.index(6) {
                0..=3 => {
                    let data: Vec<u8> = (0..len).map(|_| self.rng.bits() as u8).collect();
                    rig.write(at, &data).unwrap();
                    self.model[place].copy_from_slice(&data);
                }
                4 => {
                    rig.write_zeroes(at, len, self.rng.chance(500)).unwrap();
                    self.model[place].fill(0);
                }
                _ => {
                    rig.discard(at, len).unwrap();
                    rig.write_zeroes(at, len, true).unwrap();
                    self.model[place].fill(0);
                }
            }
            if self.rng.chance(200) {
                rig.flush().unwrap();
            }
        }
    }

    fn change(&mut self, rig: &Rig) {
        let which = self.rng.index(self.kept.len().max(1));
        let id = self.kept.get(which).map(|(id, _)| String::from_utf8(id.clone()).unwrap());
        match (self.rng.index(8), id) {
            (0..=2, _) => match rig.change(Change::Create("name")) {
                Ok(()) => {
                    let id = rig.snapshots().last().unwrap().id.clone();
                    self.kept.push((id, self.model.clone()));
                }
                Err(error) if self.narrow => assert_eq!(error.kind(), ErrorKind::BadRequest),
                Err(error) => panic!("seed {}: {error}", self.seed),
            },
            (3 | 4, Some(id)) => match rig.change(Change::Apply(id)) {
                Ok(()) => self.model = self.kept[which].1.clone(),
                Err(error) if self.narrow => assert_eq!(error.kind(), ErrorKind::BadRequest),
                Err(error) => panic!("seed {}: {error}", self.seed),
            },
            (5 | 6, Some(id)) => {
                rig.change(Change::Delete(id)).unwrap();
                self.kept.remove(which);
            }
            (7, _) => {
                let bytes = 512 * self.rng.below(6000);
                match rig.run(move |node| async move { node.resize(bytes).await }) {
                    Ok(()) => self.model.resize(bytes as usize, 0),
                    Err(error) => {
                        assert!(self.is_v2 && !self.kept.is_empty(), "seed {}: {error}", self.seed);
                    }
                }
            }
            _ => {}
        }
    }
}

/// 24 runs (`RUNS=n` for another number), or the one of `SEED=n`.
fn many(part: u64) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let runs = number("RUNS").unwrap_or(24);
    let first = number("SEED").unwrap_or(part * runs);
    let runs = if number("SEED").is_some() { 1 } else { runs };
    (first..first + runs).for_each(|seed| Run::new(seed).go());
}

#[test]
fn any_sequence_of_changes_keeps_the_disk_and_its_snapshots_1() {
    many(0);
}

#[test]
fn any_sequence_of_changes_keeps_the_disk_and_its_snapshots_2() {
    many(1);
}
