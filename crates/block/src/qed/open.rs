//! Opening an image: read, checked, and mended where a crash has left something behind.

use super::header::Header;
use super::scan::{Scan, Scanner};
use super::tables::Tables;
use super::{Qed, header};
use crate::commits::Commits;
use crate::loads::Loads;
use crate::room::Room;
use crate::tend::Tending;
use crate::{Error, ErrorKind, FileOffset, HostNode, NodeOptions, Result};
use iothread::RangeLocks;
use std::cell::RefCell;
use std::rc::Rc;

/// Bytes read for the header: the smallest cluster, which the file has at least.
const START_BYTES: u64 = 4096;

impl Qed {
    /// Opens the image in `file`. For writing, all its tables are read, an image marked NEED_CHECK is mended, and leaked clusters are used again.
    ///
    /// # Errors
    ///
    /// `Corrupt` or `Unsupported` with the reason, and nothing written; the host's.
    pub(crate) async fn open(file: Rc<HostNode>, options: NodeOptions) -> Result<Rc<Qed>> {
        let named =
            |error: Error| Error::new(error.kind(), format!("opening {}: {error}", file.path()));
        let unsupported = |what: &str| named(Error::new(ErrorKind::Unsupported, what));
        let writable = !options.read_only;
        if writable && file.align() > START_BYTES {
            let what = "direct I/O here needs blocks larger than 4 KiB: use --cache writeback";
            return Err(unsupported(what));
        }
        let file_bytes = file.file_bytes()?;
        let start_bytes = START_BYTES.max(file.align());
        let start = file.read_owned(FileOffset(0), start_bytes).await?.as_slice().to_vec();
        if file_bytes < Header::LEN as u64 {
            let what = "QED header: the file is shorter than that";
            return Err(named(Error::new(ErrorKind::Corrupt, what)));
        }
        let raw = start.first_chunk().expect("as long as a header");
        let header = Header::parse(raw, file_bytes).map_err(named)?;
        let mut tables = Tables::new(&header, options.table_cache_bytes);
        let scan = if writable {
            scan(&file, &header, file_bytes, &mut tables).await?
        } else {
            Scan::default()
        };
        let l1 =
            if writable { scan.l1.clone() } else { read_l1(&file, &header, file_bytes).await? };
        let end = if writable { scan.end(&header) } else { file_bytes };
        tables.open(l1, end);
        let room =
            Room::new(file.clone(), header.cluster_bits(), header::OFFSET_MAX, end, file_bytes);
        if writable {
            let mut space = room.space.borrow_mut();
            scan.leaks(&header).into_iter().for_each(|run| space.put_released(run));
        }
        let mended =
            writable && (header.needs_check() || header.autoclear != 0 || scan.beyond_file > 0);
        let qed = Qed {
            context: file.context().clone(),
            file,
            options,
            header: RefCell::new(header),
            start: RefCell::new(start),
            tables: RefCell::new(tables),
            room,
            pins: Rc::default(),
            loads: Loads::default(),
            commits: Commits::default(),
            exclusive: RangeLocks::default(),
            tending: Tending::default(),
        };
        if mended {
            qed.mend(&scan).await?;
        }
        Ok(Rc::new(qed))
    }

    /// Drops what refers beyond the end of the file, and marks the image as clean.
    async fn mend(&self, scan: &Scan) -> Result<()> {
        let header = self.header.borrow().clone();
        let path = self.file.path();
        if scan.beyond_file > 0 {
            let n = scan.beyond_file;
            tracing::warn!("{path}: {n} table entries refer beyond the end of the file: dropped");
            self.write_header(header.marked(true)).await?;
            self.sync().await?;
            let file_bytes = self.file.file_bytes()?;
            let scanner =
                Scanner { file: &self.file, header: &header, file_bytes, drop_beyond: true };
            scanner.scan(None, |_, _| ()).await?;
        } else if header.needs_check() {
            let leaks: u64 = scan.leaks(&header).iter().map(|run| run.clusters).sum();
            tracing::info!(
                "{path}: it was not closed; checked, {leaks} leaked clusters to be used again"
            );
        }
        self.sync().await?;
        let header = self.header.borrow().marked(false);
        self.write_header(header).await?;
        self.sync().await
    }
}

async fn scan(
    file: &HostNode,
    header: &Header,
    file_bytes: u64,
    tables: &mut Tables,
) -> Result<Scan> {
    let scanner = Scanner { file, header, file_bytes, drop_beyond: false };
    let start_ns = file.context().now_ns();
    let mut told_ns = start_ns;
    let progress = |done: usize, of: usize| {
        let now_ns = file.context().now_ns();
        if now_ns - told_ns > 1_000_000_000 {
            told_ns = now_ns;
            tracing::info!("{}: reading its tables: {done} of {of}", file.path());
        }
    };
    let scan = scanner.scan(Some(tables), progress).await?;
    scan.refuse_corrupt(file.path())?;
    if scan.beyond_file > 0 {
        // Not to be found as they are.
        tables.slices.forget();
    }
    Ok(scan)
}

/// The L1 entries that the disk needs, for reading only: one that cannot be right fails the requests that need it.
async fn read_l1(file: &HostNode, header: &Header, file_bytes: u64) -> Result<Vec<u64>> {
    let entries = header.l1_entries();
    let bytes = (entries * 8).next_multiple_of(START_BYTES.max(file.align()));
    let mut l1 = Vec::new();
    let mut at = 0;
    while at < bytes {
        let take = (bytes - at).min(1 << 20);
        let buf = file.read_owned(FileOffset(header.l1_table() + at), take).await?;
        l1.extend(buf.as_slice().as_chunks::<8>().0.iter().map(|raw| u64::from_le_bytes(*raw)));
        at += take;
    }
    l1.truncate(usize::try_from(entries).expect("at most 2^21 entries"));
    for entry in &mut l1 {
        let end = entry.checked_add(header.table_bytes());
        let good = entry.is_multiple_of(header.cluster_bytes())
            && *entry >= header.first_cluster()
            && end.is_some_and(|end| end <= file_bytes);
        if *entry != 0 && !good {
            *entry = super::tables::BAD_TABLE;
        }
    }
    Ok(l1)
}
