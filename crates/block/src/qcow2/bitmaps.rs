//! Persistent dirty bitmaps: which parts of the disk were written since some point in time.
//!
//! ```text
//!   header, bitmaps extension --> directory --> bitmap table --> clusters of bits         (`directory`, `bits`)
//!      `- autoclear bit: all of this is right
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`, "Bitmaps extension" and "Bitmaps".
//!
//! A bitmap that is enabled ("auto") gets its bits in RAM, where each write, discard or write of zeroes begins ([`Qcow2::record`]). Its directory
//! entry says `in_use` meanwhile, from before the first write until the bits are stored, when the image is closed. So after a crash it says so
//! still: then the bitmap is inconsistent, is never used again, and stays until somebody removes it. One that is disabled is as the file says all
//! the time, and survives a crash.
//!
//! # What a power cut may leave
//!
//! ```text
//!   opening   `in_use` set, in place ---- sync ----> the first write to the disk
//!   storing   1 bits, tables and the directory, in new clusters; their counts
//!             ---- sync ----
//!             2 the extension's 24 bytes, within one sector: the new directory
//!             ---- sync ----
//!             3 what the old directory led to, and the new one does not, is let go
//! ```
//!
//! Opening changes one bit of each entry, and any of these changes alone is right, as nothing has been written yet: whatever sectors of the directory
//! arrive, each entry is true. Before step 2 is durable the old directory is all there; from then on the new one is. If nothing but flags differs, they
//! are changed in place, with the same argument: what they speak of is on stable storage.
//!
//! Two cases need more than one sector. The first bitmap's extension is put behind the others, where nothing looks, before its kind makes
//! it one; and only then the autoclear bit says that it counts. Where the 24 bytes cross a sector's end, and what changes does, the bit is cleared
//! before and set again after: a power cut between loses the bitmaps, and nothing else (`link`). Nothing else in the header moves, except the
//! backing file's name if it is in the way.
//!
//! # Bounds
//!
//! As QEMU's: 65,535 bitmaps, 512 MiB of bits each. And 1 GiB of bits in RAM, 64 MiB of bitmap tables: an image with more can be opened
//! read-only. A bitmap of an unknown type, with unknown flags or extra data, or too large is kept as it is; if it is enabled, the image
//! cannot be written, as the bitmap would have to know.

mod bits;
mod directory;
mod link;
mod read;
mod store;

use super::Qcow2;
use super::header::{BITMAPS_CONSISTENT, BitmapsExtension, Header};
use super::open::{mark, read_header};
use crate::space::Run;
use crate::used::UsedMap;
use crate::{DiskOffset, Error, ErrorKind, HostNode, Result};
use bits::{Bits, bytes_needed};
use directory::{BITMAPS_MAX, DIRECTORY_BYTES_MAX, Entry, GRANULARITY_BITS, NAME_BYTES_MAX};
use iothread::RangeLocks;
pub(super) use read::{read, refuse};
use std::cell::{Cell, RefCell};
use std::ops::Range;

/// Largest bitmap that QEMU takes, in bytes of bits.
const BITS_BYTES_MAX: u64 = 512 << 20;
/// Most bytes of bits in RAM.
const RAM_BYTES_MAX: u64 = 1 << 30;
/// Granules of a new bitmap, unless somebody says so: as large as a cluster, within these bounds.
const GRANULE_BYTES: Range<u64> = 4096..65536;

/// What a bitmap is, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name: any bytes.
    pub name: Vec<u8>,
    /// Bytes of the disk that a bit stands for.
    pub granularity: u64,
    /// It records writes: `auto`.
    pub is_enabled: bool,
    /// It was not stored after the last writes to the disk (`in-use`): it can only be removed.
    pub is_inconsistent: bool,
    /// It has a type, flags, data or a size that we do not know: it can only be removed.
    pub is_unknown: bool,
}

/// A bitmap of the image.
#[derive(Debug)]
pub(super) struct Bitmap {
    /// As it is in the file.
    entry: Entry,
    /// Its table's entries, as they are in the file.
    table: Vec<u64>,
    /// Once they are needed.
    bits: Option<Bits>,
    is_enabled: bool,
    is_inconsistent: bool,
    is_unknown: bool,
}

