//! What the disk must contain, sector by sector, and the stamps that make every write recognisable.
//!
//! ```text
//! a stamped sector, little-endian words of 8 bytes
//! word 0        1        2            3 .. 63
//!    +------+--------+------------+--------------------------------------------+
//!    | seed | sector | generation | noise that depends on all of seed, sector  |
//!    |      |        |            | and generation: a torn sector shows        |
//!    +------+--------+------------+--------------------------------------------+
//! ```
//!
//! A generation is used for one write only, so a stale, misplaced or torn sector is told apart from the right one,
//! and the message can say which of them it is.

use crate::Error;
use crate::rng::mix;

/// Bytes of a sector: the unit of virtio-blk, whatever the block size.
pub const SECTOR: usize = 512;

/// Expected content of one sector: 0 unknown, 1 zeroes, else the generation of the stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Expect(u32);

impl Expect {
    const UNKNOWN: Expect = Expect(0);
    const ZERO: Expect = Expect(1);
    /// Set on top of the rest: discarded since, so zeroes are right as well.
    const DISCARDED: u32 = 1 << 31;
}

/// Expected content of the first sectors of a disk.
#[derive(Clone, Debug)]
pub struct Model {
    seed: u64,
    sectors: Vec<Expect>,
    next_generation: u32,
}

impl Model {
    /// A model of `bytes` bytes about which nothing is known yet.
    pub fn new(seed: u64, bytes: u64) -> Model {
        let count = usize::try_from(bytes).unwrap_or(usize::MAX) / SECTOR;
        Model { seed, sectors: vec![Expect::UNKNOWN; count], next_generation: 2 }
    }

    /// Bytes that the model covers.
    pub fn len(&self) -> u64 {
        (self.sectors.len() * SECTOR) as u64
    }

    /// Whether the model covers nothing.
    pub fn is_empty(&self) -> bool {
        self.sectors.is_empty()
    }

    /// A generation that no write has had.
    pub fn new_generation(&mut self) -> u32 {
        let generation = self.next_generation;
        self.next_generation = (generation + 1) % Expect::DISCARDED;
        assert!(self.next_generation > 1, "two thousand million writes in one run");
        generation
    }

    /// Fills `data`, which is to be written at byte `at`, with stamps.
    pub fn stamp(&self, generation: u32, at: u64, data: &mut [u8]) {
        for (sector, to) in (at / SECTOR as u64..).zip(data.chunks_exact_mut(SECTOR)) {
            stamp_sector(self.seed, sector, generation, to.first_chunk_mut().expect("one sector"));
        }
    }

    /// Notes that a write of `generation` has completed.
    pub fn written(&mut self, generation: u32, at: u64, len: u64) {
        self.range(at, len).fill(Expect(generation));
    }

    /// Notes that the range reads as zero from now on.
    pub fn zeroed(&mut self, at: u64, len: u64) {
        self.range(at, len).fill(Expect::ZERO);
    }

    /// Notes that the range was discarded: old data or zeroes are both right.
    pub fn discarded(&mut self, at: u64, len: u64) {
        for expect in self.range(at, len) {
            if *expect != Expect::UNKNOWN && *expect != Expect::ZERO {
                expect.0 |= Expect::DISCARDED;
            }
        }
    }

    /// Compares `data`, read at byte `at`, with the model; tells about the first wrong sector.
    pub fn check(&self, at: u64, data: &[u8]) -> Result<(), Error> {
        let first = at / SECTOR as u64;
        let expected = self.sectors.iter().skip(usize::try_from(first).unwrap_or(usize::MAX));
        for ((sector, &expect), raw) in (first..).zip(expected).zip(data.chunks_exact(SECTOR)) {
            let found: &[u8; SECTOR] = raw.first_chunk().expect("one sector");
            if !self.is_right(sector, expect, found) {
                let why = format!("expected {}, found {}", describe(expect), self.recognise(found));
                let at = sector * SECTOR as u64;
                return Err(Error::new(format_args!("wrong data in the sector at {at:#x}"), why));
            }
        }
        Ok(())
    }

