//! A profile is run: files made, threads let go, counts gathered.
//!
//! ```text
//!  check the profile ─ open the places ─ file sets, ageing     one thread per file system
//!     |
//!  sync ─ callout ─ barrier ─ warm-up ─ measure ─ sync         all threads of all groups
//!     |
//!  read everything back (`verify`) ─ clean up ─ Outcome
//! ```
//!
//! Semantics are those of FFSB 5 and 6; `docs/ffsb.md` lists each operation, and where we differ.

mod check;
mod draw;
mod error;
mod io;
mod measure;
mod ops;
mod readback;
mod setup;
mod shared;
mod tally;
mod target;

pub use error::{RunError, RunErrorKind};

use crate::clock;
use crate::disk::Lane;
use crate::files::Files;
use crate::files::directory::Directory;
use crate::files::extents::Extents;
use crate::outcome::Outcome;
use crate::profile::Profile;
use io::Broke;
use serde::{Deserialize, Serialize};
use setup::{SetUp, SetUpCount};
use shared::{Course, Shared};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use target::Target;

/// What a report says of figures from [`Place::Disk`].
pub const EXTENT_LAYOUT_REMARK: &str = "without a guest the workloads run as block traces over a simple extent layout, not over a \
     file system: what a file system would merge, cache or journal is not in the figures";

/// Where the files of a profile are.
pub enum Place<'a> {
    /// In the `location` directories of the profile.
    Directories,
    /// On one disk without a file system, which all file systems of the profile share. What the disk holds is overwritten.
    Disk {
        /// For messages.
        name: &'a str,
        /// At least [`lanes_needed`]; each thread gets one for itself.
        lanes: &'a mut [Box<dyn Lane>],
    },
}

impl fmt::Debug for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Directories => f.write_str("Directories"),
            Place::Disk { name, lanes } => write!(f, "Disk({name}, {} lanes)", lanes.len()),
        }
    }
}

/// What becomes of the files when the run is over. After a failure they are removed in any case, but for one: content that was
/// not what was written is kept to be looked at. File sets that `reuse` took over are left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cleanup {
    /// They stay, as with FFSB.
    #[default]
    Keep,
    /// They are removed.
    Remove,
}

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Files are made.
    SetUp,
    /// A file system at least is still being aged.
    Ageing,
    /// What was set up is brought to stable storage.
    Sync,
    /// The profile's command runs.
    Callout,
    /// Threads work, but nothing is counted yet.
    WarmUp,
    /// The measurement.
    Measure,
    /// The measurement is over, its closing sync included.
    Measured,
    /// All files are read back and checked.
    Verify,
    /// Files are removed.
    CleanUp,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// The phase.
    pub phase: Phase,
    /// How much of the phase is done, 0.0 to 1.0, where it can be known.
    pub fraction: Option<f64>,
    /// Transactions so far, roughly, while the threads work.
    pub transactions: u64,
}

/// How a run is steered and watched.
#[derive(Clone, Copy)]
pub struct Control<'a> {
    /// Set by a signal, say: the run ends at the next block with [`RunErrorKind::Interrupted`].
    pub stop: &'a AtomicBool,
    /// Called in the thread that called [`run`]: once at each change of phase, and about twenty times a second between. A caller
    /// that meters something else for the same time begins at [`Phase::Measure`] and ends at [`Phase::Measured`].
    pub progress: Option<&'a dyn Fn(Progress)>,
    /// Seconds of work before anything is counted. (Ours; FFSB has none.)
    pub warm_up_seconds: f64,
    /// Whether files stay.
    pub cleanup: Cleanup,
    /// Whether the latency of each block is measured.
    pub latencies: bool,
    /// Seconds that are measured instead of the profile's `time`, which has whole ones only.
    pub seconds: Option<f64>,
    /// When the time is up, an operation under way stops at its next block, and what it did counts. Otherwise it is finished, as
    /// FFSB does it, however long that takes.
    pub cut: bool,
}

