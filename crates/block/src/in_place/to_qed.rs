//! qcow2 to QED: see [`super`].

use super::qcow2::{l2_cluster, refuse};
use super::survey::{Survey, survey};
use super::{Converted, NamePlace, check_room, commit, or_cut_back, place_name, write_clusters};
use crate::qcow2::entry::Layout;
use crate::qcow2::{self, BackingFile};
use crate::qed::Header;
use crate::{Error, ErrorKind, FileOffset, HostNode, Result, SECTOR};

/// Clusters of a table, in the order in which they are tried. QEMU does not open tables of one cluster, and makes them of four.
const TABLE_CLUSTERS: [u64; 3] = [4, 8, 16];
/// Largest block of direct I/O: the smallest cluster.
const ALIGN_MAX: u64 = 4096;

/// Makes the qcow2 image in `host`, which nobody may be using, a QED image. `progress` is told how many tables of how many are done, twice over.
///
/// # Errors
///
/// `Unsupported` or `Corrupt` with the reason if QED cannot express it or it is not sound, and nothing written. The host's: before the commit
/// point it is still the image that it was.
pub async fn qcow2_to_qed(
    host: &HostNode,
    mut progress: impl FnMut(u64, u64),
) -> Result<Converted> {
    let named = |error: Error| {
        Error::new(error.kind(), format!("converting {} to QED: {error}", host.path()))
    };
    let file_bytes = host.file_bytes()?;
    let (from, name) = Box::pin(read_header(host)).await.map_err(named)?;
    let survey = Box::pin(survey(host, &from, &mut progress)).await.map_err(named)?;
    let mut converter = Converter::new(host, &from, survey, file_bytes).map_err(named)?;
    let written = Box::pin(converter.write_tables(&mut progress)).await;
    let name = match written {
        Ok(()) => place_name(host, name, from.cluster_bytes(), Header::LEN as u64).await,
        Err(error) => Err(error),
    };
    let sector = name.and_then(|name| converter.sector(name));
    let sector = or_cut_back(host, file_bytes, sector).await?;
    commit(host, sector).await?;
    let metadata_bytes = converter.next - converter.l1_table;
    let now = host.file_bytes()?;
    Ok(Converted { metadata_bytes, file_bytes_before: file_bytes, file_bytes: now })
}

/// The header of an image that QED can express, and where its backing file's name is, with its length.
async fn read_header(host: &HostNode) -> Result<(qcow2::Header, Option<(u64, usize)>)> {
    if host.align() > ALIGN_MAX {
        let what = "direct I/O here needs blocks larger than 4 KiB: use --cache writeback";
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    let (header, start) = qcow2::read_header(host).await?;
    refuse(&header)?;
    let at = u64::from_be_bytes(*start[8..].first_chunk().expect("a sector"));
    let name = header.backing.as_ref().map(|backing| (at, backing.name.len()));
    Ok((header, name))
}

#[derive(Debug)]
struct Converter<'a> {
    host: &'a HostNode,
    from: &'a qcow2::Header,
    survey: Survey,
    header: Header,
    l1_table: u64,
    /// Where the next table goes.
    next: u64,
}

