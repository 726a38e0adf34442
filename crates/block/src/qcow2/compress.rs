//! Compressed clusters: read whole, and the one read last is kept, as readers come in sequence.
//!
//! Specification: QEMU `docs/interop/qcow2.rst`, "Compressed Clusters Descriptor", "compression_type". What lies behind the end of a stream in its
//! last sector belongs to others.

use super::Qcow2;
use super::entry::Target;
use super::header::Compression;
use crate::{DiskOffset, Error, ErrorKind, FileOffset, Result};
use std::io::Read;
use std::rc::Rc;

impl Qcow2 {
    /// The content of the compressed cluster at `disk`. Its slice is in RAM.
    pub(super) async fn inflate(&self, disk: DiskOffset) -> Result<Rc<[u8]>> {
        let number = disk.0 >> self.layout.cluster_bits;
        let Some((Target::Compressed { at, bytes }, _)) = self.target_of(number) else {
            let what = format!("{}: reading {:#x}: changed meanwhile", self.file.path(), disk.0);
            return Err(Error::new(ErrorKind::Io, what));
        };
        if let Some((place, data)) = &*self.inflated.borrow()
            && *place == at
        {
            return Ok(data.clone());
        }
        let mut raw = vec![0; usize::try_from(bytes).expect("at most two clusters")];
        self.file.read_to(FileOffset(at), &mut raw).await?;
        let cluster = usize::try_from(self.layout.cluster_bytes()).expect("at most 2 MiB");
        let compression = self.header.borrow().compression;
        let data = inflate(compression, &raw, cluster).ok_or_else(|| {
            let what = format!(
                "{}: the compressed cluster for {:#x}, at {at:#x}, is damaged",
                self.file.path(),
                disk.0
            );
            Error::new(ErrorKind::Corrupt, what)
        })?;
        let data: Rc<[u8]> = data.into();
        *self.inflated.borrow_mut() = Some((at, data.clone()));
        Ok(data)
    }
}

/// The first `len` bytes of what `raw` holds; `None` if it does not hold as many.
fn inflate(compression: Compression, raw: &[u8], len: usize) -> Option<Vec<u8>> {
    let mut data = vec![0; len];
    let read = match compression {
        Compression::Zlib => flate2::read::DeflateDecoder::new(raw).read_exact(&mut data),
        // One frame; further bytes are not its own.
        Compression::Zstd => {
            zstd::Decoder::new(raw).and_then(|decoder| decoder.single_frame().read_exact(&mut data))
        }
    };
    read.ok().map(|()| data)
}
