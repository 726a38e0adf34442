//! Hostile headers: each field out of range by name, and random damage.

use super::super::luks::{ROUNDS_MAX, STRIPES, at};
use super::super::{Hash, Luks, LuksOptions, add_secret};
use super::{material, new_area, next, numbers, unlock};
use crate::ErrorKind::{self, Corrupt, Unsupported};

fn good() -> (Vec<u8>, u64) {
    let (area, _) = new_area(&LuksOptions::default(), b"abc", 1);
    let bytes = area.len() as u64;
    (area[..Luks::HEADER_BYTES].to_vec(), bytes)
}

fn slot(index: usize, field: usize) -> usize {
    at::SLOTS + index * at::SLOT_BYTES + field
}

#[test]
fn each_field_out_of_range_is_refused() {
    let sectors = |n: u32| n.to_be_bytes().to_vec();
    let name = |text: &str| [text.as_bytes(), &[0]].concat();
    let (good, area_bytes) = good();
    Luks::parse(&good, area_bytes).unwrap();
    let cases: Vec<(&str, usize, Vec<u8>, ErrorKind, &str)> = vec![
        ("magic", 0, b"LUKT".to_vec(), Corrupt, "magic number"),
        ("version 2", at::VERSION, vec![0, 2], Unsupported, "version 2 "),
        ("version 0", at::VERSION, vec![0, 0], Unsupported, "version 0 "),
        ("cipher", at::CIPHER, name("camellia"), Unsupported, "\"camellia\""),
        ("sm4", at::CIPHER, name("sm4"), Unsupported, "\"sm4\""),
        ("cipher without a name", at::CIPHER, name(""), Corrupt, "printable"),
        ("cipher without an end", at::CIPHER, vec![b'a'; 32], Corrupt, "does not end"),
        ("cipher with an escape", at::CIPHER, name("a\x1b[2J"), Corrupt, "printable"),
        ("cipher in another alphabet", at::CIPHER, vec![0xff, 0], Corrupt, "printable"),
        ("cast5 in mode xts", at::CIPHER, name("cast5"), Unsupported, "\"cast5\""),
        ("mode", at::MODE, name("lrw-plain64"), Unsupported, "\"lrw\""),
        ("mode without generator", at::MODE, name("xts"), Unsupported, "MODE-GENERATOR"),
        ("mode for 64 bytes", at::MODE, name("cbc-plain64"), Unsupported, "key of 64 bytes"),
        ("generator", at::MODE, name("xts-benbi"), Unsupported, "\"benbi\""),
        ("essiv alone", at::MODE, name("xts-essiv"), Unsupported, "without a hash"),
        ("essiv with sha1", at::MODE, name("xts-essiv:sha1"), Unsupported, "no key of it"),
        ("essiv with a strange hash", at::MODE, name("xts-essiv:x"), Unsupported, "\"x\""),
        ("hash", at::HASH, name("whirlpool"), Unsupported, "\"whirlpool\""),
        ("hash without an end", at::HASH, vec![b's'; 32], Corrupt, "does not end"),
        ("payload beyond the end", at::PAYLOAD, sectors(4041), Corrupt, "payload at 0x1f9200"),
        ("payload far beyond it", at::PAYLOAD, sectors(u32::MAX), Corrupt, "payload"),
        ("payload in slot 0", at::PAYLOAD, sectors(10), Corrupt, "key slot 0 at 0x1000"),
        ("key of 0 bytes", at::KEY_BYTES, sectors(0), Unsupported, "key of 0 bytes"),
        ("key of 63 bytes", at::KEY_BYTES, sectors(63), Corrupt, "63 bytes is no pair"),
        ("key of 66 bytes", at::KEY_BYTES, sectors(66), Unsupported, "key of 33 bytes"),
        ("key of 4 GiB", at::KEY_BYTES, sectors(u32::MAX - 1), Unsupported, "bytes"),
        ("no iterations", at::ITERATIONS, sectors(0), Corrupt, "0 iterations"),
        ("too many iterations", at::ITERATIONS, sectors(u32::MAX), Unsupported, "rounds"),
        ("slot state", slot(3, 0), sectors(1), Corrupt, "key slot 3 is in state 0x1"),
        ("slot without iterations", slot(0, 4), sectors(0), Corrupt, "key slot 0 has 0"),
        ("slot with too many", slot(0, 4), sectors(300_000_000), Unsupported, "600001000 rounds"),
        ("slot in the header", slot(0, 40), sectors(1), Corrupt, "in the header itself"),
        ("slot at 0", slot(0, 40), sectors(0), Corrupt, "in the header itself"),
        ("slot at the end", slot(0, 40), sectors(4040 - 499), Corrupt, "beyond its end"),
        ("slot far beyond it", slot(0, 40), sectors(u32::MAX), Corrupt, "beyond its end"),
        ("no stripes", slot(0, 44), sectors(0), Unsupported, "has 0 stripes"),
        ("endless stripes", slot(0, 44), sectors(u32::MAX), Unsupported, "stripes"),
    ];
    for (what, from, bytes, kind, message) in cases {
        let mut header = good.clone();
        header[from..from + bytes.len()].copy_from_slice(&bytes);
        let error = Luks::parse(&header, area_bytes).unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(error.to_string().contains(message), "{what}: {error}");
    }
    for bytes in [0, 1, 208, 591] {
        assert_eq!(Luks::parse(&good[..bytes], area_bytes).unwrap_err().kind(), Corrupt);
    }
    assert_eq!(Luks::parse(&good, area_bytes - 1).unwrap_err().kind(), Corrupt);
    assert_eq!(Luks::parse(&good, 0).unwrap_err().kind(), Corrupt);
}

