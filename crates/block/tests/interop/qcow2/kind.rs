//! Kinds of images, and how both sides make one.

use super::{K, M};
use crate::common::model::{Draw, Model, Request};
use crate::common::{Dir, Disk, Way, options, qemu, ways};
use block::qcow2::create::Preallocation;
use block::qcow2::header::Compression;
use block::qcow2::{BackingFile, CreateOptions};
use block::{Format, Image, OpenOptions, Secret};
use io_engine::Rng;
use std::path::{Path, PathBuf};

/// What an image stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    Nothing,
    /// A raw file: its length in percent of the disk's.
    Raw(u64),
    /// An image of the same format, of another cluster size, on a raw file itself.
    Qcow2,
    Qed,
}

/// Where the data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    Inside,
    /// In a file of its own.
    Outside,
    /// In a file that is an image of the disk by itself.
    OutsideRaw,
    /// Encrypted: with LUKS, or as QEMU did it before.
    Luks,
    Aes,
}

/// A kind of image.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub version: u32,
    pub cluster_bytes: u64,
    pub refcount_bits: u32,
    pub extended: bool,
    pub zstd: bool,
    pub lazy: bool,
    pub preallocation: Preallocation,
    pub data: Data,
    pub below: Below,
    pub way: Way,
}

/// Version, bytes of a cluster, bits of a refcount, subclusters.
const GEOMETRIES: [(u32, u64, u32, bool); 18] = [
    (3, 512, 16, false),
    (2, 512, 16, false),
    (3, 512, 1, false),
    (3, 512, 64, false),
    (3, K, 8, false),
    (3, 2 * K, 4, false),
    (3, 4 * K, 2, false),
    (2, 4 * K, 16, false),
    (3, 4 * K, 32, false),
    (3, 16 * K, 16, true),
    (3, 32 * K, 64, true),
    (3, 64 * K, 16, false),
    (2, 64 * K, 16, false),
    (3, 64 * K, 16, true),
    (3, 64 * K, 1, false),
    (3, 256 * K, 8, true),
    (3, 2 * M, 16, false),
    (2, 2 * M, 16, false),
];
const BELOWS: [Below; 6] =
    [Below::Nothing, Below::Raw(60), Below::Qcow2, Below::Nothing, Below::Raw(130), Below::Qed];
const PREALLOCATIONS: [Preallocation; 4] =
    [Preallocation::Off, Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full];
const DATA: [Data; 7] = [
    Data::Inside,
    Data::Outside,
    Data::Inside,
    Data::Luks,
    Data::Inside,
    Data::OutsideRaw,
    Data::Aes,
];

impl Kind {
    /// As QEMU makes an image if told nothing else.
    pub fn plain(way: Way) -> Kind {
        Kind {
            version: 3,
            cluster_bytes: 64 * K,
            refcount_bits: 16,
            extended: false,
            zstd: false,
            lazy: false,
            preallocation: Preallocation::Off,
            data: Data::Inside,
            below: Below::Nothing,
            way,
        }
    }

    /// A good sample of everything with everything: part 0 or 1 of it. With INTEROP_ALL set both, and of each geometry some more.
    pub fn sample(part: usize) -> Vec<Kind> {
        let ways = ways();
        let all = std::env::var_os("INTEROP_ALL").is_some();
        let turns = if all { 6 } else { 1 };
        let mut kinds = Vec::new();
        for turn in 0..turns {
            for (n, (version, cluster_bytes, refcount_bits, extended)) in
                GEOMETRIES.into_iter().enumerate()
            {
                // Steps that have no divisor in common, so that everything meets everything.
                let m = n + turn * 7;
                let kind = Kind {
                    version,
                    cluster_bytes,
                    refcount_bits,
                    extended,
                    zstd: version == 3 && m % 2 == 1,
                    lazy: version == 3 && m % 5 == 2,
                    preallocation: PREALLOCATIONS[(m / 3) % PREALLOCATIONS.len()],
                    data: DATA[m % DATA.len()],
                    below: BELOWS[m % BELOWS.len()],
                    way: ways[(m / 2) % ways.len()],
                };
                kinds.push(kind.made_possible());
            }
        }
        match all {
            true => kinds,
            false => kinds.into_iter().skip(part).step_by(2).collect(),
        }
    }

