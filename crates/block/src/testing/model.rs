//! Any sequence of requests, many at once, against a plain vector of bytes; with the image closed, opened again and checked in between.

use super::rig::{NewImage, Others, Rig, image_with_room, range};
use crate::{DiskOffset, Encryption, Result};
use guest_mem::IoVecs;
use io_engine::sim::{SimDisk, SimOptions};
use io_engine::{Buf, Op, OpKind, Rng};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// A format under test.
pub trait Subject: NewImage + Sized {
    /// Options at random, for a disk of `bytes` bytes.
    fn random(rng: &mut Rng, bytes: u64, with_backing: bool) -> Self;

    /// Whether the data is in a file of its own.
    fn has_data_file(&self) -> bool {
        false
    }

    /// What the data is encrypted with.
    fn encryption(&self, _rng: &mut Rng) -> Option<Arc<Encryption>> {
        None
    }

    /// Whether what is discarded keeps its place.
    fn discard_no_unref(&self, _rng: &mut Rng) -> bool {
        false
    }

    /// A cluster's data as it is to be written compressed, if the format can do that.
    fn deflate(&self, _data: &[u8]) -> Option<Vec<u8>> {
        None
    }

    /// An image that was closed must be in order.
    fn check_closed(disk: &SimDisk, seed: u64);
}

/// What one run is like.
struct Run<S> {
    seed: u64,
    ops: usize,
    create: S,
    bytes: u64,
    sim: SimOptions,
    backing: Option<SimDisk>,
    data_file: Option<SimDisk>,
    encryption: Option<Arc<Encryption>>,
    discard_no_unref: bool,
}

impl<S: Subject> Run<S> {
    fn new(seed: u64, ops: usize) -> Run<S> {
        let mut rng = Rng::new(seed);
        let with_backing = rng.chance(400);
        // Up to four slices of the tables, now and then.
        let sectors = if rng.chance(150) { 16384 } else { 4096 };
        let bytes = 512 * (1 + rng.below(sectors));
        let create = S::random(&mut rng, bytes, with_backing);
        let is_block_device = rng.chance(150);
        let poison = io_engine::sim::Unwritten::Poison(0xA5);
        let align = [1, 1, 512, 4096][rng.index(4)];
        let mut sim = SimOptions { is_block_device, align, ..SimOptions::default() };
        if is_block_device {
            sim.unwritten = poison;
        }
        let backing = with_backing.then(|| {
            let bytes: Vec<u8> =
                (0..rng.below(bytes * 5 / 4)).map(|n| (n / 512 % 251) as u8 | 1).collect();
            SimDisk::with_contents(SimOptions::default(), &bytes)
        });
        let noise: Vec<u8> = (0..bytes).map(|n| (n / 512 % 249) as u8 | 2).collect();
        let data_file = create
            .has_data_file()
            .then(|| SimDisk::with_contents(SimOptions { align, ..SimOptions::default() }, &noise));
        let encryption = create.encryption(&mut rng);
        let discard_no_unref = create.discard_no_unref(&mut rng);
        Run { seed, ops, create, bytes, sim, backing, data_file, encryption, discard_no_unref }
    }

    fn open(&self, disk: &SimDisk, seed: u64, read_only: bool) -> Rig {
        let others = Others {
            backing: self.backing.as_ref(),
            data_file: self.data_file.as_ref(),
            encryption: self.encryption.clone(),
            discard_no_unref: self.discard_no_unref,
        };
        Rig::open_with(disk, &others, seed, read_only).unwrap()
    }

    fn disk(&self) -> SimDisk {
        image_with_room(&self.create, self.sim, 24 << 20)
    }