#[test]
fn active_slots_are_checked_against_each_other() {
    let (mut header, area_bytes) = good();
    let copy = header[slot(0, 0)..slot(1, 0)].to_vec();
    header[slot(5, 0)..slot(6, 0)].copy_from_slice(&copy);
    let error = Luks::parse(&header, area_bytes).unwrap_err();
    assert!(error.to_string().ends_with("key slots 0 and 5 overlap"), "{error}");
    // One sector of the 500 that slot 0 takes from sector 8 on.
    header[slot(5, 40)..slot(5, 44)].copy_from_slice(&507u32.to_be_bytes());
    assert_eq!(Luks::parse(&header, area_bytes).unwrap_err().kind(), Corrupt);
    header[slot(5, 40)..slot(5, 44)].copy_from_slice(&508u32.to_be_bytes());
    assert_eq!(Luks::parse(&header, area_bytes).unwrap().key_slots().count(), 2);
    // The other way round: the later slot begins first.
    let mut before = header.clone();
    before[slot(0, 40)..slot(0, 44)].copy_from_slice(&1007u32.to_be_bytes());
    assert_eq!(Luks::parse(&before, area_bytes).unwrap_err().kind(), Corrupt);
    before[slot(0, 40)..slot(0, 44)].copy_from_slice(&1008u32.to_be_bytes());
    assert_eq!(Luks::parse(&before, area_bytes).unwrap().key_slots().count(), 2);
    // Not in use: whatever it says is of no consequence.
    header[slot(5, 0)..slot(5, 4)].copy_from_slice(&0x0000_deadu32.to_be_bytes());
    header[slot(5, 4)..slot(6, 0)].fill(0xff);
    assert_eq!(Luks::parse(&header, area_bytes).unwrap().key_slots().count(), 1);
}

#[test]
fn a_secret_is_only_added_where_there_is_a_place_for_it() {
    let (header, area_bytes) = good();
    let add = |header: &[u8], iterations| {
        add_secret(header, area_bytes, b"abc", &[], b"x", iterations, &mut numbers(1)).unwrap_err()
    };
    let mut full = header.clone();
    for index in 0..8 {
        full[slot(index, 0)..slot(index, 8)].copy_from_slice(&good().0[slot(0, 0)..slot(0, 8)]);
    }
    assert!(add(&full, 1000).to_string().ends_with("no key slot is free"));
    // The first free slot lies upon slot 0: writing its material would destroy the one key there is.
    let mut upon = header.clone();
    upon[slot(1, 40)..slot(1, 44)].copy_from_slice(&8u32.to_be_bytes());
    assert!(add(&upon, 1000).to_string().ends_with("key slots 0 and 1 overlap"));
    upon[slot(1, 40)..slot(1, 44)].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(add(&upon, 1000).kind(), Corrupt);
    assert_eq!(add(&header, u32::MAX).kind(), Unsupported);
}

