//! Reading bitmaps: the directory and all tables when the image is opened, the bits of those that are needed.

use super::bits::{Bits, Content, bytes_needed};
use super::directory::{self, AUTO, Entry, IN_USE, corrupt};
use super::{BITS_BYTES_MAX, Bitmap, RAM_BYTES_MAX, directory_of};
use crate::qcow2::Qcow2;
use crate::qcow2::entry::OFFSET;
use crate::qcow2::header::Header;
use crate::{Error, ErrorKind, FileOffset, HostNode, Result};

/// Most bytes of bitmap tables in RAM.
const TABLES_BYTES_MAX: u64 = 64 << 20;
/// In a table's entry without a cluster: all its bits are ones.
pub(super) const ALL_ONES: u64 = 1;

/// Reads directory and tables of the image in `file`, which ends at `file_end`. `mark` is told of each cluster they take, and says whether nothing
/// else does.
///
/// # Errors
///
/// `Corrupt` if something contradicts the specification, `Unsupported` if there is more than we take; the host's.
pub(in crate::qcow2) async fn read(
    file: &HostNode,
    header: &Header,
    file_end: u64,
    mark: impl FnMut(u64) -> Result<bool>,
) -> Result<Vec<Bitmap>> {
    let Some(place) = directory_of(header) else { return Ok(Vec::new()) };
    let mut reading = Reading { file, header, file_end, mark, table_bytes: 0 };
    reading.claim(place.directory, place.directory_bytes, "the directory")?;
    let mut bytes = vec![0; index(place.directory_bytes)];
    file.read_to(FileOffset(place.directory), &mut bytes).await?;
    let mut list = Vec::new();
    for entry in directory::parse(&bytes, place.count)? {
        list.push(reading.bitmap(entry).await?);
    }
    Ok(list)
}

struct Reading<'a, M> {
    file: &'a HostNode,
    header: &'a Header,
    file_end: u64,
    mark: M,
    /// Of all tables so far.
    table_bytes: u64,
}

impl<M: FnMut(u64) -> Result<bool>> Reading<'_, M> {
    async fn bitmap(&mut self, entry: Entry) -> Result<Bitmap> {
        let name = entry.name.escape_ascii().to_string();
        let bytes = u64::from(entry.table_entries) * 8;
        self.table_bytes += bytes;
        if self.table_bytes > TABLES_BYTES_MAX {
            let what = "its bitmaps have tables of more than 64 MiB";
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        if bytes == 0 {
            return Err(corrupt(&format!("{name} has no table")));
        }
        self.claim(entry.table, bytes, &name)?;
        let mut raw = vec![0; index(bytes)];
        self.file.read_to(FileOffset(entry.table), &mut raw).await?;
        let words = raw.as_chunks::<8>().0.iter();
        let table: Vec<u64> = words.map(|raw| u64::from_be_bytes(*raw)).collect();
        for word in &table {
            let at = word & OFFSET;
            let allowed = if at == 0 { ALL_ONES } else { OFFSET };
            if word & !allowed != 0 {
                return Err(corrupt(&format!("{name} has the table entry {word:#x}")));
            }
            if at != 0 {
                self.claim(at, self.header.cluster_bytes(), &name)?;
            }
        }
        let needed = bytes_needed(self.header.disk_bytes, entry.granularity_bits);
        let is_inconsistent = entry.flags & IN_USE != 0;
        let is_unknown = !entry.is_known() || needed > BITS_BYTES_MAX;
        let is_short = table.len() as u64 != needed.div_ceil(self.header.cluster_bytes());
        // One that was not stored after the size changed has another one.
        if is_short && !is_inconsistent && !is_unknown {
            return Err(corrupt(&format!("{name} has not as many bits as the disk needs")));
        }
        let is_enabled = entry.flags & AUTO != 0;
        Ok(Bitmap { entry, table, bits: None, is_enabled, is_inconsistent, is_unknown })
    }

    /// Takes clusters of the file for a part of the bitmaps.
    fn claim(&mut self, at: u64, bytes: u64, whose: &str) -> Result<()> {
        let bits = self.header.cluster_bits;
        let end = at.checked_add(bytes).filter(|end| *end <= self.file_end);
        let good = at != 0 && at.is_multiple_of(1 << bits);
        let Some(end) = end.filter(|_| good) else {
            return Err(corrupt(&format!("{whose} leads to {at:#x}, where nothing can be")));
        };
        for cluster in at >> bits..end.div_ceil(1 << bits) {
            if !(self.mark)(cluster)? {
                return Err(corrupt(&format!("{whose} leads to {at:#x}, which has another use")));
            }
        }
        Ok(())
    }
}

