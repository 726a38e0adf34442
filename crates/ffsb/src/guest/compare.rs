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
use crate::grid::{Choices, GridError, Status, Workload, machine};
use crate::profile::scenario::{Scale, Scenario};
use crate::profile::{FileSystem, Op, Profile};
use crate::report::{Cell, Report, Run, Subject, VERSION};
use crate::run::{Cleanup, Control};
use crate::server::{Server, ServerError, ServerKind, ServerSpec, create_image};
use block::{CacheMode, Format};
use io_engine::EngineKind;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

const MIB: u64 = 1 << 20;
/// Seconds of a run of a scenario, and its numbers of threads, if nothing is said.
const SECONDS: f64 = 5.0;
const THREADS: [u32; 2] = [1, 8];
/// What a quick comparison has.
const QUICK: [Scenario; 4] = [
    Scenario::SequentialRead256k,
    Scenario::RandomRead8k,
    Scenario::RandomWrite8k,
    Scenario::MailServer8k,
];
const QUICK_SECONDS: f64 = 2.0;
const QUICK_SCALE: u32 = 400;
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

impl Device {
    /// Every one.
    pub const ALL: [Device; 3] = [Device::Virtio, Device::Ide, Device::VhostUser];
}

impl fmt::Display for Device {
    /// Its word in `--matrix`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Device::Virtio => "virtio",
            Device::Ide => "ide",
            Device::VhostUser => "vhost-user",
        })
    }
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
    /// Where images are made, in a directory that is removed in the end.
    pub dir: PathBuf,
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
    pub workloads: Vec<Workload>,
    /// Numbers of threads; `None`: 1 and 8, or a profile's own.
    pub threads: Option<Vec<u32>>,
    /// Seconds of each run; `None`: five, or a profile's own.
    pub seconds: Option<f64>,
    /// Seconds of work before each run that do not count.
    pub warm_up_seconds: f64,
    /// Runs of each cell.
    pub repetitions: u32,
    /// Seed of the first repetition; the next one has the next.
    pub seed: u64,
    /// Each block carries what it is, and is checked.
    pub verify: bool,
}

impl Compare {
    /// virtio, IDE and vhost-user on raw images without host cache: four scenarios with 1 and 8 threads in under three minutes on a
    /// machine with two processors that has to emulate.
    pub fn quick(kernel: Kernel, dir: PathBuf) -> Compare {
        let scale = Scale::new(QUICK_SCALE).unwrap_or(Scale::FULL);
        Compare {
            kernel,
            binary: None,
            dir,
            accel: Accel::Auto,
            fs: Fs::Ext4,
            barriers: true,
            scheduler: Scheduler::None,
            setups: Device::ALL.map(Setup::new).to_vec(),
            workloads: QUICK.map(|scenario| Workload::scenario(scenario, scale)).to_vec(),
            threads: None,
            seconds: Some(QUICK_SECONDS),
            warm_up_seconds: 0.0,
            repetitions: 1,
            seed: 1,
            verify: false,
        }
    }

    /// How many runs there are.
    ///
    /// # Errors
    ///
    /// The number of threads of a profile cannot be chosen.
    pub fn measurements(&self) -> Result<usize, GuestError> {
        let lists = self.lists()?;
        let cells: usize = lists.iter().map(Vec::len).sum();
        Ok(cells * self.repetitions as usize * self.setups.len())
    }

    /// Numbers of threads of each workload.
    fn lists(&self) -> Result<Vec<Vec<Threads>>, GuestError> {
        let wanted = self.threads.as_deref();
        let lists = self.workloads.iter().map(|one| one.threads(wanted, &THREADS));
        lists
            .collect::<Result<_, _>>()
            .map_err(|error: GridError| GuestError::new(GuestErrorKind::Refused, error.to_string()))
    }