impl fmt::Debug for Control<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("stop", &self.stop)
            .field("progress", &self.progress.is_some())
            .field("warm_up_seconds", &self.warm_up_seconds)
            .field("cleanup", &self.cleanup)
            .field("latencies", &self.latencies)
            .field("seconds", &self.seconds)
            .field("cut", &self.cut)
            .finish()
    }
}

impl Default for Control<'_> {
    /// As FFSB runs, and with latencies.
    fn default() -> Self {
        static NEVER: AtomicBool = AtomicBool::new(false);
        Control {
            stop: &NEVER,
            progress: None,
            warm_up_seconds: 0.0,
            cleanup: Cleanup::Keep,
            latencies: true,
            seconds: None,
            cut: false,
        }
    }
}

impl Control<'_> {
    fn tell(&self, phase: Phase, fraction: Option<f64>, transactions: u64) {
        if let Some(progress) = self.progress {
            progress(Progress { phase, fraction, transactions });
        }
    }
}

/// A run's fixed facts, for all its threads.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub profile: &'a Profile,
    pub seed: u64,
    /// Bytes of the longest block of any group or file system.
    pub longest_block: u32,
    /// Some group wants latencies of system calls: files have a position, and `lseek` is called as FFSB calls it.
    pub seeks: bool,
    /// Latencies of blocks are wanted.
    pub latencies: bool,
}

/// Threads that a run of the profile has at one time, each of which needs a lane on [`Place::Disk`].
pub fn lanes_needed(profile: &Profile) -> usize {
    let measuring: usize =
        profile.thread_groups.iter().map(|group| group.num_threads as usize).sum();
    measuring.max(profile.filesystems.iter().map(setup_lanes).sum())
}

fn setup_lanes(spec: &crate::profile::FileSystem) -> usize {
    spec.ageing.as_ref().map_or(1, |group| group.num_threads.max(1) as usize)
}

/// Runs a profile: a [`Session`] with one measurement.
///
/// # Errors
///
/// The first thing that went wrong, in one line that names operation, file and reason. What was created is removed then, but for
/// content that failed verification.
pub fn run(
    profile: &Profile,
    place: Place<'_>,
    control: &Control<'_>,
) -> Result<Outcome, RunError> {
    let mut session = Session::open(profile, place, control)?;
    let result = session.set_up(control).and_then(|()| match profile.time {
        Some(0) => Ok(session.nothing()),
        _ => session.measure(None, control),
    });
    session.close(result, control)
}

/// A profile in its place: files are made once, and may be measured several times.
pub struct Session<'a> {
    profile: &'a Profile,
    longest_block: u32,
    latencies: bool,
    targets: Vec<Target<'a>>,
    lanes: Lanes<'a>,
    setup_seconds: f64,
    /// How full each place was before the set-up.
    utilisation: Vec<f64>,
}

impl fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lanes = self.lanes.len();
        f.debug_struct("Session").field("profile", &self.profile).field("lanes", &lanes).finish()
    }
}