impl Bitmap {
    /// Whether its bits can be relied on.
    fn is_usable(&self) -> bool {
        !self.is_inconsistent && !self.is_unknown
    }

    fn info(&self) -> BitmapInfo {
        BitmapInfo {
            name: self.entry.name.clone(),
            granularity: 1 << self.entry.granularity_bits,
            is_enabled: self.is_enabled,
            is_inconsistent: self.is_inconsistent,
            is_unknown: self.is_unknown,
        }
    }
}

/// The bitmaps of an image.
#[derive(Debug, Default)]
pub(super) struct Bitmaps {
    /// In the order of the directory in the file.
    list: RefCell<Vec<Bitmap>>,
    /// The directory in the file.
    directory: Cell<Option<BitmapsExtension>>,
    /// It has been read.
    is_read: Cell<bool>,
    /// Some bitmap is enabled and in RAM.
    is_recording: Cell<bool>,
    /// Which directory the file has is not known: one in place is not to be changed.
    is_unsure: Cell<bool>,
    /// Clusters that it may lead to then: no longer once another one is there for certain.
    doubtful: RefCell<Vec<Run>>,
    /// One change or store at a time.
    changing: RangeLocks,
}

impl Bitmaps {
    /// Those that an image opened for writing has.
    pub fn new(header: &Header, list: Vec<Bitmap>) -> Bitmaps {
        Bitmaps {
            list: RefCell::new(list),
            directory: Cell::new(directory_of(header)),
            is_read: Cell::new(true),
            ..Bitmaps::default()
        }
    }

    #[inline]
    pub fn is_recording(&self) -> bool {
        self.is_recording.get()
    }

    fn position(&self, name: &[u8]) -> Option<usize> {
        self.list.borrow().iter().position(|bitmap| bitmap.entry.name == name)
    }

    /// Looks again whether writes are to be recorded.
    fn update_recording(&self) {
        let recording = |bitmap: &Bitmap| bitmap.is_enabled && bitmap.bits.is_some();
        self.is_recording.set(self.list.borrow().iter().any(recording));
    }
}

