//! Names of ciphers, modes, IV generators and hashes: as options and `info` write them, and as a LUKS header does.
//!
//! A name that is not in these tables is refused as `Unsupported`, with the name and the choices in the message.

use crate::{Error, ErrorKind, Result};
use std::fmt;
use std::str::FromStr;

/// A block cipher with its key length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CipherAlg {
    /// AES with a key of 128 bits.
    Aes128,
    /// AES with a key of 192 bits.
    Aes192,
    /// AES with a key of 256 bits.
    Aes256,
    /// CAST5 with a key of 128 bits; its blocks are 8 bytes.
    Cast5128,
    /// Serpent with a key of 128 bits.
    Serpent128,
    /// Serpent with a key of 192 bits.
    Serpent192,
    /// Serpent with a key of 256 bits.
    Serpent256,
    /// Twofish with a key of 128 bits.
    Twofish128,
    /// Twofish with a key of 192 bits.
    Twofish192,
    /// Twofish with a key of 256 bits.
    Twofish256,
}

/// How blocks of a sector are chained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CipherMode {
    /// Each block for itself: equal blocks look equal. For images that exist.
    Ecb,
    /// Cipher block chaining.
    Cbc,
    /// XTS of IEEE 1619; takes two keys, blocks of 16 bytes.
    Xts,
    /// Counter mode. A sector that is written twice gives both contents away. For images that exist.
    Ctr,
}

/// How a sector's number becomes its IV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IvGen {
    /// The low 32 bits of the number.
    Plain,
    /// The number.
    Plain64,
    /// The number, encrypted with a hash of the key.
    Essiv,
}

/// A hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// MD5.
    Md5,
    /// SHA-1.
    Sha1,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
    /// RIPEMD-160.
    Ripemd160,
    /// SM3.
    Sm3,
}

macro_rules! named {
    ($type:ident, $what:literal, $($variant:ident = $name:literal),+) => {
        impl $type {
            /// Every one there is.
            pub const ALL: &[$type] = &[$($type::$variant),+];
        }

        impl FromStr for $type {
            type Err = Error;

            fn from_str(name: &str) -> Result<$type> {
                match name {
                    $($name => Ok($type::$variant),)+
                    _ => Err(unsupported($what, name, &[$($name),+])),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self {
                    $($type::$variant => $name,)+
                })
            }
        }
    };
}

named!(
    CipherAlg,
    "cipher",
    Aes128 = "aes-128",
    Aes192 = "aes-192",
    Aes256 = "aes-256",
    Cast5128 = "cast5-128",
    Serpent128 = "serpent-128",
    Serpent192 = "serpent-192",
    Serpent256 = "serpent-256",
    Twofish128 = "twofish-128",
    Twofish192 = "twofish-192",
    Twofish256 = "twofish-256"
);
named!(CipherMode, "cipher mode", Ecb = "ecb", Cbc = "cbc", Xts = "xts", Ctr = "ctr");
named!(IvGen, "IV generator", Plain = "plain", Plain64 = "plain64", Essiv = "essiv");
named!(
    Hash,
    "hash",
    Md5 = "md5",
    Sha1 = "sha1",
    Sha224 = "sha224",
    Sha256 = "sha256",
    Sha384 = "sha384",
    Sha512 = "sha512",
    Ripemd160 = "ripemd160",
    Sm3 = "sm3"
);

fn unsupported(what: &str, name: &str, known: &[&str]) -> Error {
    let known = known.join(", ");
    Error::new(ErrorKind::Unsupported, format!("{what} {name:?} is not one of {known}"))
}

impl CipherAlg {
    /// Bytes of one key.
    pub fn key_bytes(self) -> usize {
        match self {
            CipherAlg::Aes128
            | CipherAlg::Cast5128
            | CipherAlg::Serpent128
            | CipherAlg::Twofish128 => 16,
            CipherAlg::Aes192 | CipherAlg::Serpent192 | CipherAlg::Twofish192 => 24,
            CipherAlg::Aes256 | CipherAlg::Serpent256 | CipherAlg::Twofish256 => 32,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        if self == CipherAlg::Cast5128 { 8 } else { 16 }
    }

    /// The cipher's name without the key length, as a LUKS header has it.
    pub fn family(self) -> &'static str {
        match self {
            CipherAlg::Aes128 | CipherAlg::Aes192 | CipherAlg::Aes256 => "aes",
            CipherAlg::Cast5128 => "cast5",
            CipherAlg::Serpent128 | CipherAlg::Serpent192 | CipherAlg::Serpent256 => "serpent",
            CipherAlg::Twofish128 | CipherAlg::Twofish192 | CipherAlg::Twofish256 => "twofish",
        }
    }

    /// The cipher of this family with keys of `key_bytes`.
    pub fn with_key_bytes(family: &str, key_bytes: usize) -> Result<CipherAlg> {
        let fits = |alg: &CipherAlg| alg.family() == family && alg.key_bytes() == key_bytes;
        CipherAlg::ALL.iter().copied().find(fits).ok_or_else(|| {
            let what = format!("cipher {family:?} with a key of {key_bytes} bytes");
            Error::new(ErrorKind::Unsupported, format!("{what} is not supported"))
        })
    }
}

impl Hash {
    /// Bytes of a digest.
    pub fn digest_bytes(self) -> usize {
        match self {
            Hash::Md5 => 16,
            Hash::Sha1 | Hash::Ripemd160 => 20,
            Hash::Sha224 => 28,
            Hash::Sha256 | Hash::Sm3 => 32,
            Hash::Sha384 => 48,
            Hash::Sha512 => 64,
        }
    }
}
