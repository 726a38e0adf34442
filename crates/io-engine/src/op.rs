//! What an engine is asked for, and what it answers.

use crate::buf::AlignedBuf;
use crate::file::FileRef;
use guest_mem::IoVecs;
use std::io;

/// The caller's name for an op, given back with its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Fill the buffer from the file. Zeroes beyond its end.
    Read,
    /// Write the buffer. With `fua` the data is on stable storage when the op completes (`RWF_DSYNC`).
    Write {
        /// Force unit access: durable on completion.
        fua: bool,
    },
    /// Make every write that completed before this op was submitted durable (`fdatasync`).
    Flush,
    /// Make `len` bytes read as zeroes. With `unmap` the host's space may be given back, without it stays allocated.
    WriteZeroes {
        /// Length in bytes.
        len: u64,
        /// Whether host space may be freed.
        unmap: bool,
    },
    /// Give the host's space of `len` bytes back, if it can; what they read as afterwards is not defined (zeroes on a regular file).
    Discard {
        /// Length in bytes.
        len: u64,
    },
    /// Set the file's length to `Op::at` bytes.
    Truncate,
}

/// The memory of an op. Owned by the engine from submission to completion.
#[derive(Debug)]
pub enum Buf {
    /// No data: flush, zeroes, discard, truncate.
    None,
    /// Guest memory, or any memory seen as such.
    Guest(IoVecs),
    /// Our own memory, aligned for O_DIRECT.
    Owned(AlignedBuf),
}

impl Buf {
    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Buf::None => 0,
            Buf::Guest(iov) => iov.bytes(),
            Buf::Owned(buf) => buf.len() as u64,
        }
    }
}

/// One operation on a file.
#[derive(Debug)]
pub struct Op {
    /// The file, kept open until the op completes.
    pub file: FileRef,
    /// What to do.
    pub kind: OpKind,
    /// Offset in the file, in bytes.
    pub at: u64,
    /// The data.
    pub buf: Buf,
}

/// The end of an op.
#[derive(Debug)]
pub struct Completion {
    /// As given to `submit`.
    pub token: Token,
    /// Success means all of it was done.
    pub result: io::Result<()>,
    /// The op's buffer. (Its segments may have been trimmed on the way: only its storage, or an owned buffer's bytes, are of use.)
    pub buf: Buf,
}

/// What [`crate::IoEngine::reap`] found.
#[derive(Debug, Default)]
pub struct Reaped {
    /// Ended ops.
    pub completions: Vec<Completion>,
    /// Tokens of watched file descriptors that became readable.
    pub woken: Vec<Token>,
}

/// How long `reap` may sleep when nothing has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until something completes or a watched descriptor is readable.
    Forever,
    /// As `Forever`, but no longer than this many nanoseconds.
    Ns(u64),
}
