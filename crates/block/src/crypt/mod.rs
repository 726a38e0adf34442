//! Disk encryption of qcow2 images and LUKS files: LUKS version 1, and qcow2's first own method.
//!
//! ```text
//!   secret --PBKDF2--> slot key --decrypts--> key material of one slot --merge stripes--> master key --> Cipher
//!                                                                                             |
//!                                          digest in the header  <--PBKDF2-- is it the right one?
//! ```
//!
//! [`Luks`] is the checked header, [`create()`] makes a new one, and what both end in is a [`Cipher`]: the only part the data path sees. It works on
//! sectors of 512 bytes whose numbers enter the encryption, and *which* number is the caller's business:
//!
//! | image                        | sector numbers count                                       |
//! |------------------------------|------------------------------------------------------------|
//! | qcow2, crypt_method 2 (LUKS) | from the start of the host file: the host cluster's offset |
//! | qcow2, crypt_method 1 (AES)  | from the start of the guest disk                           |
//! | a LUKS file                  | from the start of the payload                              |
//!
//! Nothing here does I/O or asks the time. Opening and making a header are slow on purpose (seconds of PBKDF2): a matter of the control thread,
//! never of an I/O thread.
//!
//! Invariants:
//!
//! - a [`Cipher`] exists only for a combination of cipher, mode, IV generator and hash that is implemented whole;
//! - key material is wiped from memory when its owner goes, and no `Debug` shows it;
//! - a header can neither name bytes outside its area nor ask for more than [`ROUNDS_MAX`] rounds of a hash.
//!
//! Specifications: "LUKS1 On-Disk Format Specification" 1.2.3; QEMU `docs/interop/qcow2.rst`, "Full disk encryption header pointer" and
//! "crypt_method"; the IV generators are those of Linux's dm-crypt.

mod block_cipher;
mod cipher;
mod create;
mod kdf;
mod luks;
mod names;

pub use cipher::{Cipher, Suite};
pub use create::{Iterations, LuksOptions, NewSecret, add_secret, create, remove_slot};
pub use luks::{KeySlot, Luks, LuksInfo, ROUNDS_MAX, SlotInfo};
pub use names::{CipherAlg, CipherMode, Hash, IvGen};

use crate::{Error, Result, SECTOR};
use std::io;
use zeroize::Zeroizing;

/// A sector, as an index counts it.
const SECTOR_BYTES: usize = 512;
const _: () = assert!(SECTOR_BYTES as u64 == SECTOR);

/// The cipher of a qcow2 image with crypt_method 1: AES-128-CBC with the secret itself as the key, cut or filled with zeros to 16 bytes.
///
/// Weak by today's measure (no salt, no key derivation, no change of the secret): for images that exist.
pub fn legacy_aes(secret: &[u8]) -> Result<Cipher> {
    let mut key = Zeroizing::new([0; 16]);
    let used_bytes = secret.len().min(key.len());
    key[..used_bytes].copy_from_slice(&secret[..used_bytes]);
    let suite = Suite::new(CipherAlg::Aes128, CipherMode::Cbc, IvGen::Plain64, None)?;
    Cipher::new(suite, &*key)
}

/// Fills `bytes` from the kernel's generator: the source of randomness to give to [`create()`] outside of a simulation.
pub fn os_random(bytes: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        match rustix::rand::getrandom(&mut bytes[filled..], flags) {
            Ok(count) => filled += count,
            // Only before the first byte: the kernel's generator is still being seeded.
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                return Err(Error::io("getting random bytes for a key", io::Error::from(errno)));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