    /// Without what the format does not have together.
    fn made_possible(mut self) -> Kind {
        let is_outside = matches!(self.data, Data::Outside | Data::OutsideRaw);
        if is_outside && (self.version == 2 || self.lazy) {
            self.data = Data::Inside;
        }
        if self.data == Data::OutsideRaw {
            self.below = Below::Nothing;
        }
        let is_encrypted = self.is_encrypted();
        if self.data == Data::OutsideRaw || is_encrypted || (self.below != Below::Nothing) {
            self.preallocation = Preallocation::Off;
        }
        self
    }

    pub fn is_encrypted(&self) -> bool {
        matches!(self.data, Data::Luks | Data::Aes)
    }

    /// Not a multiple of the cluster, and for small clusters several tables.
    pub fn disk_bytes(&self) -> u64 {
        match self.cluster_bytes {
            ..2048 => 300 * K + 1536,
            2048..16384 => 5 * M + 1536,
            16384..1_048_576 => 6 * M + 512,
            cluster => 4 * cluster + 3 * 512,
        }
    }

    pub fn draw(&self) -> Draw {
        let len_max = (3 * self.cluster_bytes).clamp(64 * K, 2 * M);
        let (disk_bytes, cluster_bytes) = (self.disk_bytes(), self.cluster_bytes);
        Draw { disk_bytes, cluster_bytes, len_max, zeroes: true, discards: true, aligned: false }
    }

    /// Makes what the image stands on; gives the disk with nothing else in it.
    pub fn make_below(&self, dir: &Dir, rng: &mut Rng) -> Model {
        let bytes = self.disk_bytes();
        let raw = |len: u64, rng: &mut Rng| {
            let mut base = vec![0; len as usize];
            base.chunks_mut(512).for_each(|sector| sector.fill(rng.bits() as u8));
            base
        };
        match self.below {
            Below::Nothing => Model::over(bytes, &[]),
            Below::Raw(percent) => {
                let base = raw(bytes * percent / 100 / 512 * 512, rng);
                dir.file("base", &base);
                Model::over(bytes, &base)
            }
            Below::Qcow2 | Below::Qed => {
                let (format, more) = match self.below {
                    Below::Qed => ("qed", ""),
                    _ => ("qcow2", ",cluster_size=4096,compat=0.10"),
                };
                let lowest = raw(bytes / 2 / 512 * 512, rng);
                dir.file("lowest", &lowest);
                let (base, len) = (dir.path("base"), bytes * 4 / 5 / 512 * 512);
                let options = format!("backing_file=lowest,backing_fmt=raw{more}");
                let (path, size) = (base.to_str().unwrap(), len.to_string());
                qemu::img(&["create", "-q", "-f", format, "-o", &options, path, &size]);
                let mut model = Model::over(len, &lowest);
                let draw = Draw { disk_bytes: len, aligned: true, discards: false, ..self.draw() };
                let draw = Draw { cluster_bytes: 64 * K, ..draw };
                qemu::io(format, &base, &requests(draw, 6, rng, &mut model));
                Model::over(bytes, &model.0)
            }
        }
    }

