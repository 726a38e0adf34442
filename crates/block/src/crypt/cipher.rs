//! Sectors in, sectors out: block cipher modes and IV generators over runs of 512-byte sectors.
//!
//! Every mode but CBC's encryption is a *mask* made from the sector numbers (or the ciphertext), and block operations without order:
//!
//! ```text
//!   XTS          data = mask ^ E(mask ^ data)     mask: tweak * alpha^block, per sector
//!   CBC decrypt  data = mask ^ D(data)            mask: the IV, then the ciphertext one block further
//!   CTR          data = mask ^ data               mask: E(IV + block)
//! ```
//!
//! So a group of sectors is done with one call of the cipher each way. CBC's encryption is a chain within a sector, but not across sectors: the
//! chains of a group advance side by side, a block each.
//!
//! Specifications: IEEE 1619-2007 (XTS), NIST SP 800-38A (the others), dm-crypt for the IVs; as QEMU's `crypto/ivgen*.c` lays the numbers out.

use super::block_cipher::BlockCipher;
use super::{CipherAlg, CipherMode, Hash, IvGen, SECTOR_BYTES, kdf};
use crate::{Error, ErrorKind, Result};
use std::fmt;

/// Sectors that are done at once: mask and data together stay in the first-level cache.
const GROUP_SECTORS: usize = 8;
const GROUP_BYTES: usize = GROUP_SECTORS * SECTOR_BYTES;
const BLOCK_BYTES_MAX: usize = 16;

/// How sectors are encrypted: a combination that is known to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suite {
    alg: CipherAlg,
    mode: CipherMode,
    ivgen: IvGen,
    ivgen_hash: Option<Hash>,
    /// The cipher whose key is the digest of the key, for ESSIV.
    essiv_alg: Option<CipherAlg>,
}

impl Suite {
    /// Checks that the parts fit together.
    ///
    /// # Errors
    ///
    /// `Unsupported` if XTS is to run over blocks that are not 16 bytes, or ESSIV with a hash whose digest is no key of the cipher.
    pub fn new(
        alg: CipherAlg,
        mode: CipherMode,
        ivgen: IvGen,
        ivgen_hash: Option<Hash>,
    ) -> Result<Suite> {
        let unsupported = |what: String| Err(Error::new(ErrorKind::Unsupported, what));
        if mode == CipherMode::Xts && alg.block_bytes() != 16 {
            return unsupported(format!("cipher {alg} has no mode xts: its blocks are too short"));
        }
        let essiv_alg = match (ivgen, ivgen_hash) {
            (IvGen::Essiv, None) => {
                return unsupported("IV generator essiv is named without a hash".into());
            }
            // The digest's length chooses the key length, as in dm-crypt: aes-128 with essiv:sha256 takes aes-256 for its IVs.
            (IvGen::Essiv, Some(hash)) => {
                match CipherAlg::with_key_bytes(alg.family(), hash.digest_bytes()) {
                    Ok(essiv_alg) => Some(essiv_alg),
                    Err(_) => {
                        let what = format!("IV generator essiv:{hash} with cipher {alg}");
                        return unsupported(format!("{what}: the digest is no key of it"));
                    }
                }
            }
            _ => None,
        };
        Ok(Suite { alg, mode, ivgen, ivgen_hash, essiv_alg })
    }

    /// The block cipher.
    pub fn alg(&self) -> CipherAlg {
        self.alg
    }

    /// The mode.
    pub fn mode(&self) -> CipherMode {
        self.mode
    }

    /// The IV generator.
    pub fn ivgen(&self) -> IvGen {
        self.ivgen
    }

    /// The hash that was named with the IV generator; only ESSIV has a use for it.
    pub fn ivgen_hash(&self) -> Option<Hash> {
        self.ivgen_hash
    }

    /// Bytes of a whole key: XTS takes two.
    pub fn key_bytes(&self) -> usize {
        match self.mode {
            CipherMode::Xts => 2 * self.alg.key_bytes(),
            _ => self.alg.key_bytes(),
        }
    }
}

