//! New LUKS headers, and new secrets in those there are; laid out as QEMU and cryptsetup do it.
//!
//! ```text
//! 0        4096                                                                       payload
//! +--------+-----------------+-----------------+--- ... ---+-----------------+---------+
//! | header | material 0      | material 1      |           | material 7      | payload
//! +--------+-----------------+-----------------+--- ... ---+-----------------+---------+
//!            each 4000 stripes of the key, rounded up to 4096 bytes
//! ```
//!
//! A new header has one key, in slot 0; the other slots have their place and are not in use.

use super::luks::{
    DIGEST_BYTES, MAGIC, SALT_BYTES, SLOT_ACTIVE, SLOT_INACTIVE, SLOTS, STRIPES, VERSION, at,
    check_rounds, material_bytes, slot_rounds,
};
use super::{Cipher, CipherAlg, CipherMode, Hash, IvGen, KeySlot, Luks, Suite, kdf};
use crate::{Error, ErrorKind, Result, SECTOR};
use zeroize::Zeroizing;

/// Where the first key material lies, and what each slot's is rounded up to.
const SLOT_ALIGN: usize = 4096;
/// Fewer would be no protection, however slow the machine.
const ITERATIONS_MIN: u32 = 1000;
/// The digest of the master key gets this part of the time: a master key is random, so guessing it is hopeless anyway.
const MASTER_KEY_SHARE: u64 = 8;

/// What a new LUKS header is to be. The default is QEMU's: aes-256, xts, plain64, sha256, two seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LuksOptions {
    /// Block cipher with its key length.
    pub cipher: CipherAlg,
    /// Its mode.
    pub mode: CipherMode,
    /// IV generator.
    pub ivgen: IvGen,
    /// The IV generator's hash. Without one ESSIV takes SHA-256.
    pub ivgen_hash: Option<Hash>,
    /// Hash for PBKDF2 and the stripes.
    pub hash: Hash,
    /// How long a guess at the secret is to take on this machine: [`LuksOptions::measure`] makes iterations of it.
    pub iter_time_ms: u32,
}

impl Default for LuksOptions {
    fn default() -> LuksOptions {
        LuksOptions {
            cipher: CipherAlg::Aes256,
            mode: CipherMode::Xts,
            ivgen: IvGen::Plain64,
            ivgen_hash: None,
            hash: Hash::Sha256,
            iter_time_ms: 2000,
        }
    }
}

/// PBKDF2 iterations of a new header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Iterations {
    /// From the secret to the slot's key.
    pub slot: u32,
    /// From the master key to its digest.
    pub master_key: u32,
}

impl LuksOptions {
    /// The combination of cipher, mode and IV generator.
    ///
    /// # Errors
    ///
    /// `Unsupported` if they do not fit together.
    pub fn suite(&self) -> Result<Suite> {
        let ivgen_hash = match self.ivgen {
            IvGen::Essiv => Some(self.ivgen_hash.unwrap_or(Hash::Sha256)),
            _ => self.ivgen_hash,
        };
        Suite::new(self.cipher, self.mode, self.ivgen, ivgen_hash)
    }

    /// Bytes of the area for header and key material, which is where a LUKS file's payload starts.
    pub fn area_bytes(&self) -> Result<u64> {
        let slot_bytes = slot_bytes(self.suite()?.key_bytes());
        Ok((SLOT_ALIGN + SLOTS * slot_bytes) as u64)
    }

    /// Finds out how many iterations take [`LuksOptions::iter_time_ms`], by a clock of the caller's: it returns nanoseconds since any moment.
    ///
    /// Takes some tenths of a second.
    pub fn measure(&self, clock_ns: &mut dyn FnMut() -> u64) -> Result<Iterations> {
        const ENOUGH_NS: u64 = 100_000_000;
        const ROUNDS_MAX: u32 = 1 << 22;
        let mut rounds = 1 << 12;
        loop {
            let start_ns = clock_ns();
            let mut key = Zeroizing::new([0]);
            kdf::pbkdf2(self.hash, b"a secret", &[0; SALT_BYTES], rounds, &mut *key);
            let elapsed_ns = clock_ns().saturating_sub(start_ns);
            if elapsed_ns >= ENOUGH_NS || rounds >= ROUNDS_MAX {
                return self.iterations(rounds, elapsed_ns);
            }
            rounds *= 2;
        }
    }

    /// The iterations that take [`LuksOptions::iter_time_ms`] if `rounds` of the hash took `elapsed_ns`.
    fn iterations(&self, rounds: u32, elapsed_ns: u64) -> Result<Iterations> {
        let time_ns = u128::from(self.iter_time_ms) * 1_000_000;
        let affordable = time_ns * u128::from(rounds) / u128::from(elapsed_ns.max(1));
        let iterations = |affordable: u128, out_bytes: usize| {
            let per_iteration = u128::from(kdf::pbkdf2_rounds(self.hash, 1, out_bytes));
            let iterations = u32::try_from(affordable / per_iteration).unwrap_or(u32::MAX);
            iterations.max(ITERATIONS_MIN)
        };
        Ok(Iterations {
            slot: iterations(affordable, self.suite()?.key_bytes()),
            master_key: iterations(affordable / u128::from(MASTER_KEY_SHARE), DIGEST_BYTES),
        })
    }
}

