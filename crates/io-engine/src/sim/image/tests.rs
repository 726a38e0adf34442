//! The shared map against a plain one, and what its digest tells apart.

use super::*;
use crate::rng::Rng;
use crate::sim::{Change, CrashPick, LogEvent, SimDisk, SimOptions};

fn sector(byte: u8) -> Sector {
    SectorBytes::new([byte; SECTOR_LEN])
}

fn bytes_of(image: &Image, sectors: u64) -> Vec<Option<u8>> {
    let mut reader = image.reader();
    (0..sectors).map(|sector| reader.get(sector).map(|bytes| bytes[0])).collect()
}

#[test]
fn copies_share_and_never_change_each_other() {
    const SECTORS: u64 = 5 * CHUNK_SECTORS;
    let mut rng = Rng::new(4);
    let mut images = vec![(Image::default(), vec![None; 320])];
    for _ in 0..3000 {
        let from = rng.index(images.len());
        let (mut image, mut plain) = images[from].clone();
        let at = rng.below(SECTORS + 1);
        let index = usize::try_from(at).unwrap();
        match rng.below(4) {
            0 => {
                image.cut(at);
                plain[index..].fill(None);
            }
            _ if at == SECTORS => {}
            1 => {
                image.set(at, None);
                plain[index] = None;
            }
            _ => {
                image.set(at, Some(sector(3)));
                plain[index] = Some(3);
            }
        }
        let range = at / 2..at;
        let written: Vec<u64> = image.written(range.clone()).collect();
        let expected = range.filter(|sector| plain[usize::try_from(*sector).unwrap()].is_some());
        assert_eq!(written, expected.collect::<Vec<_>>());
        // Old ones are replaced at random, so that some live long.
        let to = if images.len() < 20 { images.len() } else { rng.index(20) };
        images.resize(images.len().max(to + 1), images[0].clone());
        images[to] = (image, plain);
        let (image, plain) = &images[rng.index(images.len())];
        assert_eq!(bytes_of(image, SECTORS), *plain);
        // Remembered, to be forgotten by what changes a copy of it.
        image.digest(0);
    }
    let made_anew = images.iter().map(|(_, plain)| {
        let mut image = Image::default();
        let written = (0..).zip(plain).filter(|(_, byte)| byte.is_some());
        written.for_each(|(at, _)| image.set(at, Some(sector(3))));
        (image, plain.clone())
    });
    images.extend(made_anew.collect::<Vec<_>>());
    for (a, plain_a) in &images {
        for (b, plain_b) in &images {
            assert_eq!(a.digest(0) == b.digest(0), plain_a == plain_b);
        }
    }
}

#[test]
fn a_digest_depends_on_place_and_content_and_not_on_the_way_there() {
    let of = |sectors: &[(u64, u8)]| {
        let mut image = Image::default();
        for (at, byte) in sectors {
            image.set(*at, Some(sector(*byte)));
        }
        image.digest(0)
    };
    assert_eq!(of(&[(1, 7), (200, 8)]), of(&[(200, 9), (1, 7), (200, 8)]));
    assert_eq!(of(&[(1, 7), (2, 0), (999, 0)]), of(&[(1, 7)]), "zeroes are as good as unwritten");
    let others: &[&[(u64, u8)]] =
        &[&[], &[(1, 8)], &[(2, 7)], &[(65, 7)], &[(1, 7), (2, 7)], &[(1, 8), (2, 7)]];
    let mut digests: Vec<u128> = others.iter().map(|sectors| of(sectors)).collect();
    digests.extend([of(&[(1, 7)]), of(&[(1, 7), (2, 8)])]);
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), 8, "swapped ones too");

    let mut one = [0; SECTOR_LEN];
    let mut digests: Vec<u128> = (0..SECTOR_LEN * 8)
        .map(|bit| {
            one.fill(0);
            one[bit / 8] = 1 << (bit % 8);
            SectorBytes::new(one).digest()
        })
        .collect();
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), SECTOR_LEN * 8);
}

/// What [`crate::sim::Remains`] leaves is what a crash of a copy leaves, on a disk that knows nothing of the old one.
#[test]
fn a_disk_of_the_remains_is_as_after_a_crash_with_an_empty_log() {
    let disk = SimDisk::with_contents(SimOptions { log: true, ..SimOptions::default() }, &[1; 900]);
    for op in 0..3 {
        let data = vec![2; 700].into();
        let change = Change::Write { at: 600 * op, data, dsync: false };
        disk.replay(&[LogEvent::Issue { op: op + 1, change }]);
    }
    let remains = disk.remains();
    assert_eq!(
        (remains.atoms(), remains.lengths()),
        (&disk.pending_atoms()[..], &[1300, 1900][..])
    );
    assert_eq!(remains.len(), 1900);
    for seed in 0..100 {
        let (crashed, left) = (disk.fork(), remains.disk(&CrashPick::Seed(seed)));
        crashed.crash(&CrashPick::Seed(seed));
        assert_eq!(left.contents(), crashed.contents());
        assert_eq!(left.durable_digest(), crashed.durable_digest());
        assert_eq!(left.write_log(), []);
        assert!(left.pending_atoms().is_empty() && left.pending_lengths().is_empty());
    }
    assert_eq!(disk.contents(), [1; 900], "nothing has completed, and it has not crashed");
}

#[test]
fn a_read_beyond_the_end_gives_zeroes() {
    let disk = SimDisk::with_contents(SimOptions::default(), &[1; 700]);
    let mut bytes = [9; 300];
    disk.read_at(600, &mut bytes);
    assert!(bytes[..100] == [1; 100] && bytes[100..] == [0; 200]);
    disk.read_at(u64::MAX - 7, &mut bytes);
    assert_eq!(bytes, [0; 300]);
}
