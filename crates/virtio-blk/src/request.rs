//! From a descriptor chain to a request that can be carried out.
//!
//! ```text
//! readable:  | type u32 | reserved u32 | sector u64 | data of OUT, or ranges ...
//! writable:  data of IN or GET_ID ...                          | status u8 |
//!
//! a range:   | sector u64 | sectors u32 | flags u32, bit 0: unmap |
//! ```
//!
//! Specification: VIRTIO 1.3, section 5.2.6. How the driver cuts these bytes into descriptors means nothing (section 2.7.4.1): the
//! header may be split or share a descriptor with data, and so may the status byte.
//!
//! A [`Request`] exists only if every check passed; so of `In`, `Out`, `Discard` and `WriteZeroes` it holds that
//!
//! - all sectors are on the disk, and those that are read or written are whole logical blocks;
//! - the data is not empty, and is as long as the sectors it is for;
//! - no limit of [`Limits`] is exceeded, and nothing would be written to a read-only disk.

use crate::{Limits, Pending, RangeLimits, SECTOR_BYTES, Status};
use guest_mem::IoVecs;
use std::fmt;
use virtqueue::{DescChain, Flaw};

/// Length in bytes of the disk's identity.
pub const ID_BYTES: usize = 20;

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: u64 = 16;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// Flag of a range: what is zeroed may be unmapped.
const RANGE_F_UNMAP: u32 = 1;

/// A part of the disk to be discarded or zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First sector.
    pub sector: u64,
    /// Sectors, not 0.
    pub sectors: u32,
    /// Zeroing may unmap. Never set in a discard.
    pub unmap: bool,
}

/// What a guest asks for, checked.
#[derive(Debug)]
pub enum Request {
    /// Read from `sector` on into all of `data`.
    In {
        /// First sector.
        sector: u64,
        /// Where the data goes.
        data: IoVecs,
    },
    /// Write all of `data` from `sector` on.
    Out {
        /// First sector.
        sector: u64,
        /// Where the data is.
        data: IoVecs,
    },
    /// Make every write completed so far durable.
    Flush,
    /// Copy the disk's identity into `data`, which has up to [`ID_BYTES`] bytes. A shorter identity is padded with zeroes.
    GetId {
        /// Where the identity goes.
        data: IoVecs,
    },
    /// The guest does not need the content of these ranges any more. They need not be aligned to anything.
    Discard {
        /// Up to [`crate::RANGES_MAX`], perhaps none.
        ranges: Vec<Range>,
    },
    /// These ranges are to read as zeroes.
    WriteZeroes {
        /// Up to [`crate::RANGES_MAX`], perhaps none.
        ranges: Vec<Range>,
    },
    /// Nothing to do but to give this answer.
    Failed(Status),
}

/// A chain that cannot even be answered: the device needs a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadChain {
    /// No byte that the status could be written to.
    NoStatus {
        /// Head of the chain.
        head: u16,
    },
    /// Fewer readable bytes than a header has.
    NoHeader {
        /// Head of the chain.
        head: u16,
    },
}

impl fmt::Display for BadChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadChain::NoStatus { head } => {
                write!(f, "chain {head} has no writable byte for the status")
            }
            BadChain::NoHeader { head } => write!(f, "chain {head} has no complete request header"),
        }
    }
}

impl std::error::Error for BadChain {}

impl Request {
    /// Reads what the chain asks for and takes responsibility for its answer. Everything but the data of `Out` is read here, once.
    ///
    /// # Errors
    ///
    /// [`BadChain`] if the chain has no place for a status, or no header. All other faults are [`Request::Failed`].
    #[inline]
    pub fn parse(chain: DescChain, limits: &Limits) -> Result<(Request, Pending), BadChain> {
        let DescChain { head, mut readable, mut writable, flaw, splits } = chain;
        let status = match flaw {
            Some(Flaw::UnmappedEnd) => None,
            _ => writable.pop_last_byte(),
        };
        let status = status.ok_or(BadChain::NoStatus { head })?;
        if flaw.is_some() {
            // Bytes are missing somewhere, so nothing is where it seems to be.
            let spare = readable.into_storage();
            return Ok(answer(head, status, Request::Failed(Status::IoErr), spare));
        }
        let mut header = [0; HEADER_BYTES];
        if readable.copy_to(0, &mut header) < HEADER_BYTES {
            return Err(BadChain::NoHeader { head });
        }
        readable.trim_front(HEADER_BYTES as u64);
        let [kind_and_reserved, sector] = words(&header);
        let [kind, _reserved] = halves(kind_and_reserved);
        let data = Data { readable, writable, splits };

        let (request, spare) = match kind {
            T_IN => data.read_request(sector, limits),
            T_OUT => data.write_request(sector, limits),
            T_GET_ID => data.id_request(),
            _ => {
                let request = match kind {
                    // Neither a sector nor data means anything here.
                    T_FLUSH => Request::Flush,
                    T_DISCARD => data.discard(limits).unwrap_or_else(Request::Failed),
                    T_WRITE_ZEROES => data.write_zeroes(limits).unwrap_or_else(Request::Failed),
                    _ => Request::Failed(Status::Unsupp),
                };
                (request, data.readable)
            }
        };
        Ok(answer(head, status, request, spare.into_storage()))
    }
}

