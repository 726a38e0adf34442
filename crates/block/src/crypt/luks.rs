//! The LUKS version 1 header: bytes in, checked values out, and the master key for who knows a secret.
//!
//! ```text
//! byte 0        6         8            40           72         104        108       112      132      164       168    208
//!      +--------+---------+------------+------------+----------+----------+---------+--------+--------+---------+------+
//!      |"LUKS"  | version | cipher     | mode-ivgen | hash     | payload  | key     | digest | salt   | digest  | uuid |
//!      | BA BE  |         | name       | [:hash]    | name     | sectors  | bytes   |        |        | iterat. |      |
//!      +--------+---------+------------+------------+----------+----------+---------+--------+--------+---------+------+
//! byte 208: eight key slots of 48 bytes
//!      +----------------+------------+------+--------------+---------+
//!      | AC71F3 or DEAD | iterations | salt | material at, | stripes |
//!      | (used or not)  |            | (32) | sectors      |         |
//!      +----------------+------------+------+--------------+---------+
//! ```
//!
//! All numbers are big-endian, all names end in a NUL byte. The header lies at the start of an area: the file for a LUKS file, the clusters that the
//! header extension names for qcow2. All offsets count from the start of that area. Specification: "LUKS1 On-Disk Format Specification" 1.2.3, figure 1.
//!
//! A [`Luks`] exists only if every check of [`Luks::parse`] passed:
//!
//! - cipher, mode, IV generator and hash are known and fit together, and the key has the length that they take;
//! - the key material of each active slot lies inside the area, after the header, before the payload, and in nobody else's;
//! - trying all the slots costs at most [`ROUNDS_MAX`] rounds of the hash.

use super::{Cipher, CipherAlg, CipherMode, Hash, IvGen, SECTOR_BYTES, Suite, kdf};
use crate::{Error, ErrorKind, Result, SECTOR};
use zeroize::{Zeroize, Zeroizing};

/// Largest number of hash rounds that trying one secret on all the slots of a header may take.
///
/// Honest images take a few seconds per slot on the machine that made them. With three million rounds of SHA-256 a second this bound is reached after
/// three minutes: eight slots of ten seconds each (on a machine twice as fast) stay below it, and a hostile image cannot keep us for longer.
pub const ROUNDS_MAX: u64 = 500_000_000;

pub(super) const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
pub(super) const VERSION: u16 = 1;
pub(super) const SLOTS: usize = 8;
/// Stripes per key: the one number that LUKS version 1 has ever been written with.
pub(super) const STRIPES: u32 = 4000;
pub(super) const SLOT_ACTIVE: u32 = 0x00ac_71f3;
pub(super) const SLOT_INACTIVE: u32 = 0x0000_dead;
pub(super) const DIGEST_BYTES: usize = 20;
pub(super) const SALT_BYTES: usize = 32;

/// Where the fields lie.
pub(super) mod at {
    pub const VERSION: usize = 6;
    pub const CIPHER: usize = 8;
    pub const MODE: usize = 40;
    pub const HASH: usize = 72;
    pub const PAYLOAD: usize = 104;
    pub const KEY_BYTES: usize = 108;
    pub const DIGEST: usize = 112;
    pub const SALT: usize = 132;
    pub const ITERATIONS: usize = 164;
    pub const UUID: usize = 168;
    pub const SLOTS: usize = 208;
    pub const NAME_BYTES: usize = 32;
    pub const UUID_BYTES: usize = 40;
    pub const SLOT_BYTES: usize = 48;
    pub const SLOT_ITERATIONS: usize = 4;
    pub const SLOT_SALT: usize = 8;
    pub const SLOT_MATERIAL: usize = 40;
    pub const SLOT_STRIPES: usize = 44;
}

/// A checked LUKS1 header.
#[derive(Clone, Debug)]
pub struct Luks {
    suite: Suite,
    info: LuksInfo,
    digest: [u8; DIGEST_BYTES],
    salt: [u8; SALT_BYTES],
    slot_salts: [[u8; SALT_BYTES]; SLOTS],
}

