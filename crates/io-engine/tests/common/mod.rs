//! What all engine tests share: every engine with every sort of file it takes, memory, and a way to run one op.
#![allow(dead_code, clippy::disallowed_methods, clippy::cast_possible_truncation)]

use guest_mem::{GuestAddr, GuestMemory, IoVecs, MemHandle};
use io_engine::sim::{Rates, SimOptions};
use io_engine::{
    AlignedBuf, Buf, Completion, EngineKind, FileRef, HostFile, IoEngine, Op, OpKind, Reaped,
    SimDisk, Token, Wait,
};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub const DEPTH: u32 = 16;

/// A file name in `dir` that goes away with the test.
pub struct TempFile(pub PathBuf);

impl TempFile {
    pub fn new(dir: impl AsRef<Path>, len: u64) -> TempFile {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ferroblk-engine-{}-{count}", std::process::id());
        let path = dir.as_ref().join(name);
        File::create(&path).unwrap().set_len(len).unwrap();
        TempFile(path)
    }

    pub fn open(&self, direct: bool) -> io::Result<HostFile> {
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&self.0)?;
        HostFile::new(file, direct)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub fn disk_dir() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// An engine with one file open.
pub struct Case {
    pub name: String,
    pub engine: IoEngine,
    pub file: FileRef,
    pub temp: Option<TempFile>,
    pub sim: Option<SimDisk>,
}

impl Case {
    /// The file's bytes as somebody else sees them.
    pub fn contents(&self) -> Vec<u8> {
        match (&self.temp, &self.sim) {
            (Some(temp), _) => std::fs::read(&temp.0).unwrap(),
            (_, Some(sim)) => sim.contents(),
            _ => unreachable!(),
        }
    }

    pub fn align(&self) -> usize {
        let facts = self.file.facts();
        facts.offset_align.max(facts.mem_align) as usize
    }

    pub fn run(&mut self, kind: OpKind, at: u64, buf: Buf) -> Completion {
        run(&mut self.engine, Op { file: self.file.clone(), kind, at, buf })
    }
}

/// Every engine kind this machine has; says which it has not.
pub fn kinds() -> Vec<EngineKind> {
    let works = |kind: &EngineKind| match IoEngine::new(*kind, 1) {
        Ok(_) => true,
        Err(error) => {
            println!("SKIPPED: {kind}: {error}");
            false
        }
    };
    EngineKind::ALL.into_iter().filter(works).collect()
}

/// Each engine with each sort of file, `len` bytes long.
pub fn cases(len: u64) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in kinds() {
        for (place, dir, direct) in [
            ("disk", disk_dir(), false),
            ("disk, O_DIRECT", disk_dir(), true),
            ("tmpfs", Path::new("/dev/shm"), false),
        ] {
            if kind == EngineKind::Native && !direct {
                continue;
            }
            let temp = TempFile::new(dir, len);
            let file = match temp.open(direct) {
                Ok(file) => file,
                Err(error) => {
                    println!("SKIPPED: {kind} on {place}: {error}");
                    continue;
                }
            };
            let mut engine = IoEngine::new(kind, DEPTH).unwrap();
            let file = engine.open(file).unwrap();
            let name = format!("{kind} on {place}");
            cases.push(Case { name, engine, file, temp: Some(temp), sim: None });
        }
    }
    for (name, align, rates) in [
        ("sim", 1, Rates::default()),
        ("sim, aligned", 512, Rates::default()),
        ("sim, interrupted", 1, Rates { eintr: 200, eagain: 100, short: 300 }),
    ] {
        cases.push(sim_case(name, SimOptions { len, align, ..SimOptions::default() }, rates));
    }
    cases
}

pub fn sim_case(name: &str, options: SimOptions, rates: Rates) -> Case {
    let disk = SimDisk::new(options);
    disk.set_rates(rates);
    let mut engine = IoEngine::sim(42, DEPTH).unwrap();
    let file = engine.open_sim(&disk).unwrap();
    Case { name: name.to_owned(), engine, file, temp: None, sim: Some(disk) }
}

/// Runs one op to its end; nothing else may be in flight.
pub fn run(engine: &mut IoEngine, op: Op) -> Completion {
    engine.submit(op, Token(77)).unwrap();
    let mut reaped = Reaped::default();
    engine.reap(&mut reaped, Wait::Forever).unwrap();
    assert_eq!(reaped.completions.len(), 1);
    let completion = reaped.completions.pop().unwrap();
    assert_eq!(completion.token, Token(77));
    assert_eq!(engine.in_flight(), 0);
    completion
}

pub fn owned(bytes: &[u8]) -> Buf {
    let mut buf = AlignedBuf::new(bytes.len(), 4096);
    buf.as_mut_slice().copy_from_slice(bytes);
    Buf::Owned(buf)
}

pub fn room_for(len: usize) -> Buf {
    owned(&vec![0xEE; len])
}

pub fn bytes_of(buf: &Buf) -> Vec<u8> {
    match buf {
        Buf::Owned(buf) => buf.as_slice().to_vec(),
        Buf::Guest(iov) => {
            let mut bytes = vec![0; iov.bytes() as usize];
            iov.copy_to(0, &mut bytes);
            bytes
        }
        Buf::None => Vec::new(),
    }
}

pub fn memory(bytes: u64) -> MemHandle {
    MemHandle::new(Arc::new(GuestMemory::memfd(bytes).unwrap().0))
}

/// Guest segments at the given places, in this order.
pub fn segments(mem: &MemHandle, parts: &[(u64, u64)]) -> IoVecs {
    let mut iov = IoVecs::new(mem);
    for (at, len) in parts {
        iov.push(GuestAddr(*at), *len).unwrap();
    }
    iov
}

pub fn errno(completion: &Completion) -> Option<i32> {
    completion.result.as_ref().err().and_then(io::Error::raw_os_error)
}
