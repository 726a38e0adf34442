//! Power cuts during a repair: what they leave is no worse, and a second repair ends where the first would have.

use super::damage::DAMAGES;
use super::rig::*;
use crate::qcow2::check::{Fix, Level, Place, ProblemKind};
use crate::qcow2::header::{CORRUPT, DIRTY};
use crate::{power_cut, qemu_tool};
use io_engine::sim::SimDisk;
use std::collections::{BTreeMap, BTreeSet};

/// What each cluster of the disk holds, entry and bytes: another reader than the driver.
fn clusters(bytes: &[u8]) -> BTreeMap<u64, (u64, Vec<u8>)> {
    let header = header(bytes);
    let cluster = header.cluster_bytes();
    let mut found = BTreeMap::new();
    for l1 in 0..u64::from(header.l1_entries) {
        let table = word(bytes, header.l1_table + l1 * 8) & OFFSET;
        if table == 0 || !table.is_multiple_of(cluster) {
            continue;
        }
        for n in 0..header.l2_entries() {
            let at = table + n * header.l2_entry_bytes();
            let value = word(bytes, at) & !COPIED;
            let subclusters = if header.has_subclusters() { word(bytes, at + 8) } else { 0 };
            let (start, len) = match value {
                value if value & COMPRESSED != 0 => (value & 0xFF_FFFF, 512),
                value => (value & OFFSET, cluster),
            };
            let data = bytes.get(start as usize..).unwrap_or_default();
            let data = &data[..data.len().min(len as usize)];
            let data = if start == 0 { Vec::new() } else { data.to_vec() };
            if value | subclusters != 0 {
                let kind = value & !OFFSET & !COMPRESSED | subclusters;
                found.insert(l1 * header.l2_entries() + n, (kind, data));
            }
        }
    }
    found
}

/// The clusters of the disk of which some fix changes the entry, or the table.
fn changed(fixes: &[Fix], l2_entries: u64) -> BTreeSet<u64> {
    let mut changed = BTreeSet::new();
    for fix in fixes {
        match fix {
            Fix::Entry { place: Place::L2 { cluster, .. }, .. } => drop(changed.insert(*cluster)),
            Fix::Entry { place: Place::L1 { entry, .. }, .. } => {
                changed.extend(entry * l2_entries..(entry + 1) * l2_entries);
            }
            _ => {}
        }
    }
    changed
}

fn without(
    clusters: &BTreeMap<u64, (u64, Vec<u8>)>,
    changed: &BTreeSet<u64>,
) -> BTreeMap<u64, (u64, Vec<u8>)> {
    clusters
        .iter()
        .filter(|(cluster, _)| !changed.contains(cluster))
        .map(|(cluster, held)| (*cluster, held.clone()))
        .collect()
}

/// What must not become more.
fn dangers(disk: &SimDisk) -> [u64; 8] {
    let report = check_of(disk).unwrap();
    let copied_too_often = report
        .problems
        .iter()
        .filter(|problem| problem.kind == ProblemKind::Copied && problem.value & COPIED != 0);
    let kinds = [
        ProblemKind::TooLow,
        ProblemKind::Reserved,
        ProblemKind::Unaligned,
        ProblemKind::BeyondFile,
        ProblemKind::Overlap,
        ProblemKind::Subclusters,
        ProblemKind::Bitmap,
    ];
    let mut counts = [0; 8];
    counts.iter_mut().zip(kinds).for_each(|(count, kind)| *count = report.count(kind));
    // Of a refcount that was too low, it is known only now that COPIED contradicts the references.
    counts[7] =
        (copied_too_often.count() as u64).saturating_sub(2 * report.count(ProblemKind::TooLow));
    counts
}

/// The marks are taken away last: who finds them gone finds nothing else wrong.
fn marked_until_clean(name: &str, begin: &SimDisk, state: &SimDisk) {
    let report = check_of(state).unwrap();
    let marks = header(&begin.contents()).incompatible & (DIRTY | CORRUPT);
    if marks != 0 && report.header.incompatible & marks == 0 {
        assert!(report.is_clean(), "{name}: {:?}", report.problems);
    }
}

