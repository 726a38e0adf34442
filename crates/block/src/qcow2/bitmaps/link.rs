//! The header's bitmaps extension: made, changed and taken away, so that a power cut leaves the old one or the new one.
//!
//! ```text
//!   | fields: autoclear bit | extensions ... | BITMAPS 24 | count, bytes, place | END 0 | free | backing file's name |
//!                                              8 bytes      24 bytes              8
//! ```
//!
//! What stands behind END is looked at by nobody. Extensions begin at multiples of 8, so that kind and length are in one sector. Where clusters are
//! as small as a sector, so is the header, and is written anew.

use crate::qcow2::Qcow2;
use crate::qcow2::header::{
    BITMAPS_BYTES, BITMAPS_CONSISTENT, BitmapsExtension, BitmapsPlace, HEAD_BYTES, bitmaps_head,
    find_bitmaps,
};
use crate::{Error, ErrorKind, FileOffset, Result, SECTOR};
use std::ops::Range;

/// Where a header says that the backing file's name is, and how long.
const NAME_AT: usize = 8;
const NAME_BYTES: usize = 16;

impl Qcow2 {
    /// Makes the header lead to a directory, whose content is on stable storage, or to none. Durable when this returns.
    pub(super) async fn link_directory(&self, new: Option<BitmapsExtension>) -> Result<()> {
        let _exclusive = self.exclusive.lock(&self.context, 0..1).await;
        let cluster = usize::try_from(self.layout.cluster_bytes()).expect("at most 2 MiB");
        let mut first = vec![0; cluster];
        self.file.read_to(FileOffset(0), &mut first).await?;
        let header_bytes = self.header.borrow().header_bytes as usize;
        let place = find_bitmaps(&first[..area_end(&first)], header_bytes);
        let Some(new) = new else { return self.unlink(place).await };
        match place {
            BitmapsPlace::There { at, .. } => {
                self.rewrite_extension(at, &first[at..at + BITMAPS_BYTES], &new.encode()).await?;
            }
            _ if first.len() as u64 == SECTOR => return self.rewrite_sector(new).await,
            BitmapsPlace::End(at) => {
                self.set_consistent(false).await?;
                self.append(&first, at, &new.encode()).await?;
            }
            BitmapsPlace::None => return Err(self.no_room()),
        }
        self.header.borrow_mut().bitmaps = Some(new);
        self.set_consistent(true).await
    }

    async fn unlink(&self, place: BitmapsPlace) -> Result<()> {
        self.set_consistent(false).await?;
        self.header.borrow_mut().bitmaps = None;
        match place {
            BitmapsPlace::There { at, is_last: true } => {
                self.write_first(at - HEAD_BYTES, &[0; HEAD_BYTES]).await?;
                self.sync().await
            }
            // Others stand behind it, and nothing moves. Without the autoclear bit it says nothing.
            _ => Ok(()),
        }
    }

    /// Changes the extension's data.
    async fn rewrite_extension(&self, at: usize, old: &[u8], new: &[u8]) -> Result<()> {
        let differs = |n: &usize| old[*n] != new[*n];
        let Some(first) = (0..new.len()).find(differs) else { return Ok(()) };
        let last = (0..new.len()).rfind(differs).unwrap_or(first);
        if !is_one_sector(at + first..at + last + 1) {
            self.set_consistent(false).await?;
        }
        self.write_first(at + first, &new[first..=last]).await?;
        self.sync().await
    }

    /// A header of one sector is written anew, all at once; without names for features, if there is no room for them.
    async fn rewrite_sector(&self, new: BitmapsExtension) -> Result<()> {
        let mut header = self.header();
        header.bitmaps = Some(new);
        header.autoclear |= BITMAPS_CONSISTENT;
        let mut bytes = header.encode();
        if bytes.is_err() {
            header.feature_names.clear();
            bytes = header.encode();
        }
        let mut bytes = bytes.map_err(|_| self.no_room())?;
        bytes.resize(bytes.len().max(self.start.borrow().len()), 0);
        self.write_first(0, &bytes).await?;
        self.sync().await?;
        *self.header.borrow_mut() = header;
        Ok(())
    }

    /// Makes an extension where the others end.
    async fn append(&self, first: &[u8], at: usize, data: &[u8]) -> Result<()> {
        let end = at + HEAD_BYTES + data.len() + HEAD_BYTES;
        if end > area_end(first) {
            self.move_name(first, end).await?;
        }
        let rest = [data, &[0; HEAD_BYTES]].concat();
        self.write_first(at + HEAD_BYTES, &rest).await?;
        self.sync().await?;
        self.write_first(at, &bitmaps_head()).await?;
        self.sync().await
    }

    /// Makes room for extensions up to `end`: a copy of the backing file's name behind the old one, and then the pointer to it.
    async fn move_name(&self, first: &[u8], end: usize) -> Result<()> {
        let name_at = area_end(first);
        let raw = *first[NAME_BYTES..].first_chunk().expect("the header has been checked");
        let name = name_at..name_at.saturating_add(u32::from_be_bytes(raw) as usize);
        let name = first.get(name).filter(|_| name_at < first.len());
        let name = name.ok_or_else(|| self.no_room())?;
        let to = end.max(name_at + name.len()).next_multiple_of(8);
        if to + name.len() > first.len() {
            return Err(self.no_room());
        }
        self.write_first(to, name).await?;
        self.sync().await?;
        self.write_first(NAME_AT, &(to as u64).to_be_bytes()).await?;
        self.sync().await
    }

    /// Sets or clears the bit that says that the extension counts, durably.
    async fn set_consistent(&self, is_consistent: bool) -> Result<()> {
        let mut header = self.header();
        let bit = if is_consistent { BITMAPS_CONSISTENT } else { 0 };
        let autoclear = header.autoclear & !BITMAPS_CONSISTENT | bit;
        if header.autoclear == autoclear {
            return Ok(());
        }
        header.autoclear = autoclear;
        self.write_header(header).await?;
        self.sync().await
    }

    /// Writes a part of the first cluster.
    pub(in crate::qcow2) async fn write_first(&self, at: usize, bytes: &[u8]) -> Result<()> {
        self.file.write_from(FileOffset(at as u64), bytes, false).await?;
        // The first sector is written again whenever a field changes.
        for (byte, new) in self.start.borrow_mut().iter_mut().skip(at).zip(bytes) {
            *byte = *new;
        }
        Ok(())
    }

    fn no_room(&self) -> Error {
        let what = format!("{}: its header has no room for bitmaps", self.file.path());
        Error::new(ErrorKind::BadRequest, what)
    }
}

/// Where extensions must end: at the backing file's name, or with the cluster.
fn area_end(first: &[u8]) -> usize {
    let at = u64::from_be_bytes(*first[NAME_AT..].first_chunk().expect("a cluster"));
    match usize::try_from(at) {
        Ok(at) if at != 0 => at.min(first.len()),
        _ => first.len(),
    }
}

fn is_one_sector(bytes: Range<usize>) -> bool {
    bytes.start as u64 / SECTOR == (bytes.end as u64 - 1) / SECTOR
}
