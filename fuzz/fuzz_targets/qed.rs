//! A hostile QED image: a good one with fields spoiled, or arbitrary bytes, in a file of any length; opened, used and closed as the input says.
//!
//! ```text
//! input: | set-up, 4 bytes | edits of the image, 4 bytes each | requests, 4 bytes each |
//! ```
//!
//! What must hold, whatever the image is:
//!
//! - nothing panics, and everything ends;
//! - an image that is refused, or opened for reading only, is not written to;
//! - in an image that was opened for writing every read succeeds and finds what was there or what was written since, also after it was closed and
//!   opened again, and after a crash that follows a flush: so no two places on the disk share a cluster, and none is a table;
//! - what was closed can be opened for writing again.

#![no_main]

#[path = "../../crates/block/tests/common/craft.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod craft;

use block::{BlockNode, DiskOffset, Error, Format, Health, HostNode, NodeOptions, Result};
use craft::{CLUSTER, Craft, DISK, ENTRIES, FILE, L1, L2};
use guest_mem::{GuestAddr, GuestMemory, IoVecs, MemHandle};
use io_engine::sim::{Change, CrashPick, LogEvent, SimDisk, SimOptions};
use io_engine::{IoEngine, SysKind};
use iothread::{Clock, IoContext};
use libfuzzer_sys::fuzz_target;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// Bytes of the disk that are looked at, in each of [`PLACES`] places.
const WINDOW: u64 = 8 << 10;
const PLACES: usize = 3;
const EDITS_MAX: usize = 6;
const REQUESTS_MAX: usize = 24;
/// The simulated disk knows no holes, and reading a gigabyte of them takes its time.
const TABLE_BYTES_MAX: u64 = 256 << 10;

thread_local! {
    static MEM: MemHandle = {
        let (memory, _fd) = GuestMemory::memfd(WINDOW).unwrap();
        MemHandle::new(Arc::new(memory))
    };
}

fuzz_target!(|input: &[u8]| {
    let Some((&[flags, seed, len_bits, edits], rest)) = input.split_first_chunk() else { return };
    let edits = usize::from(edits) % (EDITS_MAX + 1);
    let (image, script) = match flags & 1 {
        0 => {
            let (edits, script) = rest.split_at(rest.len().min(edits * 4));
            let mut image = Craft::good();
            edits.as_chunks().0.iter().for_each(|edit| spoil(&mut image, *edit));
            (image, script)
        }
        _ => {
            let (script, image) = rest.split_at(rest.len().min(edits * 16));
            (Craft(image.to_vec()), script)
        }
    };
    if !is_quick(&image) {
        return;
    }
    let options =
        SimOptions { align: [1, 512, 4096, 1][usize::from(flags >> 6)], ..SimOptions::default() };
    let disk = SimDisk::with_contents(options, &image.0);
    if flags & 2 != 0 {
        // A sparse file, as long as it says, or cut.
        set_len(&disk, 1 << (len_bits % 63));
    }
    let mut session = Session {
        disk,
        seed: u64::from(seed),
        clock: Rc::default(),
        with_backing: flags & 4 != 0,
        model: Vec::new(),
        bytes: image_bytes(&image),
    };
    session.read_only();
    if let Some(open) = session.open(false) {
        session.model = session.windows(&open);
        session.serve(open, script);
    }
});

fn set_len(disk: &SimDisk, len: u64) {
    let changes = [Change::Truncate { len }, Change::Flush];
    for (change, op) in changes.into_iter().zip(1..) {
        let done = LogEvent::Complete { op, result: 0, applied: 0, lost: false };
        disk.replay(&[LogEvent::Issue { op, change }, done]);
    }
}

/// Whether what the image says can be gone through in a moment.
fn is_quick(image: &Craft) -> bool {
    let Some(start) = image.0.first_chunk::<64>() else { return true };
    let word = |at: usize| u64::from(u32::from_le_bytes(*start[at..].first_chunk().unwrap()));
    let table_bytes = word(4) * word(8);
    table_bytes <= TABLE_BYTES_MAX && word(4) * word(12) <= 1 << 32
}

fn image_bytes(image: &Craft) -> u64 {
    image.0.get(48..56).map_or(0, |raw| u64::from_le_bytes(*raw.first_chunk().unwrap()))
}