    /// Bytes of each disk.
    fn disk_bytes(&self, lists: &[Vec<Threads>]) -> u64 {
        let rooms = self.workloads.iter().zip(lists).map(|(workload, threads)| {
            workload.room(threads.iter().map(|(shown, _)| *shown).max().unwrap_or(1))
        });
        let bytes = rooms.fold(0, u64::saturating_add).saturating_mul(2).saturating_add(DISK_EXTRA);
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
        let seconds = match self.seconds {
            Some(seconds) => seconds.to_string(),
            None => format!("{SECONDS} for scenarios, a profile's own for profiles"),
        };
        let mut settings = vec![
            ("seconds per run".to_owned(), seconds),
            ("warm-up seconds".to_owned(), self.warm_up_seconds.to_string()),
            ("repetitions".to_owned(), self.repetitions.to_string()),
            ("seed".to_owned(), self.seed.to_string()),
            ("guest file system".to_owned(), format!("{}, barriers {barriers}", self.fs)),
            ("guest I/O scheduler".to_owned(), self.scheduler.to_string()),
            ("guest page cache".to_owned(), "bypassed by scenarios (O_DIRECT)".to_owned()),
        ];
        settings.extend(self.workloads.iter().map(|one| (one.name().to_owned(), one.note())));
        settings
    }
}

impl Setup {
    /// A raw image without host cache, by io_uring.
    pub fn new(device: Device) -> Setup {
        let (format, cache, aio) = (Format::Raw, CacheMode::None, EngineKind::IoUring);
        Setup { device, format, cache, aio }
    }

