//! `measure`: how large the file of a new image will be.
//!
//! ```text
//!   fully allocated = header + L1 table + L2 tables + reference counts, for the whole disk   + every cluster
//!   required        = the same tables                                                        + the clusters that the source has data in
//! ```
//!
//! Of qcow2 the figures are QEMU's: what it takes for granted (all tables, and nothing of a backing file shared) is so here. Of QED, of which
//! QEMU tells nothing, they are exact: tables are counted where there is data, as the file has no others.

use crate::create::NewImage;
use crate::info::print_json;
use crate::open::Disk;
use crate::status::{Depth, Kind, status};
use crate::{Code, Failure, ImageArgs, OptionList, Output, Secrets, Session, parse_size};
use block::qcow2::BitmapInfo;
use block::{Error, Format, SECTOR};
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;

/// Bytes of an L1 table at most, in qcow2.
const L1_BYTES_MAX: u64 = 32 << 20;
/// Clusters of qcow2, in bytes.
const QCOW2_CLUSTERS: std::ops::RangeInclusive<u64> = 512..=2 << 20;
/// Subclusters want clusters of so many bytes.
const SUBCLUSTERED_MIN: u64 = 16 << 10;
/// An entry of the bitmap directory, but for the name.
const BITMAP_ENTRY_BYTES: u64 = 24;

