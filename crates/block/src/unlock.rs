//! Encrypted images: from a secret to the key, once, on the control thread.
//!
//! ```text
//!   secret + key slots of the LUKS header --PBKDF2--> key --> Encryption, shared by all I/O threads
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`, "Full disk encryption header pointer", "crypt_method".

use crate::chain::{Description, read_at};
use crate::crypt::{Luks, legacy_aes};
use crate::mapped::Encryption;
use crate::qcow2::header::CryptMethod;
use crate::{Error, ErrorKind, Image, Result};
use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;
use zeroize::Zeroizing;

/// A secret that opens encrypted images. It is not shown, and gone from memory with its last copy.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

impl Secret {
    /// These bytes.
    pub fn new(bytes: Vec<u8>) -> Secret {
        Secret(Arc::new(Zeroizing::new(bytes)))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Finds the key of an image that is encrypted.
pub(crate) fn unlock(image: &mut Image, described: &Description) -> Result<()> {
    let Some(header) = &described.qcow2 else { return Ok(()) };
    let doing = format!("opening {}", image.path().display());
    let named = |error: Error| Error::new(error.kind(), format!("{doing}: {error}"));
    if header.crypt_method == CryptMethod::None {
        return Ok(());
    }
    let Some(secret) = image.options().secret.clone() else {
        let what = format!("{doing}: it is encrypted, and no secret was given");
        return Err(Error::new(ErrorKind::BadRequest, what));
    };
    let encryption = match header.crypt_method {
        CryptMethod::Luks => {
            let cipher = unlock_luks(image, header, &secret).map_err(named)?;
            Encryption { cipher, by_place: true }
        }
        _ => Encryption { cipher: legacy_aes(secret.bytes()).map_err(named)?, by_place: false },
    };
    image.set_encryption(encryption);
    Ok(())
}

fn unlock_luks(
    image: &Image,
    header: &crate::qcow2::Header,
    secret: &Secret,
) -> Result<crate::crypt::Cipher> {
    let Some(area) = header.crypto else {
        return Err(Error::new(ErrorKind::Corrupt, "its encryption header is nowhere"));
    };
    let file = image.file_buffered()?;
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        let doing = || format!("reading the encryption header of {}", image.path().display());
        read_at(file.as_fd(), &mut bytes, area.at + at)
            .map_err(|error| Error::io(doing(), error.into()))
            .map(|_| bytes)
    };
    let luks = Luks::parse(&read(0, Luks::HEADER_BYTES)?, area.bytes)?;
    let mut material = Vec::new();
    for slot in luks.key_slots() {
        material.push((slot.index, read(slot.offset, slot.bytes)?));
    }
    luks.unlock(secret.bytes(), &material)
}
