//! Blocks of files, as a thread reads and writes them: measured, verified, and stopped when the run is over.

use super::error::{RunError, RunErrorKind};
use super::shared::{Course, Shared};
use super::tally::{Done, Tally};
use super::target::Target;
use crate::files::set::{File, FileSet, NoFile};
use crate::files::{Access, How, Open};
use crate::profile::Syscall;
use crate::verify;
use io_engine::{AlignedBuf, Rng};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// Blocks after which the live count is told to who watches.
const TELL_EVERY: u64 = 256;

/// Why an operation did not come to its end.
#[derive(Debug)]
pub(crate) enum Broke {
    /// The run is over.
    Halted,
    /// It failed.
    Failed(RunError),
}

/// Which way a block goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Read,
    Write,
}

/// A file that is being worked on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work<'a> {
    pub target: &'a Target<'a>,
    pub set: &'a FileSet,
    pub number: u32,
    pub file: &'a File,
}

impl Work<'_> {
    fn path(&self) -> String {
        self.target.path(self.set, self.number, self.file)
    }
}

/// What a thread needs to read and write files.
#[derive(Debug)]
pub(crate) struct Io<'a> {
    pub shared: &'a Shared<'a>,
    pub access: Access<'a>,
    pub tally: Tally,
    /// Word for what is being done, in errors: an operation's name.
    pub doing: &'static str,
    /// What the operation under way has come to.
    pub done: Done,
    /// Blocks carry what they are, and are checked.
    pub verify: bool,
    /// Files have a position, so that `lseek` can be measured.
    pub seeks: bool,
    course: Course,
    buf: AlignedBuf,
    pub name: String,
    /// Transactions so far, for who watches.
    live: Option<&'a AtomicU64>,
    blocks: u64,
}

