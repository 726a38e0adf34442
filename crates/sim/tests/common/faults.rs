//! What QEMU's own drivers do to an image, recorded and judged.
//!
//! ```text
//!   qemu-io --> format --> blklogwrites --> image
//!                               `--> log --> WriteLog --> enumerate --> judge: a checker, Promise
//! ```

use super::{QemuIo, Scratch};
use io_engine::SimDisk;
use io_engine::sim::{SimOptions, Unwritten};
use sim::enumerate::{CrashState, Options, enumerate};
use sim::log_writes::WriteLog;
use sim::model::{History, Promise, stamp};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::ops::Range;

/// Size of the disk.
pub const DISK_LEN: u64 = 1 << 20;

/// A guest's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Write(u64, u64),
    Zeroes(u64, u64),
    Discard(u64, u64),
    Flush,
}

/// In a block that the prepared images have.
pub const IN_PLACE: Ask = Ask::Write(0, 4096);
pub const SMALL: Ask = Ask::Write(64 << 10, 4096);
pub const PARTIAL: Ask = Ask::Write((132 << 10) + 1024, 1024);
pub const ZEROES: Ask = Ask::Zeroes(64 << 10, 4096);

/// What is done in a test, whatever the format.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub name: &'static str,
    pub workloads: &'static [&'static [Ask]],
    /// Of the disk that the crashes happen on. QEMU itself ran on a file.
    pub unwritten: Unwritten,
}

/// A format, and what all images of a test have in common.
pub trait Subject {
    const FORMAT: &'static str;
    /// How many bytes the prepared images have.
    const PREPARED_LEN: u64;
    /// What is wrong with a state, in one word.
    type Wrong: Copy + Debug + Ord;

