//! Damage at random: whatever it is, it is found as QEMU finds it, and mended.

use super::rig::*;
use crate::qcow2::check::{Level, ProblemKind};
use crate::{ErrorKind, qemu_tool};
use io_engine::Rng;

/// Changes an entry of some table, or a refcount.
fn damage(bytes: &mut Vec<u8>, parts: &Parts, rng: &mut Rng) {
    let pick = |list: &[u64], rng: &mut Rng| {
        (!list.is_empty()).then(|| list[rng.below(list.len() as u64) as usize])
    };
    let cluster = parts.header.cluster_bytes();
    let lists = [&parts.data, &parts.data, &parts.l1, &parts.blocks, &parts.compressed];
    let Some(at) = pick(lists[rng.below(5) as usize], rng) else { return };
    if at + 8 > bytes.len() as u64 {
        return;
    }
    let value = word(bytes, at);
    let other = pick(&parts.data, rng).map_or(0, |at| word(bytes, at));
    let clusters = bytes.len() as u64 / cluster;
    match rng.below(10) {
        0 => set(bytes, at, 0),
        1 => set(bytes, at, value ^ 1 << rng.below(64)),
        2 => set(bytes, at, value ^ COPIED),
        3 => set(bytes, at, other),
        4 => set(bytes, at, (rng.below(clusters + 3) * cluster) | COPIED),
        5 => set(bytes, at, rng.bits()),
        6 => {
            // Some refcount.
            let block = word(bytes, parts.blocks[0]) & OFFSET;
            let byte = block + rng.below(clusters * 2).min(cluster - 1);
            if let Some(byte) = bytes.get_mut(byte as usize) {
                *byte = rng.below(4) as u8;
            }
        }
        7 => bytes.truncate(bytes.len() - rng.below(3 * cluster) as usize),
        8 => set(bytes, at, value ^ 1 << (9 + rng.below(12))),
        _ => {
            let place = rng.below(bytes.len() as u64) as usize;
            if place > 4096 {
                bytes[place] ^= 1 << rng.below(8);
            }
        }
    }
}

/// Whether our report has something that QEMU sees otherwise, as the module's documentation says.
fn is_seen_otherwise(report: &crate::qcow2::check::CheckReport) -> bool {
    // Places that cannot be are counted by QEMU as far as they go, and then disagree with refcounts; we leave them alone.
    [
        ProblemKind::Overlap,
        ProblemKind::Unaligned,
        ProblemKind::BeyondFile,
        ProblemKind::Subclusters,
        ProblemKind::Reserved,
        ProblemKind::Snapshot,
        ProblemKind::Bitmap,
        ProblemKind::TooMany,
    ]
    .into_iter()
    .any(|kind| report.count(kind) > 0)
}

#[test]
fn random_damage_is_judged_as_qemu_does_and_mended() {
    if !qemu_tool::is_there() {
        return;
    }
    let names =
        ["4 KiB", "v2", "snapshots", "compressed", "subclusters", "2 bits", "bitmaps", "512 bytes"];
    let sound: Vec<Vec<u8>> = names.iter().map(|name| Recipe::of(name).make()).collect();
    let (mut same, mut mended, mut refused) = (0, 0, 0);
    for seed in 0..320u64 {
        let mut rng = Rng::new(seed);
        let n = (seed % names.len() as u64) as usize;
        let mut bytes = sound[n].clone();
        let parts = Parts::of(&bytes);
        for _ in 0..1 + rng.below(3) {
            damage(&mut bytes, &parts, &mut rng);
        }
        let what = format!("seed {seed}: {}", names[n]);
        let disk = disk_of(&bytes);
        let report = match check_of(&disk) {
            Ok(report) => report,
            Err(error) => {
                assert!(
                    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported),
                    "{what}"
                );
                continue;
            }
        };
        let (ours, theirs) = (verdict(&report), qemu(&bytes));
        // Where QEMU fails to check, it has no opinion.
        if theirs.failed == 0 && theirs.code != 1 && !is_seen_otherwise(&report) {
            assert_eq!(ours, theirs, "{what}: {:?}", report.problems);
            same += 1;
        } else if theirs.code == 2 {
            assert_eq!(ours.code, 2, "{what}: QEMU finds errors, and we find none: {theirs:?}");
        }
        let plan = plan_of(&disk, Level::All);
        match repair_of(&disk, Level::All) {
            Ok((outcome, fixes)) => {
                let plan = plan.unwrap();
                assert!(plan.is_complete && plan.fixes == fixes, "{what}");
                assert!(outcome.after.is_clean(), "{what}: {:?}", outcome.after.problems);
                let says = qemu(&disk.contents());
                assert_eq!((says.code, says.failed), (0, 0), "{what}: {says:?}");
                mended += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}");
                assert_eq!(plan.unwrap_err().to_string(), error.to_string(), "{what}");
                assert!(disk.contents() == bytes, "{what}: refused, and nothing changed");
                refused += 1;
            }
        }
    }
    assert!(same > 100 && mended > 200 && refused < 60, "{same} {mended} {refused}");
}
