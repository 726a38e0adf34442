//! From secrets to keys: hashes, PBKDF2, and LUKS' anti-forensic splitting.
//!
//! A key is stored as 4000 stripes that are all needed to get it back, so that losing any of them on the disk destroys it:
//!
//! ```text
//!   d = 0;  for each stripe but the last:  d = H(d ^ stripe)          H: the hash over each digest-sized piece of d,
//!   key = d ^ last stripe                                             with the piece's number before it
//! ```
//!
//! Specifications: RFC 8018 5.2 (PBKDF2); "LUKS1 On-Disk Format Specification" 2.4 and figure 2 (AF splitter).

use super::Hash;
use crate::Result;
use sha2::digest::Digest;
use zeroize::Zeroizing;

/// Runs code with the type `$Hasher` that belongs to a [`enum@Hash`].
macro_rules! with_hasher {
    ($hash:expr, $Hasher:ident => $body:expr) => {
        match $hash {
            Hash::Md5 => with_hasher!(@ $Hasher, md5::Md5, $body),
            Hash::Sha1 => with_hasher!(@ $Hasher, sha1::Sha1, $body),
            Hash::Sha224 => with_hasher!(@ $Hasher, sha2::Sha224, $body),
            Hash::Sha256 => with_hasher!(@ $Hasher, sha2::Sha256, $body),
            Hash::Sha384 => with_hasher!(@ $Hasher, sha2::Sha384, $body),
            Hash::Sha512 => with_hasher!(@ $Hasher, sha2::Sha512, $body),
            Hash::Ripemd160 => with_hasher!(@ $Hasher, ripemd::Ripemd160, $body),
            Hash::Sm3 => with_hasher!(@ $Hasher, sm3::Sm3, $body),
        }
    };
    (@ $Hasher:ident, $type:ty, $body:expr) => {{
        type $Hasher = $type;
        $body
    }};
}

/// The digest of the parts, one after the other.
pub fn digest(hash: Hash, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    with_hasher!(hash, Hasher => {
        let mut hasher = Hasher::new();
        for part in parts {
            hasher.update(part);
        }
        Zeroizing::new(hasher.finalize().to_vec())
    })
}

/// Fills `out` with PBKDF2 over HMAC with this hash.
pub fn pbkdf2(hash: Hash, secret: &[u8], salt: &[u8], iterations: u32, out: &mut [u8]) {
    with_hasher!(hash, Hasher => pbkdf2::pbkdf2_hmac::<Hasher>(secret, salt, iterations, out));
}

/// Rounds of the hash that [`pbkdf2()`] takes for so many bytes: what a header can cost us.
pub fn pbkdf2_rounds(hash: Hash, iterations: u32, out_bytes: usize) -> u64 {
    u64::from(iterations) * out_bytes.div_ceil(hash.digest_bytes()) as u64
}

/// The key that `material` was split from; `material` is whole stripes of `key_bytes`.
pub fn merge_stripes(hash: Hash, material: &[u8], key_bytes: usize) -> Zeroizing<Vec<u8>> {
    let mut key = Zeroizing::new(vec![0; key_bytes]);
    let mut stripes = material.chunks_exact(key_bytes);
    let last = stripes.next_back();
    for stripe in stripes {
        xor(&mut key, stripe);
        diffuse(hash, &mut key);
    }
    xor(&mut key, last.unwrap_or_default());
    key
}

/// Splits a key into `stripes` stripes, of which all but the last are random.
pub fn split_stripes(
    hash: Hash,
    key: &[u8],
    stripes: usize,
    random: &mut dyn FnMut(&mut [u8]) -> Result<()>,
) -> Result<Zeroizing<Vec<u8>>> {
    let mut material = Zeroizing::new(vec![0; key.len() * stripes]);
    let before_last = material.len().saturating_sub(key.len());
    random(&mut material[..before_last])?;
    // With a last stripe of zeros the merge gives what the true one must differ from the key by.
    let so_far = merge_stripes(hash, &material, key.len());
    let last = &mut material[before_last..];
    last.copy_from_slice(key);
    xor(last, &so_far);
    Ok(material)
}

fn diffuse(hash: Hash, key: &mut [u8]) {
    for (number, piece) in (0u32..).zip(key.chunks_mut(hash.digest_bytes())) {
        let digest = digest(hash, &[&number.to_be_bytes(), piece]);
        piece.copy_from_slice(&digest[..piece.len()]);
    }
}

fn xor(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to ^= from;
    }
}
