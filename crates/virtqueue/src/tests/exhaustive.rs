//! All small descriptor tables, judged by a second reading of the specification that shares no code with the walk.

use super::guest::*;
use crate::{DescChain, Flaw, Virtqueue};

/// A descriptor to try. Addresses: in memory, or not.
#[derive(Clone, Copy, Debug)]
struct D {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

#[derive(Debug, PartialEq, Eq)]
struct Judged {
    readable: u64,
    writable: u64,
    flaw: Option<Flaw>,
}

const BAD_ADDR: u64 = MEM_END - 3;

/// What the specification says of the chain at `head`, an indirect descriptor always meaning the table itself; `None` if it is
/// against the rules.
fn judge(table: &[D], head: u16, indirect_allowed: bool) -> Option<Judged> {
    // Unfold the chain first.
    let mut list: Vec<D> = Vec::new();
    let mut index = usize::from(head);
    let (mut indirect, mut steps) = (false, 0);
    loop {
        let d = *table.get(index)?;
        steps += 1;
        if steps > table.len() {
            return None;
        }
        if d.flags & INDIRECT != 0 {
            let fits = usize::try_from(d.len).unwrap() == 16 * table.len();
            if indirect || !indirect_allowed || d.flags & NEXT != 0 || !fits {
                return None;
            }
            (indirect, steps, index) = (true, 0, 0);
            continue;
        }
        list.push(d);
        if d.flags & NEXT == 0 {
            break;
        }
        index = usize::from(d.next);
    }
    if list.iter().map(|d| u64::from(d.len)).sum::<u64>() > 1 << 32 {
        return None;
    }
    let first_writable = list.iter().position(|d| d.flags & W != 0).unwrap_or(list.len());
    let (readable, writable) = list.split_at(first_writable);
    if writable.iter().any(|d| d.flags & W == 0) {
        return None;
    }
    let mapped = |d: &&D| d.addr.checked_add(u64::from(d.len)).is_some_and(|end| end <= MEM_END);
    let bytes = |list: &[D]| list.iter().filter(mapped).map(|d| u64::from(d.len)).sum();
    let flaw = if writable.iter().rfind(|d| d.len > 0).is_some_and(|d| !mapped(&d)) {
        Some(Flaw::UnmappedEnd)
    } else if list.iter().any(|d| d.len > 0 && !mapped(&d)) {
        Some(Flaw::Unmapped)
    } else if list.iter().any(|d| d.len == 0) {
        Some(Flaw::Empty)
    } else {
        None
    };
    Some(Judged { readable: bytes(readable), writable: bytes(writable), flaw })
}

fn judged(chain: DescChain) -> Judged {
    assert_eq!(chain.splits, 0);
    Judged { readable: chain.readable.bytes(), writable: chain.writable.bytes(), flaw: chain.flaw }
}

/// Tries every table made of `choices`, with `heads` as heads; returns how many chains were legal and how many were not.
fn try_all(size: u16, choices: &[D], heads: std::ops::RangeInclusive<u16>) -> (u32, u32) {
    let (mut legal, mut illegal) = (0, 0);
    let mut guest = Guest::new(size);
    let mut digits = vec![0; usize::from(size)];
    loop {
        let table: Vec<D> = digits.iter().map(|d| choices[*d]).collect();
        for (i, d) in table.iter().enumerate() {
            guest.desc(i as u16, d.addr, d.len, d.flags, d.next);
        }
        for head in heads.clone() {
            guest.mem.slice(guest.config.avail, 6).unwrap().write_u16(4, head);
            guest.set_avail_index(1);
            for indirect in [true, false] {
                guest.config.indirect = indirect;
                let mut queue = Virtqueue::new(&guest.mem, &guest.config, 0).unwrap();
                let popped = queue.pop().map(|chain| judged(chain.expect("one is available")));
                let expected = judge(&table, head, indirect);
                assert_eq!(
                    popped.as_ref().ok(),
                    expected.as_ref(),
                    "{head} of {table:?}: {popped:?}"
                );
                legal += u32::from(expected.is_some());
                illegal += u32::from(expected.is_none());
            }
        }
        // The next number in base `choices.len()`.
        let Some(at) = digits.iter().position(|d| d + 1 < choices.len()) else {
            return (legal, illegal);
        };
        digits[at] += 1;
        digits[..at].fill(0);
    }
}

fn choices(flags: &[u16], nexts: &[u16], places: &[(u64, u32)], table_bytes: u32) -> Vec<D> {
    let mut all = Vec::new();
    for &flags in flags {
        let nexts = if flags & NEXT != 0 { nexts } else { &nexts[..1] };
        for &next in nexts {
            if flags & INDIRECT != 0 {
                // The table itself, so that all kinds of loops come up; and one with a bad length.
                for len in [table_bytes, table_bytes + 8] {
                    all.push(D { addr: DESC_AT, len, flags, next });
                }
                continue;
            }
            all.extend(places.iter().map(|&(addr, len)| D { addr, len, flags, next }));
        }
    }
    all
}

const ALL_FLAGS: [u16; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

#[test]
fn all_tables_of_one_and_two() {
    let places = [
        (DATA_AT, 16),
        (DATA_AT, 0),
        (BAD_ADDR, 4),
        (DATA_AT, u32::MAX),
        (BAD_ADDR, 3),
        (u64::MAX, 1),
    ];
    let one = choices(&ALL_FLAGS, &[0, 1, 65535], &places, 16);
    let (legal, illegal) = try_all(1, &one, 0..=2);
    assert!(legal > 20 && illegal > 20, "{legal} {illegal}");
    let two = choices(&ALL_FLAGS, &[0, 1, 2], &places, 32);
    let (legal, illegal) = try_all(2, &two, 0..=2);
    assert!(legal > 1000 && illegal > 1000, "{legal} {illegal}");
}

#[test]
fn all_tables_of_four_with_one_place() {
    let four = choices(&[0, 1, 2, 3, 4], &[0, 1, 2, 3, 4], &[(DATA_AT, 16)], 64);
    let (legal, illegal) = try_all(4, &four, 0..=0);
    assert!(legal > 1000 && illegal > 1000, "{legal} {illegal}");
}
