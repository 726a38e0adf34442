//! Power cuts: what may be left of a disk, and the choice of what is.
//!
//! An atom is one sector as one op left it. A crash chooses a set of atoms, and of each sector the latest chosen atom remains, or
//! the durable content if none was chosen. The length is chosen apart: data may be durable without the length that
//! reaches it (it is then cut off), and the length without the data (which is then unwritten space).

use super::content::{Content, SECTOR, Sector, index, set};
use super::disk::{Disk, SimDisk, apply};
use crate::rng::Rng;
use std::rc::Rc;

/// A sector that may or may not have become durable, as it was after one op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Atom {
    /// First byte of the sector.
    pub at: u64,
    /// The op, by its name in the write log.
    pub op: u64,
    /// How many changes of this sector, not durable either, came before.
    pub version: usize,
    /// Whether the op had completed. One that had not may still leave its mark.
    pub completed: bool,
}

/// What a crash leaves of all that was not durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CrashPick {
    /// Nothing.
    Nothing,
    /// Everything, calls in flight included.
    Everything,
    /// What this seed says: sometimes nearly all, sometimes nearly nothing, and any length.
    Seed(u64),
    /// Exactly this.
    Mask {
        /// For each of [`SimDisk::pending_atoms`], whether it remains.
        atoms: Vec<bool>,
        /// Which of [`SimDisk::pending_lengths`]; `None` for the durable length.
        length: Option<usize>,
    },
}

impl SimDisk {
    /// What is not durable: the atoms a crash chooses from, by sector and then by age. An op that left a sector as it was makes none.
    pub fn pending_atoms(&self) -> Vec<Atom> {
        let disk = self.0.borrow();
        atoms_of(&with_in_flight(&disk)).into_iter().map(|(atom, _)| atom).collect()
    }

    /// The lengths, other than the durable one, that a crash may leave.
    pub fn pending_lengths(&self) -> Vec<u64> {
        lengths_of(&with_in_flight(&self.0.borrow()))
    }

    /// Cuts the power. What remains is durable; calls in flight will fail with `EIO`.
    pub fn crash(&self, pick: &CrashPick) {
        let mut disk = self.0.borrow_mut();
        let mut content = with_in_flight(&disk);
        let atoms = atoms_of(&content);
        let lengths = lengths_of(&content);
        let (kept, length) = choose(pick, atoms.len(), &lengths, content.len());
        content.cached.clear();
        content.cached_lens.clear();
        // Oldest first within a sector, so the latest chosen one is what stays.
        for ((atom, value), kept) in atoms.into_iter().zip(kept) {
            if kept {
                set(&mut content.durable, atom.at / SECTOR, value);
            }
        }
        content.durable_len = length.unwrap_or(content.durable_len);
        cut(&mut content);
        disk.content = content;
        disk.issued.clear();
    }
}

/// The content as it would be if everything in flight completed, in the order of its issue.
fn with_in_flight(disk: &Disk) -> Content {
    let mut content = disk.content.clone();
    for (op, issued) in &disk.issued {
        // What the disk would refuse leaves no mark. What is to fail otherwise may have come any distance before it does.
        if let Ok(bytes) = disk.permitted(issued) {
            apply(&mut content, *op, u64::MAX, &issued.change, true, bytes);
        }
    }
    content
}

fn atoms_of(content: &Content) -> Vec<(Atom, Option<Sector>)> {
    let mut atoms = Vec::new();
    for (sector, versions) in &content.cached {
        let mut before = content.bytes_of(content.durable.get(sector));
        for (version, change) in versions.iter().enumerate() {
            let after = content.bytes_of(change.value.as_ref());
            if after != before {
                let completed = change.done_at != u64::MAX;
                let atom = Atom { at: sector * SECTOR, op: change.op, version, completed };
                atoms.push((atom, change.value.clone()));
            }
            before = after;
        }
    }
    atoms
}

fn lengths_of(content: &Content) -> Vec<u64> {
    let mut lengths: Vec<u64> = content.cached_lens.iter().map(|version| version.value).collect();
    lengths.sort_unstable();
    lengths.dedup();
    lengths.retain(|len| *len != content.durable_len);
    lengths
}

/// Which atoms stay, and which length, if not the durable one.
fn choose(
    pick: &CrashPick,
    atoms: usize,
    lengths: &[u64],
    cached_len: u64,
) -> (Vec<bool>, Option<u64>) {
    match pick {
        CrashPick::Nothing => (vec![false; atoms], None),
        CrashPick::Everything => (vec![true; atoms], Some(cached_len)),
        CrashPick::Mask { atoms: mask, length } => {
            let mut mask = mask.clone();
            mask.resize(atoms, false);
            (mask, length.and_then(|choice| lengths.get(choice).copied()))
        }
        CrashPick::Seed(seed) => {
            let mut rng = Rng::new(*seed);
            let permille = [60, 250, 500, 750, 940][rng.index(5)];
            let kept = (0..atoms).map(|_| rng.chance(permille)).collect();
            let choice = rng.index(lengths.len() + 1);
            (kept, lengths.get(choice).copied())
        }
    }
}

/// Drops what lies beyond the durable length.
fn cut(content: &mut Content) {
    let len = content.durable_len;
    content.durable.split_off(&len.div_ceil(SECTOR));
    let keep = index(len % SECTOR);
    if keep == 0 {
        return;
    }
    if let Some(bytes) = content.durable.get_mut(&(len / SECTOR)) {
        let mut cut = **bytes;
        cut[keep..].fill(content.unwritten.byte());
        *bytes = Rc::new(cut);
    }
}