impl Bitmap {
    /// Whether it must record writes, and we cannot make it.
    pub(in crate::qcow2) fn forbids_writes(&self) -> bool {
        self.is_unknown && self.is_enabled && !self.is_inconsistent
    }

    /// Bytes of bits that it takes in RAM from the start.
    fn recording_bytes(&self, disk_bytes: u64) -> u64 {
        match self.is_enabled && self.is_usable() {
            true => bytes_needed(disk_bytes, self.entry.granularity_bits),
            false => 0,
        }
    }
}

/// Refuses to write to an image that has bitmaps which could not be kept right.
pub(in crate::qcow2) fn refuse(list: &[Bitmap], disk_bytes: u64) -> Result<()> {
    let refuse = |what: String| Err(Error::new(ErrorKind::Unsupported, what));
    if let Some(bitmap) = list.iter().find(|bitmap| bitmap.forbids_writes()) {
        let name = bitmap.entry.name.escape_ascii();
        return refuse(format!(
            "its bitmap {name} must record writes, and is of a kind that is not known: it can be opened read-only"
        ));
    }
    let needed: u64 = list.iter().map(|bitmap| bitmap.recording_bytes(disk_bytes)).sum();
    if needed > RAM_BYTES_MAX {
        return refuse("its bitmaps take more than 1 GiB: it can be opened read-only".into());
    }
    Ok(())
}

impl Qcow2 {
    /// Brings a bitmap's bits to RAM; gives its number in the list, which the caller keeps from changing.
    pub(super) async fn load_bitmap(&self, name: &[u8]) -> Result<usize> {
        let number = self.bitmaps.position(name).ok_or_else(|| self.no_bitmap(name))?;
        let refusal = match &self.bitmaps.list.borrow()[number] {
            Bitmap { is_inconsistent: true, .. } => Some("is inconsistent: remove it"),
            Bitmap { is_unknown: true, .. } => Some("is of a kind that is not known"),
            _ => None,
        };
        if let Some(what) = refusal {
            return Err(self.refused(name, what));
        }
        self.load_bits(number).await?;
        Ok(number)
    }

    /// Brings the bits of a usable bitmap to RAM.
    pub(super) async fn load_bits(&self, number: usize) -> Result<()> {
        let (mut bits, table) = {
            let list = self.bitmaps.list.borrow();
            let bitmap = &list[number];
            if bitmap.bits.is_some() {
                return Ok(());
            }
            let disk_bytes = self.header.borrow().disk_bytes;
            let cluster_bits = self.layout.cluster_bits;
            let bits = Bits::new(disk_bytes, bitmap.entry.granularity_bits, cluster_bits);
            (bits, bitmap.table.clone())
        };
        let mut bytes = vec![0; index(self.layout.cluster_bytes())];
        for (chunk, word) in table.into_iter().enumerate() {
            match word & OFFSET {
                0 if word & ALL_ONES != 0 => bits.load(chunk, Content::Ones),
                0 => bits.load(chunk, Content::Zeroes),
                at => {
                    self.file.read_to(FileOffset(at), &mut bytes).await?;
                    bits.load(chunk, Content::Bytes(&bytes));
                }
            }
        }
        self.bitmaps.list.borrow_mut()[number].bits = Some(bits);
        Ok(())
    }
}

fn index(value: u64) -> usize {
    usize::try_from(value).expect("bounded above")
}