/// One edit of a good image.
fn spoil(image: &mut Craft, [what, index, kind, value]: [u8; 4]) {
    let (index, value) = (u64::from(index), u64::from(value));
    let value = match kind % 16 {
        0 => value,
        1 => value * 512,
        2 => FILE + value * CLUSTER,
        3 => 1 << (value % 64),
        4 => (1u64 << (value % 64)).wrapping_sub(CLUSTER),
        5 => u64::MAX - value,
        6 => (value * CLUSTER).wrapping_neg(),
        7 => DISK + value * 512,
        8 => (image.0.len() as u64).wrapping_sub(value * 16),
        // Mostly a place in the file that is something already.
        _ => value % 12 * CLUSTER,
    };
    match what % 8 {
        0 => image.set32([0, 4, 8, 12, 56, 60][(index % 6) as usize], value as u32),
        1 => image.set64([16, 24, 32, 40, 48][(index % 5) as usize], value),
        2 => image.set_l1(index % 4, value),
        // In both tables, and at their ends.
        3 => image.set_l2(index % 8, value),
        4 => image.set_l2(ENTRIES - 1 - index % 4, value),
        5 => image.set_l2(ENTRIES + index % 8, value),
        6 => {
            let at = [0, L1, L2[0], L2[1]][(index % 4) as usize] as usize + (index / 4) as usize;
            image.0[at] = value as u8;
        }
        _ => image.0.resize((value as usize).clamp(L1 as usize * 4, 2 * FILE as usize), 0x77),
    }
}

/// One image, over all the times it is opened.
struct Session {
    disk: SimDisk,
    seed: u64,
    clock: Rc<Cell<u64>>,
    with_backing: bool,
    /// What the windows hold, one after the other.
    model: Vec<u8>,
    bytes: u64,
}

/// The image while it is open.
struct Open {
    context: IoContext,
    node: Rc<BlockNode>,
}

impl Session {
    /// How often the disk was changed.
    fn changes(&self) -> u64 {
        let kinds =
            [SysKind::Pwritev, SysKind::PwritevDsync, SysKind::Fallocate, SysKind::Ftruncate];
        kinds.into_iter().map(|kind| self.disk.count(kind)).sum()
    }

    fn open(&mut self, read_only: bool) -> Option<Open> {
        let disk = self.disk.clone();
        let before = self.changes();
        let open = self.open_disk(&disk, read_only);
        assert!(open.is_some() && !read_only || self.changes() == before, "written to");
        open
    }

    fn open_disk(&mut self, disk: &SimDisk, read_only: bool) -> Option<Open> {
        self.seed += 1;
        let engine = IoEngine::sim(self.seed, 64).unwrap();
        let context = IoContext::new(engine, 16, Clock::Simulated(self.clock.clone()));
        let host = |disk: &SimDisk, name: &str| {
            let file = context.with_engine(|engine| engine.open_sim(disk)).unwrap();
            HostNode::new(&context, file, name.into())
        };
        let below = self.with_backing.then(|| {
            let below = SimDisk::with_contents(SimOptions::default(), &[0xBB; 20 << 10]);
            (BlockNode::Raw(host(&below, "base")), below.len())
        });
        let options =
            NodeOptions { read_only, unsafe_sync: false, health: Arc::new(Health::new(0)), table_cache_bytes: 4096 };
        let top = host(disk, "fuzz.qed");
        let opened = context
            .block_on(async move { BlockNode::open(top, Format::Qed, &options, below).await });
        let node = Rc::new(opened.unwrap().ok()?);
        Some(Open { context, node })
    }

    /// Where the windows begin, and how many bytes they have.
    fn places(&self) -> ([u64; PLACES], u64) {
        let len = WINDOW.min(self.bytes);
        let last = self.bytes - len;
        // The end of what the first table maps, and of the disk.
        ([0, (ENTRIES * CLUSTER - WINDOW / 2).min(last), last], len)
    }

    /// Reads as much as can be read; changes nothing.
    fn read_only(&mut self) {
        let before = self.changes();
        if let Some(open) = self.open(true) {
            let (places, len) = self.places();
            for at in places {
                let _ = open.read(at, len);
            }
            open.close().unwrap();
        }
        assert_eq!(self.changes(), before, "a read-only image was written to");
    }

    fn windows(&self, open: &Open) -> Vec<u8> {
        let (places, len) = self.places();
        // Whole slices: an iterator over bytes would be most of the fuzzer's work.
        places.map(|at| open.read(at, len).expect("its tables were checked")).concat()
    }

    fn check(&self, open: &Open) {
        assert!(self.windows(open) == self.model, "the disk holds something else");
    }

