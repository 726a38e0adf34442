//! The snapshot table: bytes in, checked values out, and back.
//!
//! ```text
//! byte 0     8            12         14           16        20      24            32               36
//!      +-----+------------+----------+------------+---------+-------+-------------+----------------+-------------+
//!      | L1  | L1 entries | id bytes | name bytes | seconds | nanos | VM clock ns | VM state bytes | extra bytes |
//!      +-----+------------+----------+------------+---------+-------+-------------+----------------+-------------+
//!     40               48           56       64
//!      +----------------+------------+--------+-------------------+----+------+----------------+
//!      | VM state bytes | disk bytes | icount | more extra, kept  | id | name | zeroes to 8 n  |
//!      +----------------+------------+--------+-------------------+----+------+----------------+
//! ```
//!
//! All fields are big-endian. Specification: QEMU `docs/interop/qcow2.rst`, "Snapshots". The fields from byte 40 on are there as far as the extra
//! bytes reach. An entry is kept as it was read, whatever it holds that we do not know.
//!
//! A [`Snapshot`] exists only if its L1 table is on a cluster boundary, within the file, and no larger than an L1 table may be.

use crate::qcow2::header::{Header, L1_BYTES_MAX, SNAPSHOTS_MAX};
use crate::{Error, ErrorKind, FileOffset, HostNode, Result};

/// Bytes of an entry before what is of variable length.
const FIXED_BYTES: usize = 40;
/// Most extra bytes, and most bytes of the table: QEMU's.
const EXTRA_BYTES_MAX: usize = 1024;
const TABLE_BYTES_MAX: u64 = 64 << 20;
/// Bytes read at once.
const READ_BYTES: u64 = 65536;
/// Longest name of a new snapshot in bytes: what QEMU's tools can name.
const NAME_BYTES_MAX: usize = 255;

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its identifier: unique in the image.
    pub id: Vec<u8>,
    /// Its name, which need not be unique.
    pub name: Vec<u8>,
    /// When it was made: seconds since 1970, and nanoseconds.
    pub seconds: u32,
    /// The nanoseconds.
    pub nanos: u32,
    /// How long the guest had run, in nanoseconds.
    pub vm_clock_ns: u64,
    /// Bytes of the guest's state that are stored with it, beyond the end of its disk.
    pub vm_state_bytes: u64,
    /// Size of its disk. Old images do not say.
    pub disk_bytes: Option<u64>,
    /// Instructions that the guest had executed, if they were counted.
    pub icount: Option<u64>,
    /// Where its L1 table starts.
    pub(in crate::qcow2) l1_table: u64,
    pub(in crate::qcow2) l1_entries: u32,
    /// The entry, without what makes it a multiple of 8.
    raw: Vec<u8>,
}

/// What the caller says of a new snapshot.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewSnapshot<'a> {
    /// Its name: at most 255 bytes, none of them NUL.
    pub name: &'a [u8],
    /// The time: seconds since 1970.
    pub seconds: u32,
    /// And nanoseconds.
    pub nanos: u32,
    /// How long the guest has run, in nanoseconds.
    pub vm_clock_ns: u64,
}

impl Snapshot {
    /// The entry of a new snapshot, without a guest's state.
    pub(super) fn new(
        id: &[u8],
        new: &NewSnapshot,
        l1_table: u64,
        l1_entries: u32,
        disk_bytes: u64,
    ) -> Result<Snapshot> {
        if new.name.len() > NAME_BYTES_MAX || new.name.contains(&0) {
            let why = "making a snapshot: its name is longer than 255 bytes, or has a NUL in it";
            return Err(Error::new(ErrorKind::BadRequest, why));
        }
        let mut raw = vec![0; FIXED_BYTES];
        raw[..8].copy_from_slice(&l1_table.to_be_bytes());
        raw[8..12].copy_from_slice(&l1_entries.to_be_bytes());
        let len_of = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes();
        raw[12..14].copy_from_slice(&len_of(id));
        raw[14..16].copy_from_slice(&len_of(new.name));
        raw[16..20].copy_from_slice(&new.seconds.to_be_bytes());
        raw[20..24].copy_from_slice(&new.nanos.to_be_bytes());
        raw[24..32].copy_from_slice(&new.vm_clock_ns.to_be_bytes());
        // Of the VM's state, of the disk, and instructions, which nobody counted.
        let extra = [0, disk_bytes, u64::MAX].map(u64::to_be_bytes).concat();
        raw[36..40].copy_from_slice(&u32::try_from(extra.len()).unwrap_or(0).to_be_bytes());
        raw.extend([&extra, id, new.name].concat());
        Ok(Snapshot::parse(raw))
    }

