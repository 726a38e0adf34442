//! The guest's side: the first process of a guest that [`super::Guest`] has booted.

use super::pack::{self, mkfs};
use super::wire::{Answer, Config, Order, decode, encode};
use super::{Fs, files};
use crate::clock;
use crate::profile::Profile;
use crate::run::{self, Cleanup, Control, Phase, Place, Progress, RunErrorKind};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::system::{RebootCommand, finit_module, reboot};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What the guest is to do. That it is there tells a guest's first process from that of a container.
pub(super) const CONFIG: &str = "/ferroblk-guest.json";
/// Where the disk is mounted.
pub(super) const MOUNT_POINT: &str = "/disk";

/// The line to the host.
const LINE: &str = "/dev/ttyS1";
/// Between two signs of life while files are made, and while it is measured: there seldom, so that they do not disturb.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
const SIGN_OF_LIFE_MEASURING: Duration = Duration::from_secs(10);
/// How long a disk may take to appear once its modules are loaded.
const DISK_PATIENCE: Duration = Duration::from_secs(20);

/// Whether this process is the first one of a benchmark's guest.
pub fn is_init() -> bool {
    std::process::id() == 1 && Path::new(CONFIG).exists()
}

/// The guest's whole life, to be called by `main` if [`is_init`]. Ends with the machine powered off.
pub fn init() {
    if let Err(why) = live() {
        // The host quotes the console's last line.
        complain(&why);
    }
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        complain(&format!("powering off: {error}"));
    }
}

/// On the console; where there is none, nobody is to be told.
fn complain(why: &str) {
    let _ = writeln!(io::stdout(), "ferroblk: {why}");
}

fn live() -> Result<(), String> {
    for (kind, at) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")]
    {
        mount(kind, at, kind, MountFlags::empty(), None)
            .map_err(|error| format!("mounting {at}: {error}"))?;
    }
    let mut line = Line::open().map_err(|error| format!("{LINE}: {error}"))?;
    let disk_bytes = match prepare() {
        Ok(bytes) => bytes,
        Err(message) => {
            let failed = Answer::Failed { kind: RunErrorKind::Place, message: message.clone() };
            line.say(&failed);
            return Err(message);
        }
    };
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    line.say(&Answer::Ready { kernel, disk_bytes });
    while let Order::Run { profile, warm_up_seconds, keep, latencies, seconds, cut } =
        line.order()?
    {
        let cleanup = if keep { Cleanup::Keep } else { Cleanup::Remove };
        let control =
            Control { warm_up_seconds, cleanup, latencies, seconds, cut, ..Control::default() };
        let answer = run_profile(&profile, &control, &mut line);
        line.say(&answer);
    }
    unmount(MOUNT_POINT, UnmountFlags::empty())
        .map_err(|error| format!("unmounting {MOUNT_POINT}: {error}"))?;
    line.say(&Answer::Unmounted);
    Ok(())
}

/// Modules, disk, scheduler, file system. Returns the disk's bytes.
fn prepare() -> Result<u64, String> {
    let config = files::read(Path::new(CONFIG)).map_err(|error| format!("{CONFIG}: {error}"))?;
    let config: Config =
        serde_json::from_slice(&config).map_err(|error| format!("{CONFIG}: {error}"))?;
    let mut failures = Vec::new();
    for name in &config.modules {
        // One that this processor has no use for does no harm; if it was needed, what follows fails.
        if let Err(error) = load(name) {
            failures.push(format!("; module {name}: {error}"));
        }
    }
    let with_failures = |why: String| format!("{why}{}", failures.concat());
    let bytes = await_disk(&config.disk).map_err(with_failures)?;
    set_scheduler(&config).map_err(with_failures)?;
    make_file_system(&config)?;
    let (device, kind) = (format!("/dev/{}", config.disk), config.fs.to_string());
    // What ext4 would do in the background, after mkfs has left it, would be measured too.
    let options = match (config.fs, config.barriers) {
        (Fs::Ext4, true) => Some(c"barrier=1,noinit_itable"),
        (Fs::Ext4, false) => Some(c"barrier=0,noinit_itable"),
        (Fs::Xfs, _) => None,
    };
    mount(&*device, MOUNT_POINT, &*kind, MountFlags::empty(), options)
        .map_err(|error| with_failures(format!("mounting {device} as {kind}: {error}")))?;
    Ok(bytes)
}

fn load(name: &str) -> io::Result<()> {
    let file = files::open(&Path::new("/").join(pack::MODULES).join(name), false)?;
    match finit_module(&file, c"", 0) {
        // Built in, as it turns out.
        Err(rustix::io::Errno::EXIST) => Ok(()),
        done => Ok(done?),
    }
}

