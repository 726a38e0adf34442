//! The servers that are measured, as child processes.
//!
//! ```text
//!  ServerSpec --check--> --start--> Server: socket, pid, CPU time --stop--> SIGTERM, in the end SIGKILL
//!                                                                 --drop--> SIGKILL
//! ```
//!
//! A server makes its socket in a directory of the caller's, and what is left of it there is removed when it ends. It runs with one
//! I/O thread. A signal that the terminal sends to all (Ctrl-C) reaches it too.

pub(crate) mod command;
mod cpu;
mod image;
pub(crate) mod output;

pub use cpu::{host_cpu_seconds, process_cpu_seconds};
pub use image::create_image;

use crate::clock;
use block::{CacheMode, Format};
use io_engine::EngineKind;
use output::Output;
use rustix::process::{Pid, Signal, kill_process};
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long a server may take to become ready, or to end after SIGTERM: it may have a large cache to write out.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at something that comes without a signal.
const PAUSE: Duration = Duration::from_millis(2);
/// Longest path of a Unix socket, in bytes.
const SOCKET_PATH_MAX: usize = 107;

/// Who serves a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServerKind {
    /// `ferroblk serve`
    Ferroblk,
    /// `qemu-storage-daemon`
    QemuStorageDaemon,
}

impl ServerKind {
    /// Every kind.
    pub const ALL: [ServerKind; 2] = [ServerKind::Ferroblk, ServerKind::QemuStorageDaemon];
}

impl ServerKind {
    /// Whether its program is there. Ferroblk always is.
    ///
    /// # Errors
    ///
    /// It is not, and in which package it is.
    pub fn check_installed(self) -> Result<(), ServerError> {
        let program = self.to_string();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).any(|dir| dir.join(&program).is_file());
        match self {
            ServerKind::QemuStorageDaemon if !found => {
                Err(ServerError(not_installed(&Command::new(&program), &program)))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for ServerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ServerKind::Ferroblk => "ferroblk",
            ServerKind::QemuStorageDaemon => "qemu-storage-daemon",
        })
    }
}

impl FromStr for ServerKind {
    type Err = String;

    fn from_str(name: &str) -> Result<ServerKind, String> {
        let found = ServerKind::ALL.into_iter().find(|kind| kind.to_string() == name);
        found.ok_or_else(|| "expected one of ferroblk, qemu-storage-daemon".to_owned())
    }
}

/// What is to be served, by whom and how.
#[derive(Clone, Debug)]
pub struct ServerSpec {
    /// Who.
    pub kind: ServerKind,
    /// The binary; `None`: for ferroblk the one that is running now, otherwise what `PATH` finds.
    pub program: Option<PathBuf>,
    /// The image: a file or a block device.
    pub image: PathBuf,
    /// Its format.
    pub format: Format,
    /// Cache mode, which means the same for every kind of server.
    pub cache: CacheMode,
    /// How the server does I/O.
    pub aio: EngineKind,
    /// Request queues.
    pub queues: u16,
    /// The disk cannot be written.
    pub read_only: bool,
    /// More arguments for the command line, at its end.
    pub extra_args: Vec<String>,
}

impl ServerSpec {
    /// Ferroblk's or another server's own defaults for a writable image: no host cache, io_uring, one queue.
    pub fn new(kind: ServerKind, image: impl Into<PathBuf>, format: Format) -> ServerSpec {
        ServerSpec {
            kind,
            program: None,
            image: image.into(),
            format,
            cache: CacheMode::None,
            aio: EngineKind::IoUring,
            queues: 1,
            read_only: false,
            extra_args: Vec::new(),
        }
    }

    /// Whether there can be such a server: what a grid leaves out, before anything is started.
    ///
    /// # Errors
    ///
    /// A combination that no server has. Whether the file system knows O_DIRECT and the kernel allows io_uring shows at the start.
    pub fn check(&self) -> Result<(), ServerError> {
        if self.aio == EngineKind::Native && !self.cache.is_direct() {
            return Err(ServerError(format!(
                "{} with aio=native and cache={}: Linux AIO waits for the page cache, so it is for cache none and directsync only",
                self.kind, self.cache
            )));
        }
        match self.queues {
            0 => Err(ServerError(format!("{} without a queue", self.kind))),
            _ => Ok(()),
        }
    }

    fn program(&self) -> Result<PathBuf, ServerError> {
        match (&self.program, self.kind) {
            (Some(program), _) => Ok(program.clone()),
            (None, ServerKind::Ferroblk) => std::env::current_exe()
                .map_err(|error| ServerError(format!("finding the running binary: {error}"))),
            (None, ServerKind::QemuStorageDaemon) => Ok("qemu-storage-daemon".into()),
        }
    }
}

/// Why something about a server did not work, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError(String);

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ServerError {}

/// A running server. Killed when dropped.
#[derive(Debug)]
pub struct Server {
    kind: ServerKind,
    child: Child,
    output: Output,
    socket: PathBuf,
    /// What it makes when it is ready, if it says so in that way.
    pid_file: Option<PathBuf>,
}