impl<'a> Io<'a> {
    /// `block` bytes is the longest block.
    pub fn new(
        shared: &'a Shared<'a>,
        access: Access<'a>,
        tally: Tally,
        block: u32,
        mut content: Rng,
    ) -> Io<'a> {
        let mut buf = AlignedBuf::new(block as usize, 4096);
        // Zeroes would measure something else on a disk that leaves them out.
        content.fill(buf.as_mut_slice());
        Io {
            shared,
            access,
            tally,
            doing: "",
            done: Done::default(),
            verify: false,
            seeks: false,
            course: shared.course(),
            buf,
            name: String::new(),
            live: None,
            blocks: 0,
        }
    }

    /// Tells `live` how many transactions there were, now and then.
    pub fn tell(&mut self, live: &'a AtomicU64) {
        self.live = Some(live);
    }

    pub fn course(&self) -> Course {
        self.course
    }

    /// An operation begins.
    pub fn begin(&mut self, doing: &'static str) {
        self.doing = doing;
        self.done = Done::default();
        self.tally.pause();
    }

    /// Between two blocks: whether to go on. If the measurement begins here, the operation counts from here.
    #[inline]
    pub fn goes_on(&mut self) -> Result<bool, Broke> {
        let course = self.shared.course();
        if course != self.course {
            if self.course == Course::WarmUp {
                self.tally.reset();
                self.done = Done::default();
            }
            self.course = course;
        }
        match course {
            Course::WarmUp | Course::Measure | Course::End => Ok(true),
            Course::Cut => Ok(false),
            Course::Halt => Err(Broke::Halted),
        }
    }

    pub fn failed(&self, what: &str, work: Work<'_>, error: &io::Error) -> Broke {
        let doing = format!("{}: {what}", self.doing);
        Broke::Failed(RunError::io(&doing, &work.path(), error))
    }

    /// A wish that a file cannot fulfil.
    pub fn refused(&self, work: Work<'_>, why: &str) -> Broke {
        let message = format!("{}: {}: {why}", self.doing, work.path());
        Broke::Failed(RunError::new(RunErrorKind::Profile, message))
    }

    pub fn no_file(&self, target: &Target<'_>, why: NoFile) -> Broke {
        match why {
            NoFile::Halted => Broke::Halted,
            NoFile::Empty => {
                let place = target.files.place();
                let message = format!(
                    "{}: {place}: no files are left to work on: more files to start with, or fewer deletes",
                    self.doing
                );
                Broke::Failed(RunError::new(RunErrorKind::Profile, message))
            }
        }
    }

    pub fn open(&mut self, work: Work<'_>, how: How, direct: bool) -> Result<Open, Broke> {
        work.set.name(work.number, work.file, &mut self.name);
        // FFSB counts the opening of a new file as `open`, too.
        let start = self.tally.call_start(Syscall::Open);
        let open = work.target.files.open(&self.name, how, direct);
        self.tally.call_end(Syscall::Open, start);
        open.map_err(|error| self.failed("opening", work, &error))
    }

    pub fn close(&mut self, open: Open) {
        let start = self.tally.call_start(Syscall::Close);
        drop(open);
        self.tally.call_end(Syscall::Close, start);
    }

    pub fn fsync(&mut self, work: Work<'_>, open: &Open) -> Result<(), Broke> {
        let result = work.target.files.fsync(&mut self.access, open);
        self.tally.pause();
        result.map_err(|error| self.failed("fsync of", work, &error))
    }

    /// A file system would write the file's metadata.
    pub fn note_change(&mut self, work: Work<'_>) -> Result<(), Broke> {
        let result = work.target.files.note_change(&mut self.access, work.file);
        self.tally.pause();
        result.map_err(|error| self.failed("writing metadata of", work, &error))
    }

    /// Sets the file's position, if it has one.
    pub fn seek(
        &mut self,
        work: Work<'_>,
        open: &Open,
        offset: u64,
        relative: bool,
    ) -> Result<(), Broke> {
        if !self.seeks || relative && offset == 0 {
            return Ok(());
        }
        let start = self.tally.call_start(Syscall::Lseek);
        let result = work.target.files.seek(open, offset, relative);
        self.tally.call_end(Syscall::Lseek, start);
        result.map_err(|error| self.failed("seeking in", work, &error))
    }

    /// One block. Counts its bytes, and with `counted` a transaction.
    #[inline]
    pub fn block(
        &mut self,
        way: Way,
        work: Work<'_>,
        open: &Open,
        offset: u64,
        len: usize,
        counted: bool,
    ) -> Result<(), Broke> {
        match way {
            Way::Read => {
                self.read(work, open, offset, len)?;
                self.done.read_bytes += len as u64;
            }
            Way::Write => {
                self.write(work, open, offset, len)?;
                self.done.written_bytes += len as u64;
            }
        }
        self.done.transactions += u64::from(counted);
        self.blocks += 1;
        if self.blocks.is_multiple_of(TELL_EVERY) {
            self.tell_count(self.done.transactions);
        }
        Ok(())
    }

    /// Tells the transactions counted so far, and those of the operation under way.
    pub fn tell_count(&self, under_way: u64) {
        if let Some(live) = self.live {
            live.store(self.tally.transactions() + under_way, Ordering::Relaxed);
        }
    }

    #[inline]
    fn read(&mut self, work: Work<'_>, open: &Open, offset: u64, len: usize) -> Result<(), Broke> {
        let buf = &mut self.buf.as_mut_slice()[..len];
        let start = self.tally.block_start(Syscall::Read);
        let result = work.target.files.read(&mut self.access, open, work.file, offset, buf);
        self.tally.block_end(Syscall::Read, start);
        if let Err(error) = result {
            return Err(self.failed_at("reading", work, offset, &error));
        }
        if self.verify {
            self.check(work, offset, len)?;
        }
        Ok(())
    }

    #[inline]
    fn write(&mut self, work: Work<'_>, open: &Open, offset: u64, len: usize) -> Result<(), Broke> {
        let mut generation = 0;
        let buf = &mut self.buf.as_mut_slice()[..len];
        if self.verify {
            let Some(next) = work.file.cells.next_generation() else {
                return Err(self.refused(work, "too many blocks were written to verify them"));
            };
            generation = next;
            verify::fill(buf, offset, work.target.owner(work.set, work.number), generation);
            self.tally.pause();
        }
        let start = self.tally.block_start(Syscall::Write);
        let result = work.target.files.write(&mut self.access, open, work.file, offset, buf);
        self.tally.block_end(Syscall::Write, start);
        if let Err(error) = result {
            return Err(self.failed_at("writing", work, offset, &error));
        }
        if self.verify {
            work.file.cells.wrote(offset, len, generation);
        }
        Ok(())
    }

    #[cold]
    fn failed_at(&self, what: &str, work: Work<'_>, offset: u64, error: &io::Error) -> Broke {
        let doing = format!("{}: {what} at offset {offset:#x} of", self.doing);
        Broke::Failed(RunError::io(&doing, &work.path(), error))
    }

    fn check(&mut self, work: Work<'_>, offset: u64, len: usize) -> Result<(), Broke> {
        let owner = work.target.owner(work.set, work.number);
        let result = work.file.cells.check(&self.buf.as_slice()[..len], offset, owner);
        self.tally.pause();
        result.map_err(|fault| self.fault(work, fault))
    }

    /// Content that is not what was written.
    pub fn fault(&self, work: Work<'_>, fault: verify::Fault) -> Broke {
        let (doing, path, at) = (self.doing, work.path(), fault.offset);
        let message = format!("{doing}: {path} at offset {at:#x}: {fault}");
        Broke::Failed(RunError::new(RunErrorKind::Verify, message))
    }

    /// Blocks in a row: whole ones, then what is left. FFSB counts the rest as a transaction if it is written, not if it is read.
    pub fn row(
        &mut self,
        way: Way,
        work: Work<'_>,
        open: &Open,
        from: u64,
        len: u64,
        block: u32,
    ) -> Result<(), Broke> {
        let end = from + len;
        let mut offset = from;
        while offset < end && self.goes_on()? {
            let whole = end - offset >= u64::from(block);
            let len = if whole { u64::from(block) } else { end - offset };
            let counted = whole || way == Way::Write;
            let bytes = usize::try_from(len).expect("at most a block");
            self.block(way, work, open, offset, bytes, counted)?;
            offset += len;
            if way == Way::Write {
                work.file.size.fetch_max(offset, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Makes a file that was added to its set and is the caller's alone.
    pub fn make(
        &mut self,
        target: &Target<'_>,
        set: &FileSet,
        number: u32,
        file: &mut File,
        plan: MakePlan,
    ) -> Result<(), Broke> {
        if let Err(error) = target.files.make_room(file, plan.size) {
            return Err(self.failed("making", Work { target, set, number, file }, &error));
        }
        file.cells.truncate();
        if self.verify {
            file.cells.grow(plan.size);
        }
        let work = Work { target, set, number, file };
        let open = self.open(work, How::Create, plan.direct)?;
        self.row(Way::Write, work, &open, 0, plan.size, plan.block)?;
        self.note_change(work)?;
        if plan.fsync {
            self.fsync(work, &open)?;
        }
        self.close(open);
        Ok(())
    }

    /// The first `len` bytes of the buffer, as they were read last.
    pub fn last_read(&self, len: usize) -> &[u8] {
        &self.buf.as_slice()[..len]
    }
}

/// How a file is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MakePlan {
    pub size: u64,
    pub block: u32,
    pub direct: bool,
    pub fsync: bool,
}
