//! Entries of tables that lead to where they must not.

use super::*;

/// What a bad entry does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bad {
    /// Opening for writing is refused. A read-only disk is good.
    Refused,
    /// Requests that need it fail. A disk that could be written to is marked corrupt then, and takes no more writes.
    Noticed,
    /// The same if it is opened for writing. A read-only disk reads what is there: of what it leads to nothing was read.
    NoticedInTime,
    /// Requests that need the content fail, others do not: it is data that is damaged, and the tables are good.
    Data,
}

/// What a guest asks for.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Read,
    Write,
    WritePart,
    Zero,
    Unmap,
    Discard,
}

const ASKS: [Ask; 6] = [Ask::Read, Ask::Write, Ask::WritePart, Ask::Zero, Ask::Unmap, Ask::Discard];

impl Ask {
    fn run(self, disk: &Disk, at: u64, cluster: u64) -> block::Result<()> {
        match self {
            Ask::Read => disk.read(at, cluster).map(drop),
            Ask::Write => disk.write(at, &vec![GUEST; cluster as usize]),
            Ask::WritePart => disk.write(at, &[GUEST; 512]),
            Ask::Zero => disk.write_zeroes(at, cluster, false),
            Ask::Unmap => disk.write_zeroes(at, cluster, true),
            Ask::Discard => disk.discard(at, cluster),
        }
    }
}

/// Tries an image whose entry for a cluster of the disk is bad; `good` is a cluster that another table maps, or another entry.
fn try_bad(name: &str, image: &Craft, cluster: u64, bad: Bad) {
    let shape = image.shape;
    let at = cluster * shape.cluster();
    read_only(name, image, cluster, bad);
    if bad == Bad::Refused {
        refused_as(name, image, ErrorKind::Corrupt, false);
        return;
    }
    for ask in ASKS {
        let name = format!("{name}, {ask:?}");
        let dir = Dir::new();
        let path = make(&dir, image);
        let disk = Disk::open(&path, WAY, false).unwrap_or_else(|error| panic!("{name}: {error}"));
        let result = ask.run(&disk, at, shape.cluster());
        if bad == Bad::Data {
            let is_part = matches!(ask, Ask::WritePart) && shape.cluster() > 512;
            assert_eq!(result.is_err(), matches!(ask, Ask::Read) || is_part, "{name}");
            assert!(!disk.is_poisoned(), "{name}");
            disk.close().unwrap();
            assert_eq!(guest_bytes_in_tables(&path, shape), None, "{name}");
            continue;
        }
        let error = result.expect_err(&name);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
        assert!(disk.is_poisoned(), "{name}: it takes writes");
        // Reads elsewhere are not harmed.
        let _ = disk.read(0, 512);
        let _ = disk.flush();
        let _ = disk.close();
        marked(&name, &path, image);
    }
}

/// The image was marked corrupt, if it can be, and nothing else was written; it can be read, and not be written to.
fn marked(name: &str, path: &Path, image: &Craft) {
    let mut expected = image.clone();
    if image.shape.version >= 3 {
        expected.set64(AT_INCOMPATIBLE, expected.get64(AT_INCOMPATIBLE) | CORRUPT);
        let error = Disk::open(path, WAY, false).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
    }
    let found = std::fs::read(path).unwrap();
    let differs = crate::common::first_difference(&found, &expected.bytes);
    assert_eq!(differs, None, "{name}: something was written, or it was not marked");
    Disk::open(path, WAY, true).unwrap().close().unwrap();
}

fn read_only(name: &str, image: &Craft, cluster: u64, bad: Bad) {
    let dir = Dir::new();
    let path = make(&dir, image);
    let at = cluster * image.shape.cluster();
    let disk = Disk::open(&path, WAY, true).unwrap_or_else(|error| panic!("{name}: {error}"));
    match disk.read(at, image.shape.cluster()) {
        Ok(_) => assert!(matches!(bad, Bad::Refused | Bad::NoticedInTime), "{name}: it was read"),
        Err(error) => {
            assert_ne!(bad, Bad::Refused, "{name}: {error}");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
            // One that needs more fails as a whole.
            let before = at - at.min(image.shape.cluster());
            assert!(disk.read(before, 2 * image.shape.cluster()).is_err(), "{name}");
        }
    }
    disk.close().unwrap();
    unchanged(name, &path, image);
}

