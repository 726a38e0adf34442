//! FFSB's fifteen operations: what each draws, does and counts. `docs/ffsb.md` says it in a table.

use super::draw::{self, OpTable};
use super::error::RunError;
use super::io::{Broke, Io, MakePlan, Way, Work};
use super::shared::Course;
use super::tally::Tally;
use super::target::Target;
use crate::clock;
use crate::files::set::{File, FileSet, NoFile, SetKind};
use crate::files::{How, Open};
use crate::profile::{Op, Syscall, ThreadGroup};
use io_engine::Rng;
use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

/// Longest piece of an `op_delay` in which the end of the run is not noticed.
const NAP: Duration = Duration::from_millis(20);

/// A thread of a group.
#[derive(Debug)]
pub(crate) struct Worker<'a> {
    pub io: Io<'a>,
    pub targets: &'a [Target<'a>],
    /// The set that operations on files use.
    pub kind: SetKind,
    pub group: &'a ThreadGroup,
    pub table: &'a OpTable,
    /// Draws operations and file systems.
    pub operations: Rng,
    /// Draws files, offsets and sizes.
    pub places: Rng,
}

/// A file with the lock on it.
enum Held<'a> {
    Shared(RwLockReadGuard<'a, File>),
    Alone(RwLockWriteGuard<'a, File>),
}

impl Deref for Held<'_> {
    type Target = File;

    fn deref(&self) -> &File {
        match self {
            Held::Shared(file) => file,
            Held::Alone(file) => file,
        }
    }
}

impl<'a> Worker<'a> {
    /// Waits for the start, works until the run is over or `iterations` operations are done, and gives what it counted.
    pub fn run(mut self, iterations: Option<u64>) -> Tally {
        if self.io.shared.wait_for_start() {
            match self.work(iterations) {
                Ok(()) | Err(Broke::Halted) => {}
                Err(Broke::Failed(error)) => self.io.shared.fail(error),
            }
        }
        self.io.tally
    }

    fn work(&mut self, iterations: Option<u64>) -> Result<(), Broke> {
        let mut left = iterations;
        loop {
            let goes_on = self.io.goes_on()?;
            if !goes_on || self.io.course() == Course::End || left == Some(0) {
                return Ok(());
            }
            let op = self.table.draw(&mut self.operations);
            let target = match self.group.bindfs {
                Some(index) => &self.targets[index],
                None => &self.targets[self.operations.index(self.targets.len())],
            };
            self.operate(op, target)?;
            self.io.tally.add(op, self.io.done);
            self.io.tell_count(0);
            if self.io.course() != Course::WarmUp {
                left = left.map(|left| left - 1);
            }
            self.think();
        }
    }

    /// `op_delay`
    fn think(&mut self) {
        let mut left = Duration::from_millis(self.group.op_delay.into());
        while !left.is_zero() && self.io.shared.course() <= Course::Measure {
            let nap = left.min(NAP);
            clock::sleep(nap);
            left -= nap;
        }
    }

    fn operate(&mut self, op: Op, target: &'a Target<'a>) -> Result<(), Broke> {
        self.io.begin(op.name());
        match op {
            Op::Read => self.read(target),
            Op::Readall => self.read_all(target),
            Op::Write => self.write(target, false),
            Op::WriteFsync => self.write(target, true),
            Op::Writeall => self.write_all(target, false),
            Op::WriteallFsync => self.write_all(target, true),
            Op::Create => self.create(target, false),
            Op::CreateFsync => self.create(target, true),
            Op::Append => self.append(target, false),
            Op::AppendFsync => self.append(target, true),
            Op::Delete => self.delete(target),
            Op::Metaop => self.metaop(target),
            Op::Createdir => self.createdir(target),
            Op::Stat => self.stat(target),
            Op::OpenClose => self.open_close(target),
        }
    }

    /// Draws a file. `alone`: nobody else has it meanwhile.
    fn draw(&mut self, target: &'a Target<'a>, alone: bool) -> Result<(u32, Held<'a>), Broke> {
        let set = target.set(self.kind);
        let (shared, rng) = (self.io.shared, &mut self.places);
        let halted = || shared.halted();
        let drawn = match alone {
            false => set.draw_shared(rng, halted).map(|(n, file)| (n, Held::Shared(file))),
            true => set.draw_alone(rng, halted).map(|(n, file)| (n, Held::Alone(file))),
        };
        drawn.map_err(|why| self.io.no_file(target, why))
    }

