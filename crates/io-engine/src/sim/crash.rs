//! Power cuts: what may be left of a disk, and the choice of what is.
//!
//! An atom is one sector as one op left it. A crash chooses a set of atoms, and of each sector the latest chosen atom remains, or
//! the durable content if none was chosen. The length is chosen apart: data may be durable without the length that
//! reaches it (it is then cut off), and the length without the data (which is then unwritten space).

use super::content::{Content, index};
use super::disk::{Disk, SimDisk, SimOptions, apply};
use super::image::{SECTOR, Sector, SectorBytes};
use crate::rng::Rng;

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

/// What a crash at one moment may leave, worked out once: each [`Remains::disk`] is one crash, and cheap.
#[derive(Clone, Debug)]
pub struct Remains {
    options: SimOptions,
    /// What is durable; no cache.
    durable: Content,
    atoms: Vec<Atom>,
    /// What each atom's sector is after it.
    values: Vec<Option<Sector>>,
    lengths: Vec<u64>,
    cached_len: u64,
}

impl Remains {
    /// As [`SimDisk::pending_atoms`].
    pub fn atoms(&self) -> &[Atom] {
        &self.atoms
    }

    /// As [`SimDisk::pending_lengths`].
    pub fn lengths(&self) -> &[u64] {
        &self.lengths
    }

    /// The length if everything remains, which is also the durable one if nothing changed it.
    #[allow(clippy::len_without_is_empty, reason = "a disk, not a container")]
    pub fn len(&self) -> u64 {
        self.cached_len
    }

    /// A disk of its own, as the crash leaves it: nothing is in its cache or in flight, and it has no faults and an empty log.
    pub fn disk(&self, pick: &CrashPick) -> SimDisk {
        SimDisk::of(self.options, self.content(pick))
    }

    fn content(&self, pick: &CrashPick) -> Content {
        let (kept, length) = choose(pick, self.atoms.len(), &self.lengths, self.cached_len);
        let mut content = self.durable.clone();
        // Oldest first within a sector, so the latest chosen one is what stays.
        for ((atom, value), _) in
            self.atoms.iter().zip(&self.values).zip(kept).filter(|(_, kept)| *kept)
        {
            content.durable.set(atom.at / SECTOR, value.clone());
        }
        content.durable_len = length.unwrap_or(content.durable_len);
        cut(&mut content);
        content
    }
}

impl SimDisk {
    /// What is not durable: the atoms a crash chooses from, by sector and then by age. An op that left a sector as it was makes none.
    pub fn pending_atoms(&self) -> Vec<Atom> {
        self.remains().atoms
    }

    /// The lengths, other than the durable one, that a crash may leave.
    pub fn pending_lengths(&self) -> Vec<u64> {
        self.remains().lengths
    }

    /// What a crash now could leave.
    pub fn remains(&self) -> Remains {
        let disk = self.0.borrow();
        let mut content = with_in_flight(&disk);
        let (atoms, values) = atoms_of(&content).into_iter().unzip();
        let (lengths, cached_len) = (lengths_of(&content), content.len());
        content.cached.clear();
        content.cached_lens.clear();
        Remains { options: disk.options, durable: content, atoms, values, lengths, cached_len }
    }

    /// Cuts the power. What remains is durable; calls in flight will fail with `EIO`.
    pub fn crash(&self, pick: &CrashPick) {
        let content = self.remains().content(pick);
        let mut disk = self.0.borrow_mut();
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
        let mut before = content.bytes_of(content.durable.get(*sector));
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
    content.durable.cut(len.div_ceil(SECTOR));
    let keep = index(len % SECTOR);
    if keep == 0 {
        return;
    }
    if let Some(bytes) = content.durable.get(len / SECTOR) {
        let mut cut = ***bytes;
        cut[keep..].fill(content.unwritten.byte());
        content.durable.set(len / SECTOR, Some(SectorBytes::new(cut)));
    }
}
