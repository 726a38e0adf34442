//! QED to qcow2: see [`super`].

use super::{Converted, NamePlace, check_room, commit, or_cut_back, place_name, write_clusters};
use crate::qcow2::entry::{COPIED, OFFSET, READS_ZERO};
use crate::qcow2::header::{
    CLUSTER_BITS, Compression, CryptMethod, L1_BYTES_MAX, REFCOUNT_TABLE_BYTES_MAX, V3_BYTES,
};
use crate::qcow2::{self, BackingFile};
use crate::qed::Header;
use crate::qed::check::{CheckReport, ProblemKind, check};
use crate::used::UsedMap;
use crate::{Error, ErrorKind, FileOffset, HostNode, Result, SECTOR};
use std::ops::Range;

/// Binary logarithm of the bits of a refcount: 16.
const REFCOUNT_ORDER: u32 = 4;

/// Makes the QED image in `host`, which nobody may be using, a qcow2 image (version 3, refcounts of 16 bits). `progress` is told how many tables of
/// how many are done, twice over.
///
/// # Errors
///
/// `Unsupported` or `Corrupt` with the reason if qcow2 cannot express it or it is not sound, and nothing written. The host's: before the commit
/// point it is still the image that it was.
pub async fn qed_to_qcow2(
    host: &HostNode,
    mut progress: impl FnMut(u64, u64),
) -> Result<Converted> {
    let report = check(host, &mut progress).await?;
    refuse(host, &report)?;
    let file_bytes = report.file_bytes;
    let name = report.header.backing_name();
    let (cluster, is_raw) = (report.header.cluster_bytes(), report.header.backing_is_raw());
    let mut converter = Converter::new(host, report);
    let written = Box::pin(converter.write_tables(&mut progress)).await;
    let name = match written {
        Ok(()) => place_name(host, name, cluster, header_end(is_raw && name.is_some())).await,
        Err(error) => Err(error),
    };
    let sector = name.and_then(|name| converter.sector(name));
    let sector = or_cut_back(host, file_bytes, sector).await?;
    commit(host, sector).await?;
    let end = converter.next << converter.header.cluster_bits();
    if end < file_bytes && !host.file().facts().is_block_device {
        // Nothing was there, and nothing is.
        host.truncate(end).await?;
    }
    let metadata_bytes = end - converter.l1_table;
    Ok(Converted { metadata_bytes, file_bytes_before: file_bytes, file_bytes: host.file_bytes()? })
}

fn refuse(host: &HostNode, report: &CheckReport) -> Result<()> {
    let header = &report.header;
    let refuse = |kind, why: &str| {
        let what = format!("converting {} to qcow2: {why}", host.path());
        Err(Error::new(kind, what))
    };
    if report.needs_check {
        return refuse(ErrorKind::Unsupported, "it was not closed (NEED_CHECK): check it first");
    }
    let mut problems = report.problems.iter();
    if let Some(first) = problems.find(|problem| problem.kind != ProblemKind::BeyondDisk) {
        return refuse(ErrorKind::Corrupt, &format!("it must be repaired first ({first})"));
    }
    if header.cluster_bits() > *CLUSTER_BITS.end() {
        return refuse(ErrorKind::Unsupported, "its clusters are larger than 2 MiB");
    }
    if header.compat != 0 {
        return refuse(ErrorKind::Unsupported, "it has unknown features, which would be lost");
    }
    if l1_entries(header) * 8 > L1_BYTES_MAX {
        let why = "its disk is too large for clusters of this size: qcow2 would need an L1 table of more than 32 MiB";
        return refuse(ErrorKind::Unsupported, why);
    }
    let per_block = header.cluster_bytes() / 2;
    let blocks = (report.image_end >> header.cluster_bits()) / per_block;
    if report.image_end > OFFSET / 2 || blocks * 8 > REFCOUNT_TABLE_BYTES_MAX {
        let why = "its file is too long for refcounts, with clusters of this size";
        return refuse(ErrorKind::Unsupported, why);
    }
    Ok(())
}

/// Entries of the qcow2 image's L1 table; one at least.
fn l1_entries(header: &Header) -> u64 {
    header.image_clusters().div_ceil(header.cluster_bytes() / 8).max(1)
}

