//! A path where disks live, and what files there can do: tried on an unnamed temporary file, which is gone when it is closed.

use super::finding::{Finding, Id, Status};
use super::host::plain;
use super::probed::{Refusal, Space};
use io_engine::{AlignedBuf, HostFile};
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, StatxFlags};
use rustix::io::{Errno, ReadWriteFlags};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bytes of the temporary file; also what its memory is aligned to, which no device asks more of.
const TRIAL: usize = 64 << 10;

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    Image,
    Device,
}

/// What was tried, and with what result. `None`: it was not tried, for the reason in [`Trials::left_out`].
#[derive(Clone, Debug, Default)]
pub struct Trials {
    /// With what.
    pub with: String,
    /// Why some of it was not tried.
    pub left_out: String,
    /// The files' content is in RAM (tmpfs).
    pub in_ram: bool,
    /// Opens with `O_DIRECT`, and what that asks of memory and of offsets, in bytes.
    pub direct: Option<Result<(u32, u32), Refusal>>,
    /// Direct reads, and writes if they could be tried, without waiting (`RWF_NOWAIT`).
    pub direct_nowait: Option<Result<(), Refusal>>,
    /// Buffered reads the same way.
    pub buffered_read_nowait: Option<Result<(), Refusal>>,
    /// Buffered writes the same way.
    pub buffered_write_nowait: Option<Result<(), Refusal>>,
    /// `FALLOC_FL_PUNCH_HOLE`
    pub punch_hole: Option<Result<(), Refusal>>,
    /// `FALLOC_FL_ZERO_RANGE`
    pub zero_range: Option<Result<(), Refusal>>,
    /// `FICLONE`
    pub reflink: Option<Result<(), Refusal>>,
}

/// A path and what was found out there.
#[derive(Clone, Debug)]
pub struct Spot {
    /// Absolute, without links.
    pub path: PathBuf,
    pub kind: Kind,
    /// `major:minor` of the device it is, or of its file system.
    pub device: String,
    /// The mount it is on, if the kernel tells (Linux 5.8).
    pub mount_id: Option<u64>,
    /// Room on its file system.
    pub space: Result<Space, String>,
    pub trials: Trials,
}

impl Spot {
    /// Looks at a path. It may take as long as the file system there takes to answer. The error is one line for the user.
    pub fn examine(given: &Path) -> Result<Spot, String> {
        let failed = |error: io::Error| plain(&error);
        let path = given.canonicalize().map_err(failed)?;
        let stat = std::fs::metadata(&path).map_err(failed)?;
        let kind = match stat.file_type() {
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_file() => Kind::Image,
            kind if kind.is_block_device() => Kind::Device,
            _ => return Err("neither a directory nor an image nor a block device".to_owned()),
        };
        let number = if kind == Kind::Device { stat.rdev() } else { stat.dev() };
        let device = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
        let flags = StatxFlags::MNT_ID;
        let told = rustix::fs::statx(rustix::fs::CWD, &path, AtFlags::empty(), flags).ok();
        let told = told.filter(|told| told.stx_mask & flags.bits() != 0);
        let space = Space::at(&path).map_err(|error| plain(&error));
        let trials = match kind {
            Kind::Device => try_reading(&path, "the device itself, only read"),
            Kind::Directory => try_directory(&path),
            Kind::Image => try_beside(&path, stat.dev()),
        };
        Ok(Spot { path, kind, device, mount_id: told.map(|told| told.stx_mnt_id), space, trials })
    }

    /// The path as shown and as looked up among the mounts.
    pub fn shown(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }
}

/// Beside an image, if that is the same file system and can be written; else on the image, only reading.
fn try_beside(path: &Path, device: u64) -> Trials {
    let parent = path.parent().filter(|dir| dir.metadata().is_ok_and(|stat| stat.dev() == device));
    if let Some(dir) = parent {
        let trials = try_directory(dir);
        if trials.direct.is_some() {
            return trials;
        }
    }
    try_reading(path, "the image itself, only read")
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::io::retry_on_intr(|| rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR))
}