    fn work_on<'b>(&self, target: &'b Target<'b>, number: u32, file: &'b File) -> Work<'b> {
        Work { target, set: target.set(self.kind), number, file }
    }

    fn read(&mut self, target: &'a Target<'a>) -> Result<(), Broke> {
        let (number, file) = self.draw(target, false)?;
        let work = self.work_on(target, number, &file);
        let open = self.io.open(work, How::Read, target.direct)?;
        match self.group.read_skip {
            Some(skip) if !self.group.read_random => {
                self.read_with_gaps(work, &open, skip)?;
            }
            _ => {
                let (size, block) = (self.group.read_size, self.group.read_blocksize);
                self.part(Way::Read, work, &open, size, block, self.group.read_random)?;
            }
        }
        self.io.close(open);
        Ok(())
    }

    /// Part of a file, or all of it: in a row from a random offset, or each block at one of its own.
    fn part(
        &mut self,
        way: Way,
        work: Work<'_>,
        open: &Open,
        size: Option<u64>,
        block: u32,
        random: bool,
    ) -> Result<(), Broke> {
        let file_size = work.file.len();
        let size = size.unwrap_or(file_size);
        // What random blocks need is room for one block, not for all.
        let needed = if random { u64::from(block).max(size) } else { size };
        if needed > file_size {
            let why = format!("the file has {file_size} bytes, {needed} are to be {way}");
            return Err(self.io.refused(work, &why));
        }
        if !random {
            let range = file_size - size;
            let mut from = 0;
            if range > 0 {
                from = draw::offset(&mut self.places, range, work.target.align);
                self.io.seek(work, open, from, false)?;
            }
            return self.io.row(way, work, open, from, size, block);
        }
        let range = file_size - u64::from(block);
        for _ in 0..size / u64::from(block) {
            if !self.io.goes_on()? {
                break;
            }
            let offset = draw::offset(&mut self.places, range, work.target.align);
            self.io.seek(work, open, offset, false)?;
            self.io.block(way, work, open, offset, block as usize, true)?;
        }
        Ok(())
    }

    /// `read_skip`: from the start of the file, with a gap behind each block.
    fn read_with_gaps(&mut self, work: Work<'_>, open: &Open, skip: u32) -> Result<(), Broke> {
        let file_size = work.file.len();
        let block = u64::from(self.group.read_blocksize);
        let stride = block + u64::from(skip);
        let (count, rest) = match self.group.read_size {
            Some(size) => (size / block, size % block),
            // The whole file, as far as whole blocks fit.
            None if file_size < block => (0, 0),
            None => ((file_size - block) / stride + 1, 0),
        };
        let needed = match (count, rest) {
            (0, rest) => rest,
            (count, 0) => block + (count - 1) * stride,
            (count, rest) => count * stride + rest,
        };
        if needed > file_size {
            let why = format!(
                "the file has {file_size} bytes, reading with a read_skipsize of {skip} needs {needed}"
            );
            return Err(self.io.refused(work, &why));
        }
        let mut offset = 0;
        for index in 0..count + u64::from(rest > 0) {
            if !self.io.goes_on()? {
                break;
            }
            let len = if index < count { block } else { rest };
            let bytes = usize::try_from(len).expect("at most a block");
            self.io.block(Way::Read, work, open, offset, bytes, true)?;
            if index < count {
                self.io.seek(work, open, skip.into(), true)?;
            }
            offset += stride;
        }
        Ok(())
    }

    fn read_all(&mut self, target: &'a Target<'a>) -> Result<(), Broke> {
        let (number, file) = self.draw(target, false)?;
        let work = self.work_on(target, number, &file);
        let open = self.io.open(work, How::Read, target.direct)?;
        let block = self.group.read_blocksize;
        self.io.row(Way::Read, work, &open, 0, file.len(), block)?;
        self.io.close(open);
        Ok(())
    }

    fn write(&mut self, target: &'a Target<'a>, fsync: bool) -> Result<(), Broke> {
        // FFSB lets writers of a file work side by side; verification must know who was last.
        let (number, file) = self.draw(target, self.io.verify)?;
        let work = self.work_on(target, number, &file);
        let open = self.io.open(work, How::Write, target.direct)?;
        let (size, block) = (self.group.write_size, self.group.write_blocksize);
        self.part(Way::Write, work, &open, size, block, self.group.write_random)?;
        self.finish_write(work, open, fsync)?;
        Ok(())
    }

    fn write_all(&mut self, target: &'a Target<'a>, fsync: bool) -> Result<(), Broke> {
        let (number, file) = self.draw(target, self.io.verify)?;
        let work = self.work_on(target, number, &file);
        let open = self.io.open(work, How::Write, target.direct)?;
        let block = self.group.write_blocksize;
        self.io.row(Way::Write, work, &open, 0, file.len(), block)?;
        self.finish_write(work, open, fsync)?;
        Ok(())
    }

    fn finish_write(&mut self, work: Work<'_>, open: Open, fsync: bool) -> Result<(), Broke> {
        if fsync {
            self.io.fsync(work, &open)?;
        }
        self.io.close(open);
        Ok(())
    }

    fn append(&mut self, target: &'a Target<'a>, fsync: bool) -> Result<(), Broke> {
        let alone = self.io.verify || target.files.append_is_exclusive();
        let (number, mut file) = self.draw(target, alone)?;
        let block = self.group.write_blocksize;
        let len = self.group.write_size.unwrap_or(block.into());
        if let Held::Alone(file) = &mut file {
            if let Err(error) = target.files.make_room(file, len) {
                return Err(self.io.failed("growing", self.work_on(target, number, file), &error));
            }
            if self.io.verify {
                let size = file.len() + len;
                file.cells.grow(size);
            }
        }
        let work = self.work_on(target, number, &file);
        let open = self.io.open(work, How::Append, target.direct)?;
        self.append_row(work, &open, len, block)?;
        self.io.note_change(work)?;
        self.finish_write(work, open, fsync)?;
        Ok(())
    }

    /// As [`Io::row`], but others may append at the same time: the file grows by what was written, wherever that came to be.
    fn append_row(
        &mut self,
        work: Work<'_>,
        open: &Open,
        len: u64,
        block: u32,
    ) -> Result<(), Broke> {
        let mut left = len;
        while left > 0 && self.io.goes_on()? {
            let len = left.min(block.into());
            let bytes = usize::try_from(len).expect("at most a block");
            self.io.block(Way::Write, work, open, work.file.len(), bytes, true)?;
            work.file.size.fetch_add(len, Ordering::Relaxed);
            left -= len;
        }
        Ok(())
    }

    fn create(&mut self, target: &'a Target<'a>, fsync: bool) -> Result<(), Broke> {
        self.keep_max_files(target)?;
        let size = target.sizes.draw(&mut self.places);
        let set = target.set(self.kind);
        let (number, mut file) = set.add(&mut self.places);
        let block = self.group.write_blocksize;
        let plan = MakePlan { size, block, direct: target.direct, fsync };
        self.io.make(target, set, number, &mut file, plan)?;
        Ok(())
    }

    /// `max_files`: a file goes before one comes that would be too many. It is part of the create, and counts as nothing. Threads that
    /// create at the same time may be over the bound by a file each.
    fn keep_max_files(&mut self, target: &'a Target<'a>) -> Result<(), Broke> {
        let set = target.set(self.kind);
        let bound = target.spec.max_files.filter(|_| self.kind == SetKind::Data);
        if bound.is_none_or(|bound| set.live() < bound.into()) {
            return Ok(());
        }
        let halted = || self.io.shared.halted();
        match set.draw_alone(&mut self.places, halted) {
            Ok((number, file)) => self.remove(target, number, file, false),
            // Others have just removed what there was.
            Err(NoFile::Empty) => Ok(()),
            Err(why) => Err(self.io.no_file(target, why)),
        }
    }

    fn delete(&mut self, target: &'a Target<'a>) -> Result<(), Broke> {
        let (number, file) = self.draw(target, true)?;
        let Held::Alone(file) = file else { unreachable!("drawn alone") };
        self.remove(target, number, file, true)?;
        self.io.done.transactions = 1;
        Ok(())
    }

    /// Removes a file. `counts`: as a system call of the workload.
    fn remove(
        &mut self,
        target: &'a Target<'a>,
        number: u32,
        mut file: RwLockWriteGuard<'a, File>,
        counts: bool,
    ) -> Result<(), Broke> {
        let set = target.set(self.kind);
        set.remove(&mut file);
        file.cells.truncate();
        set.name(number, &file, &mut self.io.name);
        let start = counts.then(|| self.io.tally.call_start(Syscall::Unlink)).flatten();
        let result = target.files.unlink(&mut self.io.access, &self.io.name, &mut file);
        self.io.tally.call_end(Syscall::Unlink, start);
        if let Err(error) = result {
            return Err(self.io.failed("removing", self.work_on(target, number, &file), &error));
        }
        drop(file);
        set.removed(number);
        Ok(())
    }

    fn stat(&mut self, target: &'a Target<'a>) -> Result<(), Broke> {
        let (number, file) = self.draw(target, false)?;
        let work = self.work_on(target, number, &file);
        work.set.name(number, &file, &mut self.io.name);
        let start = self.io.tally.call_start(Syscall::Stat);
        let result = target.files.stat(&self.io.name);
        self.io.tally.call_end(Syscall::Stat, start);
        result.map_err(|error| self.io.failed("stat of", work, &error))?;
        self.io.done.transactions = 1;
        Ok(())
    }

    fn open_close(&mut self, target: &'a Target<'a>) -> Result<(), Broke> {
        let (number, file) = self.draw(target, false)?;
        let work = self.work_on(target, number, &file);
        let open = self.io.open(work, How::Read, target.direct)?;
        self.io.close(open);
        self.io.done.transactions = 1;
        Ok(())
    }

    /// A directory beside the files, which new files may go to.
    fn createdir(&mut self, target: &'a Target<'a>) -> Result<(), Broke> {
        let set = target.set(self.kind);
        let number = set.new_dir();
        set.dir_name(number, &mut self.io.name);
        let made = target.files.mkdir(&mut self.io.access, &self.io.name, None);
        made.map_err(|error| self.dir_failed("making", target, &error))?;
        set.dir_made(number);
        self.io.done.transactions = 1;
        Ok(())
    }

    /// Two directories made, one removed, one renamed.
    fn metaop(&mut self, target: &'a Target<'a>) -> Result<(), Broke> {
        let set = &target.meta;
        for _ in 0..2 {
            let (number, mut dir) = set.add(&mut self.places);
            set.name(number, &dir, &mut self.io.name);
            let made = target.files.mkdir(&mut self.io.access, &self.io.name, Some(&mut dir));
            made.map_err(|error| self.dir_failed("making", target, &error))?;
        }
        let (number, mut dir) = self.draw_dir(target, set)?;
        set.remove(&mut dir);
        set.name(number, &dir, &mut self.io.name);
        let removed = target.files.rmdir(&mut self.io.access, &self.io.name, &dir);
        removed.map_err(|error| self.dir_failed("removing", target, &error))?;
        drop(dir);
        set.removed(number);

        let (number, mut dir) = self.draw_dir(target, set)?;
        let mut from = String::new();
        set.name(number, &dir, &mut from);
        dir.rename();
        set.name(number, &dir, &mut self.io.name);
        let renamed = target.files.rename(&mut self.io.access, &from, &self.io.name, &dir);
        renamed.map_err(|error| self.dir_failed("renaming to", target, &error))?;
        self.io.done.transactions = 1;
        Ok(())
    }

    fn draw_dir(
        &mut self,
        target: &'a Target<'a>,
        set: &'a FileSet,
    ) -> Result<(u32, RwLockWriteGuard<'a, File>), Broke> {
        let shared = self.io.shared;
        let drawn = set.draw_alone(&mut self.places, || shared.halted());
        drawn.map_err(|why| self.io.no_file(target, why))
    }

    fn dir_failed(&self, what: &str, target: &Target<'_>, error: &std::io::Error) -> Broke {
        let doing = format!("{}: {what}", self.io.doing);
        Broke::Failed(RunError::io(&doing, &target.files.path(&self.io.name), error))
    }
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Way::Read => "read",
            Way::Write => "written",
        })
    }
}
