//! The header written anew, where extensions and the backing file's name may move; and the disk emptied over its backing file.
//!
//! ```text
//!   sector 0                     sector 1 ...                                the first cluster's end
//!   | fields | extensions ...    | ... extensions | old name |     | new name |
//!     3, 5                         4                          1
//!
//!   1  the new name, where neither the old one nor any extension is    ---- sync ----
//!   2, 3  sector 0: the new fields and extensions, without the names for features, which nobody needs; it leads to the new name
//!                                                                      ---- sync ----
//!   4  what of the extensions, with names for features, is behind sector 0: nothing looks there yet      ---- sync ----
//!   5  sector 0, with the names for features                           ---- sync ----
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`, "Header" and "Header extensions".
//!
//! A power cut leaves the old header or the new one, as each of them is made to count by one sector. Two cases are not so: extensions that do not
//! fit in sector 0 even without names for features, and clusters of 1 or 2 KiB with no room for a second name. Then the cluster is written at
//! once, and the cut may leave a mixture, of which an opening complains or which `rebase -u` puts right; data is not touched by it.
//!
//! # Emptying
//!
//! What the image has is unlinked L1 entry by L1 entry, synced, and only then counted down: see `resize`. If the backing file has the same data, the
//! disk reads the same whatever part of that a power cut lets through.

use super::Qcow2;
use super::header::{
    BackingFile, COMPRESSION_TYPE, CORRUPT, CryptMethod, DATA_FILE_RAW, DIRTY, EXTENDED_L2,
    EXTERNAL_DATA, FULL_BYTES, Header, LAZY_REFCOUNTS, V2_BYTES, known_features,
};
use super::snapshots::Step;
use crate::mapped::{Lookup, Mapping};
use crate::{DiskOffset, ErrorKind, ExtentKind, FileOffset, Result, SECTOR};
use std::ops::Range;

const DOING: &str = "changing the header of";
/// Where the backing file's name is: its offset, and its length.
const NAME_AT: usize = 8;
const NAME_BYTES: usize = 16;

/// What a header is to say of how its image is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Amendment {
    /// Version: 2 or 3.
    pub version: u32,
    /// Reference counts may be written late.
    pub lazy_refcounts: bool,
    /// Another name for the file that the data is in.
    pub data_file: Option<Vec<u8>>,
    /// That file need no longer be an image of the disk by itself.
    pub data_file_is_not_raw: bool,
}

impl Qcow2 {
    /// Makes the image stand on another file, or on none. What the disk reads as is for the caller to keep the same, and to have flushed. No request may be
    /// under way; as long as the image is open, the disk below is the one it was opened with.
    ///
    /// # Errors
    ///
    /// `BadRequest` if the header has no room or place for it; the host's.
    pub async fn set_backing(&self, backing: Option<BackingFile>) -> Result<()> {
        let mut header = self.header();
        header.backing = backing;
        Box::pin(self.replace_header(header)).await
    }

    /// Changes what the header says of how the image is used. No request may be under way, and none come afterwards but that the image is closed: what
    /// follows from the version is known from before.
    ///
    /// For version 2 nothing may be in the image that it cannot say; of zero clusters the caller has seen to that.
    ///
    /// # Errors
    ///
    /// `BadRequest` or `Unsupported` with the reason, and nothing changed; the host's.
    pub async fn amend(&self, change: &Amendment) -> Result<()> {
        let header = self.amended(change)?;
        if header == self.header() {
            return Ok(());
        }
        Box::pin(self.replace_header(header)).await
    }

    /// Makes clusters of this part of the disk, which read as zeroes by what their entries say, such as the image has not: they read the same where nothing
    /// is below, and version 2 has no other way to say it. No request may be under way.
    ///
    /// # Errors
    ///
    /// `BadRequest` if there is a disk below; the host's.
    pub async fn give_up_zeroes(&self, disk: Range<u64>) -> Result<()> {
        let doing = "giving up zero clusters of";
        self.check_writable(doing)?;
        if self.tables.borrow().hides() || self.layout.is_external {
            let why = "something would show through, or its data is in another file";
            return self.refuse(ErrorKind::BadRequest, doing, why);
        }
        let bits = self.layout.cluster_bits;
        for cluster in disk.start >> bits..disk.end.div_ceil(1 << bits) {
            if self.has_many_changes() {
                self.commit_shared().await?;
            }
            let at = cluster << bits;
            while self.lookup(DiskOffset(at), 1) == Lookup::Absent {
                self.load(DiskOffset(at)).await?;
            }
            // What has data in it is not for this.
            let found = self.lookup(DiskOffset(at), 1);
            if matches!(found, Lookup::Found(extent, _) if extent.kind == ExtentKind::Zero) {
                self.zero(at..at + (1 << bits), true);
            }
        }
        Ok(())
    }

    /// Finds out whether the header can be changed like this.
    ///
    /// # Errors
    ///
    /// As [`Qcow2::amend`].
    pub fn check_amendment(&self, change: &Amendment) -> Result<()> {
        self.amended(change).map(drop)
    }

    fn amended(&self, change: &Amendment) -> Result<Header> {
        let mut header = self.header();
        let doing = "amending";
        self.check_writable(doing)?;
        if change.version != header.version {
            match change.version {
                2 => self.downgrade(&mut header)?,
                3 => {
                    header.version = 3;
                    header.header_bytes = FULL_BYTES;
                    header.feature_names = known_features();
                }
                _ => return self.refuse(ErrorKind::BadRequest, doing, "versions are 2 and 3"),
            }
        }
        if header.version < 3 && change.lazy_refcounts {
            let why = "lazy_refcounts needs compat=1.1";
            return self.refuse(ErrorKind::BadRequest, doing, why);
        }
        let lazy = if change.lazy_refcounts { LAZY_REFCOUNTS } else { 0 };
        header.compatible = header.compatible & !LAZY_REFCOUNTS | lazy;
        if let Some(name) = &change.data_file {
            if !self.layout.is_external {
                let why = "its data is in no other file, and stays where it is";
                return self.refuse(ErrorKind::BadRequest, doing, why);
            }
            header.data_file = Some(name.clone());
        }
        if change.data_file_is_not_raw {
            header.autoclear &= !DATA_FILE_RAW;
        }
        Ok(header)
    }

    /// Makes a header of version 2 of one of version 3.
    fn downgrade(&self, header: &mut Header) -> Result<()> {
        let others = header.incompatible & !DIRTY;
        let refused = [
            (header.refcount_bits() != 16, "compat=0.10 needs refcount_bits=16"),
            (others & EXTENDED_L2 != 0, "compat=0.10 has no extended L2 entries"),
            (others & EXTERNAL_DATA != 0, "compat=0.10 has no data file"),
            (others & COMPRESSION_TYPE != 0, "compat=0.10 has no compression but zlib"),
            (others & CORRUPT != 0, "it is marked as corrupt"),
            (header.bitmaps.is_some(), "compat=0.10 has no bitmaps: remove them first"),
            (header.crypt_method != CryptMethod::None, "it is encrypted"),
            (header.snapshots > 0, "it has snapshots, in which there may be zero clusters"),
            (!header.extra.is_empty(), "its header has fields that nobody knows here"),
        ];
        if let Some((_, why)) = refused.into_iter().find(|(is_so, _)| *is_so) {
            return self.refuse(ErrorKind::Unsupported, "amending", why);
        }
        header.version = 2;
        header.header_bytes = V2_BYTES;
        (header.incompatible, header.compatible, header.autoclear) = (0, 0, 0);
        header.feature_names.clear();
        Ok(())
    }

    /// Lets go of all that the image has of the disk, so that the backing file shows everywhere. No request may be under way.
    ///
    /// # Errors
    ///
    /// `BadRequest` with the reason, `Corrupt` if the tables are, and nothing changed; the host's.
    pub async fn make_empty(&self) -> Result<()> {
        let doing = "emptying";
        self.check_writable(doing)?;
        let l1 = self.good_l1(doing)?;
        Box::pin(self.check_reach(&l1, Step::Down)).await?;
        Box::pin(self.settle()).await?;
        Box::pin(self.drop_beyond(0)).await?;
        Box::pin(self.settle()).await
    }

    fn check_writable(&self, doing: &str) -> Result<()> {
        if self.options.read_only {
            return self.refuse(ErrorKind::BadRequest, doing, "it is open for reading only");
        }
        if self.options.health.is_poisoned() {
            return self.refuse(ErrorKind::Poisoned, doing, "an earlier flush failed");
        }
        Ok(())
    }

    /// Writes a header that leads to the same tables. Durable when this returns.
    pub(super) async fn replace_header(&self, mut new: Header) -> Result<()> {
        self.check_writable(DOING)?;
        if new.encode().is_err() {
            // Names for features are for people, and go if there is no room for them.
            new.feature_names.clear();
        }
        self.commit_shared().await?;
        let _exclusive = self.exclusive.lock(&self.context, 0..1).await;
        let cluster = usize::try_from(self.layout.cluster_bytes()).expect("at most 2 MiB");
        let mut first = vec![0; cluster];
        self.file.read_to(FileOffset(0), &mut first).await?;
        let steps = Steps::new(&first, &new)?;
        for (at, bytes) in steps.0 {
            let written = self.write_first(at, &bytes).await;
            let done = match written {
                Ok(()) => self.sync().await,
                Err(error) => Err(error),
            };
            // Nobody knows which header the file has, and what is written next depends on it.
            done.inspect_err(|_| {
                self.options.health.poison();
            })?;
        }
        *self.header.borrow_mut() = new;
        Ok(())
    }
}

/// What is written into the first cluster, with a sync after each: where, and what.
#[derive(Debug)]
struct Steps(Vec<(usize, Vec<u8>)>);

impl Steps {
    fn new(first: &[u8], new: &Header) -> Result<Steps> {
        let sector = usize::try_from(SECTOR).expect("a small number");
        let whole = new.encode()?;
        let lean = Header { feature_names: Vec::new(), ..new.clone() };
        let (mut lean, mut full) = (fields_and_extensions(&lean)?, fields_and_extensions(new)?);
        let name = new.backing.as_ref().map_or(&[][..], |backing| &backing.name);
        let behind = full.len().max(lean.len()).max(end_of_name(first)).max(sector);
        let name_at = behind.next_multiple_of(8);
        let has_room = name.is_empty() || name_at + name.len() <= first.len();
        if lean.len() > sector || full.len() > first.len() || !has_room || first.len() == sector {
            let mut all = whole;
            all.resize(first.len(), 0);
            return Ok(Steps(vec![(0, all)]));
        }
        let mut steps = Vec::new();
        if !name.is_empty() {
            steps.push((name_at, name.to_vec()));
            for bytes in [&mut lean, &mut full] {
                bytes[NAME_AT..][..8].copy_from_slice(&(name_at as u64).to_be_bytes());
            }
        }
        lean.resize(sector, 0);
        steps.push((0, lean));
        if !new.feature_names.is_empty() {
            if full.len() > sector {
                steps.push((sector, full.split_off(sector)));
            }
            full.resize(sector, 0);
            steps.push((0, full));
        }
        Ok(Steps(steps))
    }
}

/// An encoded header up to the backing file's name.
fn fields_and_extensions(header: &Header) -> Result<Vec<u8>> {
    let mut bytes = header.encode()?;
    let name = header.backing.as_ref().map_or(0, |backing| backing.name.len());
    bytes.truncate(bytes.len() - name);
    Ok(bytes)
}

/// Where the backing file's name ends that a first cluster has; 0 if there is none.
fn end_of_name(first: &[u8]) -> usize {
    let at = u64::from_be_bytes(*first[NAME_AT..].first_chunk().expect("a sector at least"));
    let bytes = u32::from_be_bytes(*first[NAME_BYTES..].first_chunk().expect("a sector at least"));
    usize::try_from(at.saturating_add(u64::from(bytes)))
        .map_or(first.len(), |end| end.min(first.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qcow2::create::{CreateOptions, Layout};

    const SECTOR_BYTES: usize = 512;

    fn backing(name: usize, format: Option<&str>) -> Option<BackingFile> {
        let format = format.map(|name| name.as_bytes().to_vec());
        (name > 0)
            .then(|| BackingFile { name: vec![b'a' + name.to_le_bytes()[0] % 20; name], format })
    }

    /// The first cluster of an image.
    fn cluster_of(header: &Header) -> Vec<u8> {
        let mut first = header.encode().unwrap();
        first.resize(1 << header.cluster_bits, 0xee);
        first
    }

    fn parsed(first: &[u8]) -> Header {
        Header::parse(first, 1 << 40).unwrap()
    }

    /// All that may be in the cluster when the power goes: with every combination of the sectors of one step, all steps before it being durable.
    fn states(first: &[u8], steps: &Steps) -> Vec<Vec<u8>> {
        let mut states = vec![first.to_vec()];
        let mut durable = first.to_vec();
        for (at, bytes) in &steps.0 {
            let mut after = durable.clone();
            after[*at..at + bytes.len()].copy_from_slice(bytes);
            let sectors = at / SECTOR_BYTES..(at + bytes.len()).div_ceil(SECTOR_BYTES);
            for arrived in 0u32..1 << sectors.len() {
                let mut state = durable.clone();
                for (n, sector) in sectors.clone().enumerate() {
                    let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
                    if arrived >> n & 1 == 1 {
                        state[range.clone()].copy_from_slice(&after[range]);
                    }
                }
                states.push(state);
            }
            durable = after;
        }
        states.push(durable);
        states
    }

    /// Asserts that every cut leaves the old header or the new one, but for the names of features.
    fn assert_atomic(old: &Header, new: &Header) {
        let first = cluster_of(old);
        let steps = Steps::new(&first, new).unwrap();
        let lean = |header: &Header| Header { feature_names: Vec::new(), ..header.clone() };
        let mut seen_new = false;
        let states = states(&first, &steps);
        for state in &states {
            let found = lean(&parsed(state));
            assert!(found == lean(old) || found == lean(new), "{found:?}");
            seen_new |= found == lean(new);
        }
        assert!(seen_new);
        assert_eq!(&parsed(states.last().unwrap()), new);
    }

    #[test]
    fn a_cut_leaves_the_old_header_or_the_new_one() {
        let formats = [None, Some("raw"), Some("qcow2")];
        for cluster_bytes in [4096, 65536] {
            for version in [2, 3] {
                for (n, old_name) in [0, 1, 9, 300, 1023].into_iter().enumerate() {
                    for (m, new_name) in [0, 5, 500, 1023].into_iter().enumerate() {
                        let usual = CreateOptions::new(1 << 20);
                        let create = CreateOptions { version, cluster_bytes, ..usual };
                        let mut old = Layout::new(&create).unwrap().header().clone();
                        old.backing = backing(old_name, formats[n % 3]);
                        let backing = backing(new_name, formats[(n + m) % 3]);
                        assert_atomic(&old, &Header { backing, ..old.clone() });
                    }
                }
            }
        }
    }

    /// Where one sector is all there is, or there is no room, it is written at once.
    #[test]
    fn small_clusters_are_written_at_once() {
        for (cluster_bytes, name, atomic) in [(512, 20, true), (1024, 500, false)] {
            let create = CreateOptions {
                cluster_bytes,
                backing: backing(name, Some("raw")),
                ..CreateOptions::new(1 << 20)
            };
            let mut old = Layout::new(&create).unwrap().header().clone();
            old.feature_names.clear();
            let new = Header { backing: backing(name + 1, Some("qcow2")), ..old.clone() };
            let first = cluster_of(&old);
            let steps = Steps::new(&first, &new).unwrap();
            assert_eq!(steps.0.len(), 1);
            assert_eq!(parsed(states(&first, &steps).last().unwrap()), new);
            if atomic {
                assert_atomic(&old, &new);
            }
        }
    }
}