/// A new LUKS header with its first key, and the cipher for the data.
///
/// The bytes are the start of an area of [`LuksOptions::area_bytes`]; what is after them is free to be anything, so zeros. `random` fills a buffer
/// with bytes nobody can guess ([`super::os_random`]): the keys are made of them.
///
/// # Errors
///
/// `Unsupported` if the options do not fit together, or ask for more iterations than [`Luks::parse`] would take; or what `random` failed with.
pub fn create(
    options: &LuksOptions,
    secret: &[u8],
    iterations: Iterations,
    random: &mut dyn FnMut(&mut [u8]) -> Result<()>,
) -> Result<(Vec<u8>, Cipher)> {
    let suite = options.suite()?;
    // Before anything is computed: nobody shall wait for an image that cannot be opened again.
    let Iterations { slot, master_key } = iterations;
    check_rounds(slot_rounds(options.hash, suite.key_bytes(), slot, master_key))?;
    let mut key = Zeroizing::new(vec![0; suite.key_bytes()]);
    random(&mut key)?;
    let cipher = Cipher::new(suite, &key)?;

    let mut area = vec![0; SLOT_ALIGN];
    put_names(&mut area, options.hash, &suite);
    put_uuid(&mut area, random)?;
    put_digest(&mut area, options.hash, &key, iterations.master_key, random)?;
    put_slots(&mut area, suite.key_bytes());
    let slot =
        NewSlot { suite, hash: options.hash, key: &key, secret, iterations: iterations.slot };
    let material = slot.put(&mut area, 0, random)?;
    area.extend_from_slice(&material);
    Ok((area, cipher))
}

/// Another secret for a header: what is to be written, the material first, and durably, then the header.
#[derive(Clone, Debug)]
pub struct NewSecret {
    /// The header's bytes, [`Luks::HEADER_BYTES`] of them.
    pub header: Vec<u8>,
    /// Where the key material goes.
    pub slot: KeySlot,
    /// The key material, encrypted.
    pub material: Vec<u8>,
}

/// Puts another secret in the first free key slot, for who knows one that opens the header. `material` is as for [`Luks::unlock`].
///
/// # Errors
///
/// As [`Luks::parse`] and [`Luks::unlock`]; `BadRequest` if no slot is free; `Corrupt` if the free slot has no place for its material.
pub fn add_secret(
    header: &[u8],
    area_bytes: u64,
    secret: &[u8],
    material: &[(usize, Vec<u8>)],
    new_secret: &[u8],
    iterations: u32,
    random: &mut dyn FnMut(&mut [u8]) -> Result<()>,
) -> Result<NewSecret> {
    let luks = Luks::parse(header, area_bytes)?;
    let index =
        luks.describe().slots.iter().position(|slot| !slot.active).ok_or_else(|| {
            Error::new(ErrorKind::BadRequest, "adding a secret: no key slot is free")
        })?;
    let mut header = header[..Luks::HEADER_BYTES].to_vec();
    // Whether there is a place for the material, and time for the iterations, is checked before anything is computed.
    let from = at::SLOTS + index * at::SLOT_BYTES;
    put32(&mut header, from, SLOT_ACTIVE);
    put32(&mut header, from + at::SLOT_ITERATIONS, iterations.max(ITERATIONS_MIN));
    put32(&mut header, from + at::SLOT_STRIPES, STRIPES);
    let slots = Luks::parse(&header, area_bytes)?;
    let slot = slots.key_slots().find(|slot| slot.index == index);
    let slot = slot.expect("the slot was just made active");

    let key = luks.master_key(secret, material)?;
    let (suite, hash) = (*luks.suite(), luks.describe().hash);
    let new = NewSlot { suite, hash, key: &key, secret: new_secret, iterations };
    let material = new.put(&mut header, index, random)?;
    Ok(NewSecret { header, slot, material })
}

/// Marks a key slot as free in a header's bytes. The caller overwrites its key material before or after: a copy of it would still open the image.
///
/// # Errors
///
/// `BadRequest` if the slot is not active, or the last one that is: nobody could open the image again.
pub fn remove_slot(header: &mut [u8], area_bytes: u64, index: usize) -> Result<()> {
    let luks = Luks::parse(header, area_bytes)?;
    let refused = |why: &str| {
        Err(Error::new(ErrorKind::BadRequest, format!("removing key slot {index}: {why}")))
    };
    if !luks.key_slots().any(|slot| slot.index == index) {
        return refused("it is not active");
    }
    if luks.key_slots().count() == 1 {
        return refused("it is the last one");
    }
    put32(header, at::SLOTS + index * at::SLOT_BYTES, SLOT_INACTIVE);
    put32(header, at::SLOTS + index * at::SLOT_BYTES + at::SLOT_ITERATIONS, 0);
    put(header, at::SLOTS + index * at::SLOT_BYTES + at::SLOT_SALT, &[0; SALT_BYTES]);
    Ok(())
}

