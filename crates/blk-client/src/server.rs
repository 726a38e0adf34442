//! Servers to connect to, as child processes: ferroblk, and qemu-storage-daemon to compare with.
//!
//! A [`Server`] that is dropped is killed; one that is stopped gets SIGTERM and must end by itself.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use crate::Error;

/// How long a server may take to become ready, or to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts `ferroblk serve` on a vhost-user-blk socket and waits for its ready line.
    pub fn ferroblk(
        binary: &Path,
        image: &Path,
        socket: &Path,
        args: &[&str],
    ) -> Result<Server, Error> {
        let mut command = Command::new(binary);
        command.arg("serve").arg(image).arg("--vhost-user-blk").arg(socket).args(args);
        if std::env::var_os("FERROBLK_LOG").is_none() {
            // Every client that comes and goes would be a line between tables and test results.
            command.env("FERROBLK_LOG", "warn");
        }
        let mut child = spawn(command.stdout(Stdio::piped()), binary)?;
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let server = Server { child, socket: socket.to_owned() };
        let (sender, ready) = mpsc::channel();
        // Reads on after the ready line, so that the server never finds the pipe full.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line.starts_with("ready:") {
                    // The receiver is gone if nobody waits any more: then nobody needs to know.
                    let _ = sender.send(());
                }
            }
        });
        match ready.recv_timeout(PATIENCE) {
            Ok(()) => Ok(server),
            Err(e) => Err(Error::new(format_args!("no ready line from {command:?}"), e)),
        }
    }

    /// Starts qemu-storage-daemon with one iothread and io_uring, in a cache mode named as ferroblk names it. An image whose name ends in `.qed` or
    /// `.qcow2` is one, any other is raw.
    pub fn qemu_storage_daemon(
        image: &Path,
        socket: &Path,
        cache: &str,
        queues: usize,
    ) -> Result<Server, Error> {
        let on_off = |on| if on { "on" } else { "off" };
        let direct = on_off(matches!(cache, "none" | "directsync"));
        let no_flush = on_off(cache == "unsafe");
        let pid_file = socket.with_extension("pid");
        let _ = std::fs::remove_file(&pid_file);
        let extension = image.extension().and_then(|e| e.to_str());
        let format = extension.filter(|e| matches!(*e, "qed" | "qcow2")).unwrap_or("raw");
        let (image, at) = (image.display(), socket.display());
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--blockdev".to_owned(), format!("driver=file,node-name=file,filename={image},aio=io_uring,discard=unmap,cache.direct={direct},cache.no-flush={no_flush}")]);
        command.args([
            "--blockdev".to_owned(),
            format!("driver={format},node-name=disk,file=file,discard=unmap"),
        ]);
        command.args(["--object", "iothread,id=io0"]);
        command.args(["--export".to_owned(), format!("vhost-user-blk,id=export,node-name=disk,iothread=io0,writable=on,num-queues={queues},addr.type=unix,addr.path={at}")]);
        command.arg("--pidfile").arg(&pid_file);
        let child = spawn(&mut command, Path::new("qemu-storage-daemon"))?;
        let mut server = Server { child, socket: socket.to_owned() };
        // The PID file is the last thing it makes before it serves. It takes the file away itself when it ends.
        let start = Instant::now();
        while !pid_file.exists() {
            let ended = server.child.try_wait().ok().flatten();
            if ended.is_some() || start.elapsed() > PATIENCE {
                return Err(Error(format!("qemu-storage-daemon does not come up: {ended:?}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Kills the server, which cannot do anything about it.
    pub fn kill(self) {
        drop(self);
    }

    /// Asks the server to end with SIGTERM and waits for it.
    pub fn stop(mut self) -> Result<(), Error> {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a pid");
        // SAFETY: no memory is involved; the child has not been waited for, so the pid is still its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let start = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(Error::new("the server ended", explain(status))),
                Err(e) => return Err(Error::new("waiting for the server", e)),
                Ok(None) if start.elapsed() > PATIENCE => {
                    return Err(Error("the server does not end after SIGTERM".to_owned()));
                }
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if the process is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What a killed server leaves behind.
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_file(self.socket.with_extension("pid"));
    }
}

fn spawn(command: &mut Command, program: &Path) -> Result<Child, Error> {
    let child = command.stdin(Stdio::null()).spawn();
    child.map_err(|e| Error::new(format_args!("starting {}", program.display()), e))
}

fn explain(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("by signal {signal}"),
        None => format!("with {status}"),
    }
}

/// The ferroblk binary to test: `$FERROBLK_BIN`, else the workspace's own in the caller's profile, built if needed.
pub fn ferroblk_binary() -> Result<PathBuf, Error> {
    if let Some(path) = std::env::var_os("FERROBLK_BIN") {
        return Ok(path.into());
    }
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let binary = BINARY.get_or_init(|| {
        // Once per process: a test works with one binary, whatever happens to the sources meanwhile.
        build("ferroblk", !cfg!(debug_assertions)).map_err(|e| e.0)
    });
    binary.clone().map_err(Error)
}

/// Builds a package of this workspace and returns the path of its binary, which has the same name.
pub fn build(package: &str, release: bool) -> Result<PathBuf, Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", package, "--message-format=json"]);
    command.args(release.then_some("--release")).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.map_err(|e| Error::new("starting cargo", e))?;
    if !output.status.success() {
        return Err(Error::new(format_args!("building {package}"), output.status));
    }
    // One JSON object per line; the artifact that is a binary names its file.
    let text = String::from_utf8_lossy(&output.stdout);
    let mut artifacts = text.lines().filter_map(|l| serde_json::from_str(l).ok());
    let binary = artifacts.find_map(|message: serde_json::Value| {
        let name = message["target"]["name"].as_str()?;
        let path = message["executable"].as_str()?;
        (name == package).then(|| PathBuf::from(path))
    });
    binary.ok_or_else(|| Error(format!("package {package} makes no binary")))
}