    /// An entry of a length that [`entry_bytes`] gave.
    fn parse(raw: Vec<u8>) -> Snapshot {
        let be = |at: usize, len: usize| {
            raw[at..at + len].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        let half = |at| usize::try_from(be(at, 2)).expect("two bytes");
        let small = |at| u32::try_from(be(at, 4)).expect("four bytes");
        let (id_bytes, name_bytes) = (half(12), half(14));
        let names = raw.len() - id_bytes - name_bytes;
        let extra = |at: usize| (at + 8 <= names).then(|| be(at, 8));
        Snapshot {
            id: raw[names..names + id_bytes].to_vec(),
            name: raw[names + id_bytes..].to_vec(),
            seconds: small(16),
            nanos: small(20),
            vm_clock_ns: be(24, 8),
            vm_state_bytes: extra(40).unwrap_or(be(32, 4)),
            disk_bytes: extra(48),
            icount: extra(56).filter(|count| *count != u64::MAX),
            l1_table: be(0, 8),
            l1_entries: small(8),
            raw,
        }
    }

    pub(in crate::qcow2) fn l1_bytes(&self) -> u64 {
        u64::from(self.l1_entries) * 8
    }

    fn check(&self, number: u32, cluster_bytes: u64, file_end: u64) -> Result<()> {
        let (at, bytes) = (self.l1_table, self.l1_bytes());
        let why = match () {
            () if bytes > L1_BYTES_MAX => "its L1 table is larger than 32 MiB",
            () if !at.is_multiple_of(cluster_bytes) => "its L1 table is not on a cluster boundary",
            () if bytes > 0 && at == 0 => "its L1 table is in the header's cluster",
            () if at.checked_add(bytes).is_none_or(|end| end > file_end && bytes > 0) => {
                "its L1 table reaches beyond the end of the file"
            }
            () => return Ok(()),
        };
        Err(corrupt(number, why))
    }
}

fn corrupt(number: u32, why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("snapshot number {number}: {why}"))
}

/// Bytes of the entry that begins with these.
fn entry_bytes(start: &[u8], number: u32) -> Result<usize> {
    let be = |at: usize, len: usize| {
        start[at..at + len].iter().fold(0, |value, byte| value << 8 | usize::from(*byte))
    };
    match be(36, 4) {
        extra if extra > EXTRA_BYTES_MAX => {
            Err(corrupt(number, "its entry has more than 1024 extra bytes"))
        }
        extra => Ok(FIXED_BYTES + extra + be(12, 2) + be(14, 2)),
    }
}

/// The snapshots of an image.
#[derive(Clone, Debug, Default)]
pub(in crate::qcow2) struct Table {
    pub snapshots: Vec<Snapshot>,
    /// Where it is, and its length in the file.
    pub at: u64,
    pub bytes: u64,
}

impl Table {
    /// Reads the table that the header leads to. The file ends at `file_end`, in whole clusters.
    pub(in crate::qcow2) async fn read(
        file: &HostNode,
        header: &Header,
        file_end: u64,
    ) -> Result<Table> {
        let mut table = Table { at: header.snapshot_table, ..Table::default() };
        let limit = file_end.saturating_sub(table.at).min(TABLE_BYTES_MAX);
        let mut bytes = Vec::new();
        for number in 0..header.snapshots.min(SNAPSHOTS_MAX) {
            let start = index(table.bytes.next_multiple_of(8));
            read_on(file, table.at, &mut bytes, start + FIXED_BYTES, limit, number).await?;
            let end = start + entry_bytes(&bytes[start..], number)?;
            read_on(file, table.at, &mut bytes, end, limit, number).await?;
            let snapshot = Snapshot::parse(bytes[start..end].to_vec());
            snapshot.check(number, header.cluster_bytes(), file_end)?;
            table.snapshots.push(snapshot);
            table.bytes = end as u64;
        }
        Ok(table)
    }

    /// The bytes of a table.
    pub(super) fn encode(snapshots: &[Snapshot]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for snapshot in snapshots {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes.extend(&snapshot.raw);
        }
        if bytes.len() as u64 > TABLE_BYTES_MAX || snapshots.len() as u64 > SNAPSHOTS_MAX.into() {
            let why = "making a snapshot: the image has as many as it can have";
            return Err(Error::new(ErrorKind::BadRequest, why));
        }
        Ok(bytes)
    }

    /// The snapshot with this identifier, or else the first of this name.
    pub(super) fn find(&self, id_or_name: &[u8]) -> Option<usize> {
        let by_id = self.snapshots.iter().position(|one| one.id == id_or_name);
        by_id.or_else(|| self.snapshots.iter().position(|one| one.name == id_or_name))
    }

    /// An identifier for one more: the next number, as QEMU counts them.
    pub(super) fn new_id(&self) -> Vec<u8> {
        let numbers = self.snapshots.iter().map(|one| {
            let digits = one.id.iter().take_while(|byte| byte.is_ascii_digit());
            digits.fold(0u64, |value, digit| {
                value.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
            })
        });
        let mut id = numbers.max().unwrap_or(0).wrapping_add(1);
        // Behind the largest number there is 0, which may be taken.
        while self.snapshots.iter().any(|one| one.id == id.to_string().as_bytes()) {
            id += 1;
        }
        id.to_string().into_bytes()
    }
}

/// Reads more of the table, for it to be `needed` bytes.
async fn read_on(
    file: &HostNode,
    at: u64,
    bytes: &mut Vec<u8>,
    needed: usize,
    limit: u64,
    number: u32,
) -> Result<()> {
    if needed <= bytes.len() {
        return Ok(());
    }
    if needed as u64 > limit {
        let why =
            "its entry reaches beyond the end of the file, or the table is larger than 64 MiB";
        return Err(corrupt(number, why));
    }
    let from = bytes.len();
    bytes.resize(index((needed as u64).max(from as u64 + READ_BYTES).min(limit)), 0);
    file.read_to(FileOffset(at + from as u64), &mut bytes[from..]).await
}

fn index(value: u64) -> usize {
    usize::try_from(value).expect("at most 64 MiB")
}