/// A secret to be put in a key slot.
struct NewSlot<'a> {
    suite: Suite,
    hash: Hash,
    /// The master key.
    key: &'a [u8],
    secret: &'a [u8],
    iterations: u32,
}

impl NewSlot<'_> {
    /// Marks the slot as active in the header, and returns its key material, encrypted, in whole sectors.
    fn put(
        &self,
        header: &mut [u8],
        index: usize,
        random: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<Vec<u8>> {
        let mut salt = [0; SALT_BYTES];
        random(&mut salt)?;
        let iterations = self.iterations.max(ITERATIONS_MIN);
        let from = at::SLOTS + index * at::SLOT_BYTES;
        put32(header, from, SLOT_ACTIVE);
        put32(header, from + at::SLOT_ITERATIONS, iterations);
        put(header, from + at::SLOT_SALT, &salt);

        let mut slot_key = Zeroizing::new(vec![0; self.key.len()]);
        kdf::pbkdf2(self.hash, self.secret, &salt, iterations, &mut slot_key);
        let material = kdf::split_stripes(self.hash, self.key, STRIPES as usize, random)?;
        // Not by growing the stripes: they would move, and leave what nobody wipes.
        let mut sectors = Zeroizing::new(vec![0; material_bytes(self.key.len())]);
        sectors[..material.len()].copy_from_slice(&material);
        Cipher::new(self.suite, &slot_key)?.encrypt(0, &mut sectors);
        Ok(std::mem::take(&mut *sectors))
    }
}

fn slot_bytes(key_bytes: usize) -> usize {
    material_bytes(key_bytes).next_multiple_of(SLOT_ALIGN)
}

fn put_names(header: &mut [u8], hash: Hash, suite: &Suite) {
    put(header, 0, &MAGIC);
    put(header, at::VERSION, &VERSION.to_be_bytes());
    put(header, at::CIPHER, suite.alg().family().as_bytes());
    let mut mode = format!("{}-{}", suite.mode(), suite.ivgen());
    if let Some(ivgen_hash) = suite.ivgen_hash() {
        mode += &format!(":{ivgen_hash}");
    }
    put(header, at::MODE, mode.as_bytes());
    put(header, at::HASH, hash.to_string().as_bytes());
}

/// A UUID of version 4, which is the random one.
fn put_uuid(header: &mut [u8], random: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<()> {
    let mut uuid = [0; 16];
    random(&mut uuid)?;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let mut text = String::new();
    for (index, byte) in uuid.iter().enumerate() {
        let dash = if [4, 6, 8, 10].contains(&index) { "-" } else { "" };
        text += &format!("{dash}{byte:02x}");
    }
    put(header, at::UUID, text.as_bytes());
    Ok(())
}

/// The digest that tells the right master key from others.
fn put_digest(
    header: &mut [u8],
    hash: Hash,
    key: &[u8],
    iterations: u32,
    random: &mut dyn FnMut(&mut [u8]) -> Result<()>,
) -> Result<()> {
    let (mut salt, mut digest) = ([0; SALT_BYTES], [0; DIGEST_BYTES]);
    random(&mut salt)?;
    let iterations = iterations.max(ITERATIONS_MIN);
    kdf::pbkdf2(hash, key, &salt, iterations, &mut digest);
    put(header, at::DIGEST, &digest);
    put(header, at::SALT, &salt);
    put32(header, at::ITERATIONS, iterations);
    Ok(())
}

/// The places of all the slots, none in use, and of the payload behind them.
fn put_slots(header: &mut [u8], key_bytes: usize) {
    let sectors = |bytes: usize| {
        u32::try_from(bytes as u64 / SECTOR).expect("an area has less than 2^32 sectors")
    };
    put32(header, at::KEY_BYTES, u32::try_from(key_bytes).expect("a key has at most 64 bytes"));
    let material_at = |index: usize| SLOT_ALIGN + index * slot_bytes(key_bytes);
    for index in 0..SLOTS {
        let from = at::SLOTS + index * at::SLOT_BYTES;
        put32(header, from, SLOT_INACTIVE);
        put32(header, from + at::SLOT_MATERIAL, sectors(material_at(index)));
        put32(header, from + at::SLOT_STRIPES, STRIPES);
    }
    put32(header, at::PAYLOAD, sectors(material_at(SLOTS)));
}

fn put32(header: &mut [u8], at: usize, value: u32) {
    put(header, at, &value.to_be_bytes());
}

fn put(header: &mut [u8], at: usize, bytes: &[u8]) {
    header[at..at + bytes.len()].copy_from_slice(bytes);
}
