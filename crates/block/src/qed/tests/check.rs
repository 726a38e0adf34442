//! Checks and repairs: what is found, what is mended, what is left of the file, and what a power cut leaves of a repair.

use crate::qed::CreateOptions;
use crate::qed::check::{CheckReport, Fix, Level, Plan, check, plan, repair};
use crate::testing::rig::{Rig, image};
use crate::{ErrorKind, HostNode, Result, power_cut, qemu_tool};
use io_engine::sim::{SimDisk, SimOptions};
use io_engine::{IoEngine, Rng, SysKind};
use iothread::{Clock, IoContext};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

const K4: u64 = 4096;
pub(crate) const LOGGED: SimOptions = SimOptions {
    len: 0,
    unwritten: io_engine::sim::Unwritten::Zero,
    is_block_device: false,
    align: 1,
    len_max: i64::MAX as u64,
    log: true,
};

/// Runs `work` over the file that a simulated disk is.
pub(crate) fn with_host<T: 'static, F>(disk: &SimDisk, work: impl FnOnce(Rc<HostNode>) -> F) -> T
where
    F: Future<Output = T> + 'static,
{
    let engine = IoEngine::sim(7, 128).unwrap();
    let context = IoContext::new(engine, 64, Clock::Simulated(Rc::new(Cell::new(0))));
    let file = context.with_engine(|engine| engine.open_sim(disk)).unwrap();
    let host = Rc::new(HostNode::new(&context, file, "test.img".into()));
    context.block_on(work(host)).unwrap()
}

pub(crate) fn check_of(disk: &SimDisk) -> Result<CheckReport> {
    with_host(disk, |host| async move { check(&host, |_, _| ()).await })
}

fn plan_of(disk: &SimDisk, level: Level) -> Result<Plan> {
    with_host(disk, move |host| async move { plan(&host, level).await })
}

fn repair_of(disk: &SimDisk, level: Level) -> Result<(CheckReport, Vec<Fix>)> {
    with_host(disk, move |host| async move {
        let mut fixes = Vec::new();
        let report = repair(&host, level, |fix| fixes.push(*fix)).await?;
        Ok((report, fixes))
    })
}

/// A disk of 2560 clusters, some of them written, in an order that spreads them.
fn filled(create: &CreateOptions, seed: u64) -> SimDisk {
    let disk = image(create, LOGGED);
    let mut rng = Rng::new(seed);
    let rig = Rig::open(&disk, seed).unwrap();
    for _ in 0..4 {
        for _ in 0..10 {
            let at = rng.below(create.bytes / 512) * 512;
            rig.write(at, &[rng.bits() as u8 | 1; 512]).unwrap();
        }
        rig.flush().unwrap();
    }
    rig.close().unwrap();
    SimDisk::with_contents(LOGGED, &disk.contents())
}

fn options(table_clusters: u64) -> CreateOptions {
    CreateOptions { bytes: 2560 * K4, cluster_bytes: K4, table_clusters, backing: None }
}

fn content(disk: &SimDisk) -> Vec<u8> {
    let rig = Rig::open_over(disk, None, 1, true).unwrap();
    let bytes = disk.contents()[48..56].try_into().unwrap();
    rig.read(0, u64::from_le_bytes(bytes)).unwrap()
}

fn word(bytes: &[u8], at: u64) -> u64 {
    let rest = bytes.get(at as usize..).unwrap_or_default();
    rest.first_chunk().map_or(0, |raw| u64::from_le_bytes(*raw))
}

fn set(bytes: &mut [u8], at: u64, value: u64) {
    bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_le_bytes());
}

/// Places in the file of the entries that refer to something: of the L1 table, of L2 tables.
fn entries(bytes: &[u8]) -> (Vec<u64>, Vec<u64>) {
    let l1 = word(bytes, 40);
    let table_bytes = K4 * u64::from(bytes[8]);
    let used =
        |table: u64| (table..table + table_bytes).step_by(8).filter(|at| word(bytes, *at) > 1);
    let tables: Vec<u64> = used(l1).collect();
    let data = tables.iter().flat_map(|at| used(word(bytes, *at))).collect();
    (tables, data)
}

