//! Power cuts during a conversion: the file is the one format or the other, and holds the same.

use super::reader::{is_qcow2, read};
use crate::in_place::{qcow2_to_qed, qed_to_qcow2};
use crate::qed::tests::check::{LOGGED, check_of, with_host};
use crate::qed::{CreateOptions, new_image};
use crate::{ErrorKind, Result, power_cut};
use io_engine::sim::{Fault, FaultAction, SimDisk, SimOptions};
use io_engine::{Rng, SysKind};
use std::collections::BTreeMap;

const K4: u64 = 4096;

pub fn to_qcow2(disk: &SimDisk) -> Result<crate::in_place::Converted> {
    with_host(disk, |host| async move { Box::pin(qed_to_qcow2(&host, |_, _| ())).await })
}

pub fn to_qed(disk: &SimDisk) -> Result<crate::in_place::Converted> {
    with_host(disk, |host| async move { Box::pin(qcow2_to_qed(&host, |_, _| ())).await })
}

/// A QED image put together from its bytes: clusters of data, of zeroes, none; tables after the data they map.
pub fn qed(seed: u64, table_clusters: u64, backing: Option<(Vec<u8>, bool)>) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let tables = 1 + rng.below(3);
    let per_table = table_clusters * K4 / 8;
    let bytes = (tables * per_table - rng.below(300)) * K4 - rng.below(8) * 512;
    let create = CreateOptions { bytes, cluster_bytes: K4, table_clusters, backing };
    let (start, len) = new_image(&create).unwrap();
    let mut raw = start;
    raw.resize(len as usize, 0);
    for table in 0..tables {
        let mut l2 = vec![0; (table_clusters * K4) as usize];
        for _ in 0..rng.below(9) {
            let entry = rng.below(per_table - 308) as usize * 8;
            let value = match rng.below(4) {
                0 => 1,
                1 => 0,
                _ => raw.len() as u64,
            };
            if l2[entry..entry + 8] != [0; 8] {
                continue;
            }
            l2[entry..entry + 8].copy_from_slice(&value.to_le_bytes());
            if value > 1 {
                raw.extend(std::iter::repeat_n(rng.bits() as u8 | 1, K4 as usize));
            }
            if rng.chance(200) {
                // A leak.
                raw.extend([0xEE; K4 as usize]);
            }
        }
        if rng.chance(800) {
            let place = (K4 + table * 8) as usize;
            let at = raw.len() as u64;
            raw[place..place + 8].copy_from_slice(&at.to_le_bytes());
            raw.extend(l2);
        }
    }
    if rng.chance(300) {
        raw.extend([0xDD; 5 * K4 as usize + 100]);
    }
    raw
}

fn name(len: usize, raw: bool) -> Option<(Vec<u8>, bool)> {
    Some(((0..len).map(|n| b'a' + (n % 26) as u8).collect(), raw))
}

fn disk(raw: &[u8]) -> SimDisk {
    SimDisk::with_contents(LOGGED, raw)
}

#[test]
fn there_and_back_holds_the_same() {
    for seed in 0..60 {
        let backing = match seed % 5 {
            0 => None,
            1 => name(9, true),
            2 => name(1023, false),
            3 => name(384, true),
            _ => name(449, false),
        };
        let raw = qed(seed, [1, 2, 4, 16][seed as usize % 4], backing);
        let before = read(&raw);
        let disk = disk(&raw);
        let done = to_qcow2(&disk).unwrap();
        assert!(is_qcow2(&disk.contents()));
        assert_eq!(done.file_bytes, disk.len());
        assert!(read(&disk.contents()) == before, "seed {seed}: as qcow2");
        to_qed(&disk).unwrap();
        assert!(!is_qcow2(&disk.contents()));
        assert!(read(&disk.contents()) == before, "seed {seed}: as QED again");
    }
}

/// Moves the name in a QED image's header, which has `header_clusters` then.
fn with_name_at(raw: &[u8], at: u32, name: &[u8]) -> Vec<u8> {
    let mut raw = raw.to_vec();
    raw[64..64 + name.len()].fill(0);
    raw[56..60].copy_from_slice(&at.to_le_bytes());
    raw[at as usize..at as usize + name.len()].copy_from_slice(name);
    raw
}

#[test]
fn a_name_is_found_wherever_it_was() {
    let places =
        [(64, 1023), (100, 448), (400, 300), (511, 5), (512, 1023), (2000, 90), (3073, 1023)];
    for (at, len) in places {
        let (bytes, _) = name(len, true).unwrap();
        let raw = with_name_at(&qed(3, 2, name(len, true)), at, &bytes);
        let before = read(&raw);
        assert_eq!(before.backing, name(len, true));
        let disk = disk(&raw);
        to_qcow2(&disk).unwrap();
        assert_eq!(read(&disk.contents()).backing, before.backing, "{len} bytes at {at}");
        to_qed(&disk).unwrap();
        assert!(read(&disk.contents()) == before, "{len} bytes at {at}, and back");
    }
}

