//! Before the benchmark: file sets are made, or taken over from an earlier run, and file systems aged.

use super::draw::{self, OpTable, Purpose};
use super::error::{RunError, RunErrorKind};
use super::io::{Broke, Io, MakePlan, Way, Work};
use super::ops::Worker;
use super::shared::{Course, Shared, Waited};
use super::tally::Tally;
use super::target::Target;
use super::{Job, spawn};
use crate::disk::Lane;
use crate::files::directory::{Directory, Found};
use crate::files::set::{FileSet, SetKind};
use crate::files::{Access, Files, How};
use crate::profile::{Stats, ThreadGroup};
use crate::verify::CELL_BYTES;
use io_engine::Rng;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Files that are there when ageing begins, as in FFSB.
const AGEING_START: u32 = 10;

/// How far the set-up is, told by its threads.
#[derive(Debug, Default)]
pub(crate) struct SetUpCount {
    /// Files or bytes, of `total`.
    pub done: AtomicU64,
    /// 0: nobody knows.
    pub total: AtomicU64,
    /// File systems that are being aged.
    pub ageing: AtomicU32,
}

/// What of a file set counts up to its size.
#[derive(Clone, Copy, Debug)]
enum Until {
    Files(u32),
    Bytes(u64),
    Utilisation(f64),
}

impl Until {
    fn of(target: &Target<'_>) -> Until {
        let spec = target.spec;
        match (spec.num_files, spec.init_size, spec.init_util) {
            (0, Some(bytes), _) => Until::Bytes(bytes),
            (0, None, Some(util)) => Until::Utilisation(util),
            (files, _, _) => Until::Files(files),
        }
    }
}

/// How much work the set-up is, as far as is known.
pub(crate) fn expect(targets: &[Target<'_>], count: &SetUpCount) {
    let mut total = 0;
    for target in targets {
        match Until::of(target) {
            Until::Files(files) => total += u64::from(files),
            Until::Bytes(bytes) => total += bytes,
            Until::Utilisation(_) => return,
        }
    }
    count.total.store(total, Ordering::Relaxed);
}

/// One file system's set-up.
#[derive(Debug)]
pub(crate) struct SetUp<'a> {
    pub job: &'a Job<'a>,
    pub target: &'a Target<'a>,
    pub shared: &'a Shared<'a>,
    pub count: &'a SetUpCount,
}