impl Server {
    /// Starts a server with its socket in `dir`, and waits until clients may connect.
    ///
    /// # Errors
    ///
    /// [`ServerSpec::check`]; the program is not installed; it ended, with the last line it said; it is not ready within 30 s.
    /// Nothing of it is left then.
    pub fn start(spec: &ServerSpec, dir: &Path) -> Result<Server, ServerError> {
        spec.check()?;
        let socket = socket_path(dir)?;
        let (mut command, pid_file) = match spec.kind {
            ServerKind::Ferroblk => (command::ferroblk(spec, &socket)?, None),
            ServerKind::QemuStorageDaemon => {
                let pid_file = socket.with_extension("pid");
                (command::qemu_storage_daemon(spec, &socket, &pid_file)?, Some(pid_file))
            }
        };
        let program = spec.kind.to_string();
        let (child, output) = spawn(&mut command, &program)?;
        let mut server = Server { kind: spec.kind, child, output, socket, pid_file };
        server.await_ready()?;
        Ok(server)
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU seconds that the whole process has used so far; see [`process_cpu_seconds`].
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn cpu_seconds(&self) -> Result<f64, ServerError> {
        process_cpu_seconds(self.pid())
            .map_err(|error| ServerError(format!("the CPU time of {}: {error}", self.kind)))
    }

    /// Has ferroblk write its trace and say its line of statistics (SIGUSR1), and waits until it has.
    ///
    /// # Errors
    ///
    /// It says nothing within 30 s, or has ended. So do servers of another kind, which a SIGUSR1 may end.
    pub fn say_statistics(&self) -> Result<(), ServerError> {
        let before = self.output.lines();
        let asked = kill_process(Pid::from_child(&self.child), Signal::USR1);
        asked.map_err(|error| ServerError(format!("asking {}: {error}", self.kind)))?;
        let start = clock::now();
        while self.output.lines() == before {
            if start.elapsed() > PATIENCE || self.output.has_ended() {
                return Err(ServerError(format!("{} says no statistics", self.kind)));
            }
            clock::sleep(PAUSE);
        }
        Ok(())
    }

    /// Has it end by SIGTERM: it drains, writes out what it holds and closes the image.
    ///
    /// # Errors
    ///
    /// It ended in another way than it should, with the last line it said; or it had to be killed after 30 s.
    pub fn stop(mut self) -> Result<(), ServerError> {
        let pid = Pid::from_child(&self.child);
        // Fails only if it has ended, which the wait finds out.
        let _ = kill_process(pid, Signal::TERM);
        match self.wait(PATIENCE)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.ended(status)),
            None => Err(ServerError(format!(
                "{} did not end within {PATIENCE:?} of SIGTERM and was killed",
                self.kind
            ))),
        }
    }

    /// Kills it, which it cannot do anything about: data that it held is lost.
    pub fn kill(self) {
        drop(self);
    }

    fn await_ready(&mut self) -> Result<(), ServerError> {
        let start = clock::now();
        loop {
            // The PID file is the last thing that qemu-storage-daemon makes before it serves.
            let ready = match &self.pid_file {
                Some(pid_file) => pid_file.exists(),
                None => self.output.is_ready(),
            };
            if ready {
                return Ok(());
            }
            if let Some(status) = self.wait(Duration::ZERO)? {
                return Err(self.ended(status));
            }
            if start.elapsed() > PATIENCE {
                return Err(ServerError(format!(
                    "{} is not ready after {PATIENCE:?}{}",
                    self.kind,
                    self.output.last_words()
                )));
            }
            clock::sleep(PAUSE);
        }
    }

    /// Waits for its end; `None` after `limit`.
    fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>, ServerError> {
        let start = clock::now();
        loop {
            let ended = self.child.try_wait();
            let ended = ended
                .map_err(|error| ServerError(format!("waiting for {}: {error}", self.kind)))?;
            if ended.is_some() || start.elapsed() >= limit {
                return Ok(ended);
            }
            clock::sleep(PAUSE);
        }
    }

    fn ended(&mut self, status: ExitStatus) -> ServerError {
        let how = explain(status);
        ServerError(format!("{} ended {how}{}", self.kind, self.output.final_words()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if the process has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What a killed server leaves behind.
        let _ = std::fs::remove_file(&self.socket);
        if let Some(pid_file) = &self.pid_file {
            let _ = std::fs::remove_file(pid_file);
        }
    }
}

/// A path in `dir` that nothing has yet.
fn socket_path(dir: &Path) -> Result<PathBuf, ServerError> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let socket = dir.join(format!("disk-{}-{count}.sock", std::process::id()));
    match socket.as_os_str().len() {
        0..=SOCKET_PATH_MAX => Ok(socket),
        len => Err(ServerError(format!(
            "{}: {len} bytes, but the path of a socket has at most {SOCKET_PATH_MAX}",
            socket.display()
        ))),
    }
}

/// Starts a program and collects what it says.
fn spawn(command: &mut Command, name: &str) -> Result<(Child, Output), ServerError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => ServerError(not_installed(command, name)),
        _ => ServerError(format!("starting {name}: {error}")),
    })?;
    let output = Output::collect(&mut child);
    Ok((child, output))
}

fn not_installed(command: &Command, name: &str) -> String {
    let program = Path::new(command.get_program()).display();
    match name {
        "qemu-storage-daemon" => format!(
            "{program} is not installed: package qemu-utils of Debian and Ubuntu, qemu-img of Fedora, or QEMU itself, has it"
        ),
        _ => format!("{name}: there is no program {program}"),
    }
}

fn explain(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("with exit code {code}"),
        (None, Some(signal)) => format!("by signal {signal}"),
        (None, None) => format!("with {status}"),
    }
}