/// What a header says, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LuksInfo {
    /// Block cipher with its key length.
    pub cipher: CipherAlg,
    /// Its mode.
    pub mode: CipherMode,
    /// IV generator.
    pub ivgen: IvGen,
    /// The IV generator's hash, if one is named.
    pub ivgen_hash: Option<Hash>,
    /// Hash for PBKDF2 and the stripes.
    pub hash: Hash,
    /// The volume's UUID: printable ASCII, anything else escaped.
    pub uuid: String,
    /// Where the payload starts, in bytes from the header. Of no meaning in qcow2.
    pub payload_offset: u64,
    /// PBKDF2 iterations from the master key to its digest.
    pub master_key_iterations: u32,
    /// The key slots, eight of them.
    pub slots: Vec<SlotInfo>,
}

/// What a header says about a key slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotInfo {
    /// Whether a secret opens it.
    pub active: bool,
    /// PBKDF2 iterations from the secret to the slot's key.
    pub iterations: u32,
    /// Where the key material lies, in bytes from the header.
    pub key_offset: u64,
    /// Pieces that the key is split into.
    pub stripes: u32,
}

/// Where the key material of an active slot lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySlot {
    /// The slot's index: 0 to 7.
    pub index: usize,
    /// First byte, from the start of the area.
    pub offset: u64,
    /// Whole sectors.
    pub bytes: usize,
}

impl Luks {
    /// Bytes of header that [`Luks::parse`] reads.
    pub const HEADER_BYTES: usize = 592;

    /// Whether these are the first bytes of a LUKS header, of whatever version.
    pub fn probe(header: &[u8]) -> bool {
        header.starts_with(&MAGIC)
    }

    /// Checks the header of an area of `area_bytes` bytes. Bytes after the header are not looked at.
    ///
    /// # Errors
    ///
    /// `Corrupt` if a field contradicts the format, `Unsupported` if we know no such cipher, mode, hash or version, or if it would take too long.
    pub fn parse(header: &[u8], area_bytes: u64) -> Result<Luks> {
        let header: &[u8; Luks::HEADER_BYTES] =
            header.first_chunk().ok_or_else(|| corrupt("it is cut short"))?;
        if !Luks::probe(header) {
            return Err(corrupt("it does not begin with the magic number of LUKS"));
        }
        let version = be16(header, at::VERSION);
        if version != VERSION {
            return Err(unsupported(format!("version {version} is not supported")));
        }
        let suite = parse_suite(header)?;
        let hash: Hash = name(header, at::HASH)?.parse()?;
        let mut slot_salts = [[0; SALT_BYTES]; SLOTS];
        let mut slots = Vec::with_capacity(SLOTS);
        for (index, salt) in slot_salts.iter_mut().enumerate() {
            let from = at::SLOTS + index * at::SLOT_BYTES;
            slots.push(parse_slot(header, from, index)?);
            *salt = bytes(header, from + at::SLOT_SALT);
        }
        let info = LuksInfo {
            cipher: suite.alg(),
            mode: suite.mode(),
            ivgen: suite.ivgen(),
            ivgen_hash: suite.ivgen_hash(),
            hash,
            uuid: uuid(header),
            payload_offset: u64::from(be32(header, at::PAYLOAD)) * SECTOR,
            master_key_iterations: be32(header, at::ITERATIONS),
            slots,
        };
        let (digest, salt) = (bytes(header, at::DIGEST), bytes(header, at::SALT));
        let luks = Luks { suite, info, digest, salt, slot_salts };
        luks.check_places(area_bytes)?;
        luks.check_cost()?;
        Ok(luks)
    }

    /// Refuses key material in places where it cannot be.
    fn check_places(&self, area_bytes: u64) -> Result<()> {
        let payload = self.info.payload_offset;
        if payload > area_bytes {
            let what = format!("its payload at {payload:#x} starts beyond its end");
            return Err(corrupt(&what));
        }
        // A payload at 0 is one in another file: the header is a detached one.
        let end = if payload == 0 { area_bytes } else { payload };
        let mut taken = vec![(0, Luks::HEADER_BYTES as u64, None)];
        for slot in self.key_slots() {
            let KeySlot { index, offset, bytes } = slot;
            let slot_end = offset + bytes as u64;
            if slot_end > end {
                let what = format!("key slot {index} at {offset:#x} reaches beyond its end");
                return Err(corrupt(&what));
            }
            let hit = taken.iter().find(|&&(from, to, _)| offset < to && from < slot_end);
            match hit {
                Some((_, _, None)) => {
                    return Err(corrupt(&format!("key slot {index} lies in the header itself")));
                }
                Some((_, _, Some(other))) => {
                    return Err(corrupt(&format!("key slots {other} and {index} overlap")));
                }
                None => taken.push((offset, slot_end, Some(index))),
            }
        }
        Ok(())
    }

