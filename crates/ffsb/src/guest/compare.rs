//! Devices side by side: the same workloads in guests that differ in their disk alone.
//!
//! Guests that are compared are all booted first, and measured one at a time: while one works, the others have halted their CPUs. So
//! repetitions can be interleaved without a boot for each, and what changes on the host in the meantime meets all of them.

use super::host::{Guest, GuestRun};
use super::{
    Accel, Disk, EMULATED_REMARK, Fs, GuestError, GuestErrorKind, GuestSpec, ImageSpec, Kernel,
    Scheduler,
};
use crate::clock;
use crate::grid::machine;
use crate::profile::Profile;
use crate::profile::scenario::{Scale, Scenario};
use crate::report::{Cell, Report, Run, Subject, VERSION};
use crate::run::{Cleanup, Control};
use crate::server::{Server, ServerError, ServerKind, ServerSpec, create_image};
use block::{CacheMode, Format};
use io_engine::EngineKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

const MIB: u64 = 1 << 20;
/// Guests that are booted at a time.
const TOGETHER: usize = 4;
/// Bytes of a disk beyond twice what a workload needs: the file system's own, and what XFS asks for at least.
const DISK_EXTRA: u64 = 512 * MIB;

/// How a guest's disk reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// virtio-blk by QEMU, in an I/O thread.
    Virtio,
    /// IDE by QEMU.
    Ide,
    /// vhost-user-blk by ferroblk.
    VhostUser,
}

/// A disk that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// How it reaches the guest.
    pub device: Device,
    /// The image's format.
    pub format: Format,
    /// Cache mode.
    pub cache: CacheMode,
    /// How QEMU or the server does I/O.
    pub aio: EngineKind,
}

/// A comparison of disks in guests.
#[derive(Clone, Debug)]
pub struct Compare {
    /// What the guests boot.
    pub kernel: Kernel,
    /// The ferroblk that is the guests' init, serves vhost-user and makes images; `None`: the one that is running.
    pub binary: Option<PathBuf>,
    /// A directory for the images; what is made there is removed.
    pub dir: PathBuf,
    /// A directory with a short path for sockets.
    pub sockets: PathBuf,
    /// How the guests' CPUs are run.
    pub accel: Accel,
    /// The guests' file system.
    pub fs: Fs,
    /// Whether it flushes the disk's write cache.
    pub barriers: bool,
    /// The guests' I/O scheduler.
    pub scheduler: Scheduler,
    /// What is compared; the first is the baseline.
    pub setups: Vec<Setup>,
    /// The workloads.
    pub scenarios: Vec<Scenario>,
    /// Numbers of threads.
    pub threads: Vec<u32>,
    /// Seconds of each run.
    pub seconds: u32,
    /// Runs of each cell.
    pub repetitions: u32,
    /// By what the data sets are divided.
    pub scale: Scale,
    /// Seed of the first repetition; the next one has the next.
    pub seed: u64,
}

/// How far a comparison is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Runs that are over.
    pub done: usize,
    /// Runs in all.
    pub total: usize,
    /// What comes now, in words.
    pub what: String,
}

impl Compare {
    /// virtio, IDE and vhost-user on raw images without host cache: four scenarios with 1 and 8 threads in under three minutes on a
    /// machine with two processors that has to emulate.
    pub fn quick(kernel: Kernel, dir: PathBuf, sockets: PathBuf) -> Compare {
        let setup = |device| Setup {
            device,
            format: Format::Raw,
            cache: CacheMode::None,
            aio: EngineKind::IoUring,
        };
        Compare {
            kernel,
            binary: None,
            dir,
            sockets,
            accel: Accel::Auto,
            fs: Fs::Ext4,
            barriers: true,
            scheduler: Scheduler::None,
            setups: [Device::Virtio, Device::Ide, Device::VhostUser].map(setup).to_vec(),
            scenarios: vec![
                Scenario::SequentialRead256k,
                Scenario::RandomRead8k,
                Scenario::RandomWrite8k,
                Scenario::MailServer8k,
            ],
            threads: vec![1, 8],
            seconds: 2,
            repetitions: 1,
            scale: Scale::new(400).unwrap_or(Scale::FULL),
            seed: 1,
        }
    }

    fn disk_bytes(&self) -> u64 {
        let threads = self.threads.iter().copied().max().unwrap_or(1);
        let rooms = self.scenarios.iter().map(|scenario| scenario.room(threads, self.scale));
        let bytes = rooms.sum::<u64>().saturating_mul(2).saturating_add(DISK_EXTRA);
        bytes.div_ceil(MIB).saturating_mul(MIB)
    }

    fn binary(&self) -> Result<PathBuf, GuestError> {
        let running = || {
            std::env::current_exe().map_err(|error| {
                GuestError::missing(format!("finding the running binary: {error}"))
            })
        };
        self.binary.clone().map_or_else(running, Ok)
    }