fn try_directory(dir: &Path) -> Trials {
    let mut trials =
        Trials { with: "a temporary file (O_TMPFILE)".to_owned(), ..Trials::default() };
    let unnamed = OFlags::TMPFILE | OFlags::RDWR;
    let file = match open(dir, unnamed) {
        Ok(file) => file,
        Err(error) => {
            trials.left_out = match error {
                Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT => {
                    "the file system makes no unnamed temporary files; give an image there \
                     instead of the directory"
                        .to_owned()
                }
                _ => format!("no temporary file could be made: {}", plain(&error.into())),
            };
            return trials;
        }
    };
    let mut buf = AlignedBuf::new(TRIAL, TRIAL);
    if let Err(error) = rustix::io::pwrite(&file, buf.as_slice(), 0) {
        trials.left_out =
            format!("the temporary file could not be written: {}", plain(&error.into()));
        return trials;
    }
    trials.buffered_read_nowait = Some(read_nowait(&file, &mut buf));
    trials.buffered_write_nowait = Some(write_nowait(&file, &buf));
    trials.reflink =
        open(dir, unnamed).ok().map(|copy| done(rustix::fs::ioctl_ficlone(&copy, &file)));
    let keep = FallocateFlags::KEEP_SIZE;
    let len = TRIAL as u64 / 2;
    let fallocate = |mode| done(rustix::fs::fallocate(&file, mode, 0, len));
    trials.punch_hole = Some(fallocate(FallocateFlags::PUNCH_HOLE | keep));
    trials.zero_range = Some(fallocate(FallocateFlags::ZERO_RANGE | keep));
    match open(dir, unnamed | OFlags::DIRECT) {
        Err(error) => trials.direct = Some(Err(error.into())),
        Ok(file) => try_direct(file, &mut buf, true, &mut trials),
    }
    trials
}

fn try_reading(path: &Path, with: &str) -> Trials {
    let mut trials = Trials {
        with: with.to_owned(),
        left_out: "no temporary file could be written, so only reading was tried".to_owned(),
        ..Trials::default()
    };
    let mut buf = AlignedBuf::new(TRIAL, TRIAL);
    match open(path, OFlags::RDONLY) {
        Ok(file) => trials.buffered_read_nowait = Some(read_nowait(&file, &mut buf)),
        Err(error) => {
            trials.left_out = format!("it may not be read: {}", plain(&error.into()));
            return trials;
        }
    }
    match open(path, OFlags::RDONLY | OFlags::DIRECT) {
        Err(error) => trials.direct = Some(Err(error.into())),
        Ok(file) => try_direct(file, &mut buf, false, &mut trials),
    }
    trials
}

fn try_direct(file: OwnedFd, buf: &mut AlignedBuf, writes: bool, trials: &mut Trials) {
    if writes && let Err(error) = rustix::io::pwrite(&file, buf.as_slice(), 0) {
        trials.direct = Some(Err(error.into()));
        return;
    }
    let file = match HostFile::new(File::from(file), true) {
        Ok(file) => file,
        Err(error) => {
            trials.direct = Some(Err(error.into()));
            return;
        }
    };
    trials.in_ram = file.facts().ram_backed;
    trials.direct = Some(Ok((file.facts().mem_align, file.facts().offset_align)));
    let read = read_nowait(file.file(), buf);
    let write = if writes { write_nowait(file.file(), buf) } else { Ok(()) };
    trials.direct_nowait = Some(read.and(write));
}

fn done(result: Result<(), Errno>) -> Result<(), Refusal> {
    result.map_err(Refusal::from)
}