    /// Refuses a header that would keep us busy for ever.
    fn check_cost(&self) -> Result<()> {
        let info = &self.info;
        if info.master_key_iterations == 0 {
            return Err(corrupt("its master key has 0 iterations"));
        }
        let active = info.slots.iter().filter(|slot| slot.active);
        let rounds = active.map(|slot| {
            let key_bytes = self.suite.key_bytes();
            slot_rounds(info.hash, key_bytes, slot.iterations, info.master_key_iterations)
        });
        check_rounds(rounds.sum())
    }

    /// Where the key material of the active key slots lies: inside the area, and apart.
    pub fn key_slots(&self) -> impl Iterator<Item = KeySlot> + '_ {
        let bytes = material_bytes(self.suite.key_bytes());
        let slots = self.info.slots.iter().enumerate().filter(|(_, slot)| slot.active);
        slots.map(move |(index, slot)| KeySlot { index, offset: slot.key_offset, bytes })
    }

    /// Tries a secret on the key slots. `material` has slots' indices and the bytes that [`Luks::key_slots`] names; a slot without is not tried.
    ///
    /// # Errors
    ///
    /// `BadRequest` if the secret opens none of them.
    pub fn unlock(&self, secret: &[u8], material: &[(usize, Vec<u8>)]) -> Result<Cipher> {
        let key = self.master_key(secret, material)?;
        Cipher::new(self.suite, &key)
    }

    /// The master key, if the secret opens a key slot.
    pub(super) fn master_key(
        &self,
        secret: &[u8],
        material: &[(usize, Vec<u8>)],
    ) -> Result<Zeroizing<Vec<u8>>> {
        for slot in self.key_slots() {
            let Some((_, material)) = material.iter().find(|(index, _)| *index == slot.index)
            else {
                continue;
            };
            if material.len() != slot.bytes {
                let doing =
                    format!("opening key slot {} with material of wrong length", slot.index);
                return Err(Error::new(ErrorKind::BadRequest, doing));
            }
            let key = self.candidate(secret, slot.index, material)?;
            if self.is_master_key(&key) {
                return Ok(key);
            }
        }
        Err(Error::new(ErrorKind::BadRequest, "the secret opens no key slot"))
    }

    /// What the master key is if this is the slot's secret.
    fn candidate(
        &self,
        secret: &[u8],
        index: usize,
        material: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>> {
        let info = &self.info;
        let key_bytes = self.suite.key_bytes();
        let mut slot_key = Zeroizing::new(vec![0; key_bytes]);
        let iterations = info.slots[index].iterations;
        kdf::pbkdf2(info.hash, secret, &self.slot_salts[index], iterations, &mut slot_key);

        let mut stripes = Zeroizing::new(material.to_vec());
        Cipher::new(self.suite, &slot_key)?.decrypt(0, &mut stripes);
        let stripes = &stripes[..key_bytes * STRIPES as usize];
        Ok(kdf::merge_stripes(info.hash, stripes, key_bytes))
    }

    fn is_master_key(&self, key: &[u8]) -> bool {
        let mut digest = [0; DIGEST_BYTES];
        let info = &self.info;
        kdf::pbkdf2(info.hash, key, &self.salt, info.master_key_iterations, &mut digest);
        let same = digest == self.digest;
        digest.zeroize();
        same
    }

    /// How sectors are encrypted.
    pub fn suite(&self) -> &Suite {
        &self.suite
    }

    /// What the header says, for `info`.
    pub fn describe(&self) -> &LuksInfo {
        &self.info
    }

    /// Where the payload starts, in bytes from the header: for LUKS files. In qcow2 the payload is the image's clusters.
    pub fn payload_offset(&self) -> u64 {
        self.info.payload_offset
    }
}

/// Bytes of a slot's key material on disk: whole sectors, also where the stripes are not.
pub(super) fn material_bytes(key_bytes: usize) -> usize {
    (key_bytes * STRIPES as usize).next_multiple_of(SECTOR_BYTES)
}