/// Places in the file that are something already: what they are, their entry, and what it does. L2 tables that only snapshots use are not among
/// them: nobody reads them all, neither we nor QEMU; their counts keep them from being used.
fn taken(shape: Shape) -> Vec<(&'static str, u64, Bad)> {
    let mut taken = vec![
        ("the refcount table", REFCOUNT_TABLE, Bad::Noticed),
        ("the refcount block", REFCOUNT_BLOCK, Bad::NoticedInTime),
        ("the L1 table", L1, Bad::Noticed),
        ("L2 table 0", L2[0], Bad::Noticed),
        ("L2 table 1", L2[1], Bad::Noticed),
    ];
    if shape.snapshot {
        taken.extend([
            ("the snapshot table", SNAPSHOT_TABLE, Bad::NoticedInTime),
            ("a snapshot's L1 table", SNAPSHOT_L1, Bad::NoticedInTime),
        ]);
    }
    let entry = |(name, cluster, bad)| (name, shape.at(cluster) | COPIED, bad);
    taken.into_iter().map(entry).collect()
}

#[test]
fn bad_l2_entries() {
    for shape in shapes() {
        let (cluster, file) = (shape.cluster(), shape.file_bytes());
        let mut rows = vec![
            ("bit 1", shape.at(DATA[0]) | 2),
            ("bit 8", shape.at(DATA[0]) | COPIED | 0x100),
            ("bit 56", shape.at(DATA[0]) | 1 << 56),
            ("bit 61", shape.at(DATA[0]) | COPIED | 1 << 61),
            ("bit 61 alone", 1 << 61),
            ("COPIED alone", COPIED),
            ("at the file's end", file | COPIED),
            ("beyond the file's end", 1 << 40 | COPIED),
            ("at 2^56 less a cluster", ((1 << 56) - cluster) | COPIED),
            ("all of the offset", 0x00FF_FFFF_FFFF_FE00),
            ("all ones", u64::MAX),
            ("compressed and COPIED", shape.compressed_entry(shape.at(COMPRESSED), 300) | COPIED),
            ("compressed, beyond the file", shape.compressed_entry(file, 300)),
            ("compressed, over the end", shape.compressed_entry(file - 512, 1024)),
            ("compressed, far beyond", shape.compressed_entry(1 << 40, 300)),
            ("compressed, in the header", shape.compressed_entry(112, 300)),
            ("compressed, into L2 table 0", shape.compressed_entry(shape.at(L2[0]) - 100, 200)),
        ];
        if cluster > 512 {
            rows.push(("not on a cluster boundary", (shape.at(DATA[0]) + 512) | COPIED));
        }
        if shape.version == 2 || shape.extended {
            rows.push(("a zero flag where there is none", READS_ZERO));
            rows.push(("a place and a zero flag", shape.at(DATA[0]) | COPIED | READS_ZERO));
        }
        let rows = rows.into_iter().map(|(name, value)| (name, value, Bad::Noticed));
        for (n, (name, value, bad)) in rows.chain(taken(shape)).enumerate() {
            let entry = [5, shape.entries() + 3][n % 2];
            let mut image = Craft::new(shape);
            image.set_l2(entry, value);
            try_bad(&format!("{shape:?}, L2 entry {entry}: {name}"), &image, entry, bad);
        }
    }
}

#[test]
fn bad_subclusters() {
    for shape in shapes().into_iter().filter(|shape| shape.extended) {
        let place = shape.at(DATA[0]) | COPIED;
        let rows = [
            ("data and zeroes at once", place, 1 << 32 | 1),
            ("all of both", place, u64::MAX),
            ("data, but nowhere", 0, 4),
            ("compressed, with data", shape.compressed_entry(shape.at(COMPRESSED), 300), 1),
            ("compressed, with zeroes", shape.compressed_entry(shape.at(COMPRESSED), 300), 1 << 63),
        ];
        for (name, value, bits) in rows {
            let mut image = Craft::new(shape);
            image.set_l2(9, value);
            image.set_bits(9, bits);
            try_bad(&format!("{shape:?}: {name}"), &image, 9, Bad::Noticed);
        }
    }
}