    /// Reads the words of `--matrix`: all combinations, and the numbers of threads if they are said. What Linux AIO cannot do is left
    /// out where other engines are asked for too.
    ///
    /// # Errors
    ///
    /// A key or value that is not known, or one that comes twice; nothing is left to be compared.
    pub fn parse<S: AsRef<str>>(words: &[S]) -> Result<(Vec<Setup>, Option<Vec<u32>>), GuestError> {
        let refuse = |why: String| GuestError::new(GuestErrorKind::Refused, why);
        let (mut devices, mut others) = (None, Vec::new());
        for word in words.iter().map(AsRef::as_ref) {
            match word.split_once('=') {
                Some(("device", list)) if devices.is_none() => {
                    devices = Some(
                        parse_devices(list)
                            .map_err(|why| refuse(format!("matrix `{word}`: in a guest {why}")))?,
                    );
                }
                Some(("device", _)) => {
                    return Err(refuse(format!("matrix `{word}`: the key comes twice")));
                }
                Some(("server", _)) => {
                    return Err(refuse(format!(
                        "matrix `{word}`: in a guest QEMU serves virtio and IDE, ferroblk vhost-user"
                    )));
                }
                _ => others.push(word),
            }
        }
        let choices = Choices::parse(&others).map_err(|error| refuse(error.to_string()))?;
        let default = Setup::new(Device::Virtio);
        let caches = choices.caches.unwrap_or_else(|| vec![default.cache]);
        let aios = choices.aios.unwrap_or_else(|| vec![default.aio]);
        let mut setups = Vec::new();
        for device in devices.unwrap_or_else(|| Device::ALL.to_vec()) {
            for format in choices.formats.clone().unwrap_or_else(|| vec![default.format]) {
                for cache in &caches {
                    let with =
                        |aio: &EngineKind| Setup { device, format, cache: *cache, aio: *aio };
                    let can = |setup: &Setup| setup.aio != EngineKind::Native || cache.is_direct();
                    setups.extend(aios.iter().map(with).filter(can));
                }
            }
        }
        match setups.is_empty() {
            true => Err(refuse("aio=native is for cache none and directsync only".to_owned())),
            false => Ok((setups, choices.threads)),
        }
    }

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

fn parse_devices(list: &str) -> Result<Vec<Device>, String> {
    let mut devices = Vec::new();
    for text in list.split(',') {
        let found = Device::ALL.into_iter().find(|device| device.to_string() == text);
        let found = found.ok_or("device is virtio, ide or vhost-user".to_owned())?;
        if devices.contains(&found) {
            return Err(format!("`{text}` comes twice"));
        }
        devices.push(found);
    }
    Ok(devices)
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
    on_status: &dyn Fn(&Status),
) -> Result<Report, GuestError> {
    let (threads, total) = (asked.lists()?, asked.measurements()?);
    let mut report = Report {
        version: VERSION,
        ferroblk: env!("CARGO_PKG_VERSION").to_owned(),
        machine: machine::describe(&asked.dir),
        started_unix: clock::unix_seconds(),
        settings: asked.settings(),
        remarks: Vec::new(),
        baseline: 0,
        subjects: asked.setups.iter().map(|setup| setup.subject()).collect(),
        scenarios: asked.workloads.iter().map(|one| one.name().to_owned()).collect(),
        cells: Vec::new(),
        traces: Vec::new(),
    };
    let (images, sockets) = (scratch(&asked.dir)?, scratch(&std::env::temp_dir())?);
    let profiles = asked.workloads.iter().map(|one| prepare(one, asked.verify)).collect();
    let course = Course {
        asked,
        images: images.path(),
        sockets: sockets.path(),
        stop,
        on_status,
        profiles,
        disk_bytes: asked.disk_bytes(&threads),
        threads,
        total,
        begun: clock::now(),
    };
    for first in (0..asked.setups.len()).step_by(TOGETHER) {
        let last = asked.setups.len().min(first + TOGETHER);
        course.measure_group(first..last, &mut report)?;
    }
    report.cells.sort_by_key(|cell| (cell.scenario, cell.subject, cell.threads));
    Ok(report)
}

/// A workload's profile, and whether its files stay as they are: then they are not made again for each run, and workloads with the same
/// files share them. Making them takes longer than a short run.
fn prepare(workload: &Workload, verify: bool) -> (Profile, bool) {
    let mut profile = workload.to_profile();
    profile.directio |= workload.is_scenario();
    profile.verify |= verify;
    let stays = |op: Op| {
        matches!(
            op,
            Op::Read
                | Op::Readall
                | Op::Write
                | Op::WriteFsync
                | Op::Writeall
                | Op::WriteallFsync
                | Op::Stat
                | Op::OpenClose
        )
    };
    let mut ops = profile.thread_groups.iter().flat_map(|group| &group.weights);
    let plain =
        |fs: &FileSystem| fs.ageing.is_none() && fs.init_size.is_none() && fs.init_util.is_none();
    let stable =
        !profile.verify && ops.all(|(op, _)| stays(*op)) && profile.filesystems.iter().all(plain);
    (profile, stable)
}

fn scratch(dir: &Path) -> Result<tempfile::TempDir, GuestError> {
    let made = tempfile::Builder::new().prefix("ferroblk-bench-").tempdir_in(dir);
    made.map_err(|error| {
        let why = format!("making a scratch directory in {}: {error}", dir.display());
        GuestError::new(GuestErrorKind::Refused, why)
    })
}

/// A number of threads for the report, and for each thread group if it is not the profile's own.
type Threads = (u32, Option<u32>);

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
    images: &'a Path,
    sockets: &'a Path,
    stop: &'a AtomicBool,
    on_status: &'a dyn Fn(&Status),
    /// One for each workload, as are `threads`.
    profiles: Vec<(Profile, bool)>,
    threads: Vec<Vec<Threads>>,
    disk_bytes: u64,
    total: usize,
    begun: Instant,
}