/// What is measured.
#[derive(Clone, Debug)]
pub enum Subject {
    /// An empty disk of so many bytes.
    Size(u64),
    /// A copy of this one.
    Image(ImageArgs),
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct MeasureOptions {
    /// Of what.
    pub subject: Subject,
    /// The format of the new image.
    pub format: Format,
    /// Its options (`-o`).
    pub options: OptionList,
    /// What `-o encrypt.key-secret` may name.
    pub secrets: Secrets,
    /// For whom.
    pub output: Output,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Measured {
    #[serde(skip_serializing_if = "Option::is_none")]
    bitmaps: Option<u64>,
    required: u64,
    fully_allocated: u64,
}

/// What the source is, as far as it counts.
struct Source {
    bytes: u64,
    disk: Option<(Session, Disk)>,
}

/// Prints it.
pub fn run(options: &MeasureOptions, out: &mut dyn Write) -> Result<Code, Failure> {
    options.options.check(options.format)?;
    let source = match &options.subject {
        Subject::Size(bytes) => Source { bytes: *bytes, disk: None },
        Subject::Image(args) => {
            let session = Session::new()?;
            let disk = Disk::open(&session, args)?;
            Source { bytes: disk.bytes, disk: Some((session, disk)) }
        }
    };
    let measured = match options.format {
        Format::Raw => raw(source.bytes),
        Format::Qcow2 => qcow2(options, &source)?,
        Format::Qed => qed(options, &source)?,
    };
    match options.output {
        Output::Human => {
            writeln!(out, "required size: {}", measured.required)?;
            writeln!(out, "fully allocated size: {}", measured.fully_allocated)?;
            if let Some(bytes) = measured.bitmaps {
                writeln!(out, "bitmaps size: {bytes}")?;
            }
        }
        Output::Json => {
            print_json(&measured, out)?;
        }
    }
    Ok(0)
}

fn raw(bytes: u64) -> Measured {
    let bytes = bytes.next_multiple_of(SECTOR);
    Measured { bitmaps: None, required: bytes, fully_allocated: bytes }
}

/// The options of qcow2 that count.
struct Qcow2Shape {
    cluster: u64,
    l2_entry_bytes: u64,
    refcount_bits: u64,
    version: u32,
    is_preallocated: bool,
    has_backing: bool,
    /// Of an encrypted disk's header and keys.
    luks_bytes: u64,
}

impl Qcow2Shape {
    fn new(options: &MeasureOptions) -> Result<Qcow2Shape, Failure> {
        let refuse = |why: &str| Err(Failure::new(format!("measuring: {why}")));
        let list = &options.options;
        let cluster = list.get("cluster_size").map(parse_size).transpose()?.unwrap_or(65536);
        if !cluster.is_power_of_two() || !QCOW2_CLUSTERS.contains(&cluster) {
            return refuse("the cluster size is a power of two from 512 to 2M");
        }
        let version = match list.get("compat") {
            None | Some("1.1" | "v3") => 3,
            Some("0.10" | "v2") => 2,
            Some(_) => return refuse("the option compat is 0.10, v2, 1.1 or v3"),
        };
        let refcount_bits = list.number("refcount_bits")?.unwrap_or(16);
        if !refcount_bits.is_power_of_two() || refcount_bits > 64 {
            return refuse("the option refcount_bits is a power of two up to 64");
        }
        if refcount_bits != 16 && version < 3 {
            return refuse("compat=0.10 has 16 bits of a reference count, and no others");
        }
        let has_subclusters = list.flag("extended_l2")?.unwrap_or(false);
        if has_subclusters && cluster < SUBCLUSTERED_MIN {
            return refuse("extended_l2 needs clusters of 16k at least");
        }
        let is_preallocated = match list.get("preallocation") {
            None | Some("off" | "metadata") => false,
            Some("falloc" | "full") => true,
            Some(_) => return refuse("the option preallocation is off, metadata, falloc or full"),
        };
        let encryption = NewImage {
            path: PathBuf::from("a new image"),
            format: Format::Qcow2,
            options: list.clone(),
            backing: None,
            backing_format: None,
            backing_unchecked: true,
            bytes: None,
            secrets: options.secrets.clone(),
        }
        .encryption()?;
        let luks_bytes = encryption.map_or(Ok(0), |encryption| encryption.area_bytes())?;
        Ok(Qcow2Shape {
            cluster,
            l2_entry_bytes: if has_subclusters { 16 } else { 8 },
            refcount_bits,
            version,
            is_preallocated,
            has_backing: list.get("backing_file").is_some(),
            luks_bytes: luks_bytes.next_multiple_of(cluster),
        })
    }

    /// Bytes of the tables of a disk of `bytes` bytes, whole clusters, that is all there.
    fn table_bytes(&self, bytes: u64) -> u64 {
        let cluster = self.cluster;
        let l2_entries = (bytes / cluster).next_multiple_of(cluster / self.l2_entry_bytes);
        let l2_bytes = l2_entries * self.l2_entry_bytes;
        let l1_bytes = (l2_bytes / cluster).next_multiple_of(cluster / 8) * 8;
        let before_counts = cluster + l2_bytes + l1_bytes;
        before_counts + self.refcount_bytes((before_counts + bytes) / cluster)
    }

    /// Bytes of reference counts for so many clusters, and for those that the counts themselves are in.
    fn refcount_bytes(&self, clusters: u64) -> u64 {
        let (per_block, per_table) = (self.cluster * 8 / self.refcount_bits, self.cluster / 8);
        let (mut blocks, mut table) = (0, 0);
        loop {
            let more = (clusters + blocks + table).div_ceil(per_block);
            let (before, now) = ((blocks, table), (more, more.div_ceil(per_table)));
            (blocks, table) = now;
            // Grows each time round, by less than a 64th of the time before.
            if now == before {
                return (blocks + table) * self.cluster;
            }
        }
    }
}

fn qcow2(options: &MeasureOptions, source: &Source) -> Result<Measured, Failure> {
    let shape = Qcow2Shape::new(options)?;
    let bytes = source.bytes.next_multiple_of(shape.cluster);
    let l2_tables = (bytes / shape.cluster).div_ceil(shape.cluster / shape.l2_entry_bytes);
    if source.disk.is_none() && l2_tables * 8 > L1_BYTES_MAX {
        return Err(Failure::new("measuring: the disk is too large for clusters of this size"));
    }
    let data_bytes = match &source.disk {
        _ if shape.is_preallocated => bytes,
        None => 0,
        // Nobody knows what the new image's backing file has already: nothing, perhaps.
        Some(_) if shape.has_backing => bytes,
        Some((session, disk)) => parts_with_data(session, disk, shape.cluster)? * shape.cluster,
    };
    let tables = shape.luks_bytes + shape.table_bytes(bytes);
    Ok(Measured {
        bitmaps: bitmap_bytes(&shape, source)?,
        required: tables + data_bytes,
        fully_allocated: tables + bytes,
    })
}

/// What the source's bitmaps need in the new image; `None` if they cannot be copied there.
fn bitmap_bytes(shape: &Qcow2Shape, source: &Source) -> Result<Option<u64>, Failure> {
    let Some((session, disk)) = source.disk.as_ref().filter(|_| shape.version >= 3) else {
        return Ok(None);
    };
    let node = disk.node.clone();
    let bitmaps = session.run(async move {
        match node.qcow2() {
            Some(qcow2) if qcow2.header().version >= 3 => Ok(Some(qcow2.bitmaps().await?)),
            _ => Ok(None),
        }
    })?;
    Ok(bitmaps.map(|list| {
        let is_copied = |bitmap: &&BitmapInfo| !bitmap.is_inconsistent && !bitmap.is_unknown;
        let (mut bits, mut directory) = (0, 0);
        for bitmap in list.iter().filter(is_copied) {
            let clusters =
                source.bytes.div_ceil(bitmap.granularity).div_ceil(8).div_ceil(shape.cluster);
            bits += clusters * shape.cluster + (clusters * 8).next_multiple_of(shape.cluster);
            directory += (BITMAP_ENTRY_BYTES + bitmap.name.len() as u64).next_multiple_of(8);
        }
        bits + directory.next_multiple_of(shape.cluster)
    }))
}

fn qed(options: &MeasureOptions, source: &Source) -> Result<Measured, Failure> {
    let usual = block::qed::CreateOptions::new(source.bytes);
    let size = |name| options.options.get(name).map(parse_size).transpose();
    let cluster = size("cluster_size")?.unwrap_or(usual.cluster_bytes);
    let tables = size("table_size")?.unwrap_or(usual.table_clusters);
    // What cannot be made cannot be measured.
    let shape = block::qed::CreateOptions {
        cluster_bytes: cluster,
        table_clusters: tables,
        backing: None,
        ..block::qed::CreateOptions::new(source.bytes.next_multiple_of(SECTOR))
    };
    let (_, empty) = block::qed::new_image(&shape)
        .map_err(|error| Error::new(error.kind(), format!("measuring: {error}")))?;
    let l2_reach = tables * cluster / 8 * cluster;
    let all_clusters = source.bytes.div_ceil(cluster);
    let of = |clusters: u64, l2_tables: u64| empty + (clusters + l2_tables * tables) * cluster;
    let has_backing = options.options.get("backing_file").is_some();
    let fully_allocated = of(all_clusters, source.bytes.div_ceil(l2_reach));
    let required = match &source.disk {
        None => empty,
        Some(_) if has_backing => fully_allocated,
        Some((session, disk)) => {
            let clusters = parts_with_data(session, disk, cluster)?;
            of(clusters, parts_with_data(session, disk, l2_reach)?)
        }
    };
    Ok(Measured { bitmaps: None, required, fully_allocated })
}

/// How many parts of the disk, of so many bytes each, have data in them.
fn parts_with_data(session: &Session, disk: &Disk, part: u64) -> Result<u64, Failure> {
    let (node, bytes) = (disk.node.clone(), disk.bytes);
    Ok(session.run(async move {
        let (mut at, mut parts) = (0u64, 0);
        while at < bytes {
            let found = status(&node, at, bytes - at, Depth::All).await?;
            let found = found.in_sectors(at, bytes - at);
            let mut end = at + found.len;
            if found.kind == Kind::Data {
                end = end.next_multiple_of(part);
                parts += (end - at / part * part) / part;
            }
            at = end;
        }
        Ok(parts)
    })?)
}