impl<'a> Session<'a> {
    /// Checks the profile and opens its place; nothing is made yet.
    ///
    /// # Errors
    ///
    /// The profile cannot run, or the place cannot be used.
    pub fn open(
        profile: &'a Profile,
        place: Place<'a>,
        control: &Control<'_>,
    ) -> Result<Session<'a>, RunError> {
        check::check(profile)?;
        let mut session = Session {
            profile,
            longest_block: check::longest_block(profile),
            latencies: control.latencies,
            targets: Vec::new(),
            lanes: &mut [],
            setup_seconds: 0.0,
            utilisation: Vec::new(),
        };
        (session.targets, session.lanes) = open(&session.job(profile), place)?;
        Ok(session)
    }

    /// Makes the files, or takes them over.
    ///
    /// # Errors
    ///
    /// What failed, in one line. [`Session::close`] removes what was made.
    pub fn set_up(&mut self, control: &Control<'_>) -> Result<(), RunError> {
        let begun = clock::now();
        let full = self.targets.iter().map(|target| target.files.utilisation());
        self.utilisation = full.collect::<Result<_, _>>().unwrap_or_default();
        let job = self.job(self.profile);
        set_up(&job, control, &self.targets, self.lanes)?;
        self.setup_seconds = begun.elapsed().as_secs_f64();
        Ok(())
    }

    /// Syncs, runs the profile's command and measures; with `verify`, reads everything back. `threads`: so many in each group,
    /// instead of the profile's number.
    ///
    /// # Errors
    ///
    /// What failed, in one line; or there are fewer lanes than threads.
    pub fn measure(
        &mut self,
        threads: Option<u32>,
        control: &Control<'_>,
    ) -> Result<Outcome, RunError> {
        let mut profile = self.profile.clone();
        for group in &mut profile.thread_groups {
            group.num_threads = threads.unwrap_or(group.num_threads);
        }
        if matches!(self.targets[0].files, Files::Extents(_)) {
            enough_lanes(&profile, &self.targets[0].files.place(), self.lanes)?;
        }
        let job = self.job(&profile);
        control.tell(Phase::Sync, None, 0);
        let begun = clock::now();
        sync(&self.targets, self.lanes)?;
        let sync_before_seconds = begun.elapsed().as_secs_f64();
        callout(&job, control)?;
        if control.stop.load(Ordering::Relaxed) {
            return Err(RunError::interrupted());
        }
        let mut outcome =
            measure::measure(&job, control, &self.targets, self.lanes, self.setup_seconds)?;
        outcome.phases.sync_before_seconds = sync_before_seconds;
        outcome.phases.utilisation.clone_from(&self.utilisation);
        if profile.verify {
            control.tell(Phase::Verify, None, 0);
            readback::read_back(&job, control, &self.targets, self.lanes)?;
        }
        Ok(outcome)
    }

    /// The outcome of a profile that only makes files.
    fn nothing(&self) -> Outcome {
        let mut outcome = measure::nothing(&self.job(self.profile), self.setup_seconds);
        outcome.phases.utilisation.clone_from(&self.utilisation);
        outcome
    }

    /// Ends the session. After a failure, or with [`Cleanup::Remove`], what was made is removed, but for content that failed
    /// verification.
    ///
    /// # Errors
    ///
    /// `result`'s, or what failed while files were removed.
    pub fn close<T>(
        self,
        result: Result<T, RunError>,
        control: &Control<'_>,
    ) -> Result<T, RunError> {
        let keep = match &result {
            Ok(_) => control.cleanup == Cleanup::Keep,
            Err(error) => error.kind() == RunErrorKind::Verify,
        };
        if keep {
            return result;
        }
        control.tell(Phase::CleanUp, None, 0);
        let cleaned = clean_up(&self.targets);
        let outcome = result?;
        cleaned.map(|()| outcome)
    }

    fn job<'b>(&self, profile: &'b Profile) -> Job<'b> {
        Job {
            profile,
            seed: profile.seed.unwrap_or(0),
            longest_block: self.longest_block,
            seeks: profile.thread_groups.iter().any(|group| group.stats.enabled),
            latencies: self.latencies,
        }
    }
}

/// One for each thread; none in directories.
type Lanes<'a> = &'a mut [Box<dyn Lane>];

/// The file systems of the profile, in their place.
fn open<'a>(job: &Job<'a>, place: Place<'a>) -> Result<(Vec<Target<'a>>, Lanes<'a>), RunError> {
    let profile = job.profile;
    let refuse = |message: String| RunError::new(RunErrorKind::Place, message);
    let mut targets = Vec::new();
    let mut add = |files| {
        let index = targets.len();
        let set_id = clock::unique().wrapping_add(index as u64);
        targets.push(Target::new(index, &profile.filesystems[index], files, profile, set_id));
    };
    match place {
        Place::Directories => {
            for spec in &profile.filesystems {
                let path = Path::new(&spec.location);
                let directory = Directory::new(path, job.seeks)
                    .map_err(|error| refuse(format!("location {}: {error}", spec.location)))?;
                add(Files::Directory(directory));
            }
            Ok((targets, &mut []))
        }
        Place::Disk { name, lanes } => {
            enough_lanes(profile, name, lanes)?;
            let extents = Arc::new(Extents::new(name, lanes[0].size()));
            for _ in &profile.filesystems {
                add(Files::Extents(extents.clone()));
            }
            Ok((targets, lanes))
        }
    }
}

