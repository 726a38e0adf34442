//! The host's side: a guest is booted, told what to run, billed and switched off.

use super::cpio::find_program;
use super::cpu::{Usage, vcpu_threads};
use super::error::GuestErrorKind;
use super::wire::{Answer, FRAME_MAX, Order, PROFILE_MAX, decode, encode};
use super::{Accel, Disk, GuestError, GuestSpec, files, init, pack, qemu};
use crate::clock;
use crate::outcome::Outcome;
use crate::profile::Profile;
use crate::report::Run;
use crate::run::{Cleanup, Control, Phase, Progress};
use crate::server::output::Output;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// How often the stop flag is looked at.
const GLANCE: Duration = Duration::from_millis(50);
/// A guest that runs says something every ten seconds at least, but for a sync that has much to write.
const SILENCE: Duration = Duration::from_secs(180);
/// How long a guest may take to unmount and power off.
const SHUTDOWN: Duration = Duration::from_secs(60);
/// Bytes of the console that are looked at for its last line.
const CONSOLE_TAIL: u64 = 16 << 10;
/// Signs of a quoted line.
const QUOTE_MAX: usize = 200;

/// What a booted guest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The kernel's version.
    pub kernel: String,
    /// Bytes of its disk.
    pub disk_bytes: u64,
    /// How its CPUs are run; not [`Accel::Auto`].
    pub accel: Accel,
}

/// A run in a guest.
#[derive(Clone, Debug, PartialEq)]
pub struct GuestRun {
    /// The figures for a report, with the host's bill.
    pub run: Run,
    /// All that the guest said.
    pub outcome: Outcome,
}

/// A guest that runs. Killed when dropped.
#[derive(Debug)]
pub struct Guest {
    device: &'static str,
    child: Child,
    /// The way to the guest.
    orders: ChildStdin,
    /// What comes from it, line by line.
    answers: Receiver<Vec<u8>>,
    /// What QEMU says itself.
    said: Output,
    console: PathBuf,
    vcpus: Vec<u32>,
    server: Option<u32>,
    facts: Facts,
    /// Nothing is asked of a guest that did not do what it was told.
    lost: bool,
    /// QEMU found a fault in itself.
    aborted: bool,
    /// Last, so that it goes when QEMU has ended.
    _scratch: Scratch,
}

impl Guest {
    /// Boots a guest, which makes its file system and mounts it. What QEMU boots from is in a directory of its own in `dir` until the
    /// guest is dropped.
    ///
    /// # Errors
    ///
    /// [`GuestSpec::check`]; a program that is not installed; the guest did not boot, with the last line of its console; `stop` was
    /// set. Nothing is left then.
    pub fn boot(spec: &GuestSpec, dir: &Path, stop: &AtomicBool) -> Result<Guest, GuestError> {
        spec.check()?;
        // Before anything is packed in vain.
        if find_program(qemu::PROGRAM).is_none() {
            return Err(qemu::not_installed());
        }
        let accel = qemu::accelerator(spec.accel);
        let mut guest = Guest::start(spec, accel, dir)?;
        match guest.await_ready(spec, stop) {
            Ok(()) => return Ok(guest),
            // QEMU 10.0 now and then ends in an assertion (iotlb_to_section) when a guest with several emulated CPUs sets up a device.
            Err(_) if accel == Accel::Tcg && guest.aborted => drop(guest),
            Err(error) => return Err(error),
        }
        let mut guest = Guest::start(spec, accel, dir)?;
        guest.await_ready(spec, stop)?;
        Ok(guest)
    }

