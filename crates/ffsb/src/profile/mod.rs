//! A workload as FFSB describes it.
//!
//! The words and defaults are those of FFSB 5 and 6 (`jrsantos/FFSB`); what ferroblk adds is marked "ours".
//!
//! ```text
//!  text --section--> keys in sections --build--> Profile --check--> a profile that can run
//!            (4.0: --old--^)                        |
//!                         text <------print---------+      scenario: the built-in ones, by name
//! ```

mod build;
mod check;
mod error;
mod keys;
mod old;
mod print;
pub mod scenario;
mod section;
mod value;

pub use error::{Parsed, ProfileError, Warning};

use serde::{Deserialize, Serialize};

/// A whole profile.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// `time`: seconds the benchmark runs; 0: only the files are made. `None`: until every thread has done
    /// [`ThreadGroup::iterations`].
    pub time: Option<u32>,
    /// `directio`: O_DIRECT.
    pub directio: bool,
    /// `alignio`: offsets are multiples of 4 KiB.
    pub alignio: bool,
    /// `callout`: a shell command run between set-up and benchmark.
    pub callout: Option<String>,
    /// `seed` (ours): the same seed draws the same operations. `None`: 0.
    pub seed: Option<u64>,
    /// `verify` (ours): each block carries file, offset, generation and checksum, and is checked when read.
    pub verify: bool,
    /// `[filesystem]` sections, in order.
    pub filesystems: Vec<FileSystem>,
    /// `[threadgroup]` sections, in order.
    pub thread_groups: Vec<ThreadGroup>,
}

/// One `[filesystem]`: a set of files in a place.
#[derive(Clone, Debug, PartialEq)]
pub struct FileSystem {
    /// `location`: a directory. A run may be told to use another place.
    pub location: String,
    /// `num_files`: files the set starts with.
    pub num_files: u32,
    /// `max_files` (ours): files the set may reach. A create at that number removes one first, which is not counted as a
    /// transaction. `None`: no bound.
    pub max_files: Option<u32>,
    /// `num_dirs`: directories they are spread over, besides the one that these are in.
    pub num_dirs: u32,
    /// `reuse`: files that are there already and fit are kept.
    pub reuse: bool,
    /// `min_filesize`, bytes.
    pub min_filesize: u64,
    /// `max_filesize`, bytes.
    pub max_filesize: u64,
    /// `size_weight SIZE WEIGHT`: sizes and how often each is drawn; empty: uniform from min to max.
    pub size_weights: Vec<(u64, u32)>,
    /// `create_blocksize`: bytes of a write when files are made.
    pub create_blocksize: u32,
    /// `age_blocksize`: bytes of a write while ageing.
    pub age_blocksize: u32,
    /// `init_util`: the set grows until the file system is this full (0.0 to 1.0).
    pub init_util: Option<f64>,
    /// `init_size`: the set grows until it has this many bytes.
    pub init_size: Option<u64>,
    /// `desired_util`: ageing goes on until the file system is this full (0.0 to 1.0).
    pub desired_util: Option<f64>,
    /// `agefs` with its nested `[threadgroup]`: what ages the file system.
    pub ageing: Option<Box<ThreadGroup>>,
}

/// One `[threadgroup]`: threads that do the same mix.
#[derive(Clone, Debug, PartialEq)]
pub struct ThreadGroup {
    /// `num_threads`
    pub num_threads: u32,
    /// `bindfs`: index of the only file system it works on; `None`: one at random for each operation.
    pub bindfs: Option<usize>,
    /// `*_weight`: operations and how often each is drawn; none with weight 0, in the order of [`Op::ALL`].
    pub weights: Vec<(Op, u32)>,
    /// `read_random`: each block at an offset of its own.
    pub read_random: bool,
    /// `read_size`: bytes a `read` operation reads; `None`: the whole file.
    pub read_size: Option<u64>,
    /// `read_blocksize`, bytes; 0 if no operation needs it.
    pub read_blocksize: u32,
    /// `read_skip` with `read_skipsize`: bytes left out after each block.
    pub read_skip: Option<u32>,
    /// `write_random`
    pub write_random: bool,
    /// `write_size`: bytes a `write` or `append` operation writes; `None`: the whole file, or for `append` one block. (The text of a
    /// profile must say it for `append`.)
    pub write_size: Option<u64>,
    /// `write_blocksize`, bytes; 0 if no operation needs it.
    pub write_blocksize: u32,
    /// `op_delay`: milliseconds between operations.
    pub op_delay: u32,
    /// `iterations` (4.0; in the new form ours): operations that each thread does where there is no `time`.
    pub iterations: Option<u64>,
    /// The nested `[stats]`.
    pub stats: Stats,
}

/// `[stats]`: what is recorded of system calls.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// `enable_stats`
    pub enabled: bool,
    /// `enable_range`
    pub ranges_enabled: bool,
    /// `ignore`: system calls that are not recorded.
    pub ignore: Vec<Syscall>,
    /// `msec_range LOW HIGH`: milliseconds.
    pub ranges: Vec<(f64, f64)>,
}

/// An operation. The order is FFSB's, and that of its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "FFSB's words; what each does and counts is in docs/ffsb.md")]
pub enum Op {
    Read,
    Readall,
    Write,
    Create,
    Append,
    Delete,
    Metaop,
    Createdir,
    Stat,
    Writeall,
    WriteallFsync,
    OpenClose,
    WriteFsync,
    CreateFsync,
    AppendFsync,
}

impl Op {
    /// All of them, in FFSB's order.
    pub const ALL: [Op; 15] = [
        Op::Read,
        Op::Readall,
        Op::Write,
        Op::Create,
        Op::Append,
        Op::Delete,
        Op::Metaop,
        Op::Createdir,
        Op::Stat,
        Op::Writeall,
        Op::WriteallFsync,
        Op::OpenClose,
        Op::WriteFsync,
        Op::CreateFsync,
        Op::AppendFsync,
    ];

    /// FFSB's name.
    pub fn name(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Readall => "readall",
            Op::Write => "write",
            Op::Create => "create",
            Op::Append => "append",
            Op::Delete => "delete",
            Op::Metaop => "metaop",
            Op::Createdir => "createdir",
            Op::Stat => "stat",
            Op::Writeall => "writeall",
            Op::WriteallFsync => "writeall_fsync",
            Op::OpenClose => "open_close",
            Op::WriteFsync => "write_fsync",
            Op::CreateFsync => "create_fsync",
            Op::AppendFsync => "append_fsync",
        }
    }
}

/// A system call whose latency `[stats]` records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Syscall {
    Open,
    Read,
    Write,
    Create,
    Lseek,
    Unlink,
    Close,
    Stat,
}

impl Syscall {
    /// All of them, in FFSB's order.
    pub const ALL: [Syscall; 8] = [
        Syscall::Open,
        Syscall::Read,
        Syscall::Write,
        Syscall::Create,
        Syscall::Lseek,
        Syscall::Unlink,
        Syscall::Close,
        Syscall::Stat,
    ];

    /// FFSB's name.
    pub fn name(self) -> &'static str {
        match self {
            Syscall::Open => "open",
            Syscall::Read => "read",
            Syscall::Write => "write",
            Syscall::Create => "create",
            Syscall::Lseek => "lseek",
            Syscall::Unlink => "unlink",
            Syscall::Close => "close",
            Syscall::Stat => "stat",
        }
    }
}