/// What the clusters of a sound image hold: another reader than the driver, and a faster one.
fn clusters(disk: &SimDisk) -> BTreeMap<u64, Vec<u8>> {
    let bytes = disk.contents();
    let per_table = K4 * u64::from(bytes[8]) / 8;
    let (tables, _) = entries(&bytes);
    let mut clusters = BTreeMap::new();
    for place in tables {
        let (table, at) = ((place - word(&bytes, 40)) / 8, word(&bytes, place));
        for entry in 0..per_table {
            let value = word(&bytes, at + entry * 8) as usize;
            if value > 1 {
                let cluster = bytes[value..value + K4 as usize].to_vec();
                clusters.insert(table * per_table + entry, cluster);
            }
        }
    }
    clusters
}

fn disk_of(bytes: &[u8]) -> SimDisk {
    SimDisk::with_contents(LOGGED, bytes)
}

/// Lets go of some clusters, and of a table.
fn leaky(disk: &SimDisk, rng: &mut Rng) -> SimDisk {
    let mut bytes = disk.contents();
    let (tables, data) = entries(&bytes);
    for at in data.iter().chain(&tables[..1]) {
        if rng.chance(400) || *at == tables[0] {
            set(&mut bytes, *at, 0);
        }
    }
    disk_of(&bytes)
}

#[test]
fn a_sound_image_has_no_problems() {
    for table_clusters in [1, 2, 4] {
        let disk = filled(&options(table_clusters), table_clusters);
        let before = disk.contents();
        let report = check_of(&disk).unwrap();
        assert!(report.is_clean(), "{:?}", report.problems);
        assert_eq!(report.total_clusters, 2560);
        assert_eq!(report.image_end, disk.len());
        assert!(report.allocated_clusters > 20 && report.fragmented_clusters > 0);
        let (_, fixes) = repair_of(&disk, Level::All).unwrap();
        assert_eq!((fixes, plan_of(&disk, Level::All).unwrap().fixes), (vec![], vec![]));
        assert_eq!(disk.count(SysKind::Pwritev), 0);
        assert_eq!(disk.contents(), before);
    }
}

