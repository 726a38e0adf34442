//! Any sequence of requests and changes of bitmaps, against plain vectors of bits.

use super::{AUTO, check, logged, set, stored, with};
use crate::crypt::{Cipher, CipherAlg, CipherMode, IvGen, Suite};
use crate::qcow2::header::Compression;
use crate::qcow2::{CreateOptions, Qcow2, deflate};
use crate::testing::rig::{Others, Rig, image_with_room, range};
use crate::{BlockNode, DiskOffset, Encryption, Result};
use guest_mem::IoVecs;
use io_engine::Rng;
use io_engine::sim::{SimDisk, SimOptions, Unwritten};
use std::rc::Rc;
use std::sync::Arc;

const DISK_BYTES: u64 = 1 << 20;

struct Bitmap {
    name: &'static str,
    order: u32,
    is_enabled: bool,
    bits: Vec<bool>,
}

impl Bitmap {
    fn set(&mut self, at: u64, len: u64) {
        for bit in at >> self.order..=(at + len - 1) >> self.order {
            self.bits[bit as usize] = true;
        }
    }
}

fn record(model: &mut [Bitmap], at: u64, len: u64) {
    let enabled = model.iter_mut().filter(|bitmap| bitmap.is_enabled);
    enabled.for_each(|bitmap| bitmap.set(at, len));
}

/// Writes as a queue does: at once if that is possible. Tells whether it was.
async fn write(rig: Rig, at: u64, iov: IoVecs, fua: bool) -> Result<bool> {
    let node: Rc<BlockNode> = rig.node.clone();
    let at = DiskOffset(at);
    let direct = node.write_direct(at, &iov, fua).map(|(file, to)| (file.clone(), to));
    let Some((file, to)) = direct else {
        node.write(at, iov, fua).await?;
        return Ok(false);
    };
    let pin = node.pin();
    let (kind, buf) = (io_engine::OpKind::Write { fua }, io_engine::Buf::Guest(iov));
    let (result, _) = rig.context.io(io_engine::Op { file, kind, at: to.0, buf }).await;
    pin.into_iter().for_each(|pin| node.unpin(pin));
    result.map(|()| true).map_err(|error| crate::Error::io("direct write", error))
}

/// One request; tells whether it went the direct way.
fn request(rig: &Rig, rng: &mut Rng, model: &mut [Bitmap]) -> bool {
    let (at, len) = range(rng, DISK_BYTES, 40);
    let (kind, unmap, fua) = (rng.index(8), rng.chance(500), rng.chance(100));
    if kind < 7 {
        record(model, at, len);
    }
    match kind {
        0..=3 => {
            let iov = rig.memory.take(len);
            iov.copy_from(0, &vec![7; len as usize]);
            let one = rig.clone();
            return rig.run(move |_| Box::pin(write(one, at, iov, fua))).unwrap();
        }
        4 | 5 => rig.write_zeroes(at, len, unmap).unwrap(),
        6 => rig.discard(at, len).unwrap(),
        _ => rig.flush().unwrap(),
    }
    false
}

/// One change of the bitmaps.
fn change(rig: &Rig, rng: &mut Rng, model: &mut Vec<Bitmap>) {
    const NAMES: [&str; 4] = ["b0", "b1", "b2", "b3"];
    let name = NAMES[rng.index(4)];
    let (order, is_enabled) = ([9, 10, 13, 16, 20][rng.index(5)], rng.chance(600));
    let Some(number) = model.iter().position(|bitmap| bitmap.name == name) else {
        with(rig, async move |image: &Qcow2| {
            image.add_bitmap(name.as_bytes(), 1 << order, is_enabled).await
        })
        .unwrap();
        let bits = vec![false; (DISK_BYTES >> order) as usize];
        return model.push(Bitmap { name, order, is_enabled, bits });
    };
    let other = model[rng.index(model.len())].name;
    let (at, len) = range(rng, DISK_BYTES, 100);
    let kind = rng.index(6);
    with(rig, async move |image: &Qcow2| {
        let (name, other) = (name.as_bytes(), other.as_bytes());
        match kind {
            0 => image.remove_bitmap(name).await,
            1 => image.clear_bitmap(name).await,
            2 => image.enable_bitmap(name).await,
            3 => image.disable_bitmap(name).await,
            4 => image.merge_bitmap(name, other).await,
            _ => image.mark_in_bitmap(name, &[at..at + len]).await,
        }
    })
    .unwrap();
    match kind {
        0 => drop(model.remove(number)),
        1 => model[number].bits.fill(false),
        2 | 3 => model[number].is_enabled = kind == 2,
        4 => {
            let other = model.iter().find(|bitmap| bitmap.name == other).unwrap();
            let (order, bits) = (other.order, other.bits.clone());
            for bit in (0..bits.len()).filter(|bit| bits[*bit]) {
                model[number].set((bit as u64) << order, 1 << order);
            }
        }
        _ => model[number].set(at, len),
    }
}

