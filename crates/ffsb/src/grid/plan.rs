//! What is to be measured, settled before anything is started: so that what cannot be is said at once.

use super::matrix::{Choices, names};
use super::{Device, GridError, Workload};
use crate::profile::scenario::Scenario;
use crate::report;
use crate::server::{ServerKind, ServerSpec};
use block::{CacheMode, Format};
use io_engine::EngineKind;
use rustix::fs::{Mode, OFlags};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The talk's numbers of threads.
const THREADS: [u32; 3] = [1, 8, 16];
/// Room on a disk for what is not data, and for files that end up in pieces.
const SLACK: u64 = 64 << 20;

/// How long each measurement takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Timing {
    /// The same for all.
    Each {
        /// Seconds measured; `None`: what a profile says itself.
        seconds: Option<f64>,
        /// Seconds of a scenario where `seconds` says nothing.
        otherwise: f64,
    },
    /// As long as fits into a time for the whole grid, set-up included. What then is not measured yet counts as failed.
    Budget {
        /// The time for everything.
        total: Duration,
        /// Seconds of a measurement at most.
        most: f64,
    },
}

const SPARSE_REMARK: &str = "images and the file of bare metal take space as they are written: where files are created, the host's \
     file system allocates, under a lock that many threads of bare metal contend for and the one thread of a server does not";

/// What a user may say of a grid.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the images are made, in a directory that is removed in the end.
    pub dir: PathBuf,
    /// Binary of ferroblk; `None`: the one that is running.
    pub program: Option<PathBuf>,
    /// What to go through.
    pub choices: Choices,
    /// What to run.
    pub workloads: Vec<Workload>,
    /// How long.
    pub timing: Timing,
    /// Seconds of work before each measurement.
    pub warm_up_seconds: f64,
    /// How often.
    pub repetitions: u32,
    /// Seed of every run; `None`: the profile's own.
    pub seed: Option<u64>,
    /// Content is verified.
    pub verify: bool,
    /// Bytes of each disk; `None`: what the workloads need.
    pub disk_bytes: Option<u64>,
    /// Request queues of each disk.
    pub queues: u16,
    /// I/O threads of ferroblk.
    pub iothreads: u16,
    /// Name of the subject others are compared with, or its beginning; `None`: bare metal, or the first.
    pub baseline: Option<String>,
    /// Stages of requests are measured in ferroblk, and what that costs.
    pub trace: bool,
}

/// One thing that is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    /// As the report has it.
    pub shown: report::Subject,
    /// How it reaches the workload.
    pub device: Device,
    /// Who serves it, and what; `None` where there is no server.
    pub served: Option<(ServerKind, Format, EngineKind)>,
    /// Its cache mode.
    pub cache: CacheMode,
}

/// A grid that can be executed with [`Plan::execute`].
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) options: Options,
    pub(super) subjects: Vec<Subject>,
    pub(super) baseline: usize,
    pub(super) remarks: Vec<String>,
    /// Of the remarks, how many say what was left out or replaced; they come first.
    left_out: usize,
    pub(super) disk_bytes: u64,
    /// For each workload, numbers of threads and what a session is given.
    pub(super) threads: Vec<Vec<(u32, Option<u32>)>>,
}

impl Plan {
    /// Settles what is measured.
    ///
    /// # Errors
    ///
    /// What was asked for by name and cannot be: a server that is not installed, a directory that is missing or too small, a
    /// baseline that is no subject.
    pub fn new(options: Options) -> Result<Plan, GridError> {
        if options.workloads.is_empty() {
            return Err(refused("no workload: name a scenario or a profile"));
        }
        distinct(options.workloads.iter().map(Workload::name))?;
        let threads = options
            .workloads
            .iter()
            .map(|workload| workload.threads(options.choices.threads.as_deref(), &THREADS));
        let threads = threads.collect::<Result<Vec<_>, _>>()?;
        let mut remarks = Vec::new();
        let subjects = subjects(&options, &mut remarks)?;
        let left_out = remarks.len();
        let baseline = baseline(&options, &subjects)?;
        let disk_bytes = disk_bytes(&options, &threads)?;
        if subjects.iter().any(|subject| subject.device != Device::Directory) {
            remarks.push(crate::run::EXTENT_LAYOUT_REMARK.to_owned());
            remarks.push(SPARSE_REMARK.to_owned());
        }
        Ok(Plan { options, subjects, baseline, remarks, left_out, disk_bytes, threads })
    }

    /// What is not as it was asked for, or as it would be elsewhere: left out, or replaced. One sentence each.
    pub fn left_out(&self) -> &[String] {
        &self.remarks[..self.left_out]
    }

