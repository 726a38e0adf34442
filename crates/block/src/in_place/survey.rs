//! Reading all of a qcow2 image's metadata: whether it is sound, and whether QED can express it.
//!
//! Everything that the tables refer to is marked, once: an image that uses a cluster twice, or one that it does not count, is corrupt. So
//! what is read is bounded by the file's length, whatever it says. Holes cost nothing.

use super::qcow2::{corrupt, l1_offset, l2_cluster, unsupported};
use crate::qcow2::entry::Layout;
use crate::qcow2::{Header, refcount};
use crate::used::UsedMap;
use crate::{FileOffset, HostNode, Result};

/// What a qcow2 image uses.
#[derive(Debug)]
pub(super) struct Survey {
    /// Where the L2 tables are; 0 for none.
    pub l1: Vec<u64>,
    /// Numbers of L2 tables that map something.
    pub mapped: UsedMap,
    /// Where new space begins: behind all that is in use, and behind the end of a regular file.
    pub end: u64,
}

#[derive(Debug)]
struct Surveyor<'a> {
    host: &'a HostNode,
    header: &'a Header,
    file_bytes: u64,
    used: UsedMap,
    /// Clusters with a refcount.
    counted: UsedMap,
    /// One is above 1.
    is_shared: bool,
}

/// Reads everything. `progress` is told how many L2 tables of how many are done.
pub(super) async fn survey(
    host: &HostNode,
    header: &Header,
    mut progress: impl FnMut(u64, u64),
) -> Result<Survey> {
    let file_bytes = host.file_bytes()?;
    let (used, counted) = (UsedMap::default(), UsedMap::default());
    let mut surveyor = Surveyor { host, header, file_bytes, used, counted, is_shared: false };
    let cluster = header.cluster_bytes();
    surveyor.refcounts().await?;
    surveyor.mark(0, 1)?;
    let l1_bytes = u64::from(header.l1_entries) * 8;
    surveyor.mark(header.l1_table, l1_bytes.div_ceil(cluster))?;
    let mut l1 = Vec::new();
    for entry in surveyor.entries(header.l1_table, l1_bytes).await? {
        l1.push(l1_offset(header, entry)?);
    }
    let mut mapped = UsedMap::default();
    let layout = Layout::new(header);
    let (clusters, per_table) = (header.disk_clusters(), header.l2_entries());
    let of = l1.len() as u64;
    for (table, at) in (0..).zip(&l1).filter(|(_, at)| **at != 0) {
        progress(table, of);
        surveyor.mark(*at, 1)?;
        for (n, entry) in (0..).zip(surveyor.entries(*at, cluster).await?) {
            let found = l2_cluster(layout, entry)?;
            if found.at != 0 {
                surveyor.mark(found.at, 1)?;
            }
            if (found.is_zero || found.at != 0) && table * per_table + n < clusters {
                mapped.mark(table);
            }
        }
    }
    progress(of, of);
    // After the tables: compressed clusters, which share clusters of the file, are the better reason.
    if surveyor.is_shared {
        return Err(unsupported("it has refcounts above 1"));
    }
    // A device's end says nothing of what is in use. A file's does no harm, and behind it there are zeroes.
    let file_end = match host.file().facts().is_block_device {
        true => Some(0),
        false => file_bytes.checked_next_multiple_of(cluster),
    };
    let file_end = file_end.ok_or_else(|| corrupt("the file is too long"))?;
    let end = file_end.max(surveyor.used.end() << header.cluster_bits);
    Ok(Survey { l1, mapped, end })
}

impl Surveyor<'_> {
    /// Marks clusters as used, and demands that they are counted once and in the file.
    fn mark(&mut self, at: u64, clusters: u64) -> Result<()> {
        let first = at >> self.header.cluster_bits;
        for cluster in first..first + clusters {
            self.mark_only(cluster)?;
            if !self.counted.contains(cluster) {
                let what =
                    format!("cluster {cluster:#x} is in use, and its refcount 0: check it first");
                return Err(corrupt(&what));
            }
        }
        Ok(())
    }

    fn mark_only(&mut self, cluster: u64) -> Result<()> {
        let bits = self.header.cluster_bits;
        if cluster >= self.file_bytes.div_ceil(1 << bits) {
            return Err(corrupt(&format!("cluster {cluster:#x} is beyond the end of the file")));
        }
        match self.used.mark(cluster) {
            true => Ok(()),
            false => Err(corrupt(&format!("cluster {cluster:#x} is in use twice"))),
        }
    }

    /// The entries of `bytes` bytes of table; none if they are a hole.
    async fn entries(&self, at: u64, bytes: u64) -> Result<Vec<u64>> {
        let count = usize::try_from(bytes / 8).expect("tables are small");
        if self.is_hole(at, bytes) {
            return Ok(vec![0; count]);
        }
        let mut entries = Vec::with_capacity(count);
        let cluster = self.header.cluster_bytes();
        for from in (at..at + bytes).step_by(usize::try_from(cluster).expect("at most 2 MiB")) {
            let buf = self.host.read_owned(FileOffset(from), cluster).await?;
            let raw = buf.as_slice().as_chunks::<8>().0;
            entries.extend(raw.iter().map(|raw| u64::from_be_bytes(*raw)));
        }
        entries.truncate(count);
        Ok(entries)
    }

    fn is_hole(&self, at: u64, bytes: u64) -> bool {
        self.host.file().next_data(at).is_none_or(|data| data >= at + bytes)
    }

    /// Reads the refcounts. Their own clusters are marked; that they are counted is looked at when all are read.
    async fn refcounts(&mut self) -> Result<()> {
        let header = self.header;
        let (cluster, bits) = (header.cluster_bytes(), header.cluster_bits);
        let table_clusters = u64::from(header.refcount_table_clusters);
        let per_block = header.refcounts_per_block();
        let first = header.refcount_table >> bits;
        let mut blocks: Vec<u64> = (first..first + table_clusters).collect();
        for cluster in &blocks {
            self.mark_only(*cluster)?;
        }
        let table = self.entries(header.refcount_table, table_clusters << bits).await?;
        for (n, at) in (0..).zip(table).filter(|(_, at)| *at != 0) {
            if !at.is_multiple_of(cluster) {
                return Err(corrupt(&format!("a refcount table entry is {at:#x}")));
            }
            self.mark_only(at >> bits)?;
            blocks.push(at >> bits);
            if self.is_hole(at, cluster) {
                continue;
            }
            let buf = self.host.read_owned(FileOffset(at), cluster).await?;
            for (entry, cluster) in (n * per_block..(n + 1) * per_block).enumerate() {
                match refcount::get(buf.as_slice(), entry, header.refcount_order) {
                    0 => {}
                    count => {
                        self.counted.mark(cluster);
                        self.is_shared |= count > 1;
                    }
                }
            }
        }
        match blocks.into_iter().find(|block| !self.counted.contains(*block)) {
            Some(block) => {
                Err(corrupt(&format!("refcounts in cluster {block:#x} are not counted")))
            }
            None => Ok(()),
        }
    }
}
