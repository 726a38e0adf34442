//! What must be on the disk, sector by sector.
//!
//! A sector that was written holds its own number and the write's stamp, 32 times over; one that was zeroed, or never written,
//! holds zeroes. So a read shows which write it sees, whether that one was meant for another place, and whether it is torn.

use block::SECTOR;

/// The stamp of a sector of zeroes.
pub const ZEROES: u64 = 0;

/// What a sector may hold.
#[derive(Clone, Debug)]
enum Legal {
    /// One of these stamps. The first is that of the last write that was answered, the others those of writes that nobody
    /// got an answer for.
    OneOf(Vec<u64>),
    /// A write's memory was taken away while it was under way.
    Anything,
}

/// The sectors that belong to one driver: every `stride`-th from `first` on.
#[derive(Debug)]
pub struct Model {
    first: u64,
    stride: u64,
    legal: Vec<Legal>,
    stamp: u64,
}

impl Model {
    /// `count` sectors of a disk of zeroes.
    pub fn new(first: u64, stride: u64, count: usize) -> Model {
        Model { first, stride, legal: vec![Legal::OneOf(vec![ZEROES]); count], stamp: ZEROES }
    }

    pub fn len(&self) -> usize {
        self.legal.len()
    }

    /// A request covers one sector only, because the next ones are another driver's.
    pub fn single(&self) -> bool {
        self.stride > 1
    }

    /// The sector's number on the disk.
    pub fn sector(&self, index: usize) -> u64 {
        self.first + index as u64 * self.stride
    }

    /// A stamp no write has had.
    pub fn new_stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    /// A write was answered.
    pub fn written(&mut self, index: usize, stamp: u64) {
        self.legal[index] = Legal::OneOf(vec![stamp]);
    }

    /// A write failed, or will never be answered.
    pub fn unanswered(&mut self, index: usize, stamp: u64) {
        if let Legal::OneOf(stamps) = &mut self.legal[index] {
            stamps.push(stamp);
        }
    }

    /// A write's memory was taken away.
    pub fn spoiled(&mut self, index: usize) {
        self.legal[index] = Legal::Anything;
    }

    /// The memory of all writes that nobody got an answer for was taken away.
    pub fn spoil_unanswered(&mut self) {
        for legal in &mut self.legal {
            if matches!(legal, Legal::OneOf(stamps) if stamps.len() > 1) {
                *legal = Legal::Anything;
            }
        }
    }

    /// Checks what a read of one sector has found. From now on it must stay so.
    pub fn check(&mut self, index: usize, bytes: &[u8]) {
        let sector = self.sector(index);
        let found = stamp_of(sector, bytes);
        match (&self.legal[index], found) {
            (Legal::OneOf(stamps), Some(stamp)) if stamps.contains(&stamp) => {
                self.written(index, stamp);
            }
            (Legal::Anything, _) => {}
            (Legal::OneOf(stamps), _) => {
                panic!("sector {sector} holds {found:?}, not one of {stamps:?}: {:?}", &bytes[..32])
            }
        }
    }

    /// Checks all of the driver's sectors in a copy of the disk.
    pub fn check_disk(&mut self, disk: &[u8]) {
        for index in 0..self.len() {
            let at = usize::try_from(self.sector(index) * SECTOR).unwrap();
            self.check(index, &disk[at..at + 512]);
        }
    }

    /// Sectors that any write of this driver was answered for.
    pub fn touched(&self) -> usize {
        let touched = |legal: &&Legal| matches!(legal, Legal::OneOf(s) if s[0] != ZEROES);
        self.legal.iter().filter(touched).count()
    }
}

/// What a sector with this stamp holds.
pub fn sector_bytes(sector: u64, stamp: u64) -> Vec<u8> {
    match stamp {
        ZEROES => vec![0; 512],
        _ => [sector.to_le_bytes(), stamp.to_le_bytes()].concat().repeat(32),
    }
}

/// The stamp of a sector; `None` if it is torn or another sector's.
fn stamp_of(sector: u64, bytes: &[u8]) -> Option<u64> {
    let stamp = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
    (sector_bytes(sector, stamp) == bytes).then_some(stamp)
}