    /// What is measured.
    pub fn subjects(&self) -> &[Subject] {
        &self.subjects
    }

    /// Measurements that there will be.
    pub fn measurements(&self) -> usize {
        let traced = self.subjects.iter().filter(|subject| self.is_traced(subject)).count();
        let cells: usize = self.threads.iter().map(Vec::len).sum();
        cells * (self.subjects.len() + traced) * self.options.repetitions as usize
    }

    pub(super) fn is_traced(&self, subject: &Subject) -> bool {
        self.options.trace && matches!(subject.served, Some((ServerKind::Ferroblk, ..)))
    }
}

pub(super) fn refused(why: impl Into<String>) -> GridError {
    GridError::Refused(why.into())
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), GridError> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(refused(format!("workload {name}: it is named twice")));
        }
    }
    Ok(())
}

fn subjects(options: &Options, remarks: &mut Vec<String>) -> Result<Vec<Subject>, GridError> {
    let choices = &options.choices;
    let caches = caches(options, remarks)?;
    let devices = choices.devices.clone().unwrap_or(vec![Device::Bare, Device::VhostUser]);
    let has_servers = devices.iter().any(|device| device.has_server());
    let (servers, aios) = match has_servers {
        true => (servers(choices, remarks)?, aios(choices, remarks)?),
        false => (Vec::new(), Vec::new()),
    };
    let formats = choices.formats.clone().unwrap_or(Format::ALL.to_vec());
    let mut subjects = Vec::new();
    for device in devices {
        for cache in &caches {
            if !device.has_server() {
                subjects.extend(without_server(device, *cache, remarks));
            }
        }
        for server in servers.iter().filter(|_| device.has_server()) {
            for (format, cache) in formats.iter().flat_map(|f| caches.iter().map(move |c| (*f, *c)))
            {
                for aio in &aios {
                    subjects.extend(with_server(*server, format, cache, *aio, remarks));
                }
            }
        }
    }
    match subjects.is_empty() {
        true => {
            Err(refused("the matrix leaves nothing to measure: no combination in it is possible"))
        }
        false => Ok(subjects),
    }
}

fn without_server(device: Device, cache: CacheMode, remarks: &mut Vec<String>) -> Option<Subject> {
    if device == Device::Directory && !matches!(cache, CacheMode::None | CacheMode::Writeback) {
        remarks.push(format!(
            "left out: directory with cache={cache}: FFSB's files know none and writeback only"
        ));
        return None;
    }
    let shown = report::Subject {
        name: match device {
            Device::Bare => format!("bare metal ({cache})"),
            _ => format!("{device} ({cache})"),
        },
        server: "bare".to_owned(),
        device: device.to_string(),
        format: "-".to_owned(),
        cache: cache.to_string(),
        aio: "sync".to_owned(),
    };
    Some(Subject { shown, device, served: None, cache })
}

fn with_server(
    server: ServerKind,
    format: Format,
    cache: CacheMode,
    aio: EngineKind,
    remarks: &mut Vec<String>,
) -> Option<Subject> {
    let spec = ServerSpec { cache, aio, ..ServerSpec::new(server, "", format) };
    if let Err(error) = spec.check() {
        let remark = format!("left out: {error}");
        if !remarks.contains(&remark) {
            remarks.push(remark);
        }
        return None;
    }
    let shown = report::Subject {
        name: format!("{server} {format} {cache} {aio}"),
        server: server.to_string(),
        device: Device::VhostUser.to_string(),
        format: format.to_string(),
        cache: cache.to_string(),
        aio: aio.to_string(),
    };
    Some(Subject { shown, device: Device::VhostUser, served: Some((server, format, aio)), cache })
}

/// The cache modes; without O_DIRECT in the directory, writeback stands in where nothing was asked for.
fn caches(options: &Options, remarks: &mut Vec<String>) -> Result<Vec<CacheMode>, GridError> {
    let dir = options.dir.display();
    let direct = has_direct_io(&options.dir).map_err(|error| refused(format!("{dir}: {error}")))?;
    match &options.choices.caches {
        Some(caches) => match caches.iter().find(|cache| cache.is_direct()) {
            Some(cache) if !direct => Err(refused(format!(
                "{dir}: its file system has no O_DIRECT, which cache={cache} needs"
            ))),
            _ => Ok(caches.clone()),
        },
        None if direct => Ok(vec![CacheMode::None]),
        None => {
            remarks.push(format!("the file system of {dir} has no O_DIRECT, so cache=writeback is measured instead of none"));
            Ok(vec![CacheMode::Writeback])
        }
    }
}