fn await_disk(disk: &str) -> Result<u64, String> {
    let begun = clock::now();
    let size = format!("/sys/block/{disk}/size");
    loop {
        let sectors = std::fs::read_to_string(&size).ok().and_then(|text| text.trim().parse().ok());
        match sectors {
            Some(sectors) if sectors > 0 && Path::new("/dev").join(disk).exists() => {
                return Ok(u64::saturating_mul(sectors, 512));
            }
            _ if begun.elapsed() > DISK_PATIENCE => {
                return Err(format!("the guest's kernel found no disk {disk}"));
            }
            _ => clock::sleep(Duration::from_millis(20)),
        }
    }
}

fn set_scheduler(config: &Config) -> Result<(), String> {
    let path = format!("/sys/block/{}/queue/scheduler", config.disk);
    let wanted = config.scheduler.to_string();
    let failed = |why: String| format!("setting the guest's I/O scheduler {wanted}: {why}");
    // The attribute takes a name, and shows all of them with the one that is used in brackets.
    files::write(Path::new(&path), wanted.as_bytes()).map_err(|error| failed(error.to_string()))?;
    let now = std::fs::read_to_string(&path).map_err(|error| failed(error.to_string()))?;
    // A kernel without schedulers shows `none` alone.
    let used = now.contains(&format!("[{wanted}]")) || now.trim() == wanted;
    used.then_some(()).ok_or_else(|| failed(format!("the kernel has {}", now.trim())))
}

fn make_file_system(config: &Config) -> Result<(), String> {
    let program = mkfs(config.fs);
    let mut command = Command::new(format!("/bin/{program}"));
    // The disk is new: there is nothing to discard.
    command.args(match config.fs {
        Fs::Ext4 => ["-q", "-F", "-E", "nodiscard"].as_slice(),
        Fs::Xfs => &["-q", "-f", "-K"],
    });
    command.arg(format!("/dev/{}", config.disk));
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Err(format!("{program}: {}", lines.next().unwrap_or("it failed and did not say why")))
}

fn run_profile(text: &str, control: &Control<'_>, line: &mut Line) -> Answer {
    let failed = |kind, message| Answer::Failed { kind, message };
    let profile = match Profile::parse(text) {
        Ok(parsed) => parsed.profile,
        Err(error) => {
            return failed(RunErrorKind::Profile, format!("the guest reads the profile: {error}"));
        }
    };
    for fs in &profile.filesystems {
        if let Err(error) = std::fs::create_dir_all(&fs.location) {
            return failed(RunErrorKind::Place, format!("making {}: {error}", fs.location));
        }
    }
    let reporter = Reporter { line: RefCell::new(line), last: Cell::new(None) };
    let tell = |progress| reporter.tell(progress);
    match run::run(&profile, Place::Directories, &Control { progress: Some(&tell), ..*control }) {
        Ok(outcome) => Answer::Done(Box::new(outcome)),
        Err(error) => failed(error.kind(), error.to_string()),
    }
}

/// Tells the host how far a run is: each change of phase, and signs of life between.
struct Reporter<'a> {
    line: RefCell<&'a mut Line>,
    last: Cell<Option<(Phase, Instant)>>,
}

impl Reporter<'_> {
    fn tell(&self, progress: Progress) {
        let pause = match progress.phase {
            Phase::WarmUp | Phase::Measure => SIGN_OF_LIFE_MEASURING,
            _ => SIGN_OF_LIFE,
        };
        let said = self.last.get();
        if said.is_some_and(|(phase, at)| phase == progress.phase && at.elapsed() < pause) {
            return;
        }
        self.last.set(Some((progress.phase, clock::now())));
        let Progress { phase, fraction, transactions } = progress;
        self.line.borrow_mut().say(&Answer::Progress { phase, fraction, transactions });
    }
}

/// The serial port to the host.
struct Line {
    input: BufReader<File>,
    output: File,
}

impl Line {
    fn open() -> io::Result<Line> {
        let output = files::open(Path::new(LINE), true)?;
        // No echo, no translation of line ends.
        let mut settings = tcgetattr(&output)?;
        settings.make_raw();
        tcsetattr(&output, OptionalActions::Now, &settings)?;
        Ok(Line { input: BufReader::new(output.try_clone()?), output })
    }

    fn say(&mut self, answer: &Answer) {
        if let Err(error) = self.output.write_all(&encode(answer)) {
            complain(&format!("{LINE}: {error}"));
        }
    }

    fn order(&mut self) -> Result<Order, String> {
        let mut line = Vec::new();
        let read = self.input.read_until(b'\n', &mut line);
        read.map_err(|error| format!("{LINE}: {error}"))?;
        decode(&line).map_err(|why| format!("{LINE}: an order is {why}"))
    }
}
