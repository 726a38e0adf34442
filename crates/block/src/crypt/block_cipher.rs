//! A block cipher with its key, as one type for all of them.
//!
//! The modes hand over many blocks at a time: the AES instructions reach their speed only with eight or more blocks under way, and the choice of
//! the cipher then costs one branch for all of them.

use super::CipherAlg;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use std::fmt;

/// An expanded key. The ciphers wipe it when they go (their feature `zeroize`).
#[derive(Clone)]
pub enum BlockCipher {
    Aes128(Box<aes::Aes128>),
    Aes192(Box<aes::Aes192>),
    Aes256(Box<aes::Aes256>),
    Cast5(Box<cast5::Cast5>),
    Serpent(Box<serpent::Serpent>),
    Twofish(Box<twofish::Twofish>),
}

impl BlockCipher {
    /// Expands a key, if it has the right length.
    pub fn new(alg: CipherAlg, key: &[u8]) -> Option<BlockCipher> {
        if key.len() != alg.key_bytes() {
            return None;
        }
        Some(match alg {
            CipherAlg::Aes128 => BlockCipher::Aes128(boxed(key)?),
            CipherAlg::Aes192 => BlockCipher::Aes192(boxed(key)?),
            CipherAlg::Aes256 => BlockCipher::Aes256(boxed(key)?),
            CipherAlg::Cast5128 => BlockCipher::Cast5(boxed(key)?),
            CipherAlg::Serpent128 | CipherAlg::Serpent192 | CipherAlg::Serpent256 => {
                BlockCipher::Serpent(boxed(key)?)
            }
            CipherAlg::Twofish128 | CipherAlg::Twofish192 | CipherAlg::Twofish256 => {
                BlockCipher::Twofish(boxed(key)?)
            }
        })
    }

    /// Encrypts each block of `data`, which is whole blocks, for itself.
    pub fn encrypt_blocks(&self, data: &mut [u8]) {
        match self {
            BlockCipher::Aes128(cipher) => encrypt(&**cipher, data),
            BlockCipher::Aes192(cipher) => encrypt(&**cipher, data),
            BlockCipher::Aes256(cipher) => encrypt(&**cipher, data),
            BlockCipher::Cast5(cipher) => encrypt(&**cipher, data),
            BlockCipher::Serpent(cipher) => encrypt(&**cipher, data),
            BlockCipher::Twofish(cipher) => encrypt(&**cipher, data),
        }
    }

    /// Decrypts each block of `data`, which is whole blocks, for itself.
    pub fn decrypt_blocks(&self, data: &mut [u8]) {
        match self {
            BlockCipher::Aes128(cipher) => decrypt(&**cipher, data),
            BlockCipher::Aes192(cipher) => decrypt(&**cipher, data),
            BlockCipher::Aes256(cipher) => decrypt(&**cipher, data),
            BlockCipher::Cast5(cipher) => decrypt(&**cipher, data),
            BlockCipher::Serpent(cipher) => decrypt(&**cipher, data),
            BlockCipher::Twofish(cipher) => decrypt(&**cipher, data),
        }
    }
}

impl fmt::Debug for BlockCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockCipher")
    }
}

fn boxed<C: KeyInit>(key: &[u8]) -> Option<Box<C>> {
    C::new_from_slice(key).ok().map(Box::new)
}

fn encrypt<C: BlockCipherEncrypt>(cipher: &C, data: &mut [u8]) {
    let (blocks, rest) = Array::slice_as_chunks_mut(data);
    assert!(rest.is_empty(), "data to encrypt is whole blocks");
    cipher.encrypt_blocks(blocks);
}

fn decrypt<C: BlockCipherDecrypt>(cipher: &C, data: &mut [u8]) {
    let (blocks, rest) = Array::slice_as_chunks_mut(data);
    assert!(rest.is_empty(), "data to decrypt is whole blocks");
    cipher.decrypt_blocks(blocks);
}
