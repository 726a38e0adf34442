//! One refcount among those of a block.
//!
//! ```text
//!   byte 0   1   2   3   4   5   6   7
//!       |       0       |       1       | ...        of 32 bits, big-endian
//!       |10|32|54|76| ...                            of 4 bits: less than a byte has the lowest bits first
//! ```
//!
//! Specification: QEMU `docs/interop/qcow2.rst`, "Host cluster management". `order` is the binary logarithm of a refcount's bits: 0 to 6.

use std::ops::Range;

/// The largest refcount.
pub(crate) fn max(order: u32) -> u64 {
    u64::MAX >> (64 - (1 << order))
}

/// Refcount number `n`.
pub(crate) fn get(bytes: &[u8], n: usize, order: u32) -> u64 {
    let at = n << order >> 3;
    match order {
        4 => u64::from(u16::from_be_bytes([bytes[at], bytes[at + 1]])),
        0..=2 => {
            let shift = (n << order) & 7;
            u64::from(bytes[at] >> shift) & max(order)
        }
        _ => bytes[at..at + (1 << order >> 3)]
            .iter()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)),
    }
}

/// Sets refcount number `n`, of which what does not fit is lost; gives the bytes that were changed.
pub(crate) fn set(bytes: &mut [u8], n: usize, order: u32, value: u64) -> Range<usize> {
    let at = n << order >> 3;
    if order < 3 {
        let shift = (n << order) & 7;
        let mask = max(order) << shift;
        let [.., byte] = (u64::from(bytes[at]) & !mask | value << shift & mask).to_be_bytes();
        bytes[at] = byte;
        return at..at + 1;
    }
    let len = 1 << order >> 3;
    bytes[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
    at..at + len
}

#[cfg(test)]
mod tests {
    use super::*;
    use io_engine::Rng;

    #[test]
    fn refcounts_of_all_widths() {
        let mut rng = Rng::new(1);
        for order in 0..=6 {
            let mut bytes = vec![0u8; 512];
            let n = 4096 >> order;
            let values: Vec<u64> = (0..n).map(|_| rng.bits() & max(order)).collect();
            for (i, value) in values.iter().enumerate() {
                let range = set(&mut bytes, i, order, !value);
                assert!(range.contains(&((i << order) / 8)));
                set(&mut bytes, i, order, *value);
            }
            set(&mut bytes, 1, order, max(order));
            for (i, value) in values.iter().enumerate() {
                let expected = if i == 1 { max(order) } else { *value };
                assert_eq!(get(&bytes, i, order), expected, "{order} {i}");
            }
        }
        // As the specification has it: of those below a byte, the first is in the lowest bits.
        let mut bytes = [0; 8];
        set(&mut bytes, 1, 4, 0x0102);
        set(&mut bytes, 1, 1, 3);
        assert_eq!(bytes, [0b1100, 0, 1, 2, 0, 0, 0, 0]);
        set(&mut bytes, 2, 4, 0x1234);
        assert_eq!(bytes[4..6], [0x12, 0x34]);
    }
}