/// Cuts a conversion everywhere; each state must be one format or the other, and hold the same.
fn cut(begin: &SimDisk, convert: fn(&SimDisk) -> Result<crate::in_place::Converted>, what: &str) {
    let before = read(&begin.contents());
    let (begin, run) = (disk(&begin.contents()), disk(&begin.contents()));
    convert(&run).unwrap();
    let durable = is_qcow2(&run.snapshot());
    assert_eq!(durable, is_qcow2(&run.contents()), "{what}: when it is done, it is done");
    let mut formats = [0, 0];
    power_cut::each_state(&begin, &run.write_log(), |state| {
        let raw = state.contents();
        formats[usize::from(is_qcow2(&raw))] += 1;
        assert!(read(&raw) == before, "{what}");
    });
    assert!(formats[0] > 0 && formats[1] > 0, "{what}: {formats:?}");
}

#[test]
fn a_power_cut_leaves_one_format_or_the_other_with_the_same_disk() {
    for seed in 0..8 {
        let backing =
            [None, name(30, true), name(1023, false), name(440, true)][seed as usize % 4].clone();
        let begin = disk(&qed(seed, [2, 4][seed as usize % 2], backing));
        cut(&begin, to_qcow2, &format!("seed {seed}: to qcow2"));
        to_qcow2(&begin).unwrap();
        cut(&begin, to_qed, &format!("seed {seed}: to QED"));
    }
}

#[test]
fn what_the_disk_does_not_reach_is_left_behind() {
    for seed in 0..12 {
        let whole = qed(seed, 2, None);
        let all = read(&whole);
        let Some((&last, _)) = all.clusters.last_key_value() else { continue };
        let expected: BTreeMap<u64, Option<Vec<u8>>> =
            all.clusters.range(..last).map(|(n, content)| (*n, content.clone())).collect();
        let mut raw = whole.clone();
        raw[48..56].copy_from_slice(&(last * K4).to_le_bytes());
        let first = disk(&raw);
        to_qcow2(&first).unwrap();
        // Were it there, it would show at the old size.
        let mut larger = first.contents();
        larger[24..32].copy_from_slice(&all.bytes.to_be_bytes());
        assert!(read(&larger).clusters == expected, "seed {seed}: in qcow2");
        let second = disk(&whole);
        to_qcow2(&second).unwrap();
        let mut smaller = second.contents();
        smaller[24..32].copy_from_slice(&(last * K4).to_be_bytes());
        let second = disk(&smaller);
        to_qed(&second).unwrap();
        assert!(read(&second.contents()).clusters == expected, "seed {seed}: in QED");
    }
}

#[test]
fn a_conversion_that_fails_leaves_the_image_as_it_was() {
    let raw = qed(2, 2, name(600, true));
    for nth in 1..40 {
        let disk = disk(&raw);
        let action = FaultAction::Errno(rustix::io::Errno::IO.raw_os_error());
        let kind = Some(SysKind::Pwritev);
        disk.fault(Fault { kind, range: None, nth, sticky: false, action });
        let failed = to_qcow2(&disk).is_err();
        let now = read(&disk.contents());
        assert!(now == read(&raw), "write {nth}");
        assert_eq!(is_qcow2(&disk.contents()), !failed, "write {nth}");
        if !failed {
            return assert!(nth > 4);
        }
        assert_eq!(disk.len(), raw.len() as u64, "write {nth}: the file is as long as before");
    }
    panic!("it never succeeds");
}

#[test]
fn a_block_device_needs_room_behind_the_image_and_its_old_content_does_not_matter() {
    let raw = qed(4, 1, None);
    let options = SimOptions { is_block_device: true, ..LOGGED };
    let end = check_of(&disk(&raw)).unwrap().image_end as usize;
    let before = read(&raw);
    // Room for nothing, for some tables, for nearly all.
    for room in 0..4 {
        let tight = [&raw[..end], &vec![0xA5; room * K4 as usize]].concat();
        let device = SimDisk::with_contents(options, &tight);
        assert_eq!(to_qcow2(&device).unwrap_err().kind(), ErrorKind::NoSpace, "{room} clusters");
        assert!(read(&device.contents()) == before);
    }
    let roomy = [&raw[..end], &vec![0xA5; 4 << 20]].concat();
    let device = SimDisk::with_contents(options, &roomy);
    to_qcow2(&device).unwrap();
    assert!(is_qcow2(&device.contents()) && read(&device.contents()) == before);
    to_qed(&device).unwrap();
    assert!(!is_qcow2(&device.contents()) && read(&device.contents()) == before);
}
