//! What an entry of a table says, whether it may, and what it is to say instead.
//!
//! ```text
//!  bit 63     62           61 ........ 56   55 ............. 9   8 ... 1    0
//!      | COPIED | compressed | reserved  | offset of the cluster | reserved | zero |     standard
//!      |   0    |     1      | sectors - 1 ...   offset of the data, in bytes      |     compressed: how many bits each depends on the cluster size
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`, "Cluster mapping" and "Extended L2 Entries". Everything here is of one entry: what it shares
//! with others is for who has counted all.
//!
//! What an entry is mended to never refers to a cluster that it did not refer to before; so mending needs no refcount raised.

use super::ProblemKind;
use crate::SECTOR;
use crate::qcow2::header::{EXTERNAL_DATA, Header};

/// An L1 or L2 entry: the refcount of what it refers to is 1.
pub(super) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// An L2 entry: the cluster reads as zeroes.
const ZERO: u64 = 1;
/// Bits 9 to 55: where it is.
const OFFSET: u64 = 0x00FF_FFFF_FFFF_FE00;
const L1_RESERVED: u64 = 0x7F00_0000_0000_01FF;
const L2_RESERVED: u64 = 0x3F00_0000_0000_01FE;
/// Bits 9 to 63 of an entry of the refcount table: where the block is.
const BLOCK_OFFSET: u64 = !0x1FF;
/// Of an entry of a bitmap's table, without bit 0.
const BITMAP_RESERVED: u64 = 0xFF00_0000_0000_01FE;

/// An L2 entry: the second half is there in images with subclusters only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Raw {
    pub value: u64,
    /// The lower half: which subclusters are allocated; the upper: which are zeroes.
    pub subclusters: u64,
}

/// The clusters of the file that an entry refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// None that could be counted.
    Nothing,
    /// One, as a whole.
    Cluster(u64),
    /// The sectors of compressed data: in these clusters, first and last.
    Sectors(u64, u64),
}

impl Use {
    /// All clusters that it touches.
    pub fn clusters(self) -> std::ops::Range<u64> {
        match self {
            Use::Nothing => 0..0,
            Use::Cluster(cluster) => cluster..cluster + 1,
            Use::Sectors(first, last) => first..last + 1,
        }
    }
}

/// What is found of an L2 entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judged {
    pub uses: Use,
    /// Where a standard cluster's data is, rightly or not.
    pub offset: Option<u64>,
    pub is_compressed: bool,
    /// What is wrong.
    pub problems: Vec<ProblemKind>,
    /// What the entry is to be.
    pub mended: Raw,
}

/// What entries of this image may say.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub cluster_bits: u32,
    version: u32,
    pub has_subclusters: bool,
    pub has_data_file: bool,
    file_bytes: u64,
}

impl Rules {
    pub fn new(header: &Header, file_bytes: u64) -> Rules {
        Rules {
            cluster_bits: header.cluster_bits,
            version: header.version,
            has_subclusters: header.has_subclusters(),
            has_data_file: header.has(EXTERNAL_DATA),
            file_bytes,
        }
    }

    fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether the file has room for this, if its last cluster is taken for whole: QEMU leaves that short.
    pub fn is_within(&self, at: u64, bytes: u64) -> bool {
        let end = at.checked_add(bytes);
        end.is_some_and(|end| end < self.file_bytes.saturating_add(self.cluster_bytes()))
    }

    /// Where a whole cluster or table of clusters may be.
    fn place_of(&self, at: u64) -> Result<u64, ProblemKind> {
        if !at.is_multiple_of(self.cluster_bytes()) {
            return Err(ProblemKind::Unaligned);
        }
        match self.is_within(at, self.cluster_bytes()) {
            true => Ok(at >> self.cluster_bits),
            false => Err(ProblemKind::BeyondFile),
        }
    }

    /// The cluster that an L1 entry refers to, what is wrong, and what the entry is to be.
    pub fn judge_l1(&self, value: u64) -> (Option<u64>, Vec<ProblemKind>, u64) {
        let mut problems = Vec::new();
        // COPIED of no table is a bit that must not be set, like others: QEMU's check takes such an entry for a table at 0.
        if value & L1_RESERVED != 0 || value == COPIED {
            problems.push(ProblemKind::Reserved);
        }
        match value & OFFSET {
            0 => (None, problems, 0),
            at => match self.place_of(at) {
                Ok(cluster) => (Some(cluster), problems, value & !L1_RESERVED),
                Err(kind) => {
                    problems.push(kind);
                    (None, problems, 0)
                }
            },
        }
    }

    /// The cluster of the refcount block that an entry of the refcount table refers to.
    pub fn judge_block(&self, value: u64) -> Result<u64, ProblemKind> {
        match value & !BLOCK_OFFSET {
            0 => self.place_of(value),
            _ => Err(ProblemKind::Reserved),
        }
    }

    /// The cluster that an entry of a bitmap's table refers to.
    pub fn judge_bitmap(&self, value: u64) -> Result<Option<u64>, ProblemKind> {
        let at = value & OFFSET;
        if value & BITMAP_RESERVED != 0 || (at != 0 && value & 1 != 0) {
            return Err(ProblemKind::Bitmap);
        }
        match at {
            0 => Ok(None),
            at => self.place_of(at).map(Some).map_err(|_| ProblemKind::Bitmap),
        }
    }

    /// The cluster of the file, if the entry is the usual one: a whole cluster within the file, and nothing else to it.
    #[inline]
    pub fn usual(&self, value: u64) -> Option<u64> {
        let at = value & !COPIED;
        let is_usual = at & !OFFSET == 0
            && at & (self.cluster_bytes() - 1) == 0
            && at != 0
            && at < self.file_bytes
            && !self.has_data_file;
        is_usual.then_some(at >> self.cluster_bits)
    }

    /// Judges an L2 entry, which is for this cluster of the disk.
    pub fn judge_l2(&self, raw: Raw, disk_cluster: u64) -> Judged {
        let mut judged = Judged {
            uses: Use::Nothing,
            offset: None,
            is_compressed: raw.value & COMPRESSED != 0,
            problems: Vec::new(),
            mended: raw,
        };
        if judged.is_compressed {
            self.judge_compressed(&mut judged);
        } else {
            self.judge_standard(&mut judged);
        }
        if self.has_data_file {
            self.judge_in_data_file(&mut judged, disk_cluster);
        }
        judged
    }

    fn judge_compressed(&self, judged: &mut Judged) {
        let Raw { value, subclusters } = judged.mended;
        let offset_bits = 62 - (self.cluster_bits - 8);
        let at = value & ((1 << offset_bits) - 1);
        let sectors = 1 + ((value & !(COPIED | COMPRESSED)) >> offset_bits);
        let bytes = sectors * SECTOR - at % SECTOR;
        if value & COPIED != 0 {
            judged.problems.push(ProblemKind::CopiedCompressed);
            judged.mended.value &= !COPIED;
        }
        if subclusters != 0 {
            judged.problems.push(ProblemKind::Subclusters);
            judged.mended.subclusters = 0;
        }
        if self.has_data_file {
            return;
        }
        match self.is_within(at, bytes) {
            true => {
                let last = (at + bytes - 1) >> self.cluster_bits;
                judged.uses = Use::Sectors(at >> self.cluster_bits, last);
            }
            false => {
                judged.problems.push(ProblemKind::BeyondFile);
                judged.mended = self.dropped(judged.mended);
            }
        }
    }

    fn judge_standard(&self, judged: &mut Judged) {
        let Raw { value, subclusters } = judged.mended;
        // Where no cluster can be zeroes by its entry, the bit is one of the reserved ones.
        let bit_0 = if self.version < 3 || self.has_subclusters { ZERO } else { 0 };
        if value & (L2_RESERVED | bit_0) != 0 {
            judged.problems.push(ProblemKind::Reserved);
            judged.mended.value &= !(L2_RESERVED | bit_0);
        }
        let at = value & OFFSET;
        let (allocated, zeroes) = (subclusters & 0xFFFF_FFFF, subclusters >> 32);
        let is_there = at != 0 || (self.has_data_file && value & (COPIED | ZERO) == COPIED);
        if allocated & zeroes != 0 || (!is_there && allocated != 0) {
            judged.problems.push(ProblemKind::Subclusters);
            // What is said to be zeroes is so. What has no place to be, is zeroes for want of better.
            let lost = if is_there { 0 } else { allocated };
            judged.mended.subclusters =
                if is_there { allocated & !zeroes } else { 0 } | (zeroes | lost) << 32;
        }
        if !is_there {
            return;
        }
        judged.offset = Some(at);
        if self.has_data_file {
            return;
        }
        match self.place_of(at) {
            Ok(cluster) => judged.uses = Use::Cluster(cluster),
            Err(kind) => {
                judged.problems.push(kind);
                judged.mended = self.dropped(judged.mended);
            }
        }
    }

    /// With a data file, what is allocated is where it is on the disk, and nowhere else.
    fn judge_in_data_file(&self, judged: &mut Judged, disk_cluster: u64) {
        let at = disk_cluster << self.cluster_bits;
        if judged.is_compressed {
            judged.problems.push(ProblemKind::Compressed);
            let subclusters = if self.has_subclusters { 0xFFFF_FFFF } else { 0 };
            judged.mended = Raw { value: at | COPIED, subclusters };
        }
        if judged.offset.is_some_and(|offset| offset != at) {
            judged.problems.push(ProblemKind::DataOffset);
            judged.mended.value = judged.mended.value & !OFFSET | at | COPIED;
        }
    }

    /// What an entry becomes whose data is not there: zeroes, where the format can say so; otherwise nothing.
    pub fn dropped(&self, raw: Raw) -> Raw {
        let is_compressed = raw.value & COMPRESSED != 0;
        match (self.has_subclusters, self.version) {
            (true, _) if is_compressed => Raw { value: 0, subclusters: 0xFFFF_FFFF << 32 },
            (true, _) => {
                let zeroes = (raw.subclusters | raw.subclusters >> 32) & 0xFFFF_FFFF;
                Raw { value: 0, subclusters: zeroes << 32 }
            }
            (false, 2) => Raw::default(),
            (false, _) => Raw { value: ZERO, subclusters: 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K64: u64 = 65536;

    fn rules(version: u32, has_subclusters: bool, has_data_file: bool) -> Rules {
        let file_bytes = 100 * K64 - 1000;
        Rules { cluster_bits: 16, version, has_subclusters, has_data_file, file_bytes }
    }

    /// Name, rules, entry, what it uses, what is wrong, what it is to be.
    type Row = (&'static str, Rules, Raw, Use, &'static [ProblemKind], Raw);

    #[test]
    fn each_kind_of_l2_entry() {
        use ProblemKind::*;
        let (v2, v3) = (rules(2, false, false), rules(3, false, false));
        let (ext, data) = (rules(3, true, false), rules(3, false, true));
        let of = |value| Raw { value, subclusters: 0 };
        let sub = |value, subclusters| Raw { value, subclusters };
        // Compressed: clusters of 64 KiB have 54 bits of offset.
        let comp = |at: u64, more: u64| COMPRESSED | more << 54 | at;
        let five = 5 * K64;
        let rows: &[Row] = &[
            ("nothing", v3.clone(), of(0), Use::Nothing, &[], of(0)),
            ("zeroes", v3.clone(), of(ZERO), Use::Nothing, &[], of(ZERO)),
            ("data", v3.clone(), of(five | COPIED), Use::Cluster(5), &[], of(five | COPIED)),
            ("zeroes with a place", v3.clone(), of(five | 1), Use::Cluster(5), &[], of(five | 1)),
            ("the last, cut", v3.clone(), of(99 * K64), Use::Cluster(99), &[], of(99 * K64)),
            ("beyond", v3.clone(), of(100 * K64), Use::Nothing, &[BeyondFile], of(ZERO)),
            ("beyond, v2", v2.clone(), of(100 * K64), Use::Nothing, &[BeyondFile], of(0)),
            ("unaligned", v3.clone(), of(five + 512), Use::Nothing, &[Unaligned], of(ZERO)),
            (
                "reserved",
                v3.clone(),
                of(five | 2 | 1 << 60),
                Use::Cluster(5),
                &[Reserved],
                of(five),
            ),
            ("zeroes, v2", v2.clone(), of(ZERO), Use::Nothing, &[Reserved], of(0)),
            (
                "compressed",
                v3.clone(),
                of(comp(five + 7, 3)),
                Use::Sectors(5, 5),
                &[],
                of(comp(five + 7, 3)),
            ),
            (
                "compressed over a boundary",
                v3.clone(),
                of(comp(five + K64 - 512, 1)),
                Use::Sectors(5, 6),
                &[],
                of(comp(five + K64 - 512, 1)),
            ),
            (
                "compressed and COPIED",
                v3.clone(),
                of(comp(five, 0) | COPIED),
                Use::Sectors(5, 5),
                &[CopiedCompressed],
                of(comp(five, 0)),
            ),
            (
                "compressed beyond",
                v3.clone(),
                of(comp(101 * K64, 0)),
                Use::Nothing,
                &[BeyondFile],
                of(ZERO),
            ),
            (
                "subclusters",
                ext.clone(),
                sub(five, 0xF0 << 32 | 0xF),
                Use::Cluster(5),
                &[],
                sub(five, 0xF0 << 32 | 0xF),
            ),
            (
                "subclusters both",
                ext.clone(),
                sub(five, 0x18 << 32 | 0xF),
                Use::Cluster(5),
                &[Subclusters],
                sub(five, 0x18 << 32 | 0x7),
            ),
            (
                "subclusters nowhere",
                ext.clone(),
                sub(0, 1 << 40 | 3),
                Use::Nothing,
                &[Subclusters],
                sub(0, (1 << 8 | 3) << 32),
            ),
            (
                "subclusters beyond",
                ext.clone(),
                sub(100 * K64, 1 << 36 | 3),
                Use::Nothing,
                &[BeyondFile],
                sub(0, 0x13 << 32),
            ),
            (
                "zero flag",
                ext.clone(),
                sub(five | 1, 3),
                Use::Cluster(5),
                &[Reserved],
                sub(five, 3),
            ),
            (
                "compressed with subclusters",
                ext.clone(),
                sub(comp(five, 0), 3),
                Use::Sectors(5, 5),
                &[Subclusters],
                sub(comp(five, 0), 0),
            ),
            (
                "data file",
                data.clone(),
                of((7 * K64) | COPIED),
                Use::Nothing,
                &[],
                of((7 * K64) | COPIED),
            ),
            (
                "data file, elsewhere",
                data.clone(),
                of(five | 1),
                Use::Nothing,
                &[DataOffset],
                of((7 * K64) | COPIED | 1),
            ),
            (
                "data file, at 0",
                data.clone(),
                of(COPIED),
                Use::Nothing,
                &[DataOffset],
                of((7 * K64) | COPIED),
            ),
            (
                "data file, compressed",
                data.clone(),
                of(comp(five, 0)),
                Use::Nothing,
                &[Compressed],
                of((7 * K64) | COPIED),
            ),
        ];
        for (name, rules, raw, uses, problems, mended) in rows {
            let judged = rules.judge_l2(*raw, 7);
            assert_eq!(judged.uses, *uses, "{name}");
            assert_eq!(judged.problems, *problems, "{name}");
            assert_eq!(judged.mended, *mended, "{name}");
            // Mended is mended.
            let again = rules.judge_l2(judged.mended, 7);
            assert_eq!((again.problems, again.mended), (vec![], judged.mended), "{name}");
            if let Some(cluster) = rules.usual(raw.value) {
                assert_eq!(judged.uses, Use::Cluster(cluster), "{name}");
                assert!(rules.has_subclusters || judged.problems.is_empty(), "{name}");
            }
        }
    }

    #[test]
    fn each_kind_of_l1_entry_and_others() {
        use ProblemKind::*;
        let v3 = rules(3, false, false);
        let five = 5 * K64;
        assert_eq!(v3.judge_l1(five | COPIED), (Some(5), vec![], five | COPIED));
        assert_eq!(v3.judge_l1(five | 1), (Some(5), vec![Reserved], five));
        assert_eq!(v3.judge_l1(1 << 62), (None, vec![Reserved], 0));
        assert_eq!(v3.judge_l1(COPIED), (None, vec![Reserved], 0));
        assert_eq!(v3.judge_l1(five + 512), (None, vec![Unaligned], 0));
        assert_eq!(v3.judge_l1(OFFSET), (None, vec![Unaligned], 0));
        assert_eq!(v3.judge_l1(100 * K64), (None, vec![BeyondFile], 0));
        assert_eq!(v3.judge_block(five), Ok(5));
        assert_eq!(v3.judge_block(five | 1), Err(Reserved));
        assert_eq!(v3.judge_block(five | 512), Err(Unaligned));
        assert_eq!(v3.judge_block(!0xFFFF), Err(BeyondFile));
        assert_eq!(v3.judge_bitmap(1), Ok(None));
        assert_eq!(v3.judge_bitmap(five), Ok(Some(5)));
        for bad in [five | 1, 2, 1 << 56, 100 * K64, five + 512] {
            assert_eq!(v3.judge_bitmap(bad), Err(Bitmap), "{bad:#x}");
        }
    }
}