/// Encrypts and decrypts a disk's sectors.
#[derive(Clone)]
pub struct Cipher {
    suite: Suite,
    data: BlockCipher,
    /// XTS: what makes a sector's tweak of its IV.
    tweak: Option<BlockCipher>,
    /// ESSIV: what makes a sector's IV of its number.
    essiv: Option<BlockCipher>,
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cipher").field("suite", &self.suite).finish_non_exhaustive()
    }
}

impl Cipher {
    /// A cipher with a key of [`Suite::key_bytes`].
    pub fn new(suite: Suite, key: &[u8]) -> Result<Cipher> {
        let wrong_length = || {
            let doing = format!("setting up cipher {} with a key of wrong length", suite.alg);
            Error::new(ErrorKind::BadRequest, doing)
        };
        if key.len() != suite.key_bytes() {
            return Err(wrong_length());
        }
        let (data_key, tweak_key) = key.split_at(suite.alg.key_bytes());
        let data = BlockCipher::new(suite.alg, data_key).ok_or_else(wrong_length)?;
        let tweak = BlockCipher::new(suite.alg, tweak_key);
        let essiv = match (suite.essiv_alg, suite.ivgen_hash) {
            (Some(alg), Some(hash)) => {
                let digest = kdf::digest(hash, &[key]);
                Some(BlockCipher::new(alg, &digest).ok_or_else(wrong_length)?)
            }
            _ => None,
        };
        Ok(Cipher { suite, data, tweak, essiv })
    }

    /// How sectors are encrypted.
    pub fn suite(&self) -> &Suite {
        &self.suite
    }

    /// Decrypts `data`, which is whole sectors; `first_sector` is the number of the first.
    ///
    /// # Panics
    ///
    /// If `data` is not whole sectors.
    pub fn decrypt(&self, first_sector: u64, data: &mut [u8]) {
        self.each_group(first_sector, data, |sector, group, mask| match self.suite.mode {
            CipherMode::Ecb => self.data.decrypt_blocks(group),
            CipherMode::Ctr => {
                self.counters(sector, mask);
                xor(group, mask);
            }
            CipherMode::Xts => {
                self.tweaks(sector, mask);
                xor(group, mask);
                self.data.decrypt_blocks(group);
                xor(group, mask);
            }
            CipherMode::Cbc => {
                self.predecessors(sector, group, mask);
                self.data.decrypt_blocks(group);
                xor(group, mask);
            }
        });
    }

    /// Encrypts `data`, which is whole sectors; `first_sector` is the number of the first.
    ///
    /// # Panics
    ///
    /// If `data` is not whole sectors: what is left over would reach the disk in the clear.
    pub fn encrypt(&self, first_sector: u64, data: &mut [u8]) {
        self.each_group(first_sector, data, |sector, group, mask| match self.suite.mode {
            CipherMode::Ecb => self.data.encrypt_blocks(group),
            CipherMode::Ctr => {
                self.counters(sector, mask);
                xor(group, mask);
            }
            CipherMode::Xts => {
                self.tweaks(sector, mask);
                xor(group, mask);
                self.data.encrypt_blocks(group);
                xor(group, mask);
            }
            CipherMode::Cbc => self.chain(sector, group),
        });
    }

    /// Calls `work` for each group of sectors, with its first sector's number and as much of a buffer for a mask.
    fn each_group(
        &self,
        first_sector: u64,
        data: &mut [u8],
        work: impl Fn(u64, &mut [u8], &mut [u8]),
    ) {
        assert!(data.len().is_multiple_of(SECTOR_BYTES), "data to encrypt is whole sectors");
        let mut mask = [0; GROUP_BYTES];
        let mut sector = first_sector;
        for group in data.chunks_mut(GROUP_BYTES) {
            let mask = &mut mask[..group.len()];
            work(sector, group, mask);
            sector = sector.wrapping_add((group.len() / SECTOR_BYTES) as u64);
        }
    }

