//! A discarded cluster that keeps its place in the file (`discard_no_unref`).

use super::snapshots::{Change, content_of, is_clean, logged};
use crate::crypt::{Cipher, CipherAlg, CipherMode, IvGen, Suite};
use crate::qcow2::header::Compression;
use crate::qcow2::{CreateOptions, deflate};
use crate::testing::rig::{Others, Rig};
use crate::{DiskOffset, Encryption, ExtentKind, FileOffset};
use io_engine::sim::SimDisk;
use std::sync::Arc;

const K: u64 = 1024;
const K4: u64 = 4096;
const COPIED: u64 = 1 << 63;
const READS_ZERO: u64 = 1;

fn small() -> CreateOptions {
    CreateOptions { cluster_bytes: K4, ..CreateOptions::new(1 << 20) }
}

fn open_keeping(disk: &SimDisk) -> Rig {
    let others = Others { discard_no_unref: true, ..Others::default() };
    Rig::open_with(disk, &others, 1, false).unwrap()
}

fn kind(rig: &Rig, at: u64) -> ExtentKind {
    rig.run(move |node| async move { Ok(node.map(DiskOffset(at), 1).await?.kind) }).unwrap()
}

fn place(rig: &Rig, at: u64) -> u64 {
    match kind(rig, at) {
        ExtentKind::Data(FileOffset(place)) => place,
        other => panic!("{at:#x} is {other:?}"),
    }
}

/// The words of the L2 entry of cluster number `number`, as the file has them; the first table only.
fn entry(disk: &SimDisk, number: u64, words: u64) -> Vec<u64> {
    let word = |at: u64| {
        let mut raw = [0; 8];
        disk.read_at(at, &mut raw);
        u64::from_be_bytes(raw)
    };
    let table = word(word(40)) & !COPIED;
    (0..words).map(|n| word(table + (number * words + n) * 8)).collect()
}

fn bytes_at(disk: &SimDisk, at: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    disk.read_at(at, &mut bytes);
    bytes
}

#[test]
fn a_discarded_cluster_keeps_its_place_and_not_its_data() {
    for unmaps_zeroes in [false, true] {
        let disk = logged(&small());
        let rig = open_keeping(&disk);
        rig.write(0, &[7; 8 * K4 as usize]).unwrap();
        rig.flush().unwrap();
        let at = place(&rig, 2 * K4);
        match unmaps_zeroes {
            false => rig.discard(2 * K4, 2 * K4).unwrap(),
            true => rig.write_zeroes(2 * K4, 2 * K4, true).unwrap(),
        }
        assert!(bytes_at(&disk, at, 2 * K4).iter().all(|byte| *byte == 0), "the host is told");
        assert_eq!(kind(&rig, 2 * K4), ExtentKind::Zero);
        let used = sim::qcow2::check(&disk).referenced_clusters;
        rig.flush().unwrap();
        assert_eq!(entry(&disk, 2, 1), [at | COPIED | READS_ZERO]);
        // A second time there is nothing to do, not even for the host.
        let log = disk.log_len();
        rig.discard(2 * K4, 2 * K4).unwrap();
        rig.flush().unwrap();
        assert!(disk.log_len() <= log + 2, "a sync at most");
        // Nobody else gets the place; who writes there again does.
        rig.write(100 * K4, &[9; 16 * K4 as usize]).unwrap();
        rig.write(2 * K4 + 512, &[8; 512]).unwrap();
        assert_eq!(place(&rig, 2 * K4), at);
        let expected = [vec![0; 512], vec![8; 512], vec![0; 7 * K as usize]].concat();
        assert_eq!(rig.read(2 * K4, 2 * K4).unwrap(), expected);
        rig.close().unwrap();
        is_clean(&disk);
        assert_eq!(sim::qcow2::check(&disk).referenced_clusters, used + 16);
    }
}

#[test]
fn without_the_option_it_is_free() {
    let disk = logged(&small());
    let rig = Rig::open(&disk, 1).unwrap();
    rig.write(0, &[7; 8 * K4 as usize]).unwrap();
    rig.flush().unwrap();
    let used = sim::qcow2::check(&disk).referenced_clusters;
    rig.discard(2 * K4, 2 * K4).unwrap();
    rig.close().unwrap();
    assert_eq!(entry(&disk, 2, 1), [0]);
    assert_eq!(sim::qcow2::check(&disk).referenced_clusters, used - 2);
}