/// What else an image is, besides one with bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Encrypted,
    DataFile,
    Compressed,
    OnDevice,
}

const KINDS: [Kind; 5] =
    [Kind::Plain, Kind::Encrypted, Kind::DataFile, Kind::Compressed, Kind::OnDevice];

impl Kind {
    fn disk(self, cluster_bytes: u64) -> SimDisk {
        let create = CreateOptions {
            cluster_bytes,
            compression: Compression::Zstd,
            data_file: (self == Kind::DataFile).then(|| b"data".to_vec()),
            ..CreateOptions::new(DISK_BYTES)
        };
        let is_block_device = self == Kind::OnDevice;
        let unwritten = if is_block_device { Unwritten::Poison(0xA5) } else { logged().unwritten };
        let sim = SimOptions { is_block_device, unwritten, ..logged() };
        image_with_room(&create, sim, 8 << 20)
    }

    fn open(self, disk: &SimDisk, data: &SimDisk, seed: u64) -> Rig {
        let key: [u8; 64] = std::array::from_fn(|n| n as u8);
        let suite = Suite::new(CipherAlg::Aes256, CipherMode::Xts, IvGen::Plain64, None).unwrap();
        let cipher = Cipher::new(suite, &key).unwrap();
        let others = Others {
            data_file: Some(data).filter(|_| self == Kind::DataFile),
            encryption: (self == Kind::Encrypted)
                .then(|| Arc::new(Encryption { cipher, by_place: false })),
            ..Others::default()
        };
        Rig::open_with(disk, &others, seed, false).unwrap()
    }
}

/// Writes a cluster compressed.
fn compressed(rig: &Rig, rng: &mut Rng, model: &mut [Bitmap]) {
    let cluster = rig.node.cluster_bytes().unwrap();
    let at = cluster * rng.below(DISK_BYTES / cluster);
    let data = vec![rng.bits() as u8; cluster as usize];
    let Some(stream) = deflate(Compression::Zstd, 1, &data) else { return };
    record(model, at, cluster);
    rig.run(move |node| async move { node.write_compressed(DiskOffset(at), &stream).await })
        .unwrap();
}

fn compare(disk: &SimDisk, model: &[Bitmap], seed: u64) {
    let found = stored(disk);
    let names: Vec<&str> = found.iter().map(|bitmap| &bitmap.name[..]).collect();
    let expected: Vec<&str> = model.iter().map(|bitmap| bitmap.name).collect();
    assert_eq!(names, expected, "seed {seed}");
    for (found, expected) in found.iter().zip(model) {
        let bits: Vec<usize> = (0..expected.bits.len()).filter(|bit| expected.bits[*bit]).collect();
        assert_eq!(set(found), bits, "seed {seed}: {}", found.name);
        let flags = if expected.is_enabled { AUTO } else { 0 };
        assert_eq!((found.flags, found.granularity), (flags, 1 << expected.order), "seed {seed}");
    }
}

#[test]
fn exactly_what_was_written_is_set() {
    let (mut direct, mut packed) = (0, 0);
    for seed in 0..60 {
        let mut rng = Rng::new(seed);
        let kind = KINDS[seed as usize % KINDS.len()];
        let disk = kind.disk([512, 4096, 65536][rng.index(3)]);
        let data = SimDisk::with_contents(SimOptions::default(), &[3; DISK_BYTES as usize]);
        let mut model = Vec::new();
        for _ in 0..5 {
            let rig = kind.open(&disk, &data, rng.bits());
            for _ in 0..30 {
                match rng.chance(200) {
                    true => change(&rig, &mut rng, &mut model),
                    false if kind == Kind::Compressed && rng.chance(300) => {
                        compressed(&rig, &mut rng, &mut model);
                    }
                    false => direct += usize::from(request(&rig, &mut rng, &mut model)),
                }
            }
            rig.close().unwrap();
            check(&disk);
            packed += sim::qcow2::check(&disk).compressed_clusters;
            compare(&disk, &model, seed);
        }
    }
    assert!(direct > 500, "{direct} requests went the direct way");
    assert!(packed > 100, "{packed} clusters were compressed");
}
