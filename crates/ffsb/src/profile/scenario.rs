//! The eight workloads by which virtual disks were compared with bare metal in 2010, by name.
//!
//! What the talk fixes is kept: block sizes, the mix, the mail server's files. What it leaves open is chosen here and said in
//! `docs/ffsb.md`: how many large files, how much one operation moves, the mail server's weights.

use super::value::size_text;
use super::{FileSystem, Op, Profile, Stats, ThreadGroup};
use std::num::NonZeroU32;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Bytes of a large file at full size.
const LARGE_FILE: u64 = GIB;
/// Bytes of a large file at least: sixteen of the largest blocks.
const LARGE_FILE_MIN: u64 = 4 * MIB;
/// Large files: one for each thread of the talk's largest run.
const LARGE_FILES: u32 = 16;
/// Bytes that one operation moves where it does not take a whole file: a run ends between two operations.
const BATCH: u64 = MIB;

const MAIL_FILES: u32 = 100_000;
const MAIL_DIRS: u32 = 100;
/// Mail files at least: enough that sixteen threads seldom want the same one.
const MAIL_FILES_MIN: u32 = 250;
const MAIL_DIRS_MIN: u32 = 4;
/// Sizes of mail files, each as likely: the powers of two between.
const MAIL_SIZES: (u64, u64) = (KIB, MIB);

/// By what the data set is divided; 1 is full size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale(NonZeroU32);

impl Scale {
    /// As large as the talk had it.
    pub const FULL: Scale = Scale(NonZeroU32::MIN);

    /// The data set divided by `divisor`; `None` for 0. Each scenario has a smallest size that it does not fall below.
    pub fn new(divisor: u32) -> Option<Scale> {
        NonZeroU32::new(divisor).map(Scale)
    }

    /// What [`Scale::new`] was given.
    pub fn divisor(self) -> u32 {
        self.0.get()
    }
}

/// A workload by name. In the order in which the talk shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "`what` says it")]
pub enum Scenario {
    LargeFileCreate256k,
    SequentialRead256k,
    LargeFileCreate8k,
    SequentialRead8k,
    RandomRead8k,
    RandomWrite8k,
    Mixed8k,
    MailServer8k,
}

impl Scenario {
    /// All eight.
    pub const ALL: [Scenario; 8] = [
        Scenario::LargeFileCreate256k,
        Scenario::SequentialRead256k,
        Scenario::LargeFileCreate8k,
        Scenario::SequentialRead8k,
        Scenario::RandomRead8k,
        Scenario::RandomWrite8k,
        Scenario::Mixed8k,
        Scenario::MailServer8k,
    ];

    /// The scenario of that [`Scenario::name`].
    pub fn by_name(name: &str) -> Option<Scenario> {
        Scenario::ALL.into_iter().find(|scenario| scenario.name() == name)
    }