/// Rounds of the hash that it takes to try a secret on a slot, and to see whether what comes out is the master key.
pub(super) fn slot_rounds(hash: Hash, key_bytes: usize, iterations: u32, master_key: u32) -> u64 {
    kdf::pbkdf2_rounds(hash, iterations, key_bytes)
        + kdf::pbkdf2_rounds(hash, master_key, DIGEST_BYTES)
}

/// Refuses what would take more than [`ROUNDS_MAX`].
pub(super) fn check_rounds(rounds: u64) -> Result<()> {
    if rounds > ROUNDS_MAX {
        let what = format!("its iterations come to {rounds} rounds of its hash");
        return Err(unsupported(format!("{what}, at most {ROUNDS_MAX} are accepted")));
    }
    Ok(())
}

fn parse_suite(header: &[u8; Luks::HEADER_BYTES]) -> Result<Suite> {
    let family = name(header, at::CIPHER)?;
    let spec = name(header, at::MODE)?;
    let (mode, ivgen) = spec.split_once('-').ok_or_else(|| {
        unsupported(format!("cipher mode {spec:?} is not of the form MODE-GENERATOR[:HASH]"))
    })?;
    let (ivgen, ivgen_hash) = match ivgen.split_once(':') {
        Some((ivgen, hash)) => (ivgen, Some(hash.parse()?)),
        None => (ivgen, None),
    };
    let (mode, ivgen): (CipherMode, IvGen) = (mode.parse()?, ivgen.parse()?);
    let key_bytes = be32(header, at::KEY_BYTES) as usize;
    let keys = if mode == CipherMode::Xts { 2 } else { 1 };
    if !key_bytes.is_multiple_of(keys) {
        return Err(corrupt(&format!("its key of {key_bytes} bytes is no pair")));
    }
    let alg = CipherAlg::with_key_bytes(family, key_bytes / keys)?;
    Suite::new(alg, mode, ivgen, ivgen_hash)
}

fn parse_slot(header: &[u8; Luks::HEADER_BYTES], from: usize, index: usize) -> Result<SlotInfo> {
    let active = match be32(header, from) {
        SLOT_ACTIVE => true,
        SLOT_INACTIVE => false,
        other => return Err(corrupt(&format!("key slot {index} is in state {other:#x}"))),
    };
    let slot = SlotInfo {
        active,
        iterations: be32(header, from + at::SLOT_ITERATIONS),
        key_offset: u64::from(be32(header, from + at::SLOT_MATERIAL)) * SECTOR,
        stripes: be32(header, from + at::SLOT_STRIPES),
    };
    if active && slot.iterations == 0 {
        return Err(corrupt(&format!("key slot {index} has 0 iterations")));
    }
    if active && slot.stripes != STRIPES {
        let what = format!("key slot {index} has {} stripes, not {STRIPES}", slot.stripes);
        return Err(unsupported(what));
    }
    Ok(slot)
}

/// A name of the header: printable ASCII that ends before its field does.
fn name(header: &[u8; Luks::HEADER_BYTES], from: usize) -> Result<&str> {
    let field = &header[from..from + at::NAME_BYTES];
    let end = field.iter().position(|&byte| byte == 0);
    let end = end.ok_or_else(|| corrupt("a name in it does not end"))?;
    let text = &field[..end];
    let fits = !text.is_empty() && text.iter().all(u8::is_ascii_graphic);
    let text = fits.then_some(text).and_then(|text| str::from_utf8(text).ok());
    text.ok_or_else(|| corrupt("a name in it is not printable"))
}

fn uuid(header: &[u8; Luks::HEADER_BYTES]) -> String {
    let field = &header[at::UUID..at::UUID + at::UUID_BYTES];
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    field[..end].escape_ascii().to_string()
}

fn be16(header: &[u8; Luks::HEADER_BYTES], at: usize) -> u16 {
    u16::from_be_bytes(bytes(header, at))
}

fn be32(header: &[u8; Luks::HEADER_BYTES], at: usize) -> u32 {
    u32::from_be_bytes(bytes(header, at))
}

fn bytes<const N: usize>(header: &[u8; Luks::HEADER_BYTES], at: usize) -> [u8; N] {
    *header[at..].first_chunk().expect("field lies inside the header")
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("LUKS header: {what}"))
}

fn unsupported(what: String) -> Error {
    Error::new(ErrorKind::Unsupported, format!("LUKS header: {what}"))
}