impl Converter<'_> {
    fn new<'a>(
        host: &'a HostNode,
        from: &'a qcow2::Header,
        survey: Survey,
        file_bytes: u64,
    ) -> Result<Converter<'a>> {
        let cluster = from.cluster_bytes();
        let tried =
            TABLE_CLUSTERS.map(|table| Header::create(from.disk_bytes, cluster, table, None));
        let mut refused = None;
        let header =
            tried.into_iter().find_map(|header| header.map_err(|e| refused = Some(e)).ok());
        let header = header.ok_or_else(|| {
            let why = refused.map_or(String::new(), |error| error.to_string());
            Error::new(ErrorKind::Unsupported, format!("QED cannot express it: {why}"))
        })?;
        let tables = (0..header.l1_entries()).filter(|t| is_mapped(&survey, &header, *t)).count();
        let metadata = (tables as u64 + 1).checked_mul(header.table_bytes());
        let end = metadata.and_then(|bytes| survey.end.checked_add(bytes));
        check_room(host, end, file_bytes)?;
        let l1_table = survey.end;
        let header = header.with_l1_table(l1_table);
        let next = l1_table + header.table_bytes();
        Ok(Converter { host, from, survey, header, l1_table, next })
    }

    /// Writes the L2 tables, each where the one before ends, and then the L1 table before them.
    async fn write_tables(&mut self, mut progress: impl FnMut(u64, u64)) -> Result<()> {
        let host = self.host;
        let (cluster, table_bytes) = (self.header.cluster_bytes(), self.header.table_bytes());
        let of = self.header.l1_entries();
        if !host.file().facts().is_block_device {
            // What is not written must read as zeroes, and belong to the file.
            let tables = (0..of).filter(|t| is_mapped(&self.survey, &self.header, *t)).count();
            host.truncate(self.next + tables as u64 * table_bytes).await?;
        }
        let mut l1 = Vec::new();
        for table in 0..of {
            progress(table, of);
            if !is_mapped(&self.survey, &self.header, table) {
                l1.extend([0; 8]);
                continue;
            }
            l1.extend(self.next.to_le_bytes());
            for part in 0..self.header.table_clusters() {
                let at = self.next + part * cluster;
                let number = table * self.header.table_clusters() + part;
                if self.survey.mapped.contains(number) {
                    self.write_part(number, at).await?;
                } else if host.file().facts().is_block_device {
                    host.write_zeroes(FileOffset(at), cluster, false).await?;
                }
            }
            self.next += table_bytes;
        }
        progress(of, of);
        let written = write_clusters(host, self.l1_table, &l1, cluster).await?;
        if host.file().facts().is_block_device && written < table_bytes {
            let rest = FileOffset(self.l1_table + written);
            host.write_zeroes(rest, table_bytes - written, false).await?;
        }
        Ok(())
    }

    /// Converts one qcow2 table: the cluster at `at` of a QED table.
    async fn write_part(&self, number: u64, at: u64) -> Result<()> {
        let cluster = self.header.cluster_bytes();
        let place = self.survey.l1[usize::try_from(number).expect("an L1 entry")];
        let mut buf = self.host.read_owned(FileOffset(place), cluster).await?;
        let (first, layout) = (number * (cluster / 8), Layout::new(self.from));
        for (n, raw) in (first..).zip(buf.as_mut_slice().as_chunks_mut::<8>().0) {
            let found = l2_cluster(layout, u64::from_be_bytes(*raw))?;
            let value = match found {
                _ if n >= self.header.image_clusters() => 0,
                found if found.is_zero => 1,
                found => found.at,
            };
            *raw = value.to_le_bytes();
        }
        self.host.write_owned(FileOffset(at), buf).await
    }

    /// The first sector of the QED image.
    fn sector(&self, name: Option<NamePlace>) -> Result<[u8; 512]> {
        let mut sector = [0; 512];
        let mut header = self.header.clone();
        if let Some(NamePlace { at, name }) = name {
            let len = u32::try_from(name.len()).expect("at most 1023 bytes");
            let format =
                self.from.backing.as_ref().and_then(|BackingFile { format, .. }| format.as_deref());
            header = header.with_backing(at, len, format == Some(b"raw"));
            if at < SECTOR {
                sector[Header::LEN..Header::LEN + name.len()].copy_from_slice(&name);
            }
        }
        sector[..Header::LEN].copy_from_slice(&header.encode());
        // What we would not open we do not write.
        Header::parse(sector.first_chunk().expect("as long as a header"), self.next)?;
        Ok(sector)
    }
}

/// Whether a QED table would map anything.
fn is_mapped(survey: &Survey, header: &Header, table: u64) -> bool {
    let first = table * header.table_clusters();
    survey.mapped.any(first..first + header.table_clusters())
}
