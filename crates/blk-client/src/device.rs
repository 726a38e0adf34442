//! A connection to a vhost-user-blk server, and its queues, made safe to use.
//!
//! ```text
//!  memory region (memfd, shared with the server)
//!  |<------------- queue 0 ------------->|<------------- queue 1 ------------->|
//!  | slot 0 | slot 1 | ... | slot depth-1 | slot 0 | ...                         |
//! ```
//!
//! Invariants: a slot has at most one request in flight; a slot's buffer is reached through raw pointers and copies
//! only, never through a reference, because the server may write it at any time; each [`Queue`] keeps the whole
//! device alive, since its rings lie in memory the device owns.

use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Duration;

use blkio::{Blkio, Blkioq, Completion, ReqFlags};

use crate::Error;

/// No server answers that slowly: after this long without one completion the run is given up.
const GIVE_UP: Duration = Duration::from_secs(30);

/// How a queue learns of completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// Sleep until the server signals the call eventfd.
    Interrupt,
    /// Look at the used ring until something is there; the server is asked not to signal.
    Poll,
}

/// What to connect to and how.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// The server's socket.
    pub socket: String,
    /// Number of virtqueues.
    pub queues: usize,
    /// How all of them learn of completions.
    pub notify: Notify,
    /// Entries in each ring: a power of two.
    pub queue_size: u16,
    /// Slots, and so requests in flight, per queue.
    pub depth: usize,
    /// Buffer bytes of each slot.
    pub slot_bytes: usize,
    /// Accept a read-only disk.
    pub read_only: bool,
}

/// What the server announced about its disk.
#[derive(Clone, Debug)]
pub struct Device {
    /// Size of the disk in bytes.
    pub capacity: u64,
    /// Logical block size in bytes.
    pub block_bytes: u64,
    /// Most data segments per request.
    pub max_segments: usize,
    /// Largest discard in bytes; 0 if the feature is not there.
    pub max_discard: u64,
    /// Largest write-zeroes in bytes; 0 if the feature is not there.
    pub max_write_zeroes: u64,
    /// Whether a volatile write cache was announced.
    pub flush_needed: bool,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read into the slot's buffer.
    Read,
    /// Write the slot's buffer.
    Write,
    /// Write the slot's buffer and make it durable.
    WriteFua,
    /// Make completed writes durable.
    Flush,
    /// Give up the content of `len` bytes.
    Discard {
        /// Bytes from the request's offset on.
        len: u64,
    },
    /// Make `len` bytes read as zero.
    WriteZeroes {
        /// Bytes from the request's offset on.
        len: u64,
        /// Allow the server to deallocate them.
        unmap: bool,
    },
}

/// One completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The slot whose request ended.
    pub slot: usize,
    /// 0, or a negative errno made from the status byte.
    pub ret: i32,
}

/// One virtqueue and its slots.
pub struct Queue {
    inner: Blkioq,
    /// Address of slot 0 in the shared region.
    base: usize,
    slot_bytes: usize,
    busy: Vec<bool>,
    in_flight: usize,
    /// The segments of each slot's request; must not move while it is in flight.
    iovecs: Vec<Vec<libc::iovec>>,
    completions: Vec<MaybeUninit<Completion>>,
    done: Vec<Done>,
    /// Owns rings and buffers; dropped after `inner`, fields being dropped in order.
    _device: Arc<Blkio>,
}

// SAFETY: the only part that is not `Send` by itself is the pointers in `iovecs`. They point into the shared region,
// which `_device` keeps mapped whatever thread the queue is on, and are used through `inner` by its one owner.
unsafe impl Send for Queue {}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (depth, in_flight) = (self.busy.len(), self.in_flight);
        f.debug_struct("Queue").field("depth", &depth).field("in_flight", &in_flight).finish()
    }
}

impl Device {
    /// Connects, negotiates, shares the buffers, starts the queues.
    pub fn connect(options: &ConnectOptions) -> Result<(Device, Vec<Queue>), Error> {
        let fail = |e| Error::new(format_args!("connecting to {}", options.socket), e);
        let mut blkio = Blkio::new("virtio-blk-vhost-user").map_err(fail)?;
        blkio.set_str("path", &options.socket).map_err(fail)?;
        blkio.set_bool("read-only", options.read_only).map_err(fail)?;
        blkio.connect().map_err(fail)?;

        let (interrupt, poll) = match options.notify {
            Notify::Interrupt => (options.queues, 0),
            Notify::Poll => (0, options.queues),
        };
        let count = |n: usize| i32::try_from(n).map_err(|e| Error::new("number of queues", e));
        blkio.set_i32("num-queues", count(interrupt)?).map_err(fail)?;
        blkio.set_i32("num-poll-queues", count(poll)?).map_err(fail)?;
        blkio.set_i32("queue-size", i32::from(options.queue_size)).map_err(fail)?;
        let device = Device::read_config(&blkio).map_err(fail)?;
        let started = blkio.start().map_err(fail)?;

        let queue_bytes = options.depth * options.slot_bytes;
        let region = blkio.alloc_mem_region(options.queues * queue_bytes).map_err(fail)?;
        blkio.map_mem_region(&region).map_err(fail)?;
        let owner = Arc::new(blkio);
        let queues = started.queues.into_iter().chain(started.poll_queues).enumerate();
        let queues = queues
            .map(|(i, inner)| Queue {
                inner,
                base: region.addr + i * queue_bytes,
                slot_bytes: options.slot_bytes,
                busy: vec![false; options.depth],
                in_flight: 0,
                iovecs: vec![Vec::new(); options.depth],
                completions: (0..options.depth).map(|_| MaybeUninit::uninit()).collect(),
                done: Vec::with_capacity(options.depth),
                _device: Arc::clone(&owner),
            })
            .collect();
        Ok((device, queues))
    }