/// Whether a call that must not wait is understood. That it would have to wait this time is an answer too.
fn understood(result: Result<usize, Errno>) -> Result<(), Refusal> {
    match result {
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn read_nowait(file: impl std::os::fd::AsFd, buf: &mut AlignedBuf) -> Result<(), Refusal> {
    let mut into = [IoSliceMut::new(buf.as_mut_slice())];
    understood(rustix::io::preadv2(file, &mut into, 0, ReadWriteFlags::NOWAIT))
}

fn write_nowait(file: impl std::os::fd::AsFd, buf: &AlignedBuf) -> Result<(), Refusal> {
    let from = [IoSlice::new(buf.as_slice())];
    understood(rustix::io::pwritev2(file, &from, 0, ReadWriteFlags::NOWAIT))
}

/// What a result of a trial is called and means, both ways.
struct Meaning {
    id: Id,
    /// The status where it does not work.
    bad: Status,
    name: &'static str,
    works: &'static str,
    fails: &'static str,
    fix: Option<&'static str>,
}

const DIRECT_ASYNC: Meaning = Meaning {
    id: Id::DirectIoAsync,
    bad: Status::Warning,
    name: "direct I/O without waiting (RWF_NOWAIT)",
    works: "io_uring and Linux AIO hand requests straight to the device and carry on",
    fails: "io_uring hands each request to a worker thread of the kernel, and Linux AIO \
        waits in the submitting thread: more CPU per request, and one at a time \
        with AIO",
    fix: Some("use the engine that measures best here: --aio threads may do"),
};
const BUFFERED_READ: Meaning = Meaning {
    id: Id::BufferedIoAsync,
    bad: Status::Note,
    name: "buffered I/O without waiting (RWF_NOWAIT)",
    works: "with cache=writeback and writethrough, what is in the page cache is read \
        and written at once; only the rest goes to a worker thread",
    fails: "with cache=writeback and writethrough, io_uring hands each request to a \
        worker thread of the kernel, cached or not",
    fix: Some("--cache none here, or --aio threads for the others"),
};
const PUNCH_HOLE: Meaning = Meaning {
    id: Id::PunchHole,
    bad: Status::Warning,
    name: "punching holes",
    works: "what a guest discards gives its space back",
    fails: "what a guest discards stays allocated: images only grow",
    fix: Some("for images that shrink, a file system of type xfs or ext4"),
};
const ZERO_RANGE: Meaning = Meaning {
    id: Id::ZeroRange,
    bad: Status::Note,
    name: "zeroing ranges",
    works: "a guest's write-zeroes costs metadata only",
    fails: "a guest's write-zeroes is done with a hole where that may be, else by \
        writing each zero",
    fix: None,
};
const REFLINK: Meaning = Meaning {
    id: Id::Reflink,
    bad: Status::Note,
    name: "sharing blocks between files (reflink)",
    works: "cp --reflink copies an image in no time",
    fails: "a copy of an image moves all its bytes; snapshots are those of the image \
        format. Speed of a running disk is not touched",
    fix: None,
};

impl Meaning {
    fn finding(&self, trials: &Trials, result: Option<&Result<(), Refusal>>) -> Finding {
        let source = trials.with.as_str();
        match result {
            None => Finding::unknown(self.id, self.name, source, &trials.left_out),
            Some(Ok(())) => Finding::new(
                self.id,
                Status::Ok,
                format!("{}: works", self.name),
                source,
                self.works,
            ),
            Some(Err(why)) => {
                let what = format!("{}: {why}", self.name);
                let finding = Finding::new(self.id, self.bad, what, source, self.fails);
                match self.fix {
                    Some(fix) => finding.fix(fix),
                    None => finding,
                }
            }
        }
    }
}

/// What the trials mean.
pub fn check(spot: &Spot, out: &mut Vec<Finding>) {
    let path = spot.shown();
    let trials = &spot.trials;
    let mut push = |finding: Finding| out.push(finding.about(&path));
    push(direct(trials));
    if let Some(Ok((mem, offset))) = trials.direct {
        push(alignment(trials, mem, offset));
        push(match trials.in_ram {
            true => Finding::new(
                Id::DirectIoAsync,
                Status::Ok,
                "direct I/O is a copy in RAM",
                trials.with.as_str(),
                "ferroblk copies at once, without handing it to anybody",
            ),
            false => DIRECT_ASYNC.finding(trials, trials.direct_nowait.as_ref()),
        });
    }
    push(buffered(trials, spot.kind));
    // What a device can do of this is among its settings.
    if spot.kind != Kind::Device {
        push(PUNCH_HOLE.finding(trials, trials.punch_hole.as_ref()));
        push(ZERO_RANGE.finding(trials, trials.zero_range.as_ref()));
        push(REFLINK.finding(trials, trials.reflink.as_ref()));
    }
}

fn direct(trials: &Trials) -> Finding {
    let name = "direct I/O (O_DIRECT)";
    let source = trials.with.as_str();
    match &trials.direct {
        None => Finding::unknown(Id::DirectIo, name, source, &trials.left_out),
        Some(Ok(_)) => {
            let means = "cache=none and directsync work: no second copy of the guest's cache on the \
                host, and its I/O goes to the device as it is";
            Finding::new(Id::DirectIo, Status::Ok, format!("{name}: works"), source, means)
        }
        Some(Err(why)) => {
            let means = "cache=none (the default) and directsync are refused, and so is Linux AIO: \
                all goes through the host's page cache, which keeps the guest's data a \
                second time and writes it back in bursts";
            Finding::new(Id::DirectIo, Status::Problem, format!("{name}: {why}"), source, means)
                .fix(
                    "--cache writeback here; or images on a file system with direct I/O, such as \
                     ext4 or xfs",
                )
        }
    }
}

fn alignment(trials: &Trials, mem: u32, offset: u32) -> Finding {
    let what = format!("direct I/O in multiples of {offset} bytes, memory of {mem}");
    let source = trials.with.as_str();
    if offset <= 512 {
        let means = "each request of a guest, down to one sector, goes to the device as it is";
        return Finding::new(Id::DirectIoAlignment, Status::Ok, what, source, means);
    }
    let (status, means) = match offset {
        ..=4096 => (
            Status::Note,
            "a guest that writes single sectors of 512 bytes has its block read first, \
             then written. Guests' file systems use 4 KiB and are not touched; boot \
             loaders and databases' logs may be",
        ),
        _ => (
            Status::Warning,
            "also 4 KiB writes of a guest's file system are smaller than a block here: \
             each reads first, then writes all of it",
        ),
    };
    Finding::new(Id::DirectIoAlignment, status, what, source, means).fix(
        "guests with sectors of 4096 bytes; or a file system made with smaller \
         blocks or records",
    )
}

/// Reads and writes are one finding: the worse of both. A device that could only be read is judged by that.
fn buffered(trials: &Trials, kind: Kind) -> Finding {
    let (read, write) = (&trials.buffered_read_nowait, &trials.buffered_write_nowait);
    match (read, write) {
        (Some(Ok(())), Some(Err(why))) => {
            let what =
                format!("buffered I/O without waiting (RWF_NOWAIT): reads work, writes: {why}");
            let means = "with cache=writeback and writethrough, cached data is read at once, but \
                io_uring hands each write to a worker thread of the kernel: ferroblk copies \
                such writes on threads of its own";
            Finding::new(Id::BufferedIoAsync, Status::Note, what, trials.with.as_str(), means)
                .fix("nothing for --cache none; for writeback, xfs and btrfs take such writes")
        }
        (Some(Ok(())), None) if kind != Kind::Device => Finding::unknown(
            Id::BufferedIoAsync,
            BUFFERED_READ.name,
            trials.with.as_str(),
            &trials.left_out,
        ),
        _ => BUFFERED_READ.finding(trials, read.as_ref()),
    }
}