fn answer(
    head: u16,
    status: guest_mem::StatusByte,
    request: Request,
    spare: guest_mem::SegStorage,
) -> (Request, Pending) {
    let data_in = match &request {
        // A chain has at most 4 GiB and a header, so this fits.
        Request::In { data, .. } | Request::GetId { data } => {
            u32::try_from(data.bytes()).unwrap_or(u32::MAX)
        }
        _ => 0,
    };
    (request, Pending::start(head, status, data_in, spare))
}

/// What is left of a chain without header and status.
struct Data {
    readable: IoVecs,
    writable: IoVecs,
    /// See [`DescChain::splits`].
    splits: usize,
}

impl Data {
    #[inline]
    fn read_request(self, sector: u64, limits: &Limits) -> (Request, IoVecs) {
        let Data { readable, writable, splits } = self;
        let ok = readable.bytes() == 0 && data_fits(&writable, splits, sector, limits);
        let request = match ok {
            true => Request::In { sector, data: writable },
            false => Request::Failed(Status::IoErr),
        };
        (request, readable)
    }

    #[inline]
    fn write_request(self, sector: u64, limits: &Limits) -> (Request, IoVecs) {
        let Data { readable, writable, splits } = self;
        let ok = writable.bytes() == 0
            && !limits.read_only
            && data_fits(&readable, splits, sector, limits);
        let request = match ok {
            true => Request::Out { sector, data: readable },
            false => Request::Failed(Status::IoErr),
        };
        (request, writable)
    }

    fn id_request(self) -> (Request, IoVecs) {
        let Data { readable, mut writable, .. } = self;
        if readable.bytes() != 0 {
            return (Request::Failed(Status::IoErr), readable);
        }
        writable.truncate(ID_BYTES as u64);
        (Request::GetId { data: writable }, readable)
    }

    fn discard(&self, limits: &Limits) -> Result<Request, Status> {
        let rules = limits.discard.ok_or(Status::Unsupp)?;
        // Section 5.2.6.2: even the unmap flag is unsupported in a discard.
        Ok(Request::Discard { ranges: self.ranges(0, rules, limits)? })
    }

    fn write_zeroes(&self, limits: &Limits) -> Result<Request, Status> {
        let rules = limits.write_zeroes.ok_or(Status::Unsupp)?;
        let ranges = self.ranges(RANGE_F_UNMAP, rules, limits)?;
        let whole =
            |r: &Range| limits.whole_blocks(r.sector) && limits.whole_blocks(u64::from(r.sectors));
        if !ranges.iter().all(whole) {
            return Err(Status::IoErr);
        }
        Ok(Request::WriteZeroes { ranges })
    }

    /// Reads and checks the ranges, which may have the flags `allowed`. Empty ones ask for nothing and are left out.
    fn ranges(
        &self,
        allowed: u32,
        rules: RangeLimits,
        limits: &Limits,
    ) -> Result<Vec<Range>, Status> {
        let bytes = self.readable.bytes();
        let count = bytes / RANGE_BYTES;
        if limits.read_only
            || self.writable.bytes() != 0
            || !bytes.is_multiple_of(RANGE_BYTES)
            || count == 0
            || count > u64::from(rules.max_seg)
        {
            return Err(Status::IoErr);
        }
        let mut ranges = Vec::new();
        for i in 0..count {
            let mut raw = [0; 16];
            self.readable.copy_to(i.saturating_mul(RANGE_BYTES), &mut raw);
            let [sector, sectors_and_flags] = words(&raw);
            let [sectors, flags] = halves(sectors_and_flags);
            if flags & !allowed != 0 {
                return Err(Status::Unsupp);
            }
            if sectors > rules.max_sectors || !limits.on_disk(sector, u64::from(sectors)) {
                return Err(Status::IoErr);
            }
            if sectors > 0 {
                ranges.push(Range { sector, sectors, unmap: flags & RANGE_F_UNMAP != 0 });
            }
        }
        Ok(ranges)
    }
}

/// Whether `data` may be read from, or written to, the disk at `sector`.
#[inline]
fn data_fits(data: &IoVecs, splits: usize, sector: u64, limits: &Limits) -> bool {
    let bytes = data.bytes();
    let sectors = bytes / SECTOR_BYTES;
    // A descriptor over several regions of memory counts once. (`splits` may count one of the header; that errs to the guest's
    // favour by as many segments as the memory has regions.)
    let descs = data.as_raw().len().saturating_sub(splits) as u64;
    bytes > 0
        && bytes.is_multiple_of(SECTOR_BYTES)
        && limits.whole_blocks(sector)
        && limits.whole_blocks(sectors)
        && limits.on_disk(sector, sectors)
        && descs <= u64::from(limits.seg_max)
        && data.as_raw().iter().all(|seg| seg.iov_len as u64 <= u64::from(limits.size_max))
}

/// Two little-endian words.
fn words(raw: &[u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *raw;
    [u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes([i, j, k, l, m, n, o, p])]
}

/// The lower and the upper half of a little-endian word.
fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}
