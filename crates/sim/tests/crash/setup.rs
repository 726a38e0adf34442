//! The images that workloads run on: their formats and geometries, and how they are used.

use crate::driver::{Machine, write};
use crate::snapshot;
use block::{Format, qcow2, qed};
use io_engine::Rng;
use io_engine::sim::{SimDisk, SimOptions, Unwritten};
use sim::model::{stamp, stamped_disk};
use std::ops::Range;

/// Room on a block device: so many clusters, and so many bytes at least. What is leaked is missing in it.
const ROOM_CLUSTERS: u64 = 48;
const ROOM_MIN: u64 = 1 << 20;
/// What a fresh block device holds.
const POISON: u8 = 0xA5;

/// Where a qcow2 header says how long the refcount table is.
const REFCOUNT_TABLE_CLUSTERS: u64 = 56;

/// A qcow2 image's geometry.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    pub version: u32,
    pub cluster: u64,
    pub refcount_bits: u32,
    pub extended_l2: bool,
    /// A snapshot uses all that is prepared as well.
    pub snapshot: bool,
    /// Close to the end of what the refcount table counts a cluster is counted that nothing uses: what is new needs a larger table.
    pub at_table_end: bool,
}

/// The format.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Qed,
    Qcow2(Geometry),
}

/// What the independent checker says of an image.
pub struct Verdict {
    /// Whether it may be what a crash left.
    pub crash: Result<(), String>,
    /// Whether it may be what was closed.
    pub closed: Result<(), String>,
    /// Every entry leads to where it may: all can be read.
    pub is_readable: bool,
    /// Clusters that nothing refers to, and that are not free.
    pub leaked: u64,
}

impl Kind {
    pub fn format(&self) -> Format {
        match self {
            Kind::Qed => Format::Qed,
            Kind::Qcow2(_) => Format::Qcow2,
        }
    }

    pub fn check(&self, disk: &SimDisk) -> Verdict {
        match self {
            Kind::Qed => {
                let report = sim::qed::check(disk);
                let is_closed = report.is_sound() && !report.need_check;
                Verdict {
                    crash: report.judge_crash(),
                    closed: is_closed.then_some(()).ok_or_else(|| format!("{report:?}")),
                    is_readable: report.damage_count == 0,
                    leaked: report.leaked_clusters,
                }
            }
            Kind::Qcow2(_) => {
                let report = sim::qcow2::check(disk);
                let is_closed = report.is_sound() && !report.is_dirty && !report.is_corrupt;
                Verdict {
                    crash: report.judge_crash(),
                    closed: is_closed.then_some(()).ok_or_else(|| format!("{report:?}")),
                    is_readable: true,
                    leaked: report.leaked_clusters + report.leaked_beyond_file,
                }
            }
        }
    }

    /// Where the file holds metadata.
    pub fn metadata(&self, disk: &SimDisk) -> Vec<Range<u64>> {
        match self {
            Kind::Qed => sim::qed::Qed::open(disk).unwrap().metadata(),
            Kind::Qcow2(_) => sim::qcow2::Qcow2::open(disk).unwrap().metadata(),
        }
    }

    /// The most clusters of metadata that a commit may make or let go, for an image that ended up as this: a few tables and blocks, and the refcount
    /// table, which is long where the file is.
    pub fn metadata_clusters_max(&self, disk: &SimDisk) -> u64 {
        let mut table_clusters = [0; 4];
        if matches!(self, Kind::Qcow2(_)) {
            disk.read_at(REFCOUNT_TABLE_CLUSTERS, &mut table_clusters);
        }
        12 + 2 * u64::from(u32::from_be_bytes(table_clusters))
    }

    /// Reads an image that is as a crash may leave it, with nobody else's code.
    pub fn read(
        &self,
        disk: &SimDisk,
        backing: Option<&SimDisk>,
        into: &mut [u8],
    ) -> Result<(), String> {
        let below = |at: u64, into: &mut [u8]| match backing {
            Some(backing) => backing.read_at(at, into),
            None => into.fill(0),
        };
        match self {
            Kind::Qed => {
                let image = sim::qed::Qed::open(disk).map_err(|faults| format!("{faults:?}"))?;
                let on_damage = sim::qed::OnDamage::Unallocated;
                image.read_disk(0, into, on_damage, below).map_err(|why| why.to_string())
            }
            Kind::Qcow2(_) => {
                let image =
                    sim::qcow2::Qcow2::open(disk).map_err(|faults| format!("{faults:?}"))?;
                image.read_disk(0, into, below).map_err(|why| why.to_string())
            }
        }
    }

    /// The bytes that a new image begins with, and its length.
    fn new_image(&self, bytes: u64, with_backing: bool) -> (Vec<u8>, u64) {
        let (name, format) = (b"base".to_vec(), b"raw".to_vec());
        match *self {
            Kind::Qed => qed::new_image(&qed::CreateOptions {
                bytes,
                cluster_bytes: 4096,
                table_clusters: 1,
                backing: with_backing.then_some((name, true)),
            }),
            Kind::Qcow2(geometry) => qcow2::new_image(&qcow2::CreateOptions {
                version: geometry.version,
                cluster_bytes: geometry.cluster,
                refcount_bits: geometry.refcount_bits,
                extended_l2: geometry.extended_l2,
                backing: with_backing.then_some(qcow2::BackingFile { name, format: Some(format) }),
                ..qcow2::CreateOptions::new(bytes)
            }),
        }
        .unwrap()
    }
}