fn cut(name: &str, bytes: &[u8], level: Level) -> u64 {
    let (begin, run) = (disk_of(bytes), disk_of(bytes));
    let (outcome, fixes) = repair_of(&run, level).unwrap();
    assert!(outcome.after.is_clean(), "{name}");
    let end = run.contents();
    assert!(run.snapshot() == end, "{name}: when it is done, it is done");
    let before = dangers(&begin);
    let held = clusters(&end);
    let changed = changed(&fixes, header(bytes).l2_entries());
    let kept = without(&clusters(bytes), &changed);
    let too_low = before[0];
    power_cut::each_state(&begin, &run.write_log(), |state| {
        let now = dangers(&state);
        for (old, now) in before.iter().zip(now).take(7) {
            assert!(now <= *old, "{name}: {before:?} {now:?}");
        }
        // COPIED is told of twice as much for each refcount that was raised, and not for others.
        assert!(now[7] <= before[7] + 2 * too_low, "{name}: {before:?} {now:?}");
        assert!(without(&clusters(&state.contents()), &changed) == kept, "{name}");
        marked_until_clean(name, &begin, &state);
        let (outcome, _) = repair_of(&state, level).unwrap();
        let left = &outcome.after;
        assert!(left.is_clean(), "{name}: {:?}", left.problems);
        assert!(clusters(&state.contents()) == held, "{name}");
    })
}

#[test]
fn a_power_cut_leaves_what_a_second_repair_mends_to_the_same() {
    if !qemu_tool::is_there() {
        return;
    }
    let mut states = 0;
    for (name, recipe, damage, _) in DAMAGES {
        let mut bytes = Recipe::of(recipe).make();
        if bytes.len() > 600_000 {
            continue;
        }
        let parts = Parts::of(&bytes);
        damage(&mut bytes, &parts);
        states += cut(name, &bytes, Level::All);
    }
    assert!(states > 150, "{states}");
}

#[test]
fn a_power_cut_while_all_is_mended_at_once() {
    if !qemu_tool::is_there() {
        return;
    }
    let mut bytes = Recipe::of("8 bits").make();
    let parts = Parts::of(&bytes);
    let last = parts.data.len() - 1;
    // In tables that are not near one another: something given up, something doubled, a bit that must not be, a flag.
    for n in [1, last / 2] {
        let double = word(&bytes, parts.data[n + 1]);
        set(&mut bytes, parts.data[n], double | COPIED);
    }
    let value = word(&bytes, parts.data[last / 3]);
    set(&mut bytes, parts.data[last / 3], value | 1 << 60);
    set(&mut bytes, parts.data[last], 1 << 50);
    let value = word(&bytes, parts.data[5]);
    set(&mut bytes, parts.data[5], value & !COPIED);
    let states = cut("in place", &bytes, Level::All);
    assert!(states > 8, "{states}");
    let block = word(&bytes, parts.blocks[0]);
    set(&mut bytes, parts.blocks[0], block | 128);
    bytes[79] |= 3;
    let states = cut("anew", &bytes, Level::All);
    assert!(states > 12, "{states}");
}

#[test]
fn copied_is_not_set_before_the_refcount_is_1() {
    if !qemu_tool::is_there() {
        return;
    }
    let mut bytes = Recipe::of("4 KiB").make();
    let parts = Parts::of(&bytes);
    let block = word(&bytes, parts.blocks[0]);
    for n in [3, 7] {
        let value = word(&bytes, parts.data[n]);
        set(&mut bytes, parts.data[n], value & !COPIED);
        bytes[(block + (value & OFFSET) / 4096 * 2 + 1) as usize] = 2;
    }
    assert_eq!(verdict(&check_of(&disk_of(&bytes)).unwrap()), qemu(&bytes));
    for level in [Level::Leaks, Level::All] {
        assert!(cut("leaks", &bytes, level) > 2);
    }
}

#[test]
fn a_power_cut_while_a_dirty_image_is_opened() {
    if !qemu_tool::is_there() {
        return;
    }
    let sound = Recipe::of("lazy").make();
    let parts = Parts::of(&sound);
    for lost_block in [false, true] {
        let mut bytes = sound.clone();
        bytes[79] |= 1;
        let block = word(&bytes, parts.blocks[0]);
        // Late refcounts of the last clusters, one that was freed, a flag that was.
        bytes[block as usize + 2 * 15..block as usize + 2 * 20].fill(0);
        set(&mut bytes, parts.data[2], 0);
        let value = word(&bytes, parts.data[4]);
        set(&mut bytes, parts.data[4], value & !COPIED);
        if lost_block {
            set(&mut bytes, parts.blocks[0], 0);
        }
        let (begin, run) = (disk_of(&bytes), disk_of(&bytes));
        mend_of(&run).unwrap();
        let end = check_of(&run).unwrap();
        assert!(end.is_clean(), "{:?}", end.problems);
        let held = clusters(&bytes);
        let states = power_cut::each_state(&begin, &run.write_log(), |state| {
            marked_until_clean("dirty", &begin, &state);
            assert!(clusters(&state.contents()) == held);
            mend_of(&state).unwrap();
            assert!(check_of(&state).unwrap().is_clean());
            assert!(clusters(&state.contents()) == held);
        });
        assert!(states > 4, "{states}");
    }
}