impl SetUp<'_> {
    /// Makes the file set, or takes it over.
    pub fn run(&self, lanes: &mut [Box<dyn Lane>]) -> Result<(), Broke> {
        if let (true, None, Files::Directory(directory)) =
            (self.target.spec.reuse, &self.target.spec.ageing, &self.target.files)
            && self.take_over(directory)?
        {
            return Ok(());
        }
        self.make_dirs(&mut self.io(lanes.first_mut()))?;
        if let Some(group) = &self.target.spec.ageing {
            self.count.ageing.fetch_add(1, Ordering::Relaxed);
            let aged = self.age(group, lanes);
            self.count.ageing.fetch_sub(1, Ordering::Relaxed);
            aged?;
        }
        let mut io = self.io(lanes.first_mut());
        let mut rng = self.generator(0);
        let block = self.target.spec.create_blocksize;
        self.add_files(&mut io, &self.target.data, Until::of(self.target), block, &mut rng)
    }

    fn io<'b>(&'b self, lane: Option<&'b mut Box<dyn Lane>>) -> Io<'b> {
        let tally = Tally::new(false, &Stats::default());
        let content = draw::generator(self.job.seed, Purpose::Content, self.target.index, 0);
        let mut io =
            Io::new(self.shared, Access::new(lane), tally, self.job.longest_block, content);
        io.doing = "set-up";
        io.verify = self.job.profile.verify;
        io.seeks = self.job.seeks;
        io
    }

    fn generator(&self, thread: usize) -> Rng {
        draw::generator(self.job.seed, Purpose::SetUp, self.target.index, thread)
    }

    /// An error of the location itself.
    fn place_failed(&self, error: &io::Error) -> Broke {
        let path = self.target.files.place();
        let kind = match error.kind() {
            io::ErrorKind::StorageFull => RunErrorKind::NoSpace,
            _ => RunErrorKind::Place,
        };
        Broke::Failed(RunError::new(kind, format!("set-up: {path}: {error}")))
    }

    /// Removes an earlier file set and makes the directories of a new one.
    fn make_dirs(&self, io: &mut Io<'_>) -> Result<(), Broke> {
        let target = self.target;
        if let Files::Directory(directory) = &target.files {
            directory.remove_sets().map_err(|error| self.place_failed(&error))?;
        }
        target.touched.store(true, Ordering::Relaxed);
        let mut name = String::new();
        let mut make = |name: &str| {
            target.files.mkdir(&mut io.access, name, None).map_err(|error| {
                Broke::Failed(RunError::io("set-up: making", &target.files.path(name), &error))
            })
        };
        make("data")?;
        make("meta")?;
        for _ in 0..target.spec.num_dirs {
            let number = target.data.new_dir();
            target.data.dir_name(number, &mut name);
            make(&name)?;
            target.data.dir_made(number);
        }
        Ok(())
    }

    fn add_files(
        &self,
        io: &mut Io<'_>,
        set: &FileSet,
        until: Until,
        block: u32,
        rng: &mut Rng,
    ) -> Result<(), Broke> {
        let (mut files, mut bytes) = (0, 0);
        loop {
            let enough = match until {
                Until::Files(wanted) => files >= wanted,
                Until::Bytes(wanted) => bytes >= wanted,
                Until::Utilisation(wanted) => {
                    let full = self.target.files.utilisation();
                    full.map_err(|error| self.place_failed(&error))? >= wanted
                }
            };
            if enough {
                return Ok(());
            }
            io.goes_on()?;
            let fills = set.kind() == SetKind::Fill && self.target.spec.size_weights.is_empty();
            let size = if fills { 0 } else { self.target.sizes.draw(rng) };
            let (number, mut file) = set.add(rng);
            // Never O_DIRECT: how files come to be is not measured.
            let plan = MakePlan { size, block, direct: false, fsync: false };
            io.make(self.target, set, number, &mut file, plan)?;
            files += 1;
            bytes += size;
            if set.kind() == SetKind::Data {
                let more = if matches!(until, Until::Bytes(_)) { size } else { 1 };
                self.count.done.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    /// Runs the ageing group over the fill set until the file system is as full as is wanted.
    fn age(&self, group: &ThreadGroup, lanes: &mut [Box<dyn Lane>]) -> Result<(), Broke> {
        let mut rng = self.generator(1);
        let block = self.target.spec.age_blocksize;
        let start = Until::Files(AGEING_START);
        self.add_files(&mut self.io(lanes.first_mut()), &self.target.fill, start, block, &mut rng)?;

        let wanted = self.target.spec.desired_util.unwrap_or(0.0);
        let table = OpTable::new(group);
        // A group that is bound to a file system by number is bound to this one.
        let group = &ThreadGroup { bindfs: None, ..group.clone() };
        let shared = Shared::new(self.shared.stop(), Course::Measure);
        let mut utilisation = Ok(());
        std::thread::scope(|scope| {
            let mut lanes = lanes.iter_mut();
            for thread in 0..group.num_threads as usize {
                let worker = self.ageing_worker(&shared, group, &table, thread, lanes.next());
                spawn(scope, &shared, "ffsb-age", move || drop(worker.run(None)));
            }
            shared.start();
            utilisation = self.wait_until_full(&shared, wanted);
        });
        shared.result().map_err(Broke::Failed)?;
        utilisation
    }

    fn wait_until_full(&self, shared: &Shared<'_>, wanted: f64) -> Result<(), Broke> {
        let result = loop {
            match self.target.files.utilisation() {
                Ok(full) if full >= wanted => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(self.place_failed(&error)),
            }
            if self.shared.halted() {
                break Err(Broke::Halted);
            }
            let soon = crate::clock::now() + std::time::Duration::from_millis(10);
            if shared.wait(Some(soon), || {}) == Waited::Finished {
                break Ok(());
            }
        };
        shared.steer(Course::End);
        result
    }

    fn ageing_worker<'b>(
        &'b self,
        shared: &'b Shared<'b>,
        group: &'b ThreadGroup,
        table: &'b OpTable,
        thread: usize,
        lane: Option<&'b mut Box<dyn Lane>>,
    ) -> Worker<'b> {
        let seed = self.job.seed;
        let of = |purpose| draw::generator(seed, purpose, self.target.index, thread);
        let tally = Tally::new(false, &Stats::default());
        let block = self.job.longest_block;
        let mut io = Io::new(shared, Access::new(lane), tally, block, of(Purpose::Content));
        io.verify = self.job.profile.verify;
        io.seeks = self.job.seeks;
        Worker {
            io,
            targets: std::slice::from_ref(self.target),
            kind: SetKind::Fill,
            group,
            table,
            operations: of(Purpose::Ageing),
            places: of(Purpose::AgeingPlaces),
        }
    }

    /// `reuse`: takes the file set that is there, if it is one that the profile could have made. False: it is not.
    fn take_over(&self, directory: &Directory) -> Result<bool, Broke> {
        let found = match directory.found_set() {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(self.place_failed(&error)),
        };
        if !self.fits(&found) {
            return Ok(false);
        }
        if self.job.profile.verify {
            let id = directory.find_set_id(&found).map_err(|error| self.place_failed(&error))?;
            // Files that were made without verification cannot be verified.
            let Some(id) = id else { return Ok(false) };
            self.target.set_id.store(id, Ordering::Relaxed);
        }
        let set = &self.target.data;
        for file in &found.files {
            drop(set.adopt(file.number, file.dir, file.size));
        }
        for _ in &found.dirs {
            set.dir_made(set.new_dir());
        }
        self.count.done.fetch_add(found.files.len() as u64, Ordering::Relaxed);
        if self.job.profile.verify {
            self.take_over_content()?;
        }
        Ok(true)
    }

    fn fits(&self, found: &Found) -> bool {
        let spec = self.target.spec;
        let (min, max) = self.target.sizes.bounds();
        let unit = if self.job.profile.verify { CELL_BYTES } else { 1 };
        let sizes = found
            .files
            .iter()
            .all(|file| (min..=max).contains(&file.size) && file.size.is_multiple_of(unit));
        let mut dirs = found.dirs.clone();
        dirs.sort_unstable();
        let mut numbers: Vec<u32> = found.files.iter().map(|file| file.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        // Numbers far apart are no set of ours, and would only cost memory.
        let dense = numbers.last().is_none_or(|last| u64::from(*last) < 1 << 24);
        found.clean
            && sizes
            && dense
            && numbers.len() == found.files.len()
            && numbers.len() == spec.num_files as usize
            && dirs.iter().copied().eq(0..spec.num_dirs)
    }

    /// Reads every file through: its blocks say their generations, which are believed; all else must be right.
    fn take_over_content(&self) -> Result<(), Broke> {
        let set = &self.target.data;
        let mut io = self.io(None);
        // What is read cannot be checked before it is known.
        io.verify = false;
        let numbers = (0..set.slots()).filter(|number| set.shared(*number).is_some());
        for number in numbers {
            let mut file = set.alone(number);
            let size = file.len();
            file.cells.grow(size);
            let work = Work { target: self.target, set, number, file: &file };
            let open = io.open(work, How::Read, false)?;
            let mut offset = 0;
            while offset < size && io.goes_on()? {
                let len = (size - offset).min(u64::from(self.job.longest_block));
                let len = usize::try_from(len).expect("at most a block");
                io.block(Way::Read, work, &open, offset, len, false)?;
                let owner = self.target.owner(set, number);
                let adopted = file.cells.adopt(io.last_read(len), offset, owner);
                adopted.map_err(|fault| io.fault(work, fault))?;
                offset += len as u64;
            }
            io.close(open);
        }
        Ok(())
    }
}
