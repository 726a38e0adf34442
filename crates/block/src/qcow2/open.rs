//! Opening an image: its header understood, its tables found, and nothing in two places.

use super::counts::Counts;
use super::entry::{Layout, table_of};
use super::header::{self, CryptMethod, Header};
use super::snapshots::{self, Table};
use super::tables::Tables;
use super::{Qcow2, bitmaps, check, chores, compress, refcount};
use crate::commits::Commits;
use crate::filters::Event;
use crate::loads::Loads;
use crate::mapped::Encryption;
use crate::room::Room;
use crate::tend::Tending;
use crate::used::UsedMap;
use crate::{Error, ErrorKind, FileOffset, HostNode, NodeOptions, Result};
use iothread::RangeLocks;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

/// Bytes read for a header at first: most are not longer.
const START_BYTES: u64 = 4096;
/// Where the cluster size stands in a header.
const CLUSTER_BITS_AT: usize = 20;
/// Offsets end here.
const OFFSET_MAX: u64 = 1 << 56;

/// RAM for the map of what tables are in, at most: enough for a file of 1 TiB in clusters of 512 bytes, and in larger ones for all that a disk can have.
/// An image from anywhere may spread its tables over a file of holes, and then each of their words would cost 500 bytes here.
const MAP_BYTES_MAX: u64 = 256 << 20;

/// What an image needs besides its own file.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    /// Something shows through where nothing is mapped.
    pub has_backing: bool,
    /// The file that the data is in.
    pub data_file: Option<Rc<HostNode>>,
    /// The key.
    pub encryption: Option<Arc<Encryption>>,
}

impl Qcow2 {
    /// Opens the image in `file`.
    ///
    /// # Errors
    ///
    /// `Corrupt` or `Unsupported` with the reason, and nothing written; the host's.
    pub(crate) async fn open(
        file: Rc<HostNode>,
        parts: Parts,
        options: NodeOptions,
    ) -> Result<Rc<Qcow2>> {
        let named =
            |error: Error| Error::new(error.kind(), format!("opening {}: {error}", file.path()));
        let (mut header, mut start) = read_header(&file).await.map_err(named)?;
        refuse(&header, &parts, options.read_only).map_err(named)?;
        if header.has(header::DIRTY) && !options.read_only {
            tracing::info!("{}: it was not closed: its clusters are counted anew", file.path());
            Box::pin(check::mend_dirty(&file)).await.map_err(named)?;
            (header, start) = read_header(&file).await.map_err(named)?;
        }
        let file_bytes = file.file_bytes()?;
        let bits = header.cluster_bits;
        let file_end = file_bytes.next_multiple_of(1 << bits);
        let opening =
            Opening { file: &file, header: &header, metadata: UsedMap::default(), file_end };
        let opened = Box::pin(opening.read(options.read_only)).await.map_err(named)?;
        let layout = Layout::new(&header);
        let cache = options.table_cache_bytes;
        let mut tables = Tables::new(layout, parts.has_backing, cache);
        let bad = opened.bad_l1;
        tables.set_l1(opened.l1, |table, _| bad.contains(&table));
        let order = header.refcount_order;
        let room = Room::new(file.clone(), bits, OFFSET_MAX, opened.end, file_bytes);
        let writable = !options.read_only;
        let qcow2 = Qcow2 {
            context: file.context().clone(),
            file: file.clone(),
            data_file: parts.data_file,
            options,
            header: RefCell::new(header),
            start: RefCell::new(start),
            layout,
            encryption: parts.encryption,
            tables: RefCell::new(tables),
            counts: RefCell::new(Counts::new(bits, order, opened.refcount_table)),
            room,
            metadata: RefCell::new(opened.metadata),
            search: chores::Search::new(opened.end >> bits),
            pins: Rc::default(),
            loads: Loads::default(),
            commits: Commits::default(),
            exclusive: RangeLocks::default(),
            tending: Tending::default(),
            inflated: RefCell::new(None),
            packing: compress::Packing::default(),
            bitmaps: opened.bitmaps,
            is_corrupt: Cell::new(false),
        };
        if writable {
            qcow2.clear_unknown().await?;
            Box::pin(qcow2.begin_bitmaps()).await?;
        }
        Ok(Rc::new(qcow2))
    }

