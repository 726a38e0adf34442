//! Logs written by hand; logs of the real driver are read in `tests/qemu_faults.rs`.

use super::*;
use io_engine::SimDisk;
use io_engine::sim::SimOptions;

const SECTOR: usize = 512;

fn superblock(entries: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for value in [MAGIC, VERSION, entries, SECTOR as u64 | 0xffff << 32] {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes.resize(SECTOR, 0);
    bytes
}

fn entry(sector: u64, sectors: u64, flags: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for value in [sector, sectors, flags, 0] {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes.resize(SECTOR, 0);
    bytes.extend_from_slice(data);
    bytes
}

fn mark(text: &str) -> Vec<u8> {
    let mut bytes = entry(0, 0, MARK, &[]);
    bytes[24..32].copy_from_slice(&(text.len() as u64).to_le_bytes());
    bytes[32..32 + text.len()].copy_from_slice(text.as_bytes());
    bytes
}

fn log(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = superblock(entries.len() as u64);
    bytes.extend(entries.concat());
    bytes
}

fn changes(log: &WriteLog) -> Vec<Change> {
    let issues = log.events.iter().filter_map(|event| match event {
        LogEvent::Issue { change, .. } => Some(change.clone()),
        LogEvent::Complete { .. } => None,
    });
    issues.collect()
}

#[test]
fn each_kind_of_entry_becomes_its_change() {
    let data = |byte: u8, len: usize| -> Rc<[u8]> { vec![byte; len].into() };
    let bytes = log(&[
        entry(2, 2, METADATA, &[7; 1024]),
        mark("half way"),
        entry(0, 0, FLUSH, &[]),
        entry(8, 4, DISCARD, &[]),
        entry(1, 1, FLUSH | FUA, &[9; 512]),
    ]);
    let read = WriteLog::parse(&bytes).unwrap();
    let expected = [
        Change::Write { at: 1024, data: data(7, 1024), dsync: false },
        Change::Flush,
        Change::Fallocate { mode: PUNCH_HOLE, at: 4096, len: 2048 },
        Change::Flush,
        Change::Write { at: 512, data: data(9, 512), dsync: true },
    ];
    assert_eq!(changes(&read), expected);
    assert_eq!(read.events.len(), 10, "each issue has its completion");
    assert_eq!(read.marks, [(2, "half way".to_owned())]);

    let ends: Vec<u64> = read.ends.iter().map(|(end, _)| *end).collect();
    assert_eq!(ends, [2048, 2560, 3072, 3584, 4608]);
    let before = [511, 2047, 2048, 3072, 4608, 9999].map(|len| read.events_before(len));
    assert_eq!(before, [0, 0, 2, 4, 10, 10]);
}

#[test]
fn a_log_replays_on_a_disk() {
    let bytes = log(&[
        entry(2, 1, 0, &[7; 512]),
        entry(0, 0, FLUSH, &[]),
        entry(0, 1, FUA, &[8; 512]),
        entry(2, 1, DISCARD, &[]),
        entry(1, 1, 0, &[9; 512]),
    ]);
    let disk = SimDisk::new(SimOptions::default());
    disk.replay(&WriteLog::parse(&bytes).unwrap().events);
    let image = |bytes: [u8; 3]| bytes.map(|byte| [byte; 512]).concat();
    assert_eq!(disk.contents(), image([8, 9, 0]));
    assert_eq!(disk.snapshot(), image([8, 0, 7]), "neither discard nor last write is durable");
    assert_eq!(disk.pending_atoms().len(), 2);
}

#[test]
fn what_is_not_a_log_is_refused() {
    let spoil = |at: usize, value: u64| {
        let mut bytes = log(&[entry(2, 1, 0, &[7; 512])]);
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    let cases: &[(&str, Vec<u8>, u64)] = &[
        ("nothing", Vec::new(), 0),
        ("a short superblock", superblock(0)[..31].to_vec(), 0),
        ("magic", spoil(0, 1), 0),
        ("version", spoil(8, 2), 8),
        ("sectors of nothing", spoil(24, 0), 24),
        ("sectors too small", spoil(24, 16), 24),
        ("sectors too large", spoil(24, 1 << 24), 24),
        ("sectors of no power of two", spoil(24, 513), 24),
        ("more entries than there are", spoil(16, u64::MAX), 1536),
        ("unknown flag", spoil(SECTOR + 16, 32), 512),
        ("offset overflows", spoil(SECTOR, u64::MAX), 512),
        ("offset beyond any file", spoil(SECTOR, (1 << 54) - 1), 512),
        ("length overflows", spoil(SECTOR + 8, u64::MAX), 512),
        ("more data than there are", spoil(SECTOR + 8, 2), 512),
    ];
    for (name, bytes, at) in cases {
        let result = WriteLog::parse(bytes).map(|_| ()).map_err(|bad| bad.at);
        assert_eq!(result, Err(*at), "{name}");
    }
    let mut long_mark = mark("x");
    long_mark[24..32].copy_from_slice(&481u64.to_le_bytes());
    assert_eq!(WriteLog::parse(&log(&[long_mark])).unwrap_err().what, "a mark is cut off");
}