#[test]
fn what_a_snapshot_has_as_well_is_let_go_and_stays_as_it_is() {
    let disk = logged(&small());
    let rig = open_keeping(&disk);
    rig.write(0, &[7; 4 * K4 as usize]).unwrap();
    rig.change(Change::Create("one")).unwrap();
    let (before, at) = (rig.all(), place(&rig, K4));
    rig.discard(K4, K4).unwrap();
    rig.write_zeroes(2 * K4, K4, true).unwrap();
    rig.flush().unwrap();
    assert_eq!(bytes_at(&disk, at, 2 * K4), [7; 2 * K4 as usize], "nothing is punched");
    assert!(entry(&disk, 1, 1)[0] <= READS_ZERO, "no place is kept");
    assert!(content_of(&disk, &rig.snapshots()[0], None) == before);
    rig.close().unwrap();
    is_clean(&disk);
}

#[test]
fn a_compressed_cluster_has_no_place_to_keep() {
    let disk = logged(&small());
    let rig = open_keeping(&disk);
    let stream = deflate(Compression::Zlib, 6, &[7; K4 as usize]).unwrap();
    rig.run(move |node| async move { node.write_compressed(DiskOffset(K4), &stream).await })
        .unwrap();
    rig.flush().unwrap();
    rig.discard(K4, K4).unwrap();
    assert_eq!(rig.read(K4, K4).unwrap(), [0; K4 as usize]);
    rig.close().unwrap();
    is_clean(&disk);
    assert!(entry(&disk, 1, 1)[0] <= READS_ZERO);
}

#[test]
fn subclusters_are_punched_where_they_are() {
    let create = CreateOptions { cluster_bytes: 64 * K, extended_l2: true, ..small() };
    let disk = logged(&create);
    let rig = open_keeping(&disk);
    rig.write(0, &[7; 128 * K as usize]).unwrap();
    rig.flush().unwrap();
    let at = place(&rig, 0);
    // Three of the first cluster's, and all of the second's.
    rig.discard(2 * K, 6 * K).unwrap();
    rig.discard(64 * K, 64 * K).unwrap();
    rig.flush().unwrap();
    assert_eq!(entry(&disk, 0, 2), [at | COPIED, 0xE << 32 | 0xFFFF_FFF1]);
    assert_eq!(entry(&disk, 1, 2), [(at + 64 * K) | COPIED, 0xFFFF_FFFF << 32]);
    let expected = [vec![7; 2 << 10], vec![0; 6 << 10], vec![7; 56 << 10], vec![0; 64 << 10]];
    assert!(bytes_at(&disk, at, 128 * K) == expected.concat());
    assert!(rig.read(0, 128 * K).unwrap() == expected.concat());
    rig.close().unwrap();
    is_clean(&disk);
}

/// Until "reads as zeroes" is durable, what is there must decrypt to what it was.
#[test]
fn what_is_encrypted_is_not_punched() {
    let suite = Suite::new(CipherAlg::Aes256, CipherMode::Xts, IvGen::Plain64, None).unwrap();
    let key: [u8; 64] = std::array::from_fn(|n| n as u8);
    let cipher = Cipher::new(suite, &key).unwrap();
    let encryption = Some(Arc::new(Encryption { cipher, by_place: false }));
    let disk = logged(&small());
    let others = Others { discard_no_unref: true, encryption, ..Others::default() };
    let rig = Rig::open_with(&disk, &others, 1, false).unwrap();
    rig.write(0, &[7; 4 * K4 as usize]).unwrap();
    rig.flush().unwrap();
    let (at, before) = (place(&rig, K4), bytes_at(&disk, place(&rig, K4), K4));
    rig.discard(K4, K4).unwrap();
    rig.write_zeroes(2 * K4, K4, true).unwrap();
    assert!(bytes_at(&disk, at, K4) == before);
    let cut = disk.fork();
    rig.flush().unwrap();
    assert_eq!(rig.read(0, 4 * K4).unwrap()[K4 as usize..3 * K4 as usize], [0; 2 * K4 as usize]);
    rig.close().unwrap();
    is_clean(&disk);
    // The power cut comes before the flush.
    let rig = Rig::open_with(&cut, &others, 2, false).unwrap();
    assert_eq!(rig.read(0, 4 * K4).unwrap(), [7; 4 * K4 as usize]);
}