impl Course<'_> {
    fn measure_group(
        &self,
        setups: std::ops::Range<usize>,
        report: &mut Report,
    ) -> Result<(), GuestError> {
        let mut guests = Vec::new();
        for subject in setups {
            self.say(report, format!("booting {}", report.subjects[subject].name));
            guests.push(self.boot(subject)?);
        }
        self.note_facts(&guests, report);
        for repetition in 0..self.asked.repetitions {
            for (workload, lists) in self.threads.iter().enumerate() {
                for threads in lists {
                    for booted in &mut guests {
                        let name = &report.subjects[booted.subject].name;
                        let what = &report.scenarios[workload];
                        let count = threads.0;
                        self.say(report, format!("{what}, {name}, {count} threads"));
                        let run = self.run(booted, workload, *threads, repetition)?;
                        note_run(report, (workload, booted.subject, count), run);
                    }
                }
            }
        }
        guests.into_iter().try_for_each(Booted::shutdown)
    }

    #[expect(clippy::cast_precision_loss, reason = "there are not 2^53 runs")]
    fn say(&self, report: &Report, doing: String) {
        let runs = |cell: &Cell| cell.runs.len() + usize::from(cell.failure.is_some());
        let done = report.cells.iter().map(runs).sum::<usize>().min(self.total);
        let each = (done > 0).then(|| self.begun.elapsed().as_secs_f64() / done as f64);
        let seconds_left = each.map(|each| each * (self.total - done) as f64);
        (self.on_status)(&Status { doing, done, total: self.total, seconds_left });
    }

    fn note_facts(&self, guests: &[Booted], report: &mut Report) {
        let mut facts = guests.iter().filter_map(|booted| Some(booted.guest.as_ref()?.facts()));
        let Some(facts) = facts.next() else { return };
        if report.settings.iter().any(|(what, _)| what == "guest") {
            return;
        }
        let (kernel, accel, disk) = (&facts.kernel, facts.accel, facts.disk_bytes / MIB);
        let text = format!("Linux {kernel}, {QUEUES} vCPUs ({accel}), disk of {disk} MiB");
        report.settings.push(("guest".to_owned(), text));
        if accel == Accel::Tcg {
            report.remarks.push(EMULATED_REMARK.to_owned());
        }
    }

    fn boot(&self, subject: usize) -> Result<Booted, GuestError> {
        let (asked, setup) = (self.asked, self.asked.setups[subject]);
        let device = setup.subject().device;
        let failed = |error: ServerError| {
            GuestError::new(GuestErrorKind::Boot, format!("{device}: {error}"))
        };
        let binary = asked.binary()?;
        let file = format!("guest-{}-{subject}.{}", std::process::id(), setup.format);
        let image = Image(self.images.join(file));
        create_image(&binary, &image.0, setup.format, self.disk_bytes, &[]).map_err(failed)?;
        let by_qemu = || {
            let Setup { format, cache, aio, .. } = setup;
            ImageSpec { path: image.0.clone(), format, cache, aio }
        };
        let (disk, server) = match setup.device {
            Device::Virtio => (Disk::Virtio { image: by_qemu(), iothread: true }, None),
            Device::Ide => (Disk::Ide { image: by_qemu() }, None),
            Device::VhostUser => {
                let server = serve(setup, &binary, &image.0, self.sockets).map_err(failed)?;
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
        let guest = Guest::boot(&spec, self.images, self.stop)?;
        Ok(Booted { subject, guest: Some(guest), server, image })
    }

    /// A run, or why there is none. An interruption ends everything.
    fn run(
        &self,
        booted: &mut Booted,
        workload: usize,
        threads: Threads,
        repetition: u32,
    ) -> Result<Result<Run, String>, GuestError> {
        let Some(guest) = &mut booted.guest else {
            return Ok(Err("the guest was lost in an earlier run".to_owned()));
        };
        let (profile, cleanup) = self.profile(workload, threads, repetition);
        let own = || match self.asked.workloads[workload].is_scenario() {
            true => Some(SECONDS),
            false => profile.time.map(f64::from),
        };
        let control = Control {
            stop: self.stop,
            cleanup,
            warm_up_seconds: self.asked.warm_up_seconds,
            seconds: self.asked.seconds.or_else(own),
            cut: true,
            ..Control::default()
        };
        match guest.run(&profile, &control) {
            Ok(GuestRun { run, .. }) => Ok(Ok(run)),
            Err(error) if error.kind() == GuestErrorKind::Interrupted => Err(error),
            Err(error) => {
                if error.kind() == GuestErrorKind::Lost {
                    booted.guest = None;
                }
                Ok(Err(error.to_string()))
            }
        }
    }

    fn profile(&self, workload: usize, threads: Threads, repetition: u32) -> (Profile, Cleanup) {
        let (profile, stable) = &self.profiles[workload];
        // The first one whose files these are as well.
        let same = |(other, is_stable): &(Profile, bool)| {
            *is_stable && other.filesystems == profile.filesystems
        };
        let set = self.profiles.iter().position(same).filter(|_| *stable).unwrap_or(workload);
        let mut profile = profile.clone();
        profile.seed = Some(self.asked.seed.wrapping_add(repetition.into()));
        for (n, fs) in profile.filesystems.iter_mut().enumerate() {
            fs.location = format!("/set{set}/{n}");
            fs.reuse = *stable;
        }
        for group in &mut profile.thread_groups {
            group.num_threads = threads.1.unwrap_or(group.num_threads);
        }
        (profile, if *stable { Cleanup::Keep } else { Cleanup::Remove })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_of_guests() {
        let (setups, threads) = Setup::parse::<&str>(&[]).unwrap();
        assert_eq!((setups, threads), (Device::ALL.map(Setup::new).to_vec(), None));
        let words =
            ["device=ide,virtio", "cache=none,writethrough", "aio=native,threads", "threads=4"];
        let (setups, threads) = Setup::parse(&words).unwrap();
        assert_eq!(threads, Some(vec![4]));
        let names: Vec<String> = setups.iter().map(|setup| setup.subject().name).collect();
        assert_eq!(
            names,
            [
                "guest ide raw none native",
                "guest ide raw none threads",
                "guest ide raw writethrough threads",
                "guest virtio raw none native",
                "guest virtio raw none threads",
                "guest virtio raw writethrough threads",
            ]
        );
        for (words, expected) in [
            (&["device=bare"][..], "device is virtio, ide or vhost-user"),
            (&["device=ide,ide"], "`ide` comes twice"),
            (&["device=ide", "device=ide"], "the key comes twice"),
            (&["server=ferroblk"], "QEMU serves"),
            (&["cache=writeback", "aio=native"], "aio=native is for"),
            (&["colour=red"], "no key `colour`"),
        ] {
            let error = Setup::parse(words).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn files_are_shared_by_those_who_leave_them_as_they_are() {
        let kernel = Kernel { image: "k".into(), modules: "m".into() };
        let asked = Compare::quick(kernel, "d".into());
        let stop = AtomicBool::new(false);
        let profiles = |verify| asked.workloads.iter().map(|one| prepare(one, verify)).collect();
        let course = |verify| Course {
            asked: &asked,
            images: Path::new("i"),
            sockets: Path::new("s"),
            stop: &stop,
            on_status: &|_| {},
            profiles: profiles(verify),
            threads: Vec::new(),
            disk_bytes: 0,
            total: 0,
            begun: clock::now(),
        };
        let places = |course: &Course<'_>| -> Vec<(String, bool, Cleanup)> {
            let profile = |n| course.profile(n, (3, Some(3)), 1);
            let place = |(profile, cleanup): (Profile, Cleanup)| {
                assert_eq!((profile.seed, profile.directio), (Some(2), true));
                assert_eq!(profile.thread_groups[0].num_threads, 3);
                let fs = &profile.filesystems[0];
                (fs.location.clone(), fs.reuse, cleanup)
            };
            (0..4).map(profile).map(place).collect()
        };
        let large = ("/set0/0".to_owned(), true, Cleanup::Keep);
        let mail = ("/set3/0".to_owned(), false, Cleanup::Remove);
        assert_eq!(places(&course(false)), [large.clone(), large.clone(), large, mail]);
        // What is verified was written by the run itself.
        assert!(places(&course(true)).iter().all(|(_, reuse, _)| !reuse));
    }
}
