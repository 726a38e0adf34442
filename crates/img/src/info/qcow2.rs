//! What a qcow2 image alone has to say: QEMU's names for it, for machines and for people.

use crate::{Failure, Session, escape};
use block::crypt::{Luks, LuksInfo, SlotInfo};
use block::qcow2::header::{
    CORRUPT, Compression, CryptMethod, DATA_FILE_RAW, EXTERNAL_DATA, LAZY_REFCOUNTS,
};
use block::qcow2::{BitmapInfo, Header, bitmaps_in};
use block::{BlockNode, DiskOffset, Error, ErrorKind, Image};
use serde::Serialize;
use std::io::Write;

/// Its own fields. Those that a version 2 image cannot have are missing there.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Specific {
    compat: &'static str,
    compression_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    lazy_refcounts: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bitmaps: Vec<Bitmap>,
    refcount_bits: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    encrypt: Option<Encrypt>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_file_raw: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    corrupt: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    extended_l2: Option<bool>,
}

#[derive(Debug, Serialize)]
struct Bitmap {
    flags: Vec<&'static str>,
    name: String,
    granularity: u64,
}

#[derive(Debug, Serialize)]
#[serde(tag = "format", rename_all = "kebab-case")]
enum Encrypt {
    Aes,
    #[serde(rename_all = "kebab-case")]
    Luks(LuksSpecific),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct LuksSpecific {
    ivgen_alg: String,
    detached_header: bool,
    hash_alg: String,
    cipher_alg: String,
    uuid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ivgen_hash_alg: Option<String>,
    cipher_mode: String,
    slots: Vec<Slot>,
    payload_offset: u64,
    master_key_iters: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Slot {
    active: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    iters: Option<u32>,
    key_offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    stripes: Option<u32>,
}

impl Specific {
    /// Of the image with this header.
    pub fn new(image: &Image, header: &Header) -> Result<Specific, Failure> {
        let is_v3 = header.version >= 3;
        let has_data_file = header.has(EXTERNAL_DATA);
        let name = header.data_file.as_ref().filter(|_| has_data_file);
        Ok(Specific {
            compat: if is_v3 { "1.1" } else { "0.10" },
            compression_type: match header.compression {
                Compression::Zlib => "zlib",
                Compression::Zstd => "zstd",
            },
            lazy_refcounts: is_v3.then_some(header.compatible & LAZY_REFCOUNTS != 0),
            bitmaps: match header.bitmaps {
                Some(_) => bitmaps(image)?,
                None => Vec::new(),
            },
            refcount_bits: header.refcount_bits(),
            encrypt: match header.crypt_method {
                CryptMethod::None => None,
                CryptMethod::Aes => Some(Encrypt::Aes),
                CryptMethod::Luks => Some(Encrypt::Luks(luks(image, header)?)),
            },
            data_file: name.map(|name| String::from_utf8_lossy(name).into_owned()),
            data_file_raw: has_data_file.then_some(header.autoclear & DATA_FILE_RAW != 0),
            corrupt: is_v3.then(|| header.has(CORRUPT)),
            extended_l2: is_v3.then(|| header.has_subclusters()),
        })
    }

    /// As lines, each indented.
    pub fn print(&self, out: &mut dyn Write) -> Result<(), Failure> {
        writeln!(out, "    compat: {}", self.compat)?;
        writeln!(out, "    compression type: {}", self.compression_type)?;
        if let Some(lazy) = self.lazy_refcounts {
            writeln!(out, "    lazy refcounts: {lazy}")?;
        }
        if !self.bitmaps.is_empty() {
            writeln!(out, "    bitmaps:")?;
        }
        for (n, bitmap) in self.bitmaps.iter().enumerate() {
            writeln!(out, "        [{n}]:\n            flags:")?;
            for (n, flag) in bitmap.flags.iter().enumerate() {
                writeln!(out, "                [{n}]: {flag}")?;
            }
            writeln!(out, "            name: {}", escape(&bitmap.name))?;
            writeln!(out, "            granularity: {}", bitmap.granularity)?;
        }
        writeln!(out, "    refcount bits: {}", self.refcount_bits)?;
        match &self.encrypt {
            None => {}
            Some(Encrypt::Aes) => writeln!(out, "    encrypt:\n        format: aes")?,
            Some(Encrypt::Luks(luks)) => luks.print(out)?,
        }
        if let Some(name) = &self.data_file {
            writeln!(out, "    data file: {}", escape(name))?;
        }
        if let Some(raw) = self.data_file_raw {
            writeln!(out, "    data file raw: {raw}")?;
        }
        if let Some(corrupt) = self.corrupt {
            writeln!(out, "    corrupt: {corrupt}")?;
        }
        if let Some(extended) = self.extended_l2 {
            writeln!(out, "    extended l2: {extended}")?;
        }
        Ok(())
    }
}

impl LuksSpecific {
    fn print(&self, out: &mut dyn Write) -> Result<(), Failure> {
        writeln!(out, "    encrypt:")?;
        writeln!(out, "        ivgen alg: {}", self.ivgen_alg)?;
        writeln!(out, "        detached header: {}", self.detached_header)?;
        writeln!(out, "        hash alg: {}", self.hash_alg)?;
        writeln!(out, "        cipher alg: {}", self.cipher_alg)?;
        writeln!(out, "        uuid: {}", escape(&self.uuid))?;
        if let Some(hash) = &self.ivgen_hash_alg {
            writeln!(out, "        ivgen hash alg: {hash}")?;
        }
        writeln!(out, "        format: luks")?;
        writeln!(out, "        cipher mode: {}", self.cipher_mode)?;
        writeln!(out, "        slots:")?;
        for (n, slot) in self.slots.iter().enumerate() {
            writeln!(out, "            [{n}]:")?;
            writeln!(out, "                active: {}", slot.active)?;
            if let Some(iters) = slot.iters {
                writeln!(out, "                iters: {iters}")?;
            }
            writeln!(out, "                key offset: {}", slot.key_offset)?;
            if let Some(stripes) = slot.stripes {
                writeln!(out, "                stripes: {stripes}")?;
            }
        }
        writeln!(out, "        payload offset: {}", self.payload_offset)?;
        writeln!(out, "        master key iters: {}", self.master_key_iters)?;
        Ok(())
    }
}

impl From<&LuksInfo> for LuksSpecific {
    fn from(info: &LuksInfo) -> LuksSpecific {
        LuksSpecific {
            ivgen_alg: info.ivgen.to_string(),
            detached_header: false,
            hash_alg: info.hash.to_string(),
            cipher_alg: info.cipher.to_string(),
            uuid: info.uuid.clone(),
            ivgen_hash_alg: info.ivgen_hash.map(|hash| hash.to_string()),
            cipher_mode: info.mode.to_string(),
            slots: info.slots.iter().map(Slot::from).collect(),
            payload_offset: info.payload_offset,
            master_key_iters: info.master_key_iterations,
        }
    }
}

impl From<&SlotInfo> for Slot {
    fn from(slot: &SlotInfo) -> Slot {
        Slot {
            active: slot.active,
            iters: slot.active.then_some(slot.iterations),
            key_offset: slot.key_offset,
            stripes: slot.active.then_some(slot.stripes),
        }
    }
}

fn bitmaps(image: &Image) -> Result<Vec<Bitmap>, Failure> {
    let session = Session::new()?;
    let host = session.attach_file(image)?;
    let path = image.path().display().to_string();
    let found = session.run(async move {
        let named = |error: Error| Error::new(error.kind(), format!("opening {path}: {error}"));
        bitmaps_in(&host).await.map_err(named)
    });
    let flags = |is_in_use: bool, is_auto: bool| {
        [(is_in_use, "in-use"), (is_auto, "auto")]
            .into_iter()
            .filter_map(|(is_set, flag)| is_set.then_some(flag))
            .collect()
    };
    let bitmap = |info: BitmapInfo| Bitmap {
        flags: flags(info.is_inconsistent, info.is_enabled),
        name: String::from_utf8_lossy(&info.name).into_owned(),
        granularity: info.granularity,
    };
    Ok(found?.into_iter().map(bitmap).collect())
}

/// What the encryption header says. No secret is needed for that.
fn luks(image: &Image, header: &Header) -> Result<LuksSpecific, Failure> {
    let doing = |error: Error| {
        let what = format!("opening {}: {error}", image.path().display());
        Failure::from(Error::new(error.kind(), what))
    };
    let area = header
        .crypto
        .ok_or_else(|| doing(Error::new(ErrorKind::Corrupt, "its encryption header is nowhere")))?;
    let session = Session::new()?;
    // The file as it is, not the disk.
    let file = BlockNode::Raw(session.attach_file(image)?);
    let start = session.run(async move {
        let mut start = vec![0; Luks::HEADER_BYTES];
        file.read_to(DiskOffset(area.at), &mut start).await?;
        Ok(start)
    })?;
    let luks = Luks::parse(&start, area.bytes).map_err(doing)?;
    Ok(luks.describe().into())
}