#[test]
fn bad_l1_entries() {
    for shape in shapes() {
        let (table, file) = (shape.at(L2[1]), shape.file_bytes());
        let mut rows = vec![
            ("bit 0", table | COPIED | 1),
            ("bit 8", table | COPIED | 0x100),
            ("bit 56", table | COPIED | 1 << 56),
            ("bit 62", table | COPIED | 1 << 62),
            ("COPIED alone", COPIED),
            ("at the file's end", file | COPIED),
            ("beyond the file's end", 1 << 40 | COPIED),
            ("at 2^56 less a cluster", ((1 << 56) - shape.cluster()) | COPIED),
            ("all ones", u64::MAX),
        ];
        if shape.cluster() > 512 {
            rows.push(("not on a cluster boundary", (table + 512) | COPIED));
        }
        let rows = rows.into_iter().map(|(name, value)| (name, value, Bad::Noticed));
        let taken = taken(shape).into_iter().filter(|(_, value, _)| value & !COPIED != table);
        for (name, value, bad) in rows.chain(taken) {
            let mut image = Craft::new(shape);
            image.set_l1(1, value);
            let entry = shape.entries() + 3;
            try_bad(&format!("{shape:?}, L1 entry: {name}"), &image, entry, bad);
        }
    }
}

#[test]
fn an_l2_table_that_is_data_as_well_is_not_written_to_as_data() {
    for shape in shapes() {
        let mut image = Craft::new(shape);
        // The table's place first: what it holds are no entries.
        image.set_l1(1, shape.at(DATA[0]) | COPIED);
        let name = format!("{shape:?}: a table where cluster 0 is");
        try_bad(&name, &image, 0, Bad::Noticed);
        try_bad(&name, &image, shape.entries() + 3, Bad::Noticed);
    }
}

#[test]
fn bad_entries_of_the_refcount_table() {
    for shape in shapes() {
        let (block, file) = (shape.at(REFCOUNT_BLOCK), shape.file_bytes());
        let rows = [
            ("bit 0", 0, block | 1),
            ("bit 8", 0, block | 0x100),
            ("bit 63", 0, block | COPIED),
            ("in the header", 0, 1),
            ("the refcount table", 0, shape.at(REFCOUNT_TABLE)),
            ("the L1 table", 0, shape.at(L1)),
            ("at the file's end", 0, file),
            ("beyond the file's end", 1, 1 << 40),
            ("all ones", 2, u64::MAX),
            ("the same block once more", 1, block),
        ];
        for (name, number, value) in rows {
            let mut image = Craft::new(shape);
            image.set_block(number, value);
            let name = format!("{shape:?}, refcount table entry {number}: {name}");
            reads_good(&name, &image);
            try_bad(&name, &image, 0, Bad::Refused);
        }
    }
}

#[test]
fn a_refcount_block_that_is_something_else_as_well() {
    for shape in shapes() {
        let mut image = Craft::new(shape);
        image.set_block(1, shape.at(DATA[0]));
        image.fill(DATA[0], 0);
        // Data of the guest, or counts: not both.
        let dir = Dir::new();
        let path = make(&dir, &image);
        let disk = Disk::open(&path, WAY, false).unwrap();
        let error = disk.write(0, &[GUEST; 512]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{shape:?}: {error}");
        assert!(disk.is_poisoned());
        let _ = disk.close();
        marked(&format!("{shape:?}"), &path, &image);
    }
}

#[test]
fn compressed_clusters_that_cannot_be_inflated() {
    for shape in shapes() {
        let at = (shape.at(COMPRESSED) + COMPRESSED_FROM) as usize;
        let short = deflated(COMPRESSED_BYTE, shape.cluster() - 1);
        let rows: [(&str, Vec<u8>); 4] = [
            ("a block of a type that there is not", vec![0xFF; 64]),
            ("zeroes", vec![0; 64]),
            ("a byte too few", short),
            ("a distance before the start", vec![0x4B, 0x04, 0x12, 0xFF]),
        ];
        for (name, stream) in rows {
            let mut image = Craft::new(shape);
            image.fill(COMPRESSED, 0);
            image.bytes[at..at + stream.len()].copy_from_slice(&stream);
            try_bad(&format!("{shape:?}, deflated: {name}"), &image, 3, Bad::Data);
        }
    }
}

#[test]
fn what_a_stream_has_beyond_a_cluster_is_not_looked_at() {
    for shape in shapes() {
        // A thousand times as much as there is room for.
        let at = shape.at(COMPRESSED) + COMPRESSED_FROM;
        let stream = deflated(COMPRESSED_BYTE, (shape.cluster() * 1000).next_multiple_of(258) + 1);
        let mut image = Craft::new(shape);
        image.fill(COMPRESSED, 0);
        let len = stream.len().min((shape.cluster() - COMPRESSED_FROM) as usize);
        image.bytes[at as usize..at as usize + len].copy_from_slice(&stream[..len]);
        image.set_l2(3, shape.compressed_entry(at, len as u64));
        let name = format!("{shape:?}: a stream of many clusters");
        reads_good(&name, &image);
        write_one(&name, &image);
    }
}
