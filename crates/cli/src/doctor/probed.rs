//! What can only be found out by trying: system calls, and programs asked for their version. Nothing of it leaves a trace.

use super::host::plain;
use io_engine::{EngineKind, IoEngine, UringSupport};
use kvm_ioctls::{Cap, Kvm};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

/// Ops in flight that engines are tried with: what an I/O thread of the server asks for.
const DEPTH: u32 = 1024;
/// How long a program may take to tell its version.
const PROGRAM_PATIENCE: Duration = Duration::from_secs(5);
/// Programs that attach our disks, and the one that is measured against.
pub const PROGRAMS: [&str; 3] = [QEMU, "qemu-storage-daemon", "cloud-hypervisor"];
/// QEMU for this machine's own architecture.
pub const QEMU: &str = match std::env::consts::ARCH.as_bytes() {
    b"aarch64" => "qemu-system-aarch64",
    _ => "qemu-system-x86_64",
};

/// What the kernel answered instead of doing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its number, if it has one.
    pub errno: Option<i32>,
    text: String,
}

impl Refusal {
    /// Whether it is this error.
    pub fn is(&self, errno: Errno) -> bool {
        self.errno == Some(errno.raw_os_error())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal { errno: error.raw_os_error(), text: plain(&error) }
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Refusal {
        io::Error::from(errno).into()
    }
}

/// Room on a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub total: u64,
    /// Of it, for users other than root.
    pub free: u64,
}

impl Space {
    /// That of the file system at a path.
    pub fn at(path: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space { total: bytes(stat.f_blocks), free: bytes(stat.f_bavail) })
    }
}

/// What `/dev/kvm` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvmFacts {
    /// 12 since Linux 2.6.22.
    pub api_version: i32,
    /// A guest's notification wakes an I/O thread without going through its VMM.
    pub ioeventfd: bool,
    /// An I/O thread interrupts a guest the same way.
    pub irqfd: bool,
}

/// What was tried on this host.
#[derive(Clone, Debug)]
pub struct Probed {
    pub io_uring: Result<UringSupport, Refusal>,
    pub aio: Result<(), Refusal>,
    /// Bytes; `None`: without limit.
    pub memlock: Option<u64>,
    /// Open files; `None`: without limit.
    pub nofile: Option<u64>,
    pub memfd: Result<(), Refusal>,
    pub memfd_hugetlb: Result<(), Refusal>,
    pub shm: Result<Space, Refusal>,
    pub kvm: Result<KvmFacts, Refusal>,
    /// Of each of [`PROGRAMS`] that is installed, what it says of itself.
    pub programs: Vec<(&'static str, Result<String, String>)>,
}

impl Probed {
    /// Tries all.
    pub fn live() -> Probed {
        let memfd = |flags: MemfdFlags| {
            let made = rustix::fs::memfd_create("ferroblk-doctor", flags | MemfdFlags::CLOEXEC);
            made.map(drop).map_err(Refusal::from)
        };
        let programs = PROGRAMS
            .into_iter()
            .filter_map(|name| Some((name, version_of(&installed(name)?, PROGRAM_PATIENCE))));
        Probed {
            io_uring: io_engine::uring_support(DEPTH).map_err(Refusal::from),
            aio: IoEngine::new(EngineKind::Native, DEPTH).map(drop).map_err(Refusal::from),
            memlock: getrlimit(Resource::Memlock).current,
            nofile: getrlimit(Resource::Nofile).current,
            memfd: memfd(MemfdFlags::empty()),
            memfd_hugetlb: memfd(MemfdFlags::HUGETLB),
            shm: Space::at(Path::new("/dev/shm")).map_err(Refusal::from),
            kvm: ask_kvm(),
            programs: programs.collect(),
        }
    }
}

fn ask_kvm() -> Result<KvmFacts, Refusal> {
    let refusal =
        |errno: kvm_ioctls::Error| Refusal::from(io::Error::from_raw_os_error(errno.errno()));
    let kvm = Kvm::new().map_err(refusal)?;
    Ok(KvmFacts {
        api_version: kvm.get_api_version(),
        ioeventfd: kvm.check_extension(Cap::Ioeventfd),
        irqfd: kvm.check_extension(Cap::Irqfd),
    })
}

fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// The first line of what a program prints when asked for its version.
fn version_of(program: &Path, patience: Duration) -> Result<String, String> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| plain(&error))?;
    let Some(pipe) = child.stdout.take() else { return Err("it has no output".to_owned()) };
    let read = in_time(patience, move || {
        let mut bytes = Vec::new();
        pipe.take(64 << 10).read_to_end(&mut bytes).map(|_| bytes)
    });
    // It has said all by now, or is one that must not be waited for.
    let _ = child.kill();
    let _ = child.wait();
    let bytes = match read {
        Some(Ok(bytes)) => bytes,
        Some(Err(error)) => return Err(plain(&error)),
        None => return Err("it does not answer to --version".to_owned()),
    };
    let text = String::from_utf8_lossy(&bytes);
    match text.lines().next().map(str::trim).filter(|line| !line.is_empty()) {
        Some(line) => Ok(line.to_owned()),
        None => Err("it says nothing to --version".to_owned()),
    }
}

/// Does something on a thread of its own, and waits no longer than this. What takes longer is left to itself: whoever ends the
/// process ends it too, if the kernel lets go of it.
pub fn in_time<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, answer) = channel();
    #[expect(
        clippy::disallowed_methods,
        reason = "a file system or program that never answers must not hang us"
    )]
    std::thread::spawn(move || {
        // Nobody waits any more if it took too long.
        let _ = sender.send(work());
    });
    answer.recv_timeout(patience).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_answers_is_not_waited_for() {
        let (keep, never) = channel::<()>();
        assert_eq!(in_time(Duration::from_millis(20), move || never.recv().is_ok()), None);
        drop(keep);
        assert_eq!(in_time(Duration::from_secs(60), || 7), Some(7));
    }

    /// What a shell script says of its version.
    fn said(script: &str, patience: Duration) -> Result<String, String> {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        #[allow(clippy::disallowed_methods)]
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        version_of(&path, patience)
    }

    #[test]
    fn programs_are_asked_for_one_line_and_not_waited_for() {
        let long = Duration::from_secs(60);
        assert_eq!(
            said("echo \" version 7 $1\"; echo more", long).as_deref(),
            Ok("version 7 --version")
        );
        assert_eq!(said("exit 1", long).unwrap_err(), "it says nothing to --version");
        let hangs = said("echo first; exec sleep 600", Duration::from_millis(200));
        assert_eq!(hangs.unwrap_err(), "it does not answer to --version");
        assert!(version_of(Path::new("/nowhere"), long).is_err());
    }
}