    fn is_right(&self, sector: u64, expect: Expect, found: &[u8; SECTOR]) -> bool {
        let zero = found.iter().all(|&b| b == 0);
        match expect {
            Expect::UNKNOWN => true,
            Expect::ZERO => zero,
            Expect(n) if n & Expect::DISCARDED != 0 && zero => true,
            Expect(n) => {
                let mut right = [0; SECTOR];
                stamp_sector(self.seed, sector, n & !Expect::DISCARDED, &mut right);
                *found == right
            }
        }
    }

    /// Says in words what a wrong sector holds.
    fn recognise(&self, found: &[u8; SECTOR]) -> String {
        if found.iter().all(|&b| b == 0) {
            return "zeroes".to_owned();
        }
        let (seed, sector, generation) = (word(found, 0), word(found, 1), word(found, 2));
        let Ok(generation) = u32::try_from(generation) else {
            return "foreign data".to_owned();
        };
        if seed != self.seed {
            return "foreign data".to_owned();
        }
        let mut whole = [0; SECTOR];
        stamp_sector(seed, sector, generation, &mut whole);
        let torn = if whole == *found { "" } else { "a torn " };
        format!("{torn}generation {generation} of the sector at {:#x}", sector * SECTOR as u64)
    }

    fn range(&mut self, at: u64, len: u64) -> &mut [Expect] {
        let index = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX) / SECTOR;
        &mut self.sectors[index(at)..index(at + len)]
    }
}

fn describe(expect: Expect) -> String {
    match expect {
        Expect::UNKNOWN => "anything".to_owned(),
        Expect::ZERO => "zeroes".to_owned(),
        Expect(n) if n & Expect::DISCARDED != 0 => {
            format!("generation {} or zeroes", n & !Expect::DISCARDED)
        }
        Expect(n) => format!("generation {n}"),
    }
}

fn stamp_sector(seed: u64, sector: u64, generation: u32, to: &mut [u8; SECTOR]) {
    let mut noise = mix(seed ^ mix(sector ^ mix(u64::from(generation))));
    for (i, word) in to.chunks_exact_mut(8).enumerate() {
        let value = match i {
            0 => seed,
            1 => sector,
            2 => u64::from(generation),
            _ => {
                noise = mix(noise.wrapping_add(0x9e37_79b9_7f4a_7c15));
                noise
            }
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

fn word(sector: &[u8; SECTOR], index: usize) -> u64 {
    let bytes = &sector[8 * index..];
    u64::from_le_bytes(*bytes.first_chunk().expect("the first words lie inside a sector"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(model: &Model, at: u64, data: &[u8]) -> String {
        model.check(at, data).unwrap_err().to_string()
    }

    #[test]
    fn stale_misplaced_torn_lost_and_foreign_sectors_are_told_apart() {
        let mut model = Model::new(7, 8 * SECTOR as u64);
        let (old, new) = (model.new_generation(), model.new_generation());
        let mut data = [0; 2 * SECTOR];
        model.check(1024, &data).unwrap();
        model.written(new, 1024, data.len() as u64);

        model.stamp(new, 1024, &mut data);
        model.check(1024, &data).unwrap();
        assert!(message(&model, 1024, &[0; SECTOR]).contains("found zeroes"));
        assert!(message(&model, 1536, &data).contains("sector at 0x400"));
        let mut torn = data;
        torn[SECTOR + 300] ^= 1;
        assert!(message(&model, 1024, &torn).contains("torn"));
        model.stamp(old, 1024, &mut data);
        assert!(message(&model, 1024, &data).contains("found generation 2"));
        assert!(message(&model, 1024, &[0xEE; SECTOR]).contains("foreign"));
    }

    #[test]
    fn discarded_sectors_may_keep_their_data_or_lose_it_but_nothing_else() {
        let mut model = Model::new(7, 4 * SECTOR as u64);
        let (other, generation) = (model.new_generation(), model.new_generation());
        let mut data = [0; SECTOR];
        model.written(generation, 512, 512);
        model.discarded(0, 2048);
        model.stamp(generation, 512, &mut data);
        model.check(512, &data).unwrap();
        model.check(512, &[0; SECTOR]).unwrap();
        model.stamp(other, 512, &mut data);
        model.check(512, &data).unwrap_err();
        model.zeroed(512, 512);
        model.check(512, &data).unwrap_err();
        model.check(512, &[0; SECTOR]).unwrap();
    }
}
