//! One boot of the guest.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use blk_client::Error;
use ffsb::guest::{GuestError, Initramfs};

use crate::{Scratch, guest_dir};

/// Modules the cloud kernel needs to see the disk, in the order they are loaded; the file systems are built in.
const MODULES: &[&str] = &[
    "kernel/drivers/virtio/virtio_ring.ko",
    "kernel/drivers/virtio/virtio.ko",
    "kernel/drivers/virtio/virtio_pci_modern_dev.ko",
    "kernel/drivers/virtio/virtio_pci_legacy_dev.ko",
    "kernel/drivers/virtio/virtio_pci.ko",
    "kernel/drivers/block/virtio_blk.ko",
];

/// Printed by init after the script, with the script's exit status.
const MARKER: &str = "ferroblk-guest-exit";

/// A disk of the guest: /dev/vda is the first.
#[derive(Clone, Debug)]
pub struct Drive {
    /// The server's vhost-user-blk socket.
    pub socket: PathBuf,
    /// Virtqueues that the guest gets.
    pub queues: usize,
}

/// How the guest is made.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its CPUs; Linux uses at most one queue per CPU.
    pub cpus: usize,
    /// Its RAM.
    pub memory_mib: usize,
    /// Host programs that the script uses, besides busybox.
    pub programs: &'static [&'static str],
    /// When to give up and kill it.
    pub timeout: Duration,
}

impl Default for Guest {
    fn default() -> Guest {
        let timeout = Duration::from_secs(300);
        Guest { cpus: 2, memory_mib: 768, programs: &[], timeout }
    }
}

/// What a boot came to.
#[derive(Clone, Debug)]
pub struct Output {
    /// Everything the guest printed.
    pub console: String,
    /// The script's exit status; `None` if the guest did not get as far.
    pub status: Option<i32>,
}

impl Guest {
    /// Boots the guest, runs `script` (`sh -e`) in it, and waits until it has powered itself off.
    pub fn run(&self, script: &str, drives: &[Drive]) -> Result<Output, Error> {
        self.start(script, drives)?.finish()
    }

    /// Boots the guest, which then runs `script` (`sh -e`).
    pub fn start(&self, script: &str, drives: &[Drive]) -> Result<Running, Error> {
        self.start_with(accelerator()?, script, drives)
    }

    fn start_with(&self, accel: &str, script: &str, drives: &[Drive]) -> Result<Running, Error> {
        let scratch = Scratch::new().map_err(|e| Error::new("scratch directory", e))?;
        let initrd = scratch.path("initramfs");
        let archive = self.initramfs(script)?;
        std::fs::write(&initrd, archive).map_err(|e| Error::new(initrd.display(), e))?;
        let starting = |e| Error::new("starting QEMU", e);
        // One pipe for the console and for what QEMU has to say itself.
        let (stdout, writer) = std::io::pipe().map_err(starting)?;
        let mut command = self.command(accel, &kernel()?, &initrd, drives);
        command.stderr(writer.try_clone().map_err(starting)?).stdout(writer);
        let child = command.spawn().map_err(starting)?;
        // It holds our copies of the writing end; who reads the pipe to its end would wait for them.
        drop(command);
        let lines = lines_of(stdout);
        let deadline = Instant::now() + self.timeout;
        Ok(Running { child, lines, console: String::new(), deadline, _scratch: scratch })
    }

    fn initramfs(&self, script: &str) -> Result<Vec<u8>, Error> {
        let packing = |e: GuestError| Error(e.to_string());
        let mut archive = Initramfs::new();
        for dir in ["proc", "sys", "tmp", "mnt"] {
            archive.add_dir(dir);
        }
        archive.add_program("busybox").map_err(packing)?;
        let modules = modules_dir()?;
        for module in MODULES {
            let name = module.rsplit('/').next().expect("a path has a last part");
            archive.add_file(&format!("modules/{name}"), &modules.join(module)).map_err(packing)?;
        }
        for program in self.programs {
            archive.add_program(program).map_err(packing)?;
        }
        archive.add_data("script", script.as_bytes());
        archive.add_data("init", init().as_bytes());
        Ok(archive.finish())
    }

    fn command(&self, accel: &str, kernel: &Path, initrd: &Path, drives: &[Drive]) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        command.args(["-serial", "stdio", "-monitor", "none"]);
        // One thread for all CPUs: with one for each, QEMU 10.0 now and then ends in an assertion (iotlb_to_section) when one maps a device.
        let emulated = "tcg,thread=single";
        let accelerator = if accel == "tcg" { emulated } else { accel };
        command.args(["-machine", "q35,memory-backend=ram", "-accel", accelerator]);
        command.args(["-cpu", if accel == "kvm" { "host" } else { "max" }]);
        command.args(["-smp".to_owned(), self.cpus.to_string()]);
        command.args(["-m".to_owned(), format!("{}M", self.memory_mib)]);
        let size = self.memory_mib;
        let ram = format!("memory-backend-memfd,id=ram,size={size}M,share=on");
        command.args(["-object".to_owned(), ram]);
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
        command.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);
        for (i, drive) in drives.iter().enumerate() {
            let path = drive.socket.display();
            command.args(["-chardev".to_owned(), format!("socket,id=c{i},path={path}")]);
            let queues = drive.queues;
            let device = format!("vhost-user-blk-pci,chardev=c{i},num-queues={queues}");
            command.args(["-device".to_owned(), device]);
        }
        command.stdin(Stdio::null());
        command
    }
}

