//! A hostile image in use: opened on a simulated disk, sent requests, closed, opened again, and left by a crash, as a script says.
//!
//! ```text
//! script: | requests, 4 bytes each |
//! ```
//!
//! What holds for every image is here: one that is refused, or opened for reading only, is not written to. What else must hold is
//! for the format's target to say ([`Trust`]).

use block::{BlockNode, DiskOffset, Error, Format, Health, HostNode, NodeOptions, Result};
use guest_mem::{GuestAddr, GuestMemory, IoVecs, MemHandle};
use io_engine::sim::{Change, CrashPick, LogEvent, SimDisk, SimOptions};
use io_engine::{IoEngine, SysKind};
use iothread::{Clock, IoContext};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// Bytes of the disk that are looked at, in each of [`PLACES`] places.
const WINDOW: u64 = 8 << 10;
const PLACES: usize = 3;
const REQUESTS_MAX: usize = 24;

thread_local! {
    static MEM: MemHandle = {
        let (memory, _fd) = GuestMemory::memfd(WINDOW).unwrap();
        MemHandle::new(Arc::new(memory))
    };
}

/// A file with this content, on a disk of one of several block sizes; `len_bits`: as long as a power of two then, sparse or cut.
pub fn disk(image: &[u8], align: u8, len_bits: Option<u8>) -> SimDisk {
    let align = [1, 512, 4096, 1][usize::from(align % 4)];
    let disk = SimDisk::with_contents(SimOptions { align, ..SimOptions::default() }, image);
    if let Some(bits) = len_bits {
        set_len(&disk, 1 << (bits % 63));
    }
    disk
}

/// Makes a file sparse, or cuts it.
pub fn set_len(disk: &SimDisk, len: u64) {
    for (change, op) in [Change::Truncate { len }, Change::Flush].into_iter().zip(1..) {
        let done = LogEvent::Complete { op, result: 0, applied: 0, lost: false };
        disk.replay(&[LogEvent::Issue { op, change }, done]);
    }
}

/// What can be demanded of an image that was opened for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Its tables are good: every read succeeds and finds what was there or what was written since, also after it was closed and opened again, and
    /// after a crash that follows a flush; what was closed can be opened for writing again.
    Sound,
    /// Nothing panics, and everything ends.
    #[allow(dead_code, reason = "not all formats have such images")]
    Damaged,
}

/// One image, over all the times it is opened.
pub struct Session {
    pub disk: SimDisk,
    pub format: Format,
    pub with_backing: bool,
    /// Size of the virtual disk in bytes.
    pub bytes: u64,
    /// Where the part of the disk ends that the first table maps: a place to look at.
    pub first_table_end: u64,
    seed: u64,
    clock: Rc<Cell<u64>>,
    /// What the windows hold, one after the other.
    model: Vec<u8>,
    trust: Trust,
}

/// The image while it is open.
pub struct Open {
    context: IoContext,
    node: Rc<BlockNode>,
    health: Arc<Health>,
}

impl Session {
    pub fn new(disk: SimDisk, format: Format, seed: u8) -> Session {
        Session {
            disk,
            format,
            with_backing: false,
            bytes: 0,
            first_table_end: 0,
            seed: u64::from(seed),
            clock: Rc::default(),
            model: Vec::new(),
            trust: Trust::Sound,
        }
    }

    /// Opens the image for writing, does what the script says, and closes it.
    pub fn run(&mut self, trust: Trust, script: &[u8]) {
        self.trust = trust;
        let Some(open) = self.open(false) else { return };
        if trust == Trust::Sound {
            self.model = self.windows(&open).expect("its tables are good");
        }
        self.serve(open, script);
    }

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
        let health = Arc::new(Health::new(0));
        let options = NodeOptions {
            read_only,
            unsafe_sync: false,
            health: health.clone(),
            table_cache_bytes: 4096,
            discard_no_unref: false,
        };
        let (top, format) = (host(disk, "image"), self.format);
        // Boxed, as an opening is more than a task has room for.
        let opened = context
            .block_on(async move { Box::pin(BlockNode::open(top, format, &options, below)).await });
        let node = Rc::new(opened.unwrap().ok()?);
        Some(Open { context, node, health })
    }

    /// Where the windows begin, and how many bytes they have.
    fn places(&self) -> ([u64; PLACES], u64) {
        let len = WINDOW.min(self.bytes);
        let last = self.bytes - len;
        ([0, self.first_table_end.saturating_sub(WINDOW / 2).min(last), last], len)
    }

    /// Reads as much as can be read, and changes nothing; tells whether that was all.
    pub fn read_only(&mut self) -> bool {
        let before = self.changes();
        let mut is_readable = false;
        if let Some(open) = self.open(true) {
            let (places, len) = self.places();
            // Each of them, whatever became of the others.
            let read = places.map(|at| open.read(at, len).is_ok());
            is_readable = read.into_iter().all(|is_read| is_read);
            open.close().unwrap();
        }
        assert_eq!(self.changes(), before, "a read-only image was written to");
        is_readable
    }

    fn windows(&self, open: &Open) -> Result<Vec<u8>> {
        let (places, len) = self.places();
        // Whole slices: an iterator over bytes would be most of the fuzzer's work.
        let mut bytes = Vec::new();
        for at in places {
            bytes.extend(open.read(at, len)?);
        }
        Ok(bytes)
    }

    fn check(&self, open: &Open) {
        let found = self.windows(open);
        if self.trust == Trust::Sound {
            assert!(found.expect("its tables are good") == self.model, "something else is there");
        }
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
            open = match self.open(false) {
                Some(open) => open,
                None if self.trust == Trust::Damaged => return,
                None => panic!("it was closed well"),
            };
            self.check(&open);
        }
        if self.bytes > 0 {
            self.check(&open);
        }
        let _ = open.close();
    }

    fn request(&mut self, open: &Open, [what, place, at, len]: [u8; 4]) {
        // Whoever serves the disk asks this before each change of it.
        if open.health.is_poisoned() && what % 16 < 11 {
            return;
        }
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
        if self.trust == Trust::Damaged {
            return;
        }
        let written = if matches!(what % 16, 0..=5) { byte } else { 0 };
        match done {
            Ok(()) => self.note(places, window, at..at + len, written),
            Err(_) => self.after_failure(open, at..at + len, written),
        }
    }

    /// No room, say. A part of it may be there; everything else is as it was.
    fn after_failure(&mut self, open: &Open, range: std::ops::Range<u64>, written: u8) {
        let (places, window) = self.places();
        let now = self.windows(open).expect("its tables are good");
        let old = std::mem::replace(&mut self.model, now.clone());
        for (n, (new, old)) in now.iter().zip(&old).enumerate() {
            let on_disk = places[n / window as usize] + n as u64 % window;
            let touched = range.contains(&on_disk) && *new == written;
            assert!(new == old || touched, "a failed request has changed {on_disk:#x}");
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
        let is_sick = open.health.is_poisoned();
        if is_sick || open.run(|node| async move { node.flush().await }).is_err() {
            return;
        }
        let copy = self.disk.fork();
        copy.crash(&CrashPick::Nothing);
        for read_only in [true, false] {
            let Some(again) = self.open_disk(&copy, read_only) else {
                assert_eq!(self.trust, Trust::Damaged, "a crash leaves it good");
                continue;
            };
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