    /// The IVs of `sectors` sectors from `first` on, one block each, in `buffer`, which is zeros.
    fn ivs<'a>(&self, first: u64, sectors: usize, buffer: &'a mut IvBuffer) -> &'a mut [u8] {
        let block_bytes = self.suite.alg.block_bytes();
        let ivs = &mut buffer[..sectors * block_bytes];
        for (iv, at) in ivs.chunks_exact_mut(block_bytes).zip(0..) {
            let sector = match self.suite.ivgen {
                IvGen::Plain => first.wrapping_add(at) & u64::from(u32::MAX),
                IvGen::Plain64 | IvGen::Essiv => first.wrapping_add(at),
            };
            iv[..8].copy_from_slice(&sector.to_le_bytes());
        }
        if let Some(essiv) = &self.essiv {
            essiv.encrypt_blocks(ivs);
        }
        ivs
    }

    /// XTS: the tweak of each block of the group.
    fn tweaks(&self, first: u64, mask: &mut [u8]) {
        let mut buffer = [0; IV_BUFFER_BYTES];
        let ivs = self.ivs(first, mask.len() / SECTOR_BYTES, &mut buffer);
        self.tweak.as_ref().expect("a cipher in XTS mode has two keys").encrypt_blocks(ivs);
        for (iv, sector) in ivs.as_chunks::<16>().0.iter().zip(mask.chunks_exact_mut(SECTOR_BYTES))
        {
            let mut tweak = u128::from_le_bytes(*iv);
            for block in sector.as_chunks_mut::<16>().0 {
                *block = tweak.to_le_bytes();
                // Times alpha in GF(2^128): what falls out at the top comes back as x^7 + x^2 + x + 1. Without a branch on a secret bit.
                tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
            }
        }
    }

    /// CTR: the encrypted counter of each block of the group. The IV is the first; they count as big-endian numbers.
    fn counters(&self, first: u64, mask: &mut [u8]) {
        let block_bytes = self.suite.alg.block_bytes();
        let mut buffer = [0; IV_BUFFER_BYTES];
        let ivs = self.ivs(first, mask.len() / SECTOR_BYTES, &mut buffer);
        let sectors = mask.chunks_exact_mut(SECTOR_BYTES);
        for (counter, sector) in ivs.chunks_exact_mut(block_bytes).zip(sectors) {
            for block in sector.chunks_exact_mut(block_bytes) {
                block.copy_from_slice(counter);
                increment(counter);
            }
        }
        self.data.encrypt_blocks(mask);
    }

    /// CBC: what was encrypted before each block of the group: the IV, then the sector's own ciphertext.
    fn predecessors(&self, first: u64, group: &[u8], mask: &mut [u8]) {
        let block_bytes = self.suite.alg.block_bytes();
        let mut buffer = [0; IV_BUFFER_BYTES];
        let ivs = self.ivs(first, group.len() / SECTOR_BYTES, &mut buffer);
        let sectors = mask.chunks_exact_mut(SECTOR_BYTES).zip(group.chunks_exact(SECTOR_BYTES));
        for (iv, (before, sector)) in ivs.chunks_exact(block_bytes).zip(sectors) {
            before[..block_bytes].copy_from_slice(iv);
            before[block_bytes..].copy_from_slice(&sector[..SECTOR_BYTES - block_bytes]);
        }
    }

    /// CBC's encryption: the sectors' chains side by side, as the cipher is several times faster with several blocks.
    fn chain(&self, first: u64, group: &mut [u8]) {
        let block_bytes = self.suite.alg.block_bytes();
        let mut buffer = [0; IV_BUFFER_BYTES];
        let last = self.ivs(first, group.len() / SECTOR_BYTES, &mut buffer);
        for at in (0..SECTOR_BYTES).step_by(block_bytes) {
            let sectors = group.chunks_exact(SECTOR_BYTES);
            for (last, sector) in last.chunks_exact_mut(block_bytes).zip(sectors) {
                xor(last, &sector[at..at + block_bytes]);
            }
            self.data.encrypt_blocks(last);
            let sectors = group.chunks_exact_mut(SECTOR_BYTES);
            for (last, sector) in last.chunks_exact(block_bytes).zip(sectors) {
                sector[at..at + block_bytes].copy_from_slice(last);
            }
        }
    }
}

const IV_BUFFER_BYTES: usize = GROUP_SECTORS * BLOCK_BYTES_MAX;
type IvBuffer = [u8; IV_BUFFER_BYTES];

fn xor(data: &mut [u8], mask: &[u8]) {
    for (byte, mask) in data.iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

/// Adds one to a big-endian number of any length, which wraps.
fn increment(counter: &mut [u8]) {
    for byte in counter.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            break;
        }
    }
}