    fn expected(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes as usize];
        if let Some(backing) = &self.backing {
            let below = backing.contents();
            let len = below.len().min(bytes.len());
            bytes[..len].copy_from_slice(&below[..len]);
        }
        bytes
    }

    fn go(&self) {
        let disk = self.disk();
        let mut rng = Rng::new(self.seed ^ 0xDEAD);
        let mut model = self.expected();
        let mut left = self.ops;
        while left > 0 {
            let rig = self.open(&disk, rng.bits(), false);
            let batches = 1 + rng.index(12);
            for _ in 0..batches {
                left = left.saturating_sub(self.batch(&rig, &mut rng, &mut model));
            }
            self.compare(&rig, &model);
            rig.close().unwrap();
            S::check_closed(&disk, self.seed);
            let read_only = self.open(&disk, rng.bits(), true);
            self.compare(&read_only, &model);
        }
    }

    /// Several requests at once, none of which overlap; gives how many.
    fn batch(&self, rig: &Rig, rng: &mut Rng, model: &mut [u8]) -> usize {
        let count = 1 + rng.index(8);
        let mut taken: Vec<(u64, u64)> = Vec::new();
        let failed: Rc<RefCell<Vec<crate::Error>>> = Rc::default();
        let mut ops = 0;
        for _ in 0..count {
            let max = if rng.chance(200) { 600 } else { 24 };
            let (at, len) = range(rng, self.bytes, max);
            let cluster = rig.node.cluster_bytes().unwrap_or(512);
            let (first, whole) =
                (at / cluster * cluster, cluster.min(self.bytes - at / cluster * cluster));
            let compresses = rng.chance(150);
            let (at, len) = if compresses { (first, whole) } else { (at, len) };
            if taken.iter().any(|(from, bytes)| at < from + bytes && *from < at + len) {
                continue;
            }
            if compresses && self.compress(rig, rng, model, at, len, &failed) {
                taken.push((at, len));
                ops += 1;
                continue;
            }
            taken.push((at, len));
            ops += 1;
            self.request(rig, rng, model, at, len, &failed);
        }
        rig.run(|_| async move { Ok(()) }).unwrap();
        if rng.chance(200) {
            rig.pass(6_000_000_000);
        }
        while !rig.context.is_idle() {
            rig.flush().unwrap();
        }
        assert!(failed.borrow().is_empty(), "seed {}: {:?}", self.seed, failed.borrow());
        ops
    }

    /// Writes a cluster compressed, if that is possible.
    fn compress(
        &self,
        rig: &Rig,
        rng: &mut Rng,
        model: &mut [u8],
        at: u64,
        len: u64,
        failed: &Rc<RefCell<Vec<crate::Error>>>,
    ) -> bool {
        let seed = rng.bits();
        let mut data: Vec<u8> =
            (0..len).map(|n| ((n / 32).wrapping_mul(seed) >> 17) as u8).collect();
        data.resize(rig.node.cluster_bytes().unwrap_or(512) as usize, 0);
        let whole = self.encryption.is_none() && self.data_file.is_none();
        let Some(stream) = self.create.deflate(&data).filter(|_| whole) else { return false };
        model[at as usize..(at + len) as usize].copy_from_slice(&data[..len as usize]);
        let (node, failed) = (rig.node.clone(), failed.clone());
        rig.context.spawn(async move {
            let result = node.write_compressed(DiskOffset(at), &stream).await;
            failed.borrow_mut().extend(result.err());
        });
        true
    }

    fn request(
        &self,
        rig: &Rig,
        rng: &mut Rng,
        model: &mut [u8],
        at: u64,
        len: u64,
        failed: &Rc<RefCell<Vec<crate::Error>>>,
    ) {
        let node = rig.node.clone();
        let place = at as usize..(at + len) as usize;
        let failed = failed.clone();
        let note = move |result: Result<()>| {
            if let Err(error) = result {
                failed.borrow_mut().push(error);
            }
        };
        let at = DiskOffset(at);
        match rng.index(10) {
            0..=5 => {
                let data: Vec<u8> = (0..len).map(|n| (n / 64) as u8 ^ rng.bits() as u8).collect();
                model[place].copy_from_slice(&data);
                let iov = rig.memory.take(len);
                iov.copy_from(0, &data);
                let fua = rng.chance(200);
                write(rig, at, iov, fua, note);
            }
            6 => {
                let unmap = rng.chance(500);
                model[place].fill(0);
                rig.context.spawn(async move { note(node.write_zeroes(at, len, unmap).await) });
            }
            7 => {
                // What a discard leaves is not said: so zeroes follow.
                model[place].fill(0);
                rig.context.spawn(async move {
                    note(node.discard(at, len).await);
                    note(node.write_zeroes(at, len, true).await);
                });
            }
            8 => {
                rig.context.spawn(async move { note(node.flush().await) });
            }
            _ => {
                let (iov, copy) = rig.memory_twice(len);
                let expected = model[place].to_vec();
                rig.context.spawn(async move {
                    note(node.read(at, iov).await);
                    let mut found = vec![0; expected.len()];
                    copy.copy_to(0, &mut found);
                    assert!(found == expected, "a read at {at:?} found something else");
                });
            }
        }
    }

    fn compare(&self, rig: &Rig, model: &[u8]) {
        let found = rig.read(0, self.bytes).unwrap();
        if found != model {
            let differs = found.iter().zip(model).position(|(a, b)| a != b);
            panic!("seed {}: first difference at {differs:?}", self.seed);
        }
    }
}

/// Writes as a queue does: at once if that is possible.
fn write(
    rig: &Rig,
    at: DiskOffset,
    iov: IoVecs,
    fua: bool,
    note: impl FnOnce(Result<()>) + 'static,
) {
    let node = rig.node.clone();
    let direct = node.write_direct(at, &iov, fua).map(|(file, to)| (file.clone(), to));
    let Some((file, to)) = direct else {
        rig.context.spawn(async move { note(node.write(at, iov, fua).await) });
        return;
    };
    let pin = node.pin();
    let (kind, buf) = (OpKind::Write { fua }, Buf::Guest(iov));
    let io = rig.context.io(Op { file, kind, at: to.0, buf });
    rig.context.spawn(async move {
        let (result, _) = io.await;
        pin.into_iter().for_each(|pin| node.unpin(pin));
        note(result.map_err(|error| crate::Error::io("direct write", error)));
    });
}

/// 25,000 requests (`OPS=n` for another number), in runs of 200; or the one run of `SEED=n`.
pub fn many<S: Subject>(part: u64) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let runs = number("OPS").unwrap_or(25_000).div_ceil(200);
    let first = number("SEED").unwrap_or(part * runs);
    let runs = if number("SEED").is_some() { 1 } else { runs };
    (first..first + runs).for_each(|seed| Run::<S>::new(seed, 200).go());
}

/// Tests that any requests to images of `$subject` give what was written: four, so that they run side by side.
macro_rules! model_tests {
    ($subject:ty) => {
        #[test]
        fn the_disk_is_what_was_written_to_it_1() {
            $crate::testing::model::many::<$subject>(0);
        }

        #[test]
        fn the_disk_is_what_was_written_to_it_2() {
            $crate::testing::model::many::<$subject>(1);
        }

        #[test]
        fn the_disk_is_what_was_written_to_it_3() {
            $crate::testing::model::many::<$subject>(2);
        }

        #[test]
        fn the_disk_is_what_was_written_to_it_4() {
            $crate::testing::model::many::<$subject>(3);
        }
    };
}

pub(crate) use model_tests;