/// The image and how it is used.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub kind: Kind,
    pub bytes: u64,
    pub with_backing: bool,
    /// On a block device, whose fresh space holds somebody else's bytes.
    pub on_device: bool,
    /// What the file is written in units of.
    pub align: u32,
    pub write_through: bool,
    /// The first clusters are written before the run begins.
    pub prepared: bool,
    /// The image is closed at the end of the run.
    pub closed: bool,
    /// What is discarded keeps its place.
    pub discard_no_unref: bool,
}

/// An image that a run begins with.
pub struct Start {
    pub disk: SimDisk,
    pub backing: Option<SimDisk>,
    /// What is on it.
    pub content: Vec<u8>,
    /// What a snapshot holds of it.
    pub snapshot: Option<Vec<u8>>,
}

impl Setup {
    pub fn cluster(&self) -> u64 {
        match self.kind {
            Kind::Qed => 4096,
            Kind::Qcow2(geometry) => geometry.cluster,
        }
    }

    fn any(kind: Kind, bytes: u64, rng: &mut Rng) -> Setup {
        Setup {
            kind,
            bytes,
            with_backing: rng.chance(500),
            on_device: rng.chance(300),
            align: if rng.chance(200) { 4096 } else { 1 },
            write_through: rng.chance(300),
            prepared: rng.chance(600),
            closed: rng.chance(400),
            discard_no_unref: false,
        }
    }

    pub fn any_qed(rng: &mut Rng) -> Setup {
        // Two L2 tables now and then: that disk takes long to read.
        let bytes = if rng.chance(80) { 513 * 4096 + 1536 } else { 24 * 4096 };
        Setup::any(Kind::Qed, bytes, rng)
    }

    pub fn any_qcow2(rng: &mut Rng) -> Setup {
        let version = if rng.chance(250) { 2 } else { 3 };
        let extended_l2 = version == 3 && rng.chance(150);
        // Half of them small: there it is that tables and blocks are made all the time.
        let cluster = match extended_l2 {
            true => 16384,
            false => [512, 512, 512, 512, 4096, 4096, 4096, 65536][rng.index(8)],
        };
        let refcount_bits = if version == 2 { 16 } else { [1, 16, 16, 64][rng.index(4)] };
        let bytes = match cluster {
            512 => 67 * 512,
            4096 if rng.chance(80) => 513 * 4096 + 1536,
            4096 => 18 * 4096 + 1536,
            _ => 14 * cluster,
        };
        let geometry = Geometry {
            version,
            cluster,
            refcount_bits,
            extended_l2,
            snapshot: refcount_bits > 1 && rng.chance(300),
            at_table_end: cluster == 512 && refcount_bits == 64 && rng.chance(400),
        };
        let setup = Setup::any(Kind::Qcow2(geometry), bytes, rng);
        Setup {
            // A device of this size would have room before that cluster only.
            on_device: setup.on_device && !geometry.at_table_end,
            discard_no_unref: version == 3 && rng.chance(250),
            ..setup
        }
    }

    pub fn sim(&self) -> SimOptions {
        let unwritten = if self.on_device { Unwritten::Poison(POISON) } else { Unwritten::Zero };
        let (is_block_device, align) = (self.on_device, self.align);
        SimOptions { is_block_device, unwritten, align, ..SimOptions::default() }
    }

    /// A new image, with room behind it if it is on a block device.
    fn new_disk(&self) -> SimDisk {
        let (start, len) = self.kind.new_image(self.bytes, self.with_backing);
        let room = (ROOM_CLUSTERS * self.cluster()).max(ROOM_MIN);
        let whole = if self.on_device { (len + room).next_multiple_of(4096) } else { len };
        let mut bytes = vec![POISON; whole as usize];
        bytes[..len as usize].fill(0);
        bytes[..start.len()].copy_from_slice(&start);
        SimDisk::with_contents(self.sim(), &bytes)
    }

    pub fn start(&self, machine: &Machine) -> Start {
        let backing = self.with_backing.then(|| {
            // Shorter than the disk.
            let bytes = stamped_disk((self.bytes - 2 * self.cluster()) / 512);
            SimDisk::with_contents(SimOptions::default(), &bytes)
        });
        let disk = self.new_disk();
        let mut content = vec![0; self.bytes as usize];
        if let Some(backing) = &backing {
            let below = backing.contents();
            content[..below.len()].copy_from_slice(&below);
        }
        if self.prepared {
            let node = machine.open(self, &disk, backing.as_ref(), false).unwrap();
            let data: Vec<u8> = (0..4 * self.cluster() / 512).flat_map(|n| stamp(n, 0)).collect();
            content[..data.len()].copy_from_slice(&data);
            let written = write(machine, &node, 0, machine.data(&data), false);
            assert!(machine.run(written));
            machine.close(node).unwrap();
        }
        let mut bytes = disk.contents();
        let mut snapshot = None;
        if let Kind::Qcow2(geometry) = self.kind {
            if geometry.snapshot {
                snapshot::add(&mut bytes);
                snapshot = Some(content.clone());
            }
            if geometry.at_table_end {
                snapshot::count_at_table_end(&mut bytes);
            }
        }
        let disk = SimDisk::with_contents(SimOptions { log: true, ..self.sim() }, &bytes);
        let verdict = self.kind.check(&disk);
        assert!(verdict.closed.is_ok(), "{self:?}: {:?}", verdict.closed);
        Start { disk, backing, content, snapshot }
    }
}