    /// E.g. `random-read-8k`.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::LargeFileCreate256k => "large-file-create-256k",
            Scenario::SequentialRead256k => "sequential-read-256k",
            Scenario::LargeFileCreate8k => "large-file-create-8k",
            Scenario::SequentialRead8k => "sequential-read-8k",
            Scenario::RandomRead8k => "random-read-8k",
            Scenario::RandomWrite8k => "random-write-8k",
            Scenario::Mixed8k => "mixed-8k",
            Scenario::MailServer8k => "mail-server-8k",
        }
    }

    /// One line for people.
    pub fn what(self) -> &'static str {
        match self {
            Scenario::LargeFileCreate256k => "large files are created, in blocks of 256 KiB",
            Scenario::SequentialRead256k => {
                "large files are read from end to end, in blocks of 256 KiB"
            }
            Scenario::LargeFileCreate8k => "large files are created, in blocks of 8 KiB",
            Scenario::SequentialRead8k => {
                "large files are read from end to end, in blocks of 8 KiB"
            }
            Scenario::RandomRead8k => "large files are read at random, in blocks of 8 KiB",
            Scenario::RandomWrite8k => "large files are overwritten at random, in blocks of 8 KiB",
            Scenario::Mixed8k => {
                "large files at random, 70 % reads and 30 % writes, in blocks of 8 KiB"
            }
            Scenario::MailServer8k => {
                "small files are created, opened, read, rewritten and deleted, in blocks of 8 KiB"
            }
        }
    }

    /// Bytes of a block.
    pub fn block(self) -> u32 {
        match self {
            Scenario::LargeFileCreate256k | Scenario::SequentialRead256k => 256 << 10,
            _ => 8 << 10,
        }
    }

    /// The scenario for `threads` threads (0 counts as 1) on the directory `location`, for `seconds`. The page cache is used
    /// unless the caller sets [`Profile::directio`]; all sizes allow it.
    pub fn profile(self, threads: u32, location: &str, seconds: u32, scale: Scale) -> Profile {
        Profile {
            time: Some(seconds),
            alignio: true,
            filesystems: vec![self.file_system(location, scale)],
            thread_groups: vec![self.thread_group(threads.max(1))],
            ..Profile::default()
        }
    }

    /// Bytes that the files of [`Scenario::profile`] take at most, those being written included.
    pub fn room(self, threads: u32, scale: Scale) -> u64 {
        let fs = self.file_system("/", scale);
        let files = u64::from(fs.max_files.unwrap_or(fs.num_files));
        files.saturating_add(threads.max(1).into()).saturating_mul(fs.max_filesize)
    }

    /// What the data set is, and from what it was scaled down.
    pub fn scale_note(self, scale: Scale) -> String {
        let fs = self.file_system("/", scale);
        let by = scale.divisor();
        let (is, was) = match self {
            Scenario::MailServer8k => (fs.num_files.to_string(), MAIL_FILES.to_string()),
            _ => (size_text(fs.max_filesize), size_text(LARGE_FILE)),
        };
        let (range, large) = (size_text(MAIL_SIZES.0), size_text(MAIL_SIZES.1));
        let data = match self {
            Scenario::MailServer8k => {
                format!("{is} files of {range} to {large} in {} directories", fs.num_dirs)
            }
            Scenario::LargeFileCreate256k | Scenario::LargeFileCreate8k => {
                format!("up to {LARGE_FILES} files of {is}")
            }
            _ => format!("{LARGE_FILES} files of {is}"),
        };
        if is == was {
            return format!("{data}: full size");
        }
        let floor = if self.at_floor(scale) { ", the smallest there is" } else { "" };
        format!("{data}, scaled down from {was} by {by}{floor}")
    }

    /// Whether the smallest size was reached before the scale.
    fn at_floor(self, scale: Scale) -> bool {
        match self {
            Scenario::MailServer8k => MAIL_FILES / scale.divisor() < MAIL_FILES_MIN,
            _ => LARGE_FILE / u64::from(scale.divisor()) < LARGE_FILE_MIN,
        }
    }

    fn file_system(self, location: &str, scale: Scale) -> FileSystem {
        // Whole MiB, so that blocks, batches and sectors fit.
        let large = (LARGE_FILE / u64::from(scale.divisor()) / MIB * MIB).max(LARGE_FILE_MIN);
        let mut fs = FileSystem {
            location: location.to_owned(),
            num_files: LARGE_FILES,
            max_files: None,
            num_dirs: 0,
            reuse: false,
            min_filesize: large,
            max_filesize: large,
            size_weights: Vec::new(),
            create_blocksize: 256 << 10,
            age_blocksize: 4096,
            init_util: None,
            init_size: None,
            desired_util: None,
            ageing: None,
        };
        match self {
            Scenario::LargeFileCreate256k | Scenario::LargeFileCreate8k => {
                fs.num_files = 0;
                fs.max_files = Some(LARGE_FILES);
            }
            Scenario::MailServer8k => {
                fs.num_files = (MAIL_FILES / scale.divisor()).max(MAIL_FILES_MIN);
                fs.max_files = Some(fs.num_files);
                fs.num_dirs = (MAIL_DIRS / scale.divisor()).max(MAIL_DIRS_MIN);
                (fs.min_filesize, fs.max_filesize) = MAIL_SIZES;
                let sizes = std::iter::successors(Some(MAIL_SIZES.0), |size| Some(size * 2));
                let sizes = sizes.take_while(|size| *size <= MAIL_SIZES.1);
                fs.size_weights = sizes.map(|size| (size, 1)).collect();
            }
            _ => {}
        }
        fs
    }

    fn thread_group(self, threads: u32) -> ThreadGroup {
        let weights = match self {
            Scenario::LargeFileCreate256k | Scenario::LargeFileCreate8k => vec![(Op::Create, 1)],
            Scenario::SequentialRead256k | Scenario::SequentialRead8k => vec![(Op::Readall, 1)],
            Scenario::RandomRead8k => vec![(Op::Read, 1)],
            Scenario::RandomWrite8k => vec![(Op::Write, 1)],
            // One operation of either kind is as many blocks, so transactions are in this proportion too.
            Scenario::Mixed8k => vec![(Op::Read, 7), (Op::Write, 3)],
            // Writes, creates and deletes as in FFSB's own mail server, which has 2 : 2 : 1; two reads for each write.
            Scenario::MailServer8k => vec![
                (Op::Readall, 4),
                (Op::Create, 2),
                (Op::Delete, 1),
                (Op::Writeall, 2),
                (Op::OpenClose, 1),
            ],
        };
        let has = |ops: &[Op]| weights.iter().any(|(op, _)| ops.contains(op));
        let (read, write) = (has(&[Op::Read]), has(&[Op::Write]));
        let reads = read || has(&[Op::Readall]);
        let writes = write || has(&[Op::Create, Op::Writeall]);
        ThreadGroup {
            num_threads: threads,
            bindfs: None,
            read_random: read,
            read_size: read.then_some(BATCH),
            read_blocksize: if reads { self.block() } else { 0 },
            read_skip: None,
            write_random: write,
            write_size: write.then_some(BATCH),
            write_blocksize: if writes { self.block() } else { 0 },
            op_delay: 0,
            iterations: None,
            stats: Stats::default(),
            weights,
        }
    }
}