    fn read_config(blkio: &Blkio) -> blkio::Result<Device> {
        let count = |name| blkio.get_i32(name).map(|v| v.unsigned_abs());
        Ok(Device {
            capacity: blkio.get_u64("capacity")?,
            block_bytes: u64::from(count("request-alignment")?),
            max_segments: count("max-segments")?.max(1) as usize,
            max_discard: blkio.get_u64("max-discard-len")?,
            max_write_zeroes: blkio.get_u64("max-write-zeroes-len")?,
            flush_needed: blkio.get_bool("flush-needed")?,
        })
    }
}

impl Queue {
    /// Number of slots.
    pub fn depth(&self) -> usize {
        self.busy.len()
    }

    /// Buffer bytes of each slot.
    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// Requests that wait for their completion.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether the slot's request waits for its completion.
    pub fn is_busy(&self, slot: usize) -> bool {
        self.busy[slot]
    }

    /// Copies `data` into the slot's buffer at `offset`.
    pub fn fill(&mut self, slot: usize, offset: usize, data: &[u8]) {
        let to = self.buffer(slot, offset, data.len());
        // SAFETY: `buffer` checked the range; a slice of ours cannot overlap the shared mapping, to which no
        // reference exists.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
    }

    /// Copies the slot's buffer from `offset` on into `data`.
    pub fn copy_out(&self, slot: usize, offset: usize, data: &mut [u8]) {
        let from = self.buffer(slot, offset, data.len());
        // SAFETY: as in `fill`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(from, data.as_mut_ptr(), data.len()) };
    }

    /// Starts a request whose data is the first `len` bytes of the slot's buffer.
    pub fn submit(&mut self, slot: usize, op: Op, at: u64, len: usize) {
        self.submit_pieces(slot, op, at, &[(0, len)]);
    }

    /// Starts a request whose data is the given pieces (offset, length) of the slot's buffer, one segment each.
    pub fn submit_pieces(&mut self, slot: usize, op: Op, at: u64, pieces: &[(usize, usize)]) {
        assert!(!self.busy[slot], "slot {slot} has a request in flight");
        self.iovecs[slot].clear();
        for &(offset, len) in pieces {
            let iov_base = self.buffer(slot, offset, len).cast();
            self.iovecs[slot].push(libc::iovec { iov_base, iov_len: len });
        }
        let (iovecs, none) = (self.iovecs[slot].as_ptr(), ReqFlags::empty());
        let count = u32::try_from(pieces.len()).expect("as many pieces as a ring has entries");
        // blkio keeps the pointer to the segments until the request is in the ring, at the latest until it completes:
        // the vector is not touched while the slot is busy.
        match op {
            Op::Read => self.inner.readv(at, iovecs, count, slot, none),
            Op::Write => self.inner.writev(at, iovecs, count, slot, none),
            Op::WriteFua => self.inner.writev(at, iovecs, count, slot, ReqFlags::FUA),
            Op::Flush => self.inner.flush(slot, none),
            Op::Discard { len } => self.inner.discard(at, len, slot, none),
            Op::WriteZeroes { len, unmap } => {
                let flags = if unmap { none } else { ReqFlags::NO_UNMAP };
                self.inner.write_zeroes(at, len, slot, flags);
            }
        }
        self.busy[slot] = true;
        self.in_flight += 1;
    }

    /// Notifies the server of what was submitted and waits until `min` requests have completed; fewer are
    /// waited for if fewer are in flight.
    pub fn wait(&mut self, min: usize) -> Result<&[Done], Error> {
        let min = min.min(self.in_flight);
        let mut timeout = GIVE_UP;
        let n = self
            .inner
            .do_io(&mut self.completions, min, Some(&mut timeout), None)
            .map_err(|e| Error::new(format_args!("waiting for {min} completions"), e))?;
        self.done.clear();
        for completion in &self.completions[..n] {
            // SAFETY: `do_io` has written the first `n` elements.
            let completion = unsafe { completion.assume_init_ref() };
            let slot = completion.user_data;
            self.busy[slot] = false;
            self.in_flight -= 1;
            self.done.push(Done { slot, ret: completion.ret });
        }
        Ok(&self.done)
    }

    /// The address of `len` bytes of a slot's buffer.
    fn buffer(&self, slot: usize, offset: usize, len: usize) -> *mut u8 {
        assert!(slot < self.busy.len() && offset <= self.slot_bytes, "no such slot or offset");
        assert!(len <= self.slot_bytes - offset, "longer than the slot's buffer");
        std::ptr::with_exposed_provenance_mut(self.base + slot * self.slot_bytes + offset)
    }
}