/// One kind of damage, and what is found of it: doubled, invalid, beyond the file, cut off, beyond the disk.
type Damage = (&'static str, fn(&mut Vec<u8>), [u64; 5]);

const DAMAGES: &[Damage] = &[
    ("data in use twice", |b| double(b, 3, 5), [1, 0, 0, 0, 0]),
    ("data in use three times", |b| (double(b, 3, 5), double(b, 3, 6)).1, [2, 0, 0, 0, 0]),
    ("a table as data", |b| set_data(b, 4, |b| word(b, entries(b).0[1])), [1, 0, 0, 0, 0]),
    ("the L1 table as data", |b| set_data(b, 4, |b| word(b, 40)), [1, 0, 0, 0, 0]),
    ("data not on a boundary", |b| set_data(b, 4, |_| 40 * K4 + 512), [0, 1, 0, 0, 0]),
    ("data in the header", |b| set_data(b, 4, |_| 2), [0, 1, 0, 0, 0]),
    ("data beyond the file", |b| set_data(b, 4, |b| b.len() as u64), [0, 0, 1, 0, 0]),
    (
        "data at the end of the world",
        |b| set_data(b, 4, |_| 0u64.wrapping_sub(K4)),
        [0, 0, 1, 0, 0],
    ),
    ("the file ends within data", |b| b.truncate(b.len() - 1024), [0, 0, 0, 1, 0]),
    ("a table beyond the file", |b| set_table(b, |b| b.len() as u64 + K4), [0, 0, 1, 0, 0]),
    ("a table not on a boundary", |b| set_table(b, |_| 4097), [0, 1, 0, 0, 0]),
    ("the L1 table as a table", |b| set_table(b, |b| word(b, 40)), [1, 0, 0, 0, 0]),
    ("a smaller disk", |b| set(b, 48, 2559 * K4), [0, 0, 0, 0, 1]),
    ("marked", |b| b[16] |= 2, [0; 5]),
    ("unknown autoclear bits", |b| b[32] = 8, [0; 5]),
];

fn double(bytes: &mut [u8], from: usize, to: usize) {
    let (_, data) = entries(bytes);
    let value = word(bytes, data[from]);
    set(bytes, data[to], value);
}

fn set_data(bytes: &mut [u8], to: usize, value: impl Fn(&[u8]) -> u64) {
    let (_, data) = entries(bytes);
    let value = value(bytes);
    set(bytes, data[to], value);
}

fn set_table(bytes: &mut [u8], value: impl Fn(&[u8]) -> u64) {
    let (tables, _) = entries(bytes);
    let value = value(bytes);
    set(bytes, tables[1], value);
}

/// An image whose last cluster is both that of the disk and that of the file.
fn sound() -> SimDisk {
    let disk = filled(&options(2), 11);
    let rig = Rig::open(&disk, 5).unwrap();
    rig.write(2559 * K4, &[5; K4 as usize]).unwrap();
    rig.close().unwrap();
    let disk = disk_of(&disk.contents());
    assert!(check_of(&disk).unwrap().is_clean());
    disk
}

/// What must be read after a repair: from a reader that skips what is not sound.
fn expected_after(name: &str, damaged: &[u8], sound: &[u8]) -> Vec<u8> {
    let mut content = sound.to_vec();
    let (tables, data) = entries(damaged);
    let cluster_of = |place: u64| {
        let table_bytes = 2 * K4;
        let table = tables.iter().find(|at| {
            let table = word(damaged, **at);
            (table..table.saturating_add(table_bytes)).contains(&place)
        });
        let table = table.unwrap();
        let first = (table - word(damaged, 40)) / 8 * (table_bytes / 8);
        (first + (place - word(damaged, *table)) / 8) as usize
    };
    let len = damaged.len() as u64;
    match name {
        "a smaller disk" => content.truncate(2559 * K4 as usize),
        _ if name.contains("table") && !name.ends_with("data") => {
            let table = (tables[1] - word(damaged, 40)) / 8;
            let (from, to) = (table * 1024 * K4, (table + 1) * 1024 * K4);
            let to = to.min(content.len() as u64);
            content[from as usize..to as usize].fill(0);
        }
        _ => {
            for place in data {
                let value = word(damaged, place);
                let at = cluster_of(place) * K4 as usize;
                let mut cluster = vec![0; K4 as usize];
                if value.is_multiple_of(K4) && value < len {
                    let end = (value + K4).min(len);
                    let found = &damaged[value as usize..end as usize];
                    cluster[..found.len()].copy_from_slice(found);
                }
                content[at..at + K4 as usize].copy_from_slice(&cluster);
            }
        }
    }
    content
}

fn damaged_tables_only(bytes: &[u8], damage: fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    damage(&mut bytes);
    bytes
}

#[test]
fn each_kind_of_damage_is_found_and_mended_and_the_rest_is_kept() {
    let sound = sound();
    let whole = content(&sound);
    for (name, damage, expected) in DAMAGES {
        let bytes = damaged_tables_only(&sound.contents(), *damage);
        let disk = disk_of(&bytes);
        let report = check_of(&disk).unwrap();
        let found = [
            report.doubled,
            report.invalid,
            report.beyond_file,
            report.cut_off,
            report.beyond_disk,
        ];
        assert_eq!(found, *expected, "{name}: {:?}", report.problems);
        assert!(!report.is_clean(), "{name}");
        if report.errors() > 0 {
            let error = repair_of(&disk, Level::Leaks).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
        }
        let planned = plan_of(&disk, Level::All).unwrap();
        assert_eq!(disk.contents(), bytes, "{name}: a check, a plan and a refusal write nothing");
        let (report, fixes) = repair_of(&disk, Level::All).unwrap();
        assert!(report.is_clean(), "{name}: {:?}", report.problems);
        assert_eq!(fixes[..planned.fixes.len()], planned.fixes, "{name}");
        assert_eq!(disk.len(), report.image_end, "{name}");
        let after = content(&disk);
        let expected = expected_after(name, &bytes, &whole);
        let differs = after.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!((differs, after.len()), (None, expected.len()), "{name}");
        let writes = disk.count(SysKind::Pwritev);
        repair_of(&disk, Level::All).unwrap();
        assert_eq!(disk.count(SysKind::Pwritev), writes, "{name}: there is nothing left to do");
    }
}

#[test]
fn two_entries_for_one_table_end_with_tables_and_data_of_their_own() {
    let sound = sound();
    let mut bytes = sound.contents();
    let (tables, _) = entries(&bytes);
    let value = word(&bytes, tables[0]);
    set(&mut bytes, tables[1], value);
    let disk = disk_of(&bytes);
    assert_eq!(check_of(&disk).unwrap().doubled, 1);
    let (report, fixes) = repair_of(&disk, Level::All).unwrap();
    assert!(report.is_clean());
    let copies = fixes.iter().filter(|fix| matches!(fix, Fix::Copy { .. })).count();
    assert!(copies > 2, "the table and its data: {copies}");
    let after = content(&disk);
    let table = 1024 * K4 as usize;
    assert!(after[..table] == content(&sound)[..table]);
    assert!(after[table..2 * table] == after[..table]);
}

#[test]
fn a_file_with_leaks_becomes_as_short_as_what_is_in_use() {
    for seed in 0..12 {
        let table_clusters = [1, 2, 4, 8][seed as usize % 4];
        let mut rng = Rng::new(seed);
        let disk = leaky(&filled(&options(table_clusters), seed), &mut rng);
        let whole = content(&disk);
        let before = check_of(&disk).unwrap();
        assert!(before.leaked_clusters > 0 && before.errors() == 0);
        let planned = plan_of(&disk, Level::Leaks).unwrap();
        assert!(planned.is_complete);
        let (report, fixes) = repair_of(&disk, Level::Leaks).unwrap();
        assert_eq!(planned.fixes, fixes, "seed {seed}");
        assert!(report.is_clean(), "seed {seed}");
        assert_eq!(disk.len(), before.file_bytes - before.leaked_bytes, "seed {seed}");
        assert!(content(&disk) == whole, "seed {seed}");
        let rig = Rig::open(&disk, 1).unwrap();
        rig.write(7 * K4, &[1; 512]).unwrap();
        rig.close().unwrap();
        assert!(check_of(&disk).unwrap().is_clean());
    }
}

/// Moves the L1 table to the end of the file, as a conversion leaves it.
fn with_l1_at_end(disk: &SimDisk) -> SimDisk {
    let mut bytes = disk.contents();
    let (l1, len) = (word(&bytes, 40), bytes.len() as u64);
    let table = bytes[l1 as usize..(l1 + 2 * K4) as usize].to_vec();
    bytes.extend_from_slice(&table);
    set(&mut bytes, 40, len);
    disk_of(&bytes)
}

#[test]
fn the_l1_table_moves_too() {
    let disk = with_l1_at_end(&filled(&options(2), 3));
    let whole = content(&disk);
    let before = check_of(&disk).unwrap();
    assert_eq!((before.leaked_clusters, before.errors()), (2, 0));
    let (report, _) = repair_of(&disk, Level::Leaks).unwrap();
    assert!(report.is_clean());
    assert_eq!(disk.len(), before.file_bytes - 2 * K4);
    assert!(content(&disk) == whole);
}

#[test]
fn the_space_behind_the_last_cluster_is_a_leak_and_cut_off() {
    let disk = filled(&options(2), 3);
    let mut bytes = disk.contents();
    let len = bytes.len() as u64;
    bytes.resize(bytes.len() + 5 * K4 as usize + 100, 9);
    let disk = disk_of(&bytes);
    let report = check_of(&disk).unwrap();
    assert_eq!((report.leaked_clusters, report.image_end), (5, len));
    let planned = plan_of(&disk, Level::Leaks).unwrap();
    let cut = Fix::Truncate { from: bytes.len() as u64, to: len };
    assert_eq!(planned.fixes, [cut, Fix::MarkClean]);
    repair_of(&disk, Level::Leaks).unwrap();
    assert_eq!(disk.len(), len);
}

#[test]
fn a_plan_is_lines_with_numbers() {
    let sound = sound();
    let mut bytes = sound.contents();
    set_data(&mut bytes, 4, |_| 40 * K4 + 512);
    let lines = |bytes: &[u8]| -> Vec<String> {
        let planned = plan_of(&disk_of(bytes), Level::All).unwrap();
        planned.fixes.iter().map(ToString::to_string).collect()
    };
    let [line] = &lines(&bytes)[..] else { panic!() };
    assert!(line.starts_with("L2 entry of cluster "), "{line}");
    assert!(line.ends_with(": 0x28200 -> 0x0 (not a cluster; the data of this cluster is lost)"));
}

#[test]
fn a_power_cut_during_a_repair_makes_nothing_worse_and_the_next_one_ends_it() {
    let small = CreateOptions { bytes: 1100 * K4, ..options(2) };
    let sound = filled(&small, 2);
    let mut cases: Vec<(&str, SimDisk)> = vec![
        ("leaks", leaky(&sound, &mut Rng::new(3))),
        ("the L1 table at the end", with_l1_at_end(&leaky(&sound, &mut Rng::new(5)))),
    ];
    for (name, damage, _) in DAMAGES.iter().filter(|(name, ..)| !name.contains("disk")) {
        cases.push((name, disk_of(&damaged_tables_only(&sound.contents(), *damage))));
    }
    for (name, disk) in cases {
        let before = check_of(&disk).unwrap();
        let begin = disk_of(&disk.contents());
        let run = begin.fork();
        repair_of(&run, Level::All).unwrap();
        assert!(run.snapshot() == run.contents(), "{name}: when it is done, it is done");
        let whole = clusters(&run);
        let states = power_cut::each_state(&begin, &run.write_log(), |state| {
            let now = check_of(&state).unwrap();
            assert!(now.errors() <= before.errors(), "{name}: {:?}", now.problems);
            if before.errors() == 0 {
                assert!(clusters(&state) == whole, "{name}: read as it is");
            }
            let (report, _) = repair_of(&state, Level::All).unwrap();
            assert!(report.is_clean(), "{name}");
            assert!(clusters(&state) == whole, "{name}: repaired");
        });
        assert!(states > 1, "{name}: {states}");
    }
}

#[test]
fn qemu_counts_and_judges_as_we_do() {
    if !qemu_tool::is_there() {
        return;
    }
    let sound = sound();
    let mut cases = vec![("sound", sound.clone()), ("leaky", leaky(&sound, &mut Rng::new(3)))];
    for (name, damage, _) in DAMAGES {
        cases.push((name, disk_of(&damaged_tables_only(&sound.contents(), *damage))));
    }
    for (name, disk) in cases {
        let file = qemu_tool::TempFile::with("qed", &disk.contents());
        let theirs = qemu_tool::check("qed", file.path());
        let ours = check_of(&disk).unwrap();
        assert_eq!(theirs.errors > 0, ours.errors() > 0, "{name}");
        // Where a table is damaged, the order in which they are read makes a difference.
        if !name.contains("table") {
            let figures = (theirs.allocated, theirs.fragmented);
            assert_eq!(figures, (ours.allocated_clusters, ours.fragmented_clusters), "{name}");
        }
        if theirs.errors == 0 {
            assert_eq!(theirs.leaks, ours.leaked_clusters, "{name}");
        }
        repair_of(&disk, Level::All).unwrap();
        let file = qemu_tool::TempFile::with("qed", &disk.contents());
        let theirs = qemu_tool::check("qed", file.path());
        assert_eq!((theirs.errors, theirs.leaks), (0, 0), "{name}");
        assert!(qemu_tool::content("qed", file.path()) == content(&disk), "{name}");
    }
}