    fn plan(&self) -> &Plan;
    /// Makes an image by the name `image` in `scratch`; gives what its backing file holds.
    fn create(&self, scratch: &Scratch) -> Option<Vec<u8>>;
    /// Where an image that QEMU has closed holds metadata. It must be sound.
    fn metadata(&self, image: &[u8]) -> Vec<Range<u64>>;
    fn judge(run: &Run, promise: &Promise<'_>, disk: &SimDisk)
    -> Result<(), (Self::Wrong, String)>;
}

/// What was recorded of one workload.
pub struct Run {
    start: SimDisk,
    log: WriteLog,
    history: History,
    /// The image as it was in the end.
    image: Vec<u8>,
    pub backing: Option<Vec<u8>>,
}

impl Run {
    /// Reads the backing file; without one there are zeroes.
    pub fn read_backing(&self, at: u64, into: &mut [u8]) {
        match &self.backing {
            Some(bytes) => sim::ImageFile::read_at(&bytes[..], at, into),
            None => into.fill(0),
        }
    }
}

/// Does a workload on a new image, which has some data already if it is `prepared`.
fn record<S: Subject>(scratch: &Scratch, setup: &S, prepared: bool, workload: &[Ask]) -> Run {
    let backing = setup.create(scratch);
    let image = scratch.path("image");
    let name = image.to_str().unwrap();
    let disk_len = usize::try_from(DISK_LEN).unwrap();
    let mut initial = backing.clone().unwrap_or_else(|| vec![0; disk_len]);
    if prepared {
        let mut qemu = QemuIo::open(&["-f", S::FORMAT, name]);
        let data: Vec<u8> =
            (0..S::PREPARED_LEN / 512).flat_map(|sector| stamp(sector, 0)).collect();
        write(scratch, &mut qemu, 0, &data);
        qemu.close();
        initial[..data.len()].copy_from_slice(&data);
    }
    let options = SimOptions { unwritten: setup.plan().unwritten, ..SimOptions::default() };
    let start = SimDisk::with_contents(options, &scratch.get("image"));

    let log_path = scratch.put("log", &[]);
    let options = format!(
        "driver={},discard=unmap,file.driver=blklogwrites,file.discard=unmap,file.file.driver=file,\
         file.file.discard=unmap,file.file.filename={name},file.log.driver=file,file.log.filename={}",
        S::FORMAT,
        log_path.display()
    );
    let mut qemu = QemuIo::open(&["--image-opts", &options]);
    let log_len = || fs::metadata(&log_path).unwrap().len();
    let mut times = Vec::new();
    for (ask, number) in workload.iter().zip(1..) {
        let sent = log_len();
        match *ask {
            Ask::Write(at, len) => {
                let sectors = at / 512..(at + len) / 512;
                let data: Vec<u8> = sectors.flat_map(|sector| stamp(sector, number)).collect();
                write(scratch, &mut qemu, at, &data);
            }
            Ask::Zeroes(at, len) => {
                let said = qemu.run(&format!("write -z {at} {len}"));
                assert!(said.starts_with("wrote"), "{said}");
            }
            Ask::Discard(at, len) => {
                let said = qemu.run(&format!("discard {at} {len}"));
                assert!(said.starts_with("discard "), "{said}");
            }
            Ask::Flush => assert_eq!(qemu.run("flush"), ""),
        }
        times.push((*ask, sent, log_len()));
    }
    qemu.close();

    let log = WriteLog::parse(&scratch.get("log")).unwrap();
    let history = history(initial, &log, &times);
    Run { start, log, history, image: scratch.get("image"), backing }
}

fn write(scratch: &Scratch, qemu: &mut QemuIo, at: u64, data: &[u8]) {
    let path = scratch.put("data", data);
    let said = qemu.run(&format!("write -s {} {at} {}", path.display(), data.len()));
    assert!(said.starts_with("wrote"), "{said}");
}

/// Translates the lengths that the log had into positions.
fn history(initial: Vec<u8>, log: &WriteLog, times: &[(Ask, u64, u64)]) -> History {
    let mut history = History::new(initial, false);
    for (ask, sent, ended) in times {
        let sent = log.events_before(*sent);
        let request = match *ask {
            Ask::Write(at, len) => history.write(sent, at, len).0,
            Ask::Zeroes(at, len) => history.write_zeroes(sent, at, len),
            Ask::Discard(at, len) => history.discard(sent, at, len),
            Ask::Flush => history.flush(sent),
        };
        history.ended(log.events_before(*ended), request, true);
    }
    history
}

/// What was found.
#[derive(Debug)]
pub struct Tally<W> {
    pub workloads: u64,
    /// Workloads of which some state was wrong.
    pub hit: u64,
    pub states: u64,
    pub sampled_cuts: u64,
    pub wrong: BTreeMap<W, u64>,
}

/// Judges every crash state of every workload; `on_wrong` gets the disks that are not as they should be, and why.
pub fn tally<S: Subject>(
    setup: &S,
    mut on_wrong: impl FnMut(&[Ask], S::Wrong, &str, &SimDisk),
) -> Tally<S::Wrong> {
    let plan = setup.plan();
    let scratch = Scratch::new(plan.name);
    let (workloads, hit, states, sampled_cuts) = (0, 0, 0, 0);
    let mut tally = Tally { workloads, hit, states, sampled_cuts, wrong: BTreeMap::new() };
    for (workload, prepared) in plan.workloads.iter().flat_map(|w| [(w, false), (w, true)]) {
        let run = record(&scratch, setup, prepared, workload);
        let metadata = setup.metadata(&run.image);
        let options = Options {
            is_metadata: &|at| metadata.iter().any(|range| range.contains(&at)),
            promise: &|position| run.history.promises_by(position),
            ..Options::default()
        };
        let mut promise = (0, run.history.promise_at(0));
        let mut wrong_here = 0;
        let visit = |state: &CrashState<'_>| {
            if promise.0 != state.position {
                promise = (state.position, run.history.promise_at(state.position));
            }
            if let Err((wrong, message)) = S::judge(&run, &promise.1, &state.disk) {
                *tally.wrong.entry(wrong).or_default() += 1;
                wrong_here += 1;
                on_wrong(workload, wrong, &message, &state.disk);
            }
            Ok(())
        };
        let stats = enumerate(&run.start, &run.log.events, &options, visit).unwrap();
        tally.workloads += 1;
        tally.hit += u64::from(wrong_here > 0);
        tally.states += stats.states;
        tally.sampled_cuts += stats.sampled_cuts;
    }
    println!("QEMU's {}, {}: {tally:?}", S::FORMAT, plan.name);
    tally
}