/// Whether files there can be opened past the page cache. Tried on a file without a name.
fn has_direct_io(dir: &Path) -> rustix::io::Result<bool> {
    let metadata = rustix::fs::stat(dir)?;
    if !rustix::fs::FileType::from_raw_mode(metadata.st_mode).is_dir() {
        return Err(rustix::io::Errno::NOTDIR);
    }
    let open = |flags| {
        let made = tempfile::Builder::new().prefix(".ferroblk-bench-").tempfile_in(dir)?;
        let opened =
            rustix::fs::open(made.path(), OFlags::RDWR | OFlags::CLOEXEC | flags, Mode::empty());
        std::io::Result::Ok(opened.is_ok())
    };
    open(OFlags::DIRECT).map_err(|error| {
        error.raw_os_error().map_or(rustix::io::Errno::IO, rustix::io::Errno::from_raw_os_error)
    })
}

fn servers(choices: &Choices, remarks: &mut Vec<String>) -> Result<Vec<ServerKind>, GridError> {
    let mut servers = choices.servers.clone().unwrap_or(ServerKind::ALL.to_vec());
    if servers.contains(&ServerKind::QemuStorageDaemon)
        && let Err(error) = ServerKind::QemuStorageDaemon.check_installed()
    {
        if choices.servers.is_some() {
            return Err(refused(error.to_string()));
        }
        servers.retain(|server| *server != ServerKind::QemuStorageDaemon);
        remarks.push(format!("left out: {error}"));
    }
    Ok(servers)
}

fn aios(choices: &Choices, remarks: &mut Vec<String>) -> Result<Vec<EngineKind>, GridError> {
    let uring = io_engine::uring_support(8);
    match (&choices.aios, uring) {
        (Some(aios), Err(error)) if aios.contains(&EngineKind::IoUring) => {
            Err(refused(format!("aio=io_uring: the kernel refuses it: {error}")))
        }
        (Some(aios), _) => Ok(aios.clone()),
        (None, Ok(_)) => Ok(vec![EngineKind::IoUring]),
        (None, Err(error)) => {
            remarks.push(format!(
                "the kernel refuses io_uring ({error}), so aio=threads is measured instead"
            ));
            Ok(vec![EngineKind::Threads])
        }
    }
}

fn baseline(options: &Options, subjects: &[Subject]) -> Result<usize, GridError> {
    let bare = || subjects.iter().position(|subject| subject.device == Device::Bare).unwrap_or(0);
    let Some(wanted) = &options.baseline else { return Ok(bare()) };
    let name = |subject: &Subject| subject.shown.name.clone();
    let exact = subjects.iter().position(|subject| subject.shown.name == *wanted);
    let begins = |subject: &Subject| subject.shown.name.starts_with(&format!("{wanted} "));
    if let Some(found) = exact.or_else(|| subjects.iter().position(begins)) {
        return Ok(found);
    }
    if wanted.starts_with("qemu-storage-daemon") {
        let installed = ServerKind::QemuStorageDaemon.check_installed();
        installed.map_err(|error| refused(format!("baseline {wanted}: {error}")))?;
    }
    let all: Vec<String> = subjects.iter().map(name).collect();
    Err(refused(format!("baseline {wanted}: no such subject; there are: {}", names(&all))))
}

/// Bytes of each disk, which the directory must have room for.
fn disk_bytes(options: &Options, threads: &[Vec<(u32, Option<u32>)>]) -> Result<u64, GridError> {
    let mut most = (0, "");
    for (workload, threads) in options.workloads.iter().zip(threads) {
        let threads = threads.iter().map(|(threads, _)| *threads).max().unwrap_or(1);
        most = most.max((workload.room(threads), workload.name()));
    }
    let (needed, name) = most;
    let mib = |bytes: u64| format!("{} MiB", bytes.div_ceil(1 << 20));
    let wanted = needed.saturating_add(needed / 8).saturating_add(SLACK) & !((1 << 20) - 1);
    let bytes = options.disk_bytes.unwrap_or(wanted);
    if options.disk_bytes.is_some_and(|bytes| bytes < needed) {
        let (bytes, needed) = (mib(bytes), mib(needed));
        return Err(refused(format!("a disk of {bytes} is too small: {name} needs {needed}")));
    }
    let dir = options.dir.display();
    let stat = rustix::fs::statvfs(&options.dir).map_err(|e| refused(format!("{dir}: {e}")))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < needed.saturating_add(SLACK) {
        let hint = match Scenario::by_name(name) {
            Some(_) => " (a larger --scale makes the data set smaller)",
            None => "",
        };
        let (free, needed) = (mib(free), mib(needed.saturating_add(SLACK)));
        return Err(refused(format!("{dir}: {free} are free, {name} needs {needed}{hint}")));
    }
    Ok(bytes)
}