    fn start(spec: &GuestSpec, accel: Accel, dir: &Path) -> Result<Guest, GuestError> {
        let scratch = Scratch::new(dir)?;
        let (initrd, console) = (scratch.0.join("initramfs"), scratch.0.join("console"));
        let put = |path: &Path, data: &[u8]| {
            files::write(path, data).map_err(|error| {
                let kind = GuestErrorKind::Boot;
                GuestError::new(kind, format!("writing {}: {error}", path.display()))
            })
        };
        put(&initrd, &pack::initramfs(spec)?)?;
        put(&console, &[])?;
        let mut command = qemu::command(spec, accel, &initrd, &console)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => qemu::not_installed(),
            _ => GuestError::new(GuestErrorKind::Boot, format!("starting QEMU: {error}")),
        })?;
        let (Some(orders), Some(line)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both were asked for")
        };
        let said = Output::collect(&mut child);
        let server = match spec.disk {
            Disk::VhostUser { server, .. } => Some(server),
            Disk::Virtio { .. } | Disk::Ide { .. } => None,
        };
        let facts = Facts { kernel: String::new(), disk_bytes: 0, accel };
        Ok(Guest {
            device: spec.disk.device(),
            child,
            orders,
            answers: lines(line),
            said,
            console,
            vcpus: Vec::new(),
            server,
            facts,
            lost: false,
            aborted: false,
            _scratch: scratch,
        })
    }

    /// What it is.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// QEMU's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs a profile in the guest. Locations are directories of the disk's file system, whose root is `/`; those that are not there
    /// are made. Stop flag, warm-up and the rest of `control` mean what they mean on the host.
    ///
    /// # Errors
    ///
    /// The run failed in the guest ([`GuestErrorKind::Run`]; another one can be done), or the guest is lost. After an interruption
    /// it is switched off.
    pub fn run(
        &mut self,
        profile: &Profile,
        control: &Control<'_>,
    ) -> Result<GuestRun, GuestError> {
        if self.lost {
            return Err(self.error(GuestErrorKind::Lost, "the guest is gone"));
        }
        self.order_run(profile, control)?;
        // Until it has answered in order, nothing more can be asked of it.
        self.lost = true;
        let (mut before, mut used) = (None, None);
        loop {
            match self.answer(SILENCE, control.stop)? {
                Answer::Progress { phase, fraction, transactions } => {
                    match phase {
                        Phase::Measure if before.is_none() => before = Some(self.usage()?),
                        Phase::Measured => {
                            if let (Some(then), None) = (&before, &used) {
                                used = Some(self.usage()?.since(then));
                            }
                        }
                        _ => {}
                    }
                    if let Some(progress) = control.progress {
                        progress(Progress { phase, fraction, transactions });
                    }
                }
                Answer::Done(outcome) => {
                    self.lost = false;
                    let Some(used) = used else {
                        let why = "the profile measures nothing: its time is 0";
                        return Err(self.error(GuestErrorKind::Refused, why));
                    };
                    return Ok(GuestRun { run: figures(&outcome, &used), outcome: *outcome });
                }
                Answer::Failed { kind, message } => {
                    self.lost = false;
                    return Err(self.error(GuestErrorKind::Run(kind), message));
                }
                Answer::Ready { .. } | Answer::Unmounted => {
                    return Err(self.error(GuestErrorKind::Lost, "the guest answers out of turn"));
                }
            }
        }
    }

    /// Unmounts the file system and powers the guest off.
    ///
    /// # Errors
    ///
    /// It did not do so within a minute, and was killed.
    pub fn shutdown(mut self) -> Result<(), GuestError> {
        static NEVER: AtomicBool = AtomicBool::new(false);
        if self.lost {
            return Err(self.error(GuestErrorKind::Lost, "the guest is gone"));
        }
        self.send(&Order::PowerOff)?;
        match self.answer(SHUTDOWN, &NEVER)? {
            Answer::Unmounted => {}
            _ => return Err(self.error(GuestErrorKind::Lost, "the guest did not unmount its disk")),
        }
        let begun = clock::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    let words = self.said.final_words();
                    return Err(self.error(GuestErrorKind::Lost, format!("QEMU: {status}{words}")));
                }
                Ok(None) if begun.elapsed() < SHUTDOWN => clock::sleep(GLANCE / 10),
                Ok(None) => {
                    let why = format!("the guest did not power off within {SHUTDOWN:?}");
                    return Err(self.error(GuestErrorKind::Lost, why));
                }
                Err(error) => {
                    let why = format!("waiting for QEMU: {error}");
                    return Err(self.error(GuestErrorKind::Lost, why));
                }
            }
        }
    }

    fn await_ready(&mut self, spec: &GuestSpec, stop: &AtomicBool) -> Result<(), GuestError> {
        let boot = |why: GuestError| match why.kind() {
            GuestErrorKind::Interrupted => why,
            _ => GuestError::new(GuestErrorKind::Boot, why.to_string()),
        };
        match self.answer(spec.patience, stop).map_err(boot)? {
            Answer::Ready { kernel, disk_bytes } => {
                self.facts.kernel = kernel;
                self.facts.disk_bytes = disk_bytes;
            }
            Answer::Failed { message, .. } => return Err(self.error(GuestErrorKind::Boot, message)),
            _ => return Err(self.error(GuestErrorKind::Boot, "the guest answers out of turn")),
        }
        let threads = vcpu_threads(self.child.id());
        self.vcpus = threads.map_err(|error| {
            self.error(GuestErrorKind::Boot, format!("QEMU's threads: {error}"))
        })?;
        if self.vcpus.len() != spec.vcpus as usize {
            let (there, expected) = (self.vcpus.len(), spec.vcpus);
            let why = format!("QEMU has {there} vCPU threads, not {expected}");
            return Err(self.error(GuestErrorKind::Boot, why));
        }
        Ok(())
    }

    fn order_run(&mut self, profile: &Profile, control: &Control<'_>) -> Result<(), GuestError> {
        let refuse = |why| Err(self.error(GuestErrorKind::Refused, why));
        let mut profile = profile.clone();
        if profile.callout.is_some() {
            return refuse("a callout needs a shell, which the guest does not have".to_owned());
        }
        for fs in &mut profile.filesystems {
            match in_guest(&fs.location) {
                Some(location) => fs.location = location,
                None => return refuse(format!("location {}: `..` leaves the disk", fs.location)),
            }
        }
        let text = profile.to_string();
        if text.len() > PROFILE_MAX {
            return refuse(format!("a profile of {} bytes, of {PROFILE_MAX} at most", text.len()));
        }
        self.send(&Order::Run {
            profile: text,
            warm_up_seconds: control.warm_up_seconds,
            keep: control.cleanup == Cleanup::Keep,
            latencies: control.latencies,
            seconds: control.seconds,
            cut: control.cut,
        })
    }

    fn send(&mut self, order: &Order) -> Result<(), GuestError> {
        let sent = self.orders.write_all(&encode(order)).and_then(|()| self.orders.flush());
        sent.map_err(|error| self.ended(&format!("telling the guest what to do: {error}")))
    }

    /// The next thing the guest says.
    fn answer(&mut self, patience: Duration, stop: &AtomicBool) -> Result<Answer, GuestError> {
        let begun = clock::now();
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err(self.error(GuestErrorKind::Interrupted, "interrupted"));
            }
            match self.answers.recv_timeout(GLANCE) {
                Ok(line) => {
                    let answer = decode(&line);
                    return answer.map_err(|why| {
                        self.error(GuestErrorKind::Lost, format!("what the guest says is {why}"))
                    });
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended("the guest ended")),
                Err(RecvTimeoutError::Timeout) if begun.elapsed() > patience => {
                    let why = format!(
                        "the guest said nothing for {} s{}",
                        patience.as_secs(),
                        quote(&self.console)
                    );
                    return Err(self.error(GuestErrorKind::Lost, why));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn usage(&self) -> Result<Usage, GuestError> {
        Usage::read(self.child.id(), &self.vcpus, self.server).map_err(|error| {
            self.error(GuestErrorKind::Lost, format!("the guest's CPU time: {error}"))
        })
    }

    /// QEMU closed the line: it has ended or is about to.
    fn ended(&mut self, what: &str) -> GuestError {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let status = self.child.wait();
        self.aborted = status.is_ok_and(|status| status.signal() == Some(nix::libc::SIGABRT));
        let console = quote(&self.console);
        // Where the guest said nothing, QEMU may have.
        let words = if console.is_empty() { self.said.final_words() } else { console };
        self.error(GuestErrorKind::Lost, format!("{what}{words}"))
    }

    fn error(&self, kind: GuestErrorKind, why: impl std::fmt::Display) -> GuestError {
        GuestError::new(kind, format!("{}: {why}", self.device))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only if QEMU has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the guest said and what the host was billed, as a report has it.
fn figures(outcome: &Outcome, used: &Usage) -> Run {
    let ops = || outcome.groups.iter().flat_map(|group| &group.ops);
    Run {
        seconds: outcome.seconds,
        transactions: ops().map(|op| op.transactions).sum(),
        read_bytes: ops().map(|op| op.read_bytes).sum(),
        written_bytes: ops().map(|op| op.written_bytes).sum(),
        latency: outcome.latency.clone(),
        workload_cpu_seconds: used.workload(),
        server_cpu_seconds: used.serving(),
        host_cpu_seconds: used.host,
        vcpu_seconds: used.vcpus.clone(),
    }
}

/// Where a location is in the guest.
fn in_guest(location: &str) -> Option<String> {
    let parts = || location.split('/').filter(|part| !part.is_empty() && *part != ".");
    let inside = parts().all(|part| part != "..");
    inside.then(|| parts().fold(init::MOUNT_POINT.to_owned(), |path, part| path + "/" + part))
}

/// The lines that come through a pipe, the last of which may lack its end. A line that is too long is cut there.
fn lines(pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    // A guest that talks without end waits.
    let (sender, receiver) = sync_channel(64);
    files::spawn(move || forward(pipe, &sender));
    receiver
}

fn forward(pipe: impl Read, lines: &SyncSender<Vec<u8>>) {
    let mut pipe = BufReader::new(pipe);
    loop {
        let mut line = Vec::new();
        let max = FRAME_MAX as u64;
        // An error ends it as the end does.
        let read = pipe.by_ref().take(max).read_until(b'\n', &mut line).unwrap_or(0);
        // Nobody listens any more once the guest is dropped.
        if read == 0 || lines.send(line).is_err() {
            return;
        }
    }
}

/// `; its console ends with "..."`, or nothing.
fn quote(console: &Path) -> String {
    match last_line(console) {
        Some(line) => format!("; the last line of its console: {line:?}"),
        None => String::new(),
    }
}

/// The last line of a console; of a kernel that panicked, the one that says why.
fn last_line(console: &Path) -> Option<String> {
    use std::io::{Seek, SeekFrom};
    let mut file = files::open(console, false).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(CONSOLE_TAIL))).ok()?;
    let mut data = Vec::new();
    file.take(CONSOLE_TAIL).read_to_end(&mut data).ok()?;
    let text = String::from_utf8_lossy(&data);
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let panic = lines().find(|line| line.contains("Kernel panic") && !line.contains("end Kernel"));
    let line = panic.or_else(|| lines().next_back())?;
    Some(line.chars().filter(|c| !c.is_control()).take(QUOTE_MAX).collect())
}

/// A directory of a guest, removed when dropped.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new(dir: &Path) -> Result<Scratch, GuestError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("guest-{}-{count}", std::process::id()));
        std::fs::create_dir(&path).map_err(|error| {
            GuestError::new(GuestErrorKind::Boot, format!("making {}: {error}", path.display()))
        })?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It is in a directory that the caller removes too.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_on_the_disk() {
        assert_eq!(in_guest("/").unwrap(), "/disk");
        assert_eq!(in_guest("mail").unwrap(), "/disk/mail");
        assert_eq!(in_guest("/mnt//ffsb/./1/").unwrap(), "/disk/mnt/ffsb/1");
        assert_eq!(in_guest("/mnt/../etc"), None);
    }

    #[test]
    fn a_panic_is_quoted_rather_than_what_comes_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let console = dir.path().join("console");
        files::write(&console, b"").unwrap();
        assert_eq!(last_line(&console), None);
        files::write(&console, b"booting\r\n\x1b[0mhalf a li").unwrap();
        assert_eq!(last_line(&console).unwrap(), "[0mhalf a li");
        let text = "a\nKernel panic - not syncing: no init\nCPU: 0\n---[ end Kernel panic - not syncing: no init ]---\n";
        files::write(&console, text.as_bytes()).unwrap();
        assert_eq!(last_line(&console).unwrap(), "Kernel panic - not syncing: no init");
        let many = format!("{}{}\n", "x\n".repeat(20_000), "y".repeat(500));
        files::write(&console, many.as_bytes()).unwrap();
        assert_eq!(last_line(&console).unwrap(), "y".repeat(QUOTE_MAX));
        assert_eq!(last_line(&dir.path().join("none")), None);
    }

    #[test]
    fn lines_end_with_the_pipe() {
        let lines = lines(&b"one\ntwo\nthr"[..]);
        let all: Vec<Vec<u8>> = lines.iter().collect();
        assert_eq!(all, [&b"one\n"[..], b"two\n", b"thr"]);
    }

    #[test]
    fn transactions_and_bytes_of_all_groups_count() {
        use crate::outcome::{GroupOutcome, OpOutcome};
        use crate::profile::Op;
        let op = |op, n| OpOutcome {
            op,
            drawn: 1,
            transactions: n,
            read_bytes: n * 8,
            written_bytes: n,
        };
        let group = |ops: &[OpOutcome]| GroupOutcome { ops: ops.to_vec(), syscalls: Vec::new() };
        let outcome = Outcome {
            setup_seconds: 9.0,
            started_unix: 0,
            finished_unix: 1,
            seconds: 2.0,
            seed: 0,
            groups: vec![group(&[op(Op::Read, 1), op(Op::Write, 2)]), group(&[op(Op::Read, 4)])],
            latency: crate::outcome::Latency::default(),
            cpu_user_seconds: 0.0,
            cpu_system_seconds: 0.0,
            phases: crate::outcome::Phases::default(),
        };
        let used = Usage { vcpus: vec![1.0, 0.5], qemu: 2.0, server: 0.25, host: 4.0 };
        let run = figures(&outcome, &used);
        assert_eq!((run.transactions, run.read_bytes, run.written_bytes), (7, 56, 7));
        assert_eq!((run.seconds, run.workload_cpu_seconds), (2.0, 1.5));
        assert_eq!((run.server_cpu_seconds, run.host_cpu_seconds), (0.75, 4.0));
        assert_eq!(run.vcpu_seconds, [1.0, 0.5]);
    }
}