    fn below_format(&self) -> Option<&'static str> {
        match self.below {
            Below::Nothing => None,
            Below::Raw(_) => Some("raw"),
            Below::Qcow2 => Some("qcow2"),
            Below::Qed => Some("qed"),
        }
    }

    /// The options of qemu-img for this kind.
    pub fn qemu_options(&self) -> String {
        let compat = if self.version == 2 { "0.10" } else { "1.1" };
        let mut options = format!("compat={compat},cluster_size={}", self.cluster_bytes);
        let mut add = |option: &str| options += &format!(",{option}");
        if self.version == 3 {
            add(&format!("refcount_bits={}", self.refcount_bits));
            add(&format!("compression_type={}", if self.zstd { "zstd" } else { "zlib" }));
        }
        if self.extended {
            add("extended_l2=on");
        }
        if self.lazy {
            add("lazy_refcounts=on");
        }
        match self.preallocation {
            Preallocation::Off => {}
            Preallocation::Metadata => add("preallocation=metadata"),
            Preallocation::Falloc => add("preallocation=falloc"),
            Preallocation::Full => add("preallocation=full"),
        }
        if let Some(format) = self.below_format() {
            add(&format!("backing_file=base,backing_fmt={format}"));
        }
        match self.data {
            Data::Inside => {}
            Data::Outside => add("data_file=data.raw"),
            Data::OutsideRaw => add("data_file=data.raw,data_file_raw=on"),
            Data::Luks => add("encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"),
            Data::Aes => add("encrypt.format=aes,encrypt.key-secret=key"),
        }
        options
    }

    /// Makes the image with qemu-img.
    pub fn make_qemu(&self, dir: &Dir) -> PathBuf {
        let path = dir.path("test.qcow2");
        // The tool takes it as a path from where it runs, and from there it reads the size of what is below.
        let options = self.qemu_options();
        let options =
            options.replace("data_file=", &format!("data_file={}/", dir.path("").display()));
        let (name, size) = (path.to_str().unwrap(), self.disk_bytes().to_string());
        let secret = format!("secret,id=key,data={}", qemu::SECRET);
        let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
        if self.is_encrypted() {
            args.extend(["--object", &secret]);
        }
        args.extend([name, &size]);
        qemu::img(&args);
        path
    }

    /// Makes the image with our driver; an encrypted one is QEMU's.
    pub fn make_ours(&self, dir: &Dir) -> PathBuf {
        if self.is_encrypted() {
            return self.make_qemu(dir);
        }
        let path = dir.path("test.qcow2");
        let is_outside = self.data != Data::Inside;
        let create = CreateOptions {
            version: self.version,
            cluster_bytes: self.cluster_bytes,
            refcount_bits: self.refcount_bits,
            extended_l2: self.extended,
            lazy_refcounts: self.lazy,
            compression: if self.zstd { Compression::Zstd } else { Compression::Zlib },
            backing: self.below_format().map(|format| BackingFile {
                name: b"base".to_vec(),
                format: Some(format.as_bytes().to_vec()),
            }),
            data_file: is_outside.then(|| b"data.raw".to_vec()),
            data_file_raw: self.data == Data::OutsideRaw,
            preallocation: self.preallocation,
            ..CreateOptions::new(self.disk_bytes())
        };
        create_image(&path, create, self.way);
        path
    }

    /// The name of the format for QEMU's tools: see [`qemu::ENCRYPTED`].
    pub fn format(&self) -> &'static str {
        if self.is_encrypted() { qemu::ENCRYPTED } else { "qcow2" }
    }

    pub fn options(&self, read_only: bool) -> OpenOptions {
        let secret = self.is_encrypted().then(|| Secret::new(qemu::SECRET.into()));
        OpenOptions { secret, ..options(Format::Qcow2, self.way, read_only) }
    }

    pub fn open(&self, path: &Path, read_only: bool) -> Disk {
        let disk = Disk::open_with(path, self.way.engine, &self.options(read_only));
        disk.unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    /// Opens, sends random requests, compares, closes.
    pub fn write_ours(&self, path: &Path, count: usize, rng: &mut Rng, model: &mut Model) {
        let disk = self.open(path, false);
        for _ in 0..count {
            model.send(&disk, self.draw().request(rng));
        }
        model.check(&disk, &format!("{self:?}"));
        disk.close().unwrap();
    }

    /// Random requests of QEMU.
    pub fn write_qemu(&self, path: &Path, count: usize, rng: &mut Rng, model: &mut Model) {
        qemu::io(self.format(), path, &requests(self.draw(), count, rng, model));
    }

    /// Our driver reads the model, and writes nothing.
    pub fn check_ours(&self, path: &Path, model: &Model) {
        let before = std::fs::read(path).unwrap();
        let disk = self.open(path, true);
        model.check(&disk, &format!("{self:?}"));
        disk.close().unwrap();
        assert!(
            std::fs::read(path).unwrap() == before,
            "{self:?}: a read-only disk was written to"
        );
    }

    /// QEMU reads the model.
    pub fn check_qemu(&self, path: &Path, model: &Model, when: &str) {
        let name = format!("{self:?}: {when}, as QEMU reads it");
        model.check_bytes(&qemu::contents(self.format(), path), &name);
    }

    /// QEMU finds nothing wrong.
    pub fn check_clean(&self, path: &Path, when: &str) {
        assert_eq!(qemu::check(self.format(), path), super::CLEAN, "{self:?}: {when}");
    }
}

pub fn create_image(path: &Path, create: CreateOptions, way: Way) {
    let create = block::CreateOptions::Qcow2(create);
    Image::create(path, &create, &options(Format::Qcow2, way, false)).unwrap();
}

/// Random requests in qemu-io's words, applied to the model.
pub fn requests(draw: Draw, count: usize, rng: &mut Rng, model: &mut Model) -> Vec<String> {
    let mut words = Vec::new();
    for _ in 0..count {
        let request: Request = draw.request(rng);
        model.apply(request);
        words.push(qemu::words(request));
    }
    words
}