/// What is done to a bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change<'a> {
    Clear,
    Enable(bool),
    /// Bits set for these parts of the disk.
    Set(&'a [Range<u64>]),
    /// Bits set that are set in another bitmap.
    Merge(&'a [u8]),
}

impl Qcow2 {
    /// The image's bitmaps.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the directory contradicts the specification; the host's.
    pub async fn bitmaps(&self) -> Result<Vec<BitmapInfo>> {
        let _one = self.bitmaps.changing.lock(&self.context, 0..1).await;
        self.read_bitmaps().await?;
        Ok(self.bitmaps.list.borrow().iter().map(Bitmap::info).collect())
    }

    /// Bytes of a granule for a new bitmap if nobody says so.
    pub fn default_granularity(&self) -> u64 {
        self.layout.cluster_bytes().clamp(GRANULE_BYTES.start, GRANULE_BYTES.end)
    }

    /// The first run of the disk, from `from` on, that a bitmap says was written.
    ///
    /// # Errors
    ///
    /// `BadRequest` if there is no such bitmap, or it cannot be used; the host's.
    pub async fn next_dirty(&self, name: &[u8], from: u64) -> Result<Option<Range<u64>>> {
        let _one = self.bitmaps.changing.lock(&self.context, 0..1).await;
        self.read_bitmaps().await?;
        self.forget_all_but(&[name]);
        let number = self.load_bitmap(name).await?;
        let list = self.bitmaps.list.borrow();
        let run = list[number].bits.as_ref().and_then(|bits| bits.next(from));
        let end = self.header.borrow().disk_bytes;
        Ok(run.map(|run| run.start..run.end.min(end)))
    }

    /// How many bytes of the disk a bitmap says were written, in whole granules.
    ///
    /// # Errors
    ///
    /// As [`Qcow2::next_dirty`].
    pub async fn dirty_bytes(&self, name: &[u8]) -> Result<u64> {
        let _one = self.bitmaps.changing.lock(&self.context, 0..1).await;
        self.read_bitmaps().await?;
        self.forget_all_but(&[name]);
        let number = self.load_bitmap(name).await?;
        let list = self.bitmaps.list.borrow();
        let bits = list[number].bits.as_ref().map_or(0, Bits::count);
        Ok(bits << list[number].entry.granularity_bits)
    }

    /// Makes a bitmap without a bit set. It is there durably when this returns; no request may be under way, here and with what follows.
    ///
    /// # Errors
    ///
    /// `BadRequest` with the reason if the image cannot have it; the host's.
    pub async fn add_bitmap(&self, name: &[u8], granularity: u64, is_enabled: bool) -> Result<()> {
        let _one = self.change_bitmaps().await?;
        self.check_new(name, granularity)?;
        let disk_bytes = self.header.borrow().disk_bytes;
        let granularity_bits = granularity.ilog2();
        self.bitmaps.list.borrow_mut().push(Bitmap {
            entry: Entry::new(name, granularity_bits),
            table: Vec::new(),
            bits: Some(Bits::new(disk_bytes, granularity_bits, self.layout.cluster_bits)),
            is_enabled,
            is_inconsistent: false,
            is_unknown: false,
        });
        self.bitmaps.update_recording();
        let stored = Box::pin(self.store_locked(false, Vec::new())).await;
        if stored.is_err() {
            self.bitmaps.list.borrow_mut().pop();
            self.bitmaps.update_recording();
        }
        stored
    }

    /// Removes a bitmap, whatever state it is in.
    ///
    /// # Errors
    ///
    /// `BadRequest` if there is none of this name; the host's.
    pub async fn remove_bitmap(&self, name: &[u8]) -> Result<()> {
        let _one = self.change_bitmaps().await?;
        let number = self.bitmaps.position(name).ok_or_else(|| self.no_bitmap(name))?;
        let bitmap = self.bitmaps.list.borrow_mut().remove(number);
        self.bitmaps.update_recording();
        let stored = Box::pin(self.store_locked(false, self.runs_of(&bitmap))).await;
        if stored.is_err() {
            self.bitmaps.list.borrow_mut().insert(number, bitmap);
            self.bitmaps.update_recording();
        }
        stored
    }

    /// Clears all bits of a bitmap.
    ///
    /// # Errors
    ///
    /// `BadRequest` if there is no such bitmap, or it cannot be used; the host's. It is as it was in the file then, or as it was to be.
    pub async fn clear_bitmap(&self, name: &[u8]) -> Result<()> {
        self.change_bitmap(name, Change::Clear).await
    }

    /// Makes a bitmap record writes from now on.
    ///
    /// # Errors
    ///
    /// As [`Qcow2::clear_bitmap`].
    pub async fn enable_bitmap(&self, name: &[u8]) -> Result<()> {
        self.change_bitmap(name, Change::Enable(true)).await
    }

    /// Makes a bitmap stay as it is.
    ///
    /// # Errors
    ///
    /// As [`Qcow2::clear_bitmap`].
    pub async fn disable_bitmap(&self, name: &[u8]) -> Result<()> {
        self.change_bitmap(name, Change::Enable(false)).await
    }

    /// Adds to a bitmap what another one says was written.
    ///
    /// # Errors
    ///
    /// As [`Qcow2::clear_bitmap`], for both.
    pub async fn merge_bitmap(&self, name: &[u8], from: &[u8]) -> Result<()> {
        self.change_bitmap(name, Change::Merge(from)).await
    }

    /// Adds parts of the disk to a bitmap, of each all granules that it touches: what a bitmap of another image says, for example.
    ///
    /// # Errors
    ///
    /// As [`Qcow2::clear_bitmap`].
    pub async fn mark_in_bitmap(&self, name: &[u8], ranges: &[Range<u64>]) -> Result<()> {
        self.change_bitmap(name, Change::Set(ranges)).await
    }

    async fn change_bitmap(&self, name: &[u8], change: Change<'_>) -> Result<()> {
        let _one = self.change_bitmaps().await?;
        if let Change::Merge(from) = change {
            self.forget_all_but(&[name, from]);
            self.load_bitmap(from).await?;
        } else {
            self.forget_all_but(&[name]);
        }
        let number = self.load_bitmap(name).await?;
        {
            let mut list = self.bitmaps.list.borrow_mut();
            let bits = list[number].bits.take();
            let mut bits = bits.expect("just loaded, and nobody else changes the list");
            match change {
                Change::Clear => bits.clear(),
                Change::Enable(is_enabled) => list[number].is_enabled = is_enabled,
                Change::Set(ranges) => ranges.iter().for_each(|range| bits.set(range.clone())),
                Change::Merge(from) => {
                    // With itself nothing is to be done: then its bits are not there now.
                    let other = list.iter().find(|other| other.entry.name == from);
                    if let Some(other) = other.and_then(|other| other.bits.as_ref()) {
                        bits.merge(other);
                    }
                }
            }
            list[number].bits = Some(bits);
        }
        self.bitmaps.update_recording();
        Box::pin(self.store_locked(false, Vec::new())).await
    }

    /// Drops the bits of other bitmaps that do not change, so that RAM has few.
    fn forget_all_but(&self, names: &[&[u8]]) {
        for bitmap in self.bitmaps.list.borrow_mut().iter_mut() {
            let is_clean = bitmap.bits.as_ref().is_some_and(|bits| !bits.has_changes());
            if is_clean && !bitmap.is_enabled && !names.contains(&&bitmap.entry.name[..]) {
                bitmap.bits = None;
            }
        }
    }

    /// Takes a write to the disk down in all enabled bitmaps.
    #[inline(never)]
    pub(super) fn record(&self, at: DiskOffset, len: u64) {
        for bitmap in self.bitmaps.list.borrow_mut().iter_mut().filter(|bitmap| bitmap.is_enabled) {
            if let Some(bits) = bitmap.bits.as_mut().filter(|_| len > 0) {
                bits.set(at.0..at.0 + len);
            }
        }
    }

    /// The image was opened for writing: reads the bits of enabled bitmaps, and says in the file that they are in use.
    pub(super) async fn begin_bitmaps(&self) -> Result<()> {
        let bitmaps = self.bitmaps.list.borrow().len();
        for number in 0..bitmaps {
            let is_recording = {
                let bitmap = &self.bitmaps.list.borrow()[number];
                bitmap.is_enabled && bitmap.is_usable()
            };
            if is_recording {
                self.load_bits(number).await?;
            }
        }
        self.mark_in_use(false).await?;
        self.bitmaps.update_recording();
        Ok(())
    }

    /// The image is closed: stores all bits. No request may be under way.
    pub(super) async fn end_bitmaps(&self) -> Result<()> {
        let _one = self.bitmaps.changing.lock(&self.context, 0..1).await;
        Box::pin(self.store_locked(true, Vec::new())).await
    }

    /// To be called before the disk's size is changed: afterwards [`Qcow2::resize_bitmaps`]. A power cut between leaves no bitmap that seems to be right.
    ///
    /// # Errors
    ///
    /// `BadRequest` if some bitmap cannot be given the new size; the host's.
    pub(super) async fn prepare_resize_bitmaps(&self, disk_bytes: u64) -> Result<()> {
        let _one = self.bitmaps.changing.lock(&self.context, 0..1).await;
        let bitmaps = {
            let list = self.bitmaps.list.borrow();
            if let Some(bad) = list.iter().find(|bitmap| !bitmap.is_usable()) {
                let what = "cannot be given another size: remove it first";
                return Err(self.refused(&bad.entry.name, what));
            }
            let needed = |bitmap: &Bitmap| bytes_needed(disk_bytes, bitmap.entry.granularity_bits);
            if list.iter().any(|bitmap| needed(bitmap) > BITS_BYTES_MAX)
                || list.iter().map(needed).sum::<u64>() > RAM_BYTES_MAX
            {
                let what = format!("{}: its bitmaps would be too large", self.file.path());
                return Err(Error::new(ErrorKind::BadRequest, what));
            }
            if disk_bytes == 0 && !list.is_empty() {
                let what = format!("{}: a disk of no bytes has no bitmaps", self.file.path());
                return Err(Error::new(ErrorKind::BadRequest, what));
            }
            list.len()
        };
        for number in 0..bitmaps {
            self.load_bits(number).await?;
        }
        self.mark_in_use(true).await
    }

    /// The disk has this size now.
    pub(super) fn resize_bitmaps(&self, disk_bytes: u64) {
        for bitmap in self.bitmaps.list.borrow_mut().iter_mut() {
            if let Some(bits) = &mut bitmap.bits {
                bits.resize(disk_bytes);
            }
        }
    }

    /// Reads the directory of an image that is open read-only, unless that was done.
    async fn read_bitmaps(&self) -> Result<()> {
        if self.bitmaps.is_read.get() {
            return Ok(());
        }
        let header = self.header();
        let list = read_alone(&self.file, &header).await?;
        *self.bitmaps.list.borrow_mut() = list;
        self.bitmaps.is_read.set(true);
        Ok(())
    }

    /// The right to change bitmaps.
    async fn change_bitmaps(&self) -> Result<iothread::RangeGuard> {
        if self.options.read_only {
            let what = format!("changing bitmaps of {}: it is open read-only", self.file.path());
            return Err(Error::new(ErrorKind::BadRequest, what));
        }
        if self.options.health.is_poisoned() {
            let what = format!("changing bitmaps of {}: an earlier flush failed", self.file.path());
            return Err(Error::new(ErrorKind::Poisoned, what));
        }
        Ok(self.bitmaps.changing.lock(&self.context, 0..1).await)
    }

    fn check_new(&self, name: &[u8], granularity: u64) -> Result<()> {
        let refuse = |what: &str| Err(self.refused(name, what));
        let header = self.header.borrow();
        let list = self.bitmaps.list.borrow();
        let order = granularity.checked_ilog2().unwrap_or(0);
        let needed = |order| bytes_needed(header.disk_bytes, order);
        let directory = directory::encode(list.iter().map(|bitmap| &bitmap.entry)).len();
        let in_ram = list.iter().filter(|bitmap| bitmap.is_usable());
        let in_ram: u64 = in_ram.map(|bitmap| needed(bitmap.entry.granularity_bits)).sum();
        match () {
            () if header.version < 3 => refuse("cannot be in an image of version 2"),
            () if name.is_empty() => refuse("must have a name"),
            () if name.len() > NAME_BYTES_MAX => refuse("has a name of more than 1023 bytes"),
            () if self.bitmaps.position(name).is_some() => refuse("exists already"),
            () if !granularity.is_power_of_two() || !GRANULARITY_BITS.contains(&order) => {
                refuse("must have granules of 512 bytes to 2 GiB, a power of two")
            }
            () if header.disk_bytes == 0 => refuse("would have no bits: the disk is empty"),
            () if needed(order) > BITS_BYTES_MAX || needed(order) + in_ram > RAM_BYTES_MAX => {
                refuse("would be too large: use larger granules")
            }
            () if list.len() >= BITMAPS_MAX => refuse("would be one of more than 65535"),
            () if directory + NAME_BYTES_MAX + 32 > DIRECTORY_BYTES_MAX => {
                refuse("has no place in the directory")
            }
            () => Ok(()),
        }
    }

    fn no_bitmap(&self, name: &[u8]) -> Error {
        let what = format!("{}: there is no bitmap {}", self.file.path(), name.escape_ascii());
        Error::new(ErrorKind::BadRequest, what)
    }

    fn refused(&self, name: &[u8], what: &str) -> Error {
        let what = format!("{}: the bitmap {} {what}", self.file.path(), name.escape_ascii());
        Error::new(ErrorKind::BadRequest, what)
    }
}

/// The bitmaps of the image in `host`, of which nothing else is looked at.
///
/// # Errors
///
/// `Corrupt` or `Unsupported` if the header or the directory contradicts the specification; the host's.
pub async fn bitmaps_in(host: &HostNode) -> Result<Vec<BitmapInfo>> {
    let (header, _) = Box::pin(read_header(host)).await?;
    Ok(read_alone(host, &header).await?.iter().map(Bitmap::info).collect())
}

/// Reads the bitmaps of an image, as far as they alone tell whether they are right.
async fn read_alone(host: &HostNode, header: &Header) -> Result<Vec<Bitmap>> {
    let file_end = host.file_bytes()?.next_multiple_of(header.cluster_bytes());
    let mut seen = UsedMap::default();
    Box::pin(read(host, header, file_end, |cluster| mark(&mut seen, cluster))).await
}

/// The directory that a header leads to, if what it says of bitmaps counts.
fn directory_of(header: &Header) -> Option<BitmapsExtension> {
    header.bitmaps.filter(|_| header.autoclear & BITMAPS_CONSISTENT != 0)
}