    fn serve(&mut self, mut open: Open, script: &[u8]) {
        for request in script.as_chunks::<4>().0.iter().take(REQUESTS_MAX) {
            if self.bytes == 0 {
                break;
            }
            if request[0] % 16 < 13 {
                self.request(&open, *request);
                continue;
            }
            if request[0] % 16 == 13 {
                self.crash(&open);
                continue;
            }
            self.check(&open);
            if open.close().is_err() {
                return;
            }
            self.read_only();
            open = self.open(false).expect("it was closed well");
            self.check(&open);
        }
        if self.bytes > 0 {
            self.check(&open);
        }
        let _ = open.close();
    }

    fn request(&mut self, open: &Open, [what, place, at, len]: [u8; 4]) {
        let (places, window) = self.places();
        let place = places[usize::from(place) % PLACES];
        let sectors = window / 512;
        let from = u64::from(at) % sectors;
        let len = 512 * (1 + u64::from(len) % (sectors - from));
        let at = place + from * 512;
        let byte = what ^ (from as u8) ^ (len / 512) as u8;
        let done = match what % 16 {
            0..=5 => open.write(at, &vec![byte; len as usize], what & 0x40 != 0),
            6 | 7 => open.run(move |node| async move {
                node.write_zeroes(DiskOffset(at), len, what & 0x40 != 0).await
            }),
            8 | 9 => {
                open.run(move |node| async move { node.discard(DiskOffset(at), len).await }).ok();
                // What a discard leaves is not said.
                open.run(
                    move |node| async move { node.write_zeroes(DiskOffset(at), len, true).await },
                )
            }
            10 => return drop(open.run(|node| async move { node.flush().await })),
            11 => {
                self.clock.set(self.clock.get() + 6_000_000_000);
                return drop(open.read(0, 512));
            }
            _ => return self.check(open),
        };
        let written = if matches!(what % 16, 0..=5) { byte } else { 0 };
        match done {
            Ok(()) => self.note(places, window, at..at + len, written),
            // No room, say. A part of it may be there; everything else is as it was.
            Err(_) => {
                let now = self.windows(open);
                let old = std::mem::take(&mut self.model);
                self.model = now.clone();
                for (n, (new, old)) in now.iter().zip(&old).enumerate() {
                    let on_disk = places[n / window as usize] + n as u64 % window;
                    let touched = (at..at + len).contains(&on_disk) && *new == written;
                    assert!(new == old || touched, "a failed request has changed {on_disk:#x}");
                }
            }
        }
    }

    /// Windows may overlap on a small disk.
    fn note(&mut self, places: [u64; PLACES], window: u64, range: std::ops::Range<u64>, byte: u8) {
        for (n, place) in places.into_iter().enumerate() {
            let from = range.start.clamp(place, place + window) - place;
            let to = range.end.clamp(place, place + window) - place;
            let base = n as u64 * window;
            self.model[(base + from) as usize..(base + to) as usize].fill(byte);
        }
    }

    /// After a flush, a crash that keeps nothing else.
    fn crash(&mut self, open: &Open) {
        if open.run(|node| async move { node.flush().await }).is_err() {
            return;
        }
        let copy = self.disk.fork();
        copy.crash(&CrashPick::Nothing);
        for read_only in [true, false] {
            let again = self.open_disk(&copy, read_only).expect("a crash leaves it good");
            self.check(&again);
            let _ = again.close();
        }
    }
}

impl Open {
    fn run<T: 'static, F>(&self, work: impl FnOnce(Rc<BlockNode>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + 'static,
    {
        let work = work(self.node.clone());
        self.context.block_on(work).map_err(|error| Error::io("running", error))?
    }

    fn memory(len: u64) -> IoVecs {
        MEM.with(|mem| {
            let mut iov = IoVecs::new(mem);
            iov.push(GuestAddr(0), len).unwrap();
            iov
        })
    }

    fn read(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        if len > 0 {
            let iov = Open::memory(len);
            let copy = iov.part(0, len);
            self.run(|node| async move { node.read(DiskOffset(at), iov).await })?;
            copy.copy_to(0, &mut bytes);
        }
        Ok(bytes)
    }

    fn write(&self, at: u64, bytes: &[u8], fua: bool) -> Result<()> {
        let iov = Open::memory(bytes.len() as u64);
        iov.copy_from(0, bytes);
        self.run(|node| async move { node.write(DiskOffset(at), iov, fua).await })
    }

    fn close(&self) -> Result<()> {
        self.run(|node| async move { node.close().await })
    }
}
