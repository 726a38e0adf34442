//! What goes in comes out, in every combination; and what must not show does not.

use super::super::{Cipher, CipherMode, Hash, LuksOptions, kdf, os_random};
use super::{FEW, create, material, new_area, next, numbers, random_bytes, suites, unlock};
use crate::crypt::Luks;
use crate::{Error, ErrorKind};

#[test]
fn every_combination_decrypts_what_it_encrypted() {
    let suites = suites();
    // 10 ciphers; xts not with cast5, three key lengths of three families; essiv: see Suite.
    assert!(suites.len() > 100, "{}", suites.len());
    for options in suites {
        let suite = options.suite().unwrap();
        let cipher = Cipher::new(suite, &random_bytes(1, suite.key_bytes())).unwrap();
        // Not a multiple of the group, and numbers that wrap.
        let plain = random_bytes(2, 11 * 512);
        for first in [u64::from(u32::MAX) - 3, u64::MAX - 5] {
            let mut data = plain.clone();
            cipher.encrypt(first, &mut data);
            assert_ne!(data, plain, "{suite:?}");
            cipher.decrypt(first, &mut data);
            assert!(data == plain, "{suite:?} from sector {first}");
        }
    }
}

#[test]
fn sectors_are_independent_of_how_they_are_grouped() {
    for options in suites() {
        let suite = options.suite().unwrap();
        let cipher = Cipher::new(suite, &random_bytes(3, suite.key_bytes())).unwrap();
        let plain = random_bytes(4, 11 * 512);
        let mut together = plain.clone();
        cipher.encrypt(100, &mut together);
        for (sector, (plain, encrypted)) in (100..).zip(plain.chunks(512).zip(together.chunks(512)))
        {
            let mut alone = plain.to_vec();
            cipher.encrypt(sector, &mut alone);
            assert_eq!(alone, encrypted, "{suite:?}");
        }
        let (start, end) = together.split_at_mut(5 * 512);
        cipher.decrypt(105, end);
        cipher.decrypt(100, start);
        assert!(together == plain, "{suite:?}");
        let equal = |a: u64, b: u64| {
            let (mut a_data, mut b_data) = ([1; 512], [1; 512]);
            cipher.encrypt(a, &mut a_data);
            cipher.encrypt(b, &mut b_data);
            a_data == b_data
        };
        assert_eq!(equal(1, 2), options.mode == CipherMode::Ecb, "{suite:?}");
    }
}

#[test]
fn the_stripes_merge_to_the_key() {
    for &hash in Hash::ALL {
        for key_bytes in [16, 24, 32, 48, 64] {
            let key = random_bytes(5, key_bytes);
            let mut stripes = kdf::split_stripes(hash, &key, 11, &mut numbers(6)).unwrap();
            assert_eq!(stripes.len(), 11 * key_bytes);
            assert_eq!(*kdf::merge_stripes(hash, &stripes, key_bytes), key, "{hash}");
            // One bit anywhere destroys the key.
            let mut state = 7;
            let bit = next(&mut state) as usize % (8 * stripes.len());
            stripes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(*kdf::merge_stripes(hash, &stripes, key_bytes), key, "{hash}");
        }
    }
}

#[test]
fn a_new_header_opens_with_its_secret_and_no_other() {
    for &hash in Hash::ALL {
        let options = LuksOptions { hash, ..LuksOptions::default() };
        let (area, cipher) = new_area(&options, b"a secret", 8);
        let mut data = random_bytes(9, 4096);
        let plain = data.clone();
        cipher.encrypt(33, &mut data);
        unlock(&area, b"a secret").unwrap().decrypt(33, &mut data);
        assert_eq!(data, plain, "{hash}");
    }
    let (area, _) = new_area(&LuksOptions::default(), b"a secret", 8);
    for wrong in [&b"a secreT"[..], b"", b"a secret\0x"] {
        let error = unlock(&area, wrong).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadRequest);
        assert_eq!(error.to_string(), "the secret opens no key slot");
    }
}

#[test]
fn a_slot_without_its_material_is_not_tried() {
    let (area, _) = new_area(&LuksOptions::default(), b"abc", 10);
    let luks = Luks::parse(&area, area.len() as u64).unwrap();
    assert_eq!(luks.unlock(b"abc", &[]).unwrap_err().kind(), ErrorKind::BadRequest);
    let mut short = material(&luks, &area);
    short[0].1.pop();
    let error = luks.unlock(b"abc", &short).unwrap_err();
    assert_eq!(error.to_string(), "opening key slot 0 with material of wrong length");
}

#[test]
fn a_header_differs_with_the_source_of_randomness_and_fails_with_it() {
    let options = LuksOptions::default();
    let of = |seed| create(&options, b"abc", FEW, &mut numbers(seed)).unwrap().0;
    assert_eq!(of(1), of(1));
    assert_ne!(of(1)[112..208], of(2)[112..208]);
    let mut fails = |_: &mut [u8]| Err(Error::new(ErrorKind::Io, "no randomness"));
    assert!(create(&options, b"abc", FEW, &mut fails).is_err());
    let (mut a, mut b) = ([0; 700], [0; 700]);
    os_random(&mut a).unwrap();
    os_random(&mut b).unwrap();
    assert_ne!(a, b);
}

#[test]
fn iterations_follow_the_clock() {
    let options = LuksOptions::default();
    // A clock on which 4096 rounds take a second: two seconds are 8192 rounds, at two digests for a key of 64 bytes.
    let mut now_ns = 0;
    let mut clock = || {
        now_ns += 1_000_000_000;
        now_ns
    };
    let iterations = options.measure(&mut clock).unwrap();
    assert_eq!((iterations.slot, iterations.master_key), (4096, 1024));
    // Never below the minimum, and no overflow where nothing takes any time.
    let none = LuksOptions { iter_time_ms: 0, ..LuksOptions::default() };
    assert_eq!(none.measure(&mut clock).unwrap(), FEW);
}

#[test]
fn no_more_iterations_than_can_be_opened_again() {
    let many = super::Iterations { slot: 1000, master_key: u32::MAX };
    // Refused before anything is computed.
    let error = create(&LuksOptions::default(), b"abc", many, &mut numbers(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn debug_shows_no_key() {
    let options = LuksOptions::default();
    let suite = options.suite().unwrap();
    let cipher = Cipher::new(suite, &[0x5a; 64]).unwrap();
    let text = format!("{cipher:?}");
    assert!(text.starts_with("Cipher { suite: Suite { alg: Aes256") && text.ends_with(".. }"));
    assert!(!text.contains("90") && !text.contains("5a"), "{text}");
}