    /// Clears the autoclear bits that we do not know, before anything else is written: what they stand for is not kept right by us.
    async fn clear_unknown(&self) -> Result<()> {
        let mut header = self.header.borrow().clone();
        let mut unknown = header.unknown_autoclear();
        if header.bitmaps.is_none() {
            unknown |= header::BITMAPS_CONSISTENT & header.autoclear;
        }
        if unknown == 0 {
            return Ok(());
        }
        header.autoclear &= !unknown;
        self.write_header(header).await?;
        self.sync().await
    }
}

/// The header of an image, and the bytes that it was read from: whole sectors, of which the first have all its fields.
pub(crate) async fn read_header(file: &HostNode) -> Result<(Header, Vec<u8>)> {
    let file_bytes = file.file_bytes()?;
    let mut start = vec![0; index(START_BYTES)];
    file.read_to(FileOffset(0), &mut start).await?;
    let bits = u32::from_be_bytes(start[CLUSTER_BITS_AT..][..4].try_into().expect("4 bytes"));
    let cluster = 1u64 << bits.clamp(*header::CLUSTER_BITS.start(), *header::CLUSTER_BITS.end());
    let mut whole = start.clone();
    if cluster > START_BYTES {
        whole = vec![0; index(cluster.min(file_bytes.max(START_BYTES)))];
        file.read_to(FileOffset(0), &mut whole).await?;
    }
    whole.truncate(usize::try_from(file_bytes).unwrap_or(usize::MAX));
    let header = Header::parse(&whole, file_bytes)?;
    // What is rewritten when a field changes: no more than holds them all.
    start.truncate(index(u64::from(header.header_bytes).next_multiple_of(crate::SECTOR)));
    Ok((header, start))
}

/// Marks a cluster in the map of what tables are in; `false` if it was marked before.
pub(super) fn mark(map: &mut UsedMap, cluster: u64) -> Result<bool> {
    let is_fresh = map.mark(cluster);
    match map.bytes() <= MAP_BYTES_MAX {
        true => Ok(is_fresh),
        false => {
            let what = "its tables are spread over more of the file than can be kept track of";
            Err(Error::new(ErrorKind::Unsupported, what))
        }
    }
}

/// Refuses what an image needs and was not given, and writes to one that must not be written.
fn refuse(header: &Header, parts: &Parts, read_only: bool) -> Result<()> {
    let error = |kind, what: &str| Err(Error::new(kind, what));
    if header.has(header::CORRUPT) && !read_only {
        let what = "it is marked corrupt: it can be opened read-only, or repaired";
        return error(ErrorKind::Corrupt, what);
    }
    if header.has(header::EXTERNAL_DATA) != parts.data_file.is_some() {
        return error(ErrorKind::Unsupported, "its data is in another file, which was not given");
    }
    if header.crypt_method != CryptMethod::None && parts.encryption.is_none() {
        return error(ErrorKind::Unsupported, "it is encrypted, and no key was given");
    }
    Ok(())
}

/// What is read of an image when it is opened.
#[derive(Debug)]
struct Opening<'a> {
    file: &'a HostNode,
    header: &'a Header,
    metadata: UsedMap,
    /// The file's length, in whole clusters.
    file_end: u64,
}

#[derive(Debug)]
struct Opened {
    l1: Vec<u64>,
    bad_l1: BTreeSet<usize>,
    refcount_table: Vec<u64>,
    metadata: UsedMap,
    bitmaps: bitmaps::Bitmaps,
    /// From here on nothing is in use.
    end: u64,
}