#[test]
fn the_bound_on_rounds_is_for_all_slots_together() {
    let (mut header, area_bytes) = good();
    // 64 bytes of key are two digests of SHA-256, the check of the key is one.
    let each = u32::try_from(ROUNDS_MAX / 8 - 1000).unwrap() / 2;
    for index in 0..8 {
        header[slot(index, 0)..slot(index, 4)].copy_from_slice(&0x00ac_71f3u32.to_be_bytes());
        header[slot(index, 4)..slot(index, 8)].copy_from_slice(&each.to_be_bytes());
    }
    Luks::parse(&header, area_bytes).unwrap();
    header[slot(7, 4)..slot(7, 8)].copy_from_slice(&(each + 1).to_be_bytes());
    assert_eq!(Luks::parse(&header, area_bytes).unwrap_err().kind(), Unsupported);
    // The same header with a shorter digest costs twice as much.
    header[slot(7, 4)..slot(7, 8)].copy_from_slice(&each.to_be_bytes());
    header[at::HASH..at::HASH + 4].copy_from_slice(b"md5\0");
    assert_eq!(Luks::parse(&header, area_bytes).unwrap_err().kind(), Unsupported);
}

#[test]
fn info_says_what_the_header_says() {
    let (header, area_bytes) = good();
    let luks = Luks::parse(&header, area_bytes).unwrap();
    let info = luks.describe();
    assert_eq!(info.hash, Hash::Sha256);
    assert_eq!((info.payload_offset, area_bytes), (2_068_480, 2_068_480));
    assert_eq!(info.uuid.len(), 36);
    assert_eq!(&info.uuid[14..15], "4");
    assert_eq!(info.slots.len(), 8);
    assert!(info.slots[0].active && !info.slots[1].active);
    assert_eq!((info.slots[0].key_offset, info.slots[7].key_offset), (4096, 1_810_432));
    assert!(info.slots.iter().all(|slot| slot.stripes == STRIPES));
    // A hostile UUID reaches no terminal.
    let mut header = header;
    header[at::UUID..at::UUID + at::UUID_BYTES].fill(0x1b);
    let luks = Luks::parse(&header, area_bytes).unwrap();
    assert_eq!(luks.describe().uuid, "\\x1b".repeat(40));
}

/// Whatever a header says, what it makes us read lies in the area and is no more than eight keys.
#[test]
fn random_damage_never_panics_and_never_leaves_the_area() {
    let (good, area_bytes) = good();
    let mut state = 11;
    let mut accepted = 0;
    for _ in 0..100_000 {
        let mut header = good.clone();
        for _ in 0..1 + next(&mut state) % 4 {
            let at = match next(&mut state) % 4 {
                // Numbers are what is interesting; names and salts are most of the bytes.
                0 => at::PAYLOAD + next(&mut state) as usize % 8,
                1 => slot(next(&mut state) as usize % 8, next(&mut state) as usize % 8),
                2 => slot(next(&mut state) as usize % 8, 40 + next(&mut state) as usize % 8),
                _ => next(&mut state) as usize % header.len(),
            };
            match next(&mut state) % 3 {
                0 => header[at] = next(&mut state) as u8,
                1 => header[at] ^= 1 << (next(&mut state) % 8),
                _ => header[at] = [0, 1, 0x7f, 0x80, 0xff][next(&mut state) as usize % 5],
            }
        }
        let Ok(luks) = Luks::parse(&header, area_bytes) else { continue };
        accepted += 1;
        let slots: Vec<_> = luks.key_slots().collect();
        for slot in &slots {
            assert!(slot.offset >= 592 && slot.offset + slot.bytes as u64 <= area_bytes);
            assert!(slot.bytes <= 64 * STRIPES as usize);
        }
        let total: usize = slots.iter().map(|slot| slot.bytes).sum();
        assert!(total as u64 <= area_bytes);
    }
    assert!((1000..99_000).contains(&accepted), "{accepted} accepted: the damage is one-sided");
}

#[test]
fn damaged_material_opens_nothing() {
    let (area, _) = new_area(&LuksOptions::default(), b"abc", 1);
    let luks = Luks::parse(&area, area.len() as u64).unwrap();
    let (start, end) = {
        let slot = luks.key_slots().next().unwrap();
        (slot.offset as usize, slot.offset as usize + slot.bytes)
    };
    assert_eq!(material(&luks, &area).len(), 1);
    for at in [start, (start + end) / 2, end - 1] {
        let mut area = area.clone();
        area[at] ^= 0x10;
        assert_eq!(unlock(&area, b"abc").unwrap_err().kind(), ErrorKind::BadRequest);
    }
    unlock(&area, b"abc").unwrap();
}