fn enough_lanes(profile: &Profile, name: &str, lanes: &[Box<dyn Lane>]) -> Result<(), RunError> {
    let (needed, there) = (lanes_needed(profile), lanes.len());
    if there < needed {
        let message = format!("{name}: {needed} lanes are needed, {there} are there");
        return Err(RunError::new(RunErrorKind::Place, message));
    }
    Ok(())
}

fn set_up(
    job: &Job<'_>,
    control: &Control<'_>,
    targets: &[Target<'_>],
    lanes: &mut [Box<dyn Lane>],
) -> Result<(), RunError> {
    let count = SetUpCount::default();
    setup::expect(targets, &count);
    let shared = Shared::new(control.stop, Course::Measure);
    let tell = || {
        let (done, total) =
            (count.done.load(Ordering::Relaxed), count.total.load(Ordering::Relaxed));
        let fraction = (total > 0).then(|| (done as f64 / total as f64).min(1.0));
        let ageing = count.ageing.load(Ordering::Relaxed) > 0;
        control.tell(if ageing { Phase::Ageing } else { Phase::SetUp }, fraction, 0);
    };
    tell();
    std::thread::scope(|scope| {
        let mut rest = lanes;
        for target in targets {
            let (own, others) = rest.split_at_mut(setup_lanes(target.spec).min(rest.len()));
            rest = others;
            let set_up = SetUp { job, target, shared: &shared, count: &count };
            spawn(scope, &shared, "ffsb-setup", || set_up_thread(set_up, own));
        }
        shared.start();
        shared.wait(None, tell);
    });
    shared.result()
}

fn set_up_thread(set_up: SetUp<'_>, lanes: &mut [Box<dyn Lane>]) {
    if let Err(Broke::Failed(error)) = set_up.run(lanes) {
        set_up.shared.fail(error);
    }
}

fn sync(targets: &[Target<'_>], lanes: &mut [Box<dyn Lane>]) -> Result<(), RunError> {
    for target in targets {
        let mut access = crate::files::Access::new(lanes.first_mut());
        let result = target.files.sync(&mut access);
        result.map_err(|error| RunError::io("sync of", &target.files.place(), &error))?;
    }
    Ok(())
}

/// `callout`
fn callout(job: &Job<'_>, control: &Control<'_>) -> Result<(), RunError> {
    let Some(command) = &job.profile.callout else { return Ok(()) };
    control.tell(Phase::Callout, None, 0);
    let refuse = |why| RunError::new(RunErrorKind::Profile, format!("callout `{command}`: {why}"));
    let mut shell = std::process::Command::new("/bin/sh");
    match shell.arg("-c").arg(command).stdin(std::process::Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(refuse(status.to_string())),
        Err(error) => Err(refuse(error.to_string())),
    }
}

fn clean_up(targets: &[Target<'_>]) -> Result<(), RunError> {
    for target in targets.iter().filter(|target| target.touched.load(Ordering::Relaxed)) {
        if let Files::Directory(directory) = &target.files {
            let removed = directory.remove_sets();
            removed.map_err(|error| RunError::io("cleaning up", &target.spec.location, &error))?;
        }
    }
    Ok(())
}

/// Starts a thread of a stage. If that is impossible, the stage fails.
fn spawn<'scope, 'env, T: Send + 'scope>(
    scope: &'scope std::thread::Scope<'scope, 'env>,
    shared: &'scope Shared<'scope>,
    name: &str,
    body: impl FnOnce() -> T + Send + 'scope,
) -> Option<std::thread::ScopedJoinHandle<'scope, T>> {
    let at_work = shared.enter();
    let body = move || {
        let _at_work = at_work;
        body()
    };
    let builder = std::thread::Builder::new().name(name.to_owned());
    match builder.spawn_scoped(scope, body) {
        Ok(handle) => Some(handle),
        Err(error) => {
            let message = format!("starting a thread: {error}");
            shared.fail(RunError::new(RunErrorKind::Place, message));
            None
        }
    }
}