#[derive(Debug)]
struct Converter<'a> {
    host: &'a HostNode,
    header: Header,
    file_bytes: u64,
    /// First clusters of the QED tables, with the tables' numbers.
    tables: Vec<(u64, u64)>,
    /// Where the L1 table goes, in bytes.
    l1_table: u64,
    refcount_table: u64,
    refcount_table_clusters: u64,
    /// The next free cluster.
    next: u64,
    /// Clusters that the qcow2 image uses.
    live: UsedMap,
}

impl Converter<'_> {
    fn new(host: &HostNode, report: CheckReport) -> Converter<'_> {
        let header = report.header;
        let cluster = header.cluster_bytes();
        let next = report.image_end >> header.cluster_bits();
        let needed = header.l1_entries();
        let mut tables: Vec<(u64, u64)> =
            report.tables.into_iter().filter(|(_, table)| *table < needed).collect();
        tables.sort_unstable_by_key(|(_, table)| *table);
        let mut live = UsedMap::default();
        live.mark(0);
        let mut converter = Converter {
            host,
            file_bytes: report.file_bytes,
            tables,
            l1_table: report.image_end,
            refcount_table: 0,
            refcount_table_clusters: 0,
            next,
            live,
            header,
        };
        converter.take((l1_entries(&converter.header) * 8).div_ceil(cluster));
        converter
    }

    /// The next clusters; gives the first one's offset in bytes.
    fn take(&mut self, clusters: u64) -> u64 {
        let at = self.next;
        for cluster in at..at + clusters {
            self.live.mark(cluster);
        }
        self.next += clusters;
        at << self.header.cluster_bits()
    }

    async fn write_tables(&mut self, mut progress: impl FnMut(u64, u64)) -> Result<()> {
        let (host, cluster) = (self.host, self.header.cluster_bytes());
        let bits = self.header.cluster_bits();
        let mut l1 = vec![0; usize::try_from(l1_entries(&self.header)).expect("at most 2^22")];
        let of = self.tables.len() as u64;
        for (done, (at, table)) in (0..).zip(std::mem::take(&mut self.tables)) {
            progress(done, of);
            for part in 0..self.header.table_clusters() {
                let number = table * self.header.table_clusters() + part;
                let place = (at + part) << bits;
                if let Some(entries) = self.convert(number, place).await? {
                    check_room(host, Some((self.next + 1) << bits), self.file_bytes)?;
                    let to = self.take(1);
                    l1[usize::try_from(number).expect("an L1 entry")] = to | COPIED;
                    write_clusters(host, to, &entries, cluster).await?;
                }
            }
        }
        progress(of, of);
        let l1: Vec<u8> = l1.iter().flat_map(|entry: &u64| entry.to_be_bytes()).collect();
        write_clusters(host, self.l1_table, &l1, cluster).await?;
        Box::pin(self.write_refcounts()).await
    }

    /// The entries of qcow2 table `number`, from the part of a QED table at `place`; `None` if they map nothing.
    async fn convert(&mut self, number: u64, place: u64) -> Result<Option<Vec<u8>>> {
        let (cluster, bits) = (self.header.cluster_bytes(), self.header.cluster_bits());
        if self.host.file().next_data(place).is_none_or(|data| data >= place + cluster) {
            return Ok(None);
        }
        let buf = self.host.read_owned(FileOffset(place), cluster).await?;
        let first = number * (cluster / 8);
        let mut any = false;
        let mut entries = Vec::with_capacity(buf.as_slice().len());
        for (n, raw) in (first..).zip(buf.as_slice().as_chunks::<8>().0) {
            let value = match u64::from_le_bytes(*raw) {
                _ if n >= self.header.image_clusters() => 0,
                0 => 0,
                1 => READS_ZERO,
                at => {
                    self.live.mark(at >> bits);
                    at | COPIED
                }
            };
            any |= value != 0;
            entries.extend(value.to_be_bytes());
        }
        Ok(any.then_some(entries))
    }

    /// Writes refcount blocks, for every range of the file with clusters in use, and the table of them: they count themselves, too.
    async fn write_refcounts(&mut self) -> Result<()> {
        let (cluster, bits) = (self.header.cluster_bytes(), self.header.cluster_bits());
        let per_block = (cluster * 8) >> REFCOUNT_ORDER;
        let range = |block: u64| block * per_block..(block + 1) * per_block;
        let from = self.next;
        let (mut blocks, mut table_clusters): (Vec<u64>, u64) = (Vec::new(), 1);
        loop {
            // More blocks make the file longer, and that may need more blocks; soon it does not.
            let end = from + blocks.len() as u64 + table_clusters;
            let count = end.div_ceil(per_block);
            if count * 8 > REFCOUNT_TABLE_BYTES_MAX {
                let what = "converting to qcow2: the file is too long for its refcounts, with clusters of this size";
                return Err(Error::new(ErrorKind::Unsupported, what));
            }
            let own = |clusters: Range<u64>| clusters.start < end && from < clusters.end;
            let needed: Vec<u64> =
                (0..count).filter(|n| self.live.any(range(*n)) || own(range(*n))).collect();
            let needed_clusters = (count * 8).div_ceil(cluster);
            if needed.len() == blocks.len() && needed_clusters == table_clusters {
                break;
            }
            (blocks, table_clusters) = (needed, needed_clusters);
        }
        let end = (from + blocks.len() as u64 + table_clusters) << bits;
        check_room(self.host, Some(end), self.file_bytes)?;
        let at = self.take(blocks.len() as u64);
        self.refcount_table = self.take(table_clusters);
        self.refcount_table_clusters = table_clusters;
        let mut table = vec![0; usize::try_from(table_clusters << bits).expect("at most 8 MiB")];
        for (n, block) in (0..).zip(blocks) {
            let place = at + (n << bits);
            let counts = range(block)
                .flat_map(|cluster| u16::from(self.live.contains(cluster)).to_be_bytes());
            write_clusters(self.host, place, &counts.collect::<Vec<u8>>(), cluster).await?;
            let entry = usize::try_from(block * 8).expect("within the table");
            table[entry..entry + 8].copy_from_slice(&place.to_be_bytes());
        }
        write_clusters(self.host, self.refcount_table, &table, cluster).await?;
        Ok(())
    }

    /// The first sector of the qcow2 image.
    fn sector(&self, name: Option<NamePlace>) -> Result<[u8; 512]> {
        let is_raw = self.header.backing_is_raw();
        let at = name.as_ref().map(|name| name.at);
        let backing = name.map(|NamePlace { name, .. }| BackingFile {
            name,
            format: is_raw.then(|| b"raw".to_vec()),
        });
        let header = qcow2::Header {
            version: 3,
            cluster_bits: self.header.cluster_bits(),
            disk_bytes: self.header.image_bytes(),
            l1_entries: u32::try_from(l1_entries(&self.header)).expect("at most 2^22"),
            l1_table: self.l1_table,
            refcount_table: self.refcount_table,
            refcount_table_clusters: u32::try_from(self.refcount_table_clusters)
                .expect("at most 8 MiB"),
            refcount_order: REFCOUNT_ORDER,
            snapshots: 0,
            snapshot_table: 0,
            crypt_method: CryptMethod::None,
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            header_bytes: V3_BYTES,
            compression: Compression::Zlib,
            backing,
            data_file: None,
            bitmaps: None,
            crypto: None,
            feature_names: Vec::new(),
            unknown_extensions: Vec::new(),
            extra: Vec::new(),
        };
        let mut raw = header.encode()?;
        if let Some(at) = at.filter(|at| *at >= SECTOR) {
            // It is there already; what was encoded behind the extensions is not needed.
            raw.truncate(usize::try_from(header_end(is_raw)).expect("within a sector"));
            raw[8..16].copy_from_slice(&at.to_be_bytes());
        }
        let mut sector = [0; 512];
        sector[..raw.len()].copy_from_slice(&raw);
        Ok(sector)
    }
}

/// Where the extensions of a header end that says whether the backing file is raw: the name may follow.
fn header_end(backing_is_raw: bool) -> u64 {
    u64::from(V3_BYTES) + if backing_is_raw { 24 } else { 8 }
}