    fn settings(&self) -> Vec<(String, String)> {
        let barriers = if self.barriers { "on" } else { "off" };
        let mut settings = vec![
            ("seconds per run".to_owned(), self.seconds.to_string()),
            ("repetitions".to_owned(), self.repetitions.to_string()),
            ("seed".to_owned(), self.seed.to_string()),
            ("guest file system".to_owned(), format!("{}, barriers {barriers}", self.fs)),
            ("guest I/O scheduler".to_owned(), self.scheduler.to_string()),
            ("guest page cache".to_owned(), "bypassed (O_DIRECT)".to_owned()),
        ];
        let notes = self.scenarios.iter().map(|s| (s.name().to_owned(), s.scale_note(self.scale)));
        settings.extend(notes);
        settings
    }
}

impl Setup {
    fn subject(self) -> Subject {
        let (server, device) = match self.device {
            Device::Virtio => ("qemu", "guest virtio"),
            Device::Ide => ("qemu", "guest ide"),
            Device::VhostUser => ("ferroblk", "guest vhost-user"),
        };
        let (format, cache, aio) = (self.format, self.cache, self.aio);
        Subject {
            name: format!("{device} {format} {cache} {aio}"),
            server: server.to_owned(),
            device: device.to_owned(),
            format: format.to_string(),
            cache: cache.to_string(),
            aio: aio.to_string(),
        }
    }
}

/// Measures everything.
///
/// # Errors
///
/// A guest that does not boot, a server or image that cannot be made, an interruption. A run that fails is a cell with a failure, and so
/// are the other runs of a guest that is lost. Images, guests and servers are gone in any case.
pub fn compare(
    asked: &Compare,
    stop: &AtomicBool,
    on_step: &dyn Fn(&Step),
) -> Result<Report, GuestError> {
    let mut report = Report {
        version: VERSION,
        ferroblk: env!("CARGO_PKG_VERSION").to_owned(),
        machine: machine::describe(&asked.dir),
        started_unix: clock::unix_seconds(),
        settings: asked.settings(),
        remarks: Vec::new(),
        baseline: 0,
        subjects: asked.setups.iter().map(|setup| setup.subject()).collect(),
        scenarios: asked.scenarios.iter().map(|scenario| scenario.name().to_owned()).collect(),
        cells: Vec::new(),
        traces: Vec::new(),
    };
    let runs = asked.scenarios.len() * asked.threads.len() * asked.repetitions as usize;
    let course = Course { asked, stop, on_step, total: runs * asked.setups.len() };
    for first in (0..asked.setups.len()).step_by(TOGETHER) {
        let last = asked.setups.len().min(first + TOGETHER);
        course.measure_group(first..last, &mut report)?;
    }
    report.cells.sort_by_key(|cell| (cell.scenario, cell.subject, cell.threads));
    Ok(report)
}

/// A guest with its disk.
struct Booted {
    subject: usize,
    /// `None`: it is lost, or interrupted.
    guest: Option<Guest>,
    server: Option<Server>,
    image: Image,
}

/// An image that goes when it is dropped.
struct Image(PathBuf);

impl Drop for Image {
    fn drop(&mut self) {
        // It is not there if making it failed.
        let _ = std::fs::remove_file(&self.0);
    }
}

struct Course<'a> {
    asked: &'a Compare,
    stop: &'a AtomicBool,
    on_step: &'a dyn Fn(&Step),
    total: usize,
}