/// A guest at work. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    console: String,
    deadline: Instant,
    /// Holds what QEMU boots.
    _scratch: Scratch,
}

impl Running {
    /// Waits until the guest has printed a line for which `is_it` holds.
    pub fn wait_for(&mut self, mut is_it: impl FnMut(&str) -> bool) -> Result<(), Error> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                return Err(Error(format!("the guest's console lacks a line:\n{}", self.console)));
            };
            self.console.push_str(&line);
            if is_it(line.trim_end()) {
                return Ok(());
            }
        }
    }

    /// Kills it as a power cut would, and returns what it had printed.
    pub fn kill(mut self) -> Result<String, Error> {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.map_err(|e| Error::new("killing QEMU", e))?;
        self.console.extend(self.lines.iter());
        Ok(std::mem::take(&mut self.console))
    }

    /// Waits until it has powered itself off.
    pub fn finish(mut self) -> Result<Output, Error> {
        wait_or_kill(&mut self.child, self.deadline)?;
        self.console.extend(self.lines.iter());
        let console = std::mem::take(&mut self.console);
        let status = console.lines().find_map(|line| {
            let (_, status) = line.split_once(MARKER)?;
            status.trim().parse().ok()
        });
        Ok(Output { console, status })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if the process is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a console as they come, each with its end.
fn lines_of(console: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let mut console = BufReader::new(console);
        let mut line = Vec::new();
        // An error ends the console as its end does: what has come so far is what there is.
        while console.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            // The receiver is gone if nobody wants to know any more.
            let _ = sender.send(String::from_utf8_lossy(&line).into_owned());
            line.clear();
        }
    });
    lines
}

/// The first process: sets the scene, runs the script, says how it ended, powers off.
fn init() -> String {
    let modules: Vec<&str> = MODULES.iter().filter_map(|m| m.rsplit('/').next()).collect();
    format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/bin\n\
         mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys\n\
         mount -t tmpfs tmp /tmp\n\
         for m in {}; do insmod /modules/$m || echo \"insmod $m failed\"; done\n\
         sh -e /script\n\
         status=$?\n\
         echo; echo {MARKER} $status\n\
         poweroff -f\n",
        modules.join(" ")
    )
}

/// The kernel image that `cargo xtask setup` unpacked.
fn kernel() -> Result<PathBuf, Error> {
    let boot = guest_dir().join("boot");
    first_entry(&boot, "vmlinuz-")
}

fn modules_dir() -> Result<PathBuf, Error> {
    first_entry(&guest_dir().join("lib/modules"), "")
}

fn first_entry(dir: &Path, prefix: &str) -> Result<PathBuf, Error> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::new(dir.display(), e))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix)));
    paths.sort();
    paths.pop().ok_or_else(|| Error(format!("{} holds no {prefix}*", dir.display())))
}

/// Why there is no kernel to boot, if there is none.
pub fn missing_kernel() -> Option<String> {
    let error = kernel().and(modules_dir()).err()?;
    Some(format!("no guest kernel ({error})"))
}

/// `$FERROBLK_GUEST_ACCEL`, else kvm if it really boots Linux here, else tcg.
///
/// Some nested machines offer a /dev/kvm that takes minutes for a boot. So it is tried once per boot of this machine,
/// with a short limit, and the answer is kept.
fn accelerator() -> Result<&'static str, Error> {
    match std::env::var("FERROBLK_GUEST_ACCEL").as_deref() {
        Ok("kvm") => return Ok("kvm"),
        Ok("tcg") => return Ok("tcg"),
        Ok(other) => return Err(Error(format!("FERROBLK_GUEST_ACCEL={other}: kvm or tcg"))),
        Err(_) => {}
    }
    let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if kvm.is_err() {
        return Ok("tcg");
    }
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let (works, fails) = (format!("kvm {boot_id}"), format!("tcg {boot_id}"));
    let cache = guest_dir().join("accelerator");
    match std::fs::read_to_string(&cache) {
        Ok(known) if known == works => return Ok("kvm"),
        Ok(known) if known == fails => return Ok("tcg"),
        _ => {}
    }
    let guest = Guest { timeout: Duration::from_secs(8), ..Guest::default() };
    let booted = guest.start_with("kvm", "true", &[]).and_then(Running::finish);
    let booted = booted.is_ok_and(|out| out.status == Some(0));
    // Not being able to keep the answer costs the next test the same eight seconds, no more.
    let _ = std::fs::write(&cache, if booted { &works } else { &fails });
    Ok(if booted { "kvm" } else { "tcg" })
}

fn wait_or_kill(child: &mut Child, deadline: Instant) -> Result<(), Error> {
    loop {
        match child.try_wait() {
            Ok(Some(_)) => return Ok(()),
            Ok(None) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            _ => break,
        }
    }
    // Its output is still wanted: a killed guest shows how far it came, by a missing status.
    let _ = child.kill();
    child.wait().map(drop).map_err(|e| Error::new("waiting for QEMU", e))
}
