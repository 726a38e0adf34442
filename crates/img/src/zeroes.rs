//! Zeroes in data: which parts of a buffer have to be written.

use guest_mem::IoVecs;
use std::ops::Range;

/// How zeroes are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sparse {
    /// Blocks of so many bytes, a power of two, are zeroes or data as a whole.
    pub block: u64,
    /// Fewer zero bytes than these, between data, are data.
    pub min: u64,
}

/// A part of a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub range: Range<u64>,
    pub is_zero: bool,
}

/// The runs of `data`, which lies at `at` on the disk; in order, and together all of it.
pub(crate) fn runs(data: &IoVecs, at: u64, sparse: Sparse) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut from = 0;
    while from < data.bytes() {
        let to = data.bytes().min((at + from) / sparse.block * sparse.block + sparse.block - at);
        let is_zero = data.part(from, to - from).is_zero();
        match runs.last_mut() {
            Some(last) if last.is_zero == is_zero => last.range.end = to,
            _ => runs.push(Run { range: from..to, is_zero }),
        }
        from = to;
    }
    fill_gaps(&mut runs, sparse.min);
    runs
}

/// Joins data that is interrupted by too few zeroes.
fn fill_gaps(runs: &mut Vec<Run>, min: u64) {
    let last = runs.len().saturating_sub(1);
    for (n, run) in runs.iter_mut().enumerate() {
        let inside = n != 0 && n != last;
        run.is_zero &= !inside || run.range.end - run.range.start >= min;
    }
    runs.dedup_by(|next, run| {
        let same = next.is_zero == run.is_zero;
        if same {
            run.range.end = next.range.end;
        }
        same
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Pool;

    fn found(bytes: &[u8], at: u64, sparse: Sparse) -> Vec<(Range<u64>, bool)> {
        let data = Pool::new(1, 1 << 16).unwrap().buffer(0, bytes.len() as u64);
        assert_eq!(data.copy_from(0, bytes), bytes.len());
        runs(&data, at, sparse).into_iter().map(|run| (run.range, run.is_zero)).collect()
    }

    /// A buffer of blocks of 512 bytes: `.` zeroes, `x` data in the last byte.
    fn blocks(pattern: &str) -> Vec<u8> {
        let block = |c| {
            let mut block = [0; 512];
            block[511] = u8::from(c == 'x');
            block
        };
        pattern.chars().flat_map(block).collect()
    }

    #[test]
    fn blocks_are_data_or_zeroes_as_a_whole() {
        let sparse = Sparse { block: 512, min: 512 };
        assert_eq!(found(&blocks(""), 0, sparse), []);
        assert_eq!(found(&blocks("...."), 0, sparse), [(0..2048, true)]);
        assert_eq!(
            found(&blocks(".x.x"), 0, sparse),
            [(0..512, true), (512..1024, false), (1024..1536, true), (1536..2048, false)]
        );
        let sparse = Sparse { block: 1024, min: 512 };
        assert_eq!(found(&blocks(".x.."), 0, sparse), [(0..1024, false), (1024..2048, true)]);
    }

    #[test]
    fn blocks_are_counted_from_the_start_of_the_disk() {
        let sparse = Sparse { block: 1024, min: 512 };
        assert_eq!(
            found(&blocks(".x..."), 512, sparse),
            [(0..512, true), (512..1536, false), (1536..2560, true)]
        );
    }

    #[test]
    fn a_short_gap_is_data_but_not_at_the_ends() {
        let sparse = Sparse { block: 512, min: 1024 };
        assert_eq!(found(&blocks("x.x"), 0, sparse), [(0..1536, false)]);
        assert_eq!(
            found(&blocks(".x..x."), 0, sparse),
            [
                (0..512, true),
                (512..1024, false),
                (1024..2048, true),
                (2048..2560, false),
                (2560..3072, true)
            ]
        );
    }
}