impl Course<'_> {
    fn measure_group(
        &self,
        setups: std::ops::Range<usize>,
        report: &mut Report,
    ) -> Result<(), GuestError> {
        let asked = self.asked;
        let mut guests = Vec::new();
        for subject in setups {
            self.say(report, format!("booting {}", report.subjects[subject].name));
            guests.push(self.boot(subject)?);
        }
        note_facts(&guests, asked, report);
        for repetition in 0..asked.repetitions {
            for scenario in 0..asked.scenarios.len() {
                for threads in &asked.threads {
                    for booted in &mut guests {
                        let name = &report.subjects[booted.subject].name;
                        let what = &report.scenarios[scenario];
                        self.say(report, format!("{name}: {what}, {threads} threads"));
                        let run = self.run(booted, scenario, *threads, repetition)?;
                        note_run(report, (scenario, booted.subject, *threads), run);
                    }
                }
            }
        }
        guests.into_iter().try_for_each(Booted::shutdown)
    }

    fn say(&self, report: &Report, what: String) {
        let runs = |cell: &Cell| cell.runs.len() + usize::from(cell.failure.is_some());
        let done = report.cells.iter().map(runs).sum::<usize>().min(self.total);
        (self.on_step)(&Step { done, total: self.total, what });
    }

    fn boot(&self, subject: usize) -> Result<Booted, GuestError> {
        let (asked, setup) = (self.asked, self.asked.setups[subject]);
        let device = setup.subject().device;
        let failed = |error: ServerError| {
            GuestError::new(GuestErrorKind::Boot, format!("{device}: {error}"))
        };
        let binary = asked.binary()?;
        let file = format!("guest-{}-{subject}.{}", std::process::id(), setup.format);
        let image = Image(asked.dir.join(file));
        create_image(&binary, &image.0, setup.format, asked.disk_bytes(), &[]).map_err(failed)?;
        let by_qemu = || {
            let Setup { format, cache, aio, .. } = setup;
            ImageSpec { path: image.0.clone(), format, cache, aio }
        };
        let (disk, server) = match setup.device {
            Device::Virtio => (Disk::Virtio { image: by_qemu(), iothread: true }, None),
            Device::Ide => (Disk::Ide { image: by_qemu() }, None),
            Device::VhostUser => {
                let server = serve(setup, &binary, &image.0, &asked.sockets).map_err(failed)?;
                let (socket, pid) = (server.socket().to_owned(), server.pid());
                (Disk::VhostUser { socket, queues: QUEUES, server: pid }, Some(server))
            }
        };
        let spec = GuestSpec {
            binary: Some(binary),
            accel: asked.accel,
            fs: asked.fs,
            barriers: asked.barriers,
            scheduler: asked.scheduler,
            ..GuestSpec::new(asked.kernel.clone(), disk)
        };
        let guest = Guest::boot(&spec, &asked.dir, self.stop)?;
        Ok(Booted { subject, guest: Some(guest), server, image })
    }

    /// A run, or why there is none. An interruption ends everything.
    fn run(
        &self,
        booted: &mut Booted,
        scenario: usize,
        threads: u32,
        repetition: u32,
    ) -> Result<Result<Run, String>, GuestError> {
        let Some(guest) = &mut booted.guest else {
            return Ok(Err("the guest was lost in an earlier run".to_owned()));
        };
        let (profile, cleanup) = self.profile(scenario, threads, repetition);
        let control = Control { stop: self.stop, cleanup, cut: true, ..Control::default() };
        match guest.run(&profile, &control) {
            Ok(GuestRun { run, .. }) => Ok(Ok(run)),
            Err(error) if error.kind() == GuestErrorKind::Interrupted => Err(error),
            Err(error) => {
                if !matches!(error.kind(), GuestErrorKind::Run(_)) {
                    booted.guest = None;
                }
                Ok(Err(error.to_string()))
            }
        }
    }

    /// Scenarios on large files that stay as they are share them: making them takes longer than a short run.
    fn profile(&self, scenario: usize, threads: u32, repetition: u32) -> (Profile, Cleanup) {
        let scenario = self.asked.scenarios[scenario];
        let shared = matches!(
            scenario,
            Scenario::SequentialRead256k
                | Scenario::SequentialRead8k
                | Scenario::RandomRead8k
                | Scenario::RandomWrite8k
                | Scenario::Mixed8k
        );
        let location = if shared { "/large" } else { scenario.name() };
        let mut profile = scenario.profile(threads, location, self.asked.seconds, self.asked.scale);
        profile.directio = true;
        profile.seed = Some(self.asked.seed.wrapping_add(repetition.into()));
        for fs in &mut profile.filesystems {
            fs.reuse = shared;
        }
        (profile, if shared { Cleanup::Keep } else { Cleanup::Remove })
    }
}

/// One for each vCPU.
const QUEUES: u16 = 2;

fn serve(
    setup: Setup,
    program: &Path,
    image: &Path,
    sockets: &Path,
) -> Result<Server, ServerError> {
    let spec = ServerSpec {
        program: Some(program.to_owned()),
        cache: setup.cache,
        aio: setup.aio,
        queues: QUEUES,
        ..ServerSpec::new(ServerKind::Ferroblk, image, setup.format)
    };
    Server::start(&spec, sockets)
}

impl Booted {
    /// In this order: the guest writes out what it has, then the server, then the image goes.
    fn shutdown(self) -> Result<(), GuestError> {
        let Booted { guest, server, image, .. } = self;
        if let Some(guest) = guest {
            guest.shutdown()?;
        }
        if let Some(server) = server {
            server.stop().map_err(|error| {
                GuestError::new(GuestErrorKind::Lost, format!("guest vhost-user: {error}"))
            })?;
        }
        drop(image);
        Ok(())
    }
}

fn note_facts(guests: &[Booted], asked: &Compare, report: &mut Report) {
    let Some(facts) = guests.iter().find_map(|booted| Some(booted.guest.as_ref()?.facts())) else {
        return;
    };
    if report.settings.iter().any(|(what, _)| what == "guest") {
        return;
    }
    let (kernel, accel) = (&facts.kernel, facts.accel);
    let text =
        format!("Linux {kernel}, 2 vCPUs ({accel}), disk of {} MiB", asked.disk_bytes() / MIB);
    report.settings.push(("guest".to_owned(), text));
    if accel == Accel::Tcg {
        report.remarks.push(EMULATED_REMARK.to_owned());
    }
}

fn note_run(report: &mut Report, place: (usize, usize, u32), run: Result<Run, String>) {
    let same = |cell: &Cell| (cell.scenario, cell.subject, cell.threads) == place;
    let at = report.cells.iter().position(same).unwrap_or_else(|| {
        let (scenario, subject, threads) = place;
        report.cells.push(Cell { scenario, subject, threads, runs: Vec::new(), failure: None });
        report.cells.len() - 1
    });
    match run {
        Ok(run) => report.cells[at].runs.push(run),
        Err(why) => report.cells[at].failure = Some(why),
    }
}