impl Opening<'_> {
    async fn read(mut self, read_only: bool) -> Result<Opened> {
        let header = self.header;
        let l1 = read_words(self.file, header.l1_table, u64::from(header.l1_entries)).await?;
        let mut refcount_table = Vec::new();
        self.mark(0, header.cluster_bytes());
        self.mark(header.l1_table, l1.len() as u64 * 8);
        self.mark(header.refcount_table, header.refcount_table_bytes());
        if let Some(crypto) = header.crypto {
            self.mark(crypto.at, crypto.bytes);
        }
        let (mut snapshots, mut bitmaps) = (Table::default(), bitmaps::Bitmaps::default());
        if !read_only {
            snapshots = Table::read(self.file, header, self.file_end).await?;
            snapshots::mark_tables(&snapshots, header, &mut self.metadata)?;
            self.file.event(Event::ReftableLoad);
            refcount_table =
                read_words(self.file, header.refcount_table, header.refcount_table_bytes() / 8)
                    .await?;
            self.mark_blocks(&refcount_table)?;
            let mark = |cluster| mark(&mut self.metadata, cluster);
            let list = Box::pin(bitmaps::read(self.file, header, self.file_end, mark)).await?;
            bitmaps::refuse(&list, header.disk_bytes)?;
            bitmaps = bitmaps::Bitmaps::new(header, list);
        }
        // After the others, so that of two that lead to one place the entry of the active table is the bad one.
        let bad_l1 = self.mark_tables(&l1)?;
        let metadata = &mut self.metadata;
        snapshots::mark_l2_tables(&snapshots, self.file, header, self.file_end, metadata).await?;
        let end = match read_only {
            true => self.file_end,
            false => self.first_unused(&refcount_table).await?,
        };
        Ok(Opened { l1, bad_l1, refcount_table, metadata: self.metadata, bitmaps, end })
    }

    /// Marks what the header leads to, of which it has been checked that it is in one place only.
    fn mark(&mut self, at: u64, bytes: u64) {
        let bits = self.header.cluster_bits;
        for cluster in at >> bits..(at + bytes).div_ceil(1 << bits) {
            self.metadata.mark(cluster);
        }
    }

    /// Marks the refcount blocks. What is free cannot be told from blocks that cannot be right.
    fn mark_blocks(&mut self, table: &[u64]) -> Result<()> {
        let bits = self.header.cluster_bits;
        for (block, at) in table.iter().enumerate().filter(|(_, at)| **at != 0) {
            let good = at & ((1 << bits) - 1) == 0 && *at < self.file_end;
            if !good || !mark(&mut self.metadata, at >> bits)? {
                let what = format!(
                    "its refcount table is corrupt (entry {block} is {at:#x}): it can be opened read-only, or repaired"
                );
                return Err(Error::new(ErrorKind::Corrupt, what));
            }
        }
        Ok(())
    }

    /// Marks the L2 tables; gives the entries of the L1 table that cannot be right.
    fn mark_tables(&mut self, l1: &[u64]) -> Result<BTreeSet<usize>> {
        let bits = self.header.cluster_bits;
        let mut bad = BTreeSet::new();
        for (table, entry) in l1.iter().enumerate().filter(|(_, entry)| **entry != 0) {
            let at = table_of(*entry, bits).filter(|at| *at != 0 && *at < self.file_end);
            let is_fresh = match at {
                Some(at) => mark(&mut self.metadata, at >> bits)?,
                None => false,
            };
            if !is_fresh {
                bad.insert(table);
            }
        }
        Ok(bad)
    }

    /// Where unused space begins: behind every cluster that is counted, and behind all tables. What the file has beyond that was grown ahead of its
    /// use, and is cut off before it is used.
    async fn first_unused(&self, table: &[u64]) -> Result<u64> {
        let (bits, order) = (self.header.cluster_bits, self.header.refcount_order);
        let (per_block, cluster_bytes) =
            (self.header.refcounts_per_block(), self.header.cluster_bytes());
        let tables_end = self.metadata.end() << bits;
        for (block, at) in table.iter().enumerate().rev().filter(|(_, at)| **at != 0) {
            let data = self.file.file().next_data(*at);
            if data.is_none_or(|data| data >= at + cluster_bytes) {
                continue;
            }
            let mut bytes = vec![0; index(cluster_bytes)];
            self.file.read_to(FileOffset(*at), &mut bytes).await?;
            let last = (0..per_block).rev().find(|n| refcount::get(&bytes, index(*n), order) != 0);
            if let Some(last) = last {
                let cluster = block as u64 * per_block + last;
                return Ok(tables_end.max((cluster + 1) << bits));
            }
        }
        Ok(tables_end)
    }
}

/// A table of words in the file.
pub(super) async fn read_words(file: &HostNode, at: u64, entries: u64) -> Result<Vec<u64>> {
    let mut bytes = vec![0; index(entries * 8)];
    file.read_to(FileOffset(at), &mut bytes).await?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|raw| u64::from_be_bytes(*raw)).collect())
}

fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
