//! Running the binary: once, to be refused, or as a server that is ended by a signal.

use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long anything may take that is over in no time. A test that meets this limit has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The size of images here, where nothing else matters.
pub const MIB: usize = 1 << 20;

/// Says why a test does not run. In continuous integration every test must run, so there it fails.
pub fn skip(why: &str) {
    println!("SKIPPED: {why}");
    assert!(std::env::var_os("CI").is_none(), "no test may be skipped here: {why}");
}

/// Whether a program is installed; if not, the test that asks is skipped.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    if !found {
        skip(&format!("{program} is not installed; `cargo xtask setup` installs it"));
    }
    found
}

/// What a look at a file can tell; of a regular one, its bytes too.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    kind: &'static str,
    inode: u64,
    mode: u32,
    len: u64,
    modified: (i64, i64),
    bytes: Option<Vec<u8>>,
}

/// A directory of a test's own.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> Scratch {
        let dir = tempfile::Builder::new().prefix("ferroblk-cli-").tempdir().unwrap();
        // Open to the users that tests run as.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Scratch(dir)
    }

    /// The same with an image `a.raw` of one MiB.
    pub fn with_image() -> Scratch {
        let scratch = Scratch::new();
        scratch.image("a.raw", MIB);
        scratch
    }

    pub fn dir(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes a file of that many bytes, none of which is zero.
    pub fn image(&self, name: &str, len: usize) -> PathBuf {
        let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8 + 1).collect();
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// `ferroblk` with these arguments, in this directory.
    pub fn ferroblk<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ferroblk"));
        command.args(args).current_dir(self.dir()).env_remove("FERROBLK_LOG");
        command
    }

    /// All that is in the directory.
    pub fn look(&self) -> BTreeMap<PathBuf, Seen> {
        let mut seen = BTreeMap::new();
        for entry in fs::read_dir(self.dir()).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let kind = match meta.file_type() {
                kind if kind.is_file() => "file",
                kind if kind.is_dir() => "directory",
                kind if kind.is_symlink() => "link",
                kind if kind.is_socket() => "socket",
                _ => "something else",
            };
            let what = Seen {
                kind,
                inode: meta.ino(),
                mode: meta.mode(),
                len: meta.len(),
                modified: (meta.mtime(), meta.mtime_nsec()),
                bytes: (kind == "file").then(|| fs::read(&path).unwrap()),
            };
            seen.insert(path, what);
        }
        seen
    }

    /// The names of the files in the directory, in order.
    pub fn names(&self) -> Vec<String> {
        let name = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        self.look().into_keys().map(name).collect()
    }

    /// Runs a command that must fail with this exit code and one line, and change nothing. Returns the line.
    pub fn refused(&self, mut command: Command, code: i32) -> String {
        let before = self.look();
        let shown = format!("{command:?}");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = output(command.spawn().unwrap(), &shown);
        let stderr = String::from_utf8(output.stderr).expect("a complaint is UTF-8");
        assert_eq!(output.status.code(), Some(code), "{shown}: {stderr}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{shown} prints nothing");
        let line = one_line(&stderr, &shown);
        assert!(line.starts_with("ferroblk: "), "{shown}: {line}");
        assert!(
            self.look() == before,
            "{shown} leaves the directory as it was: {:?}",
            self.names()
        );
        line.to_owned()
    }

    /// `ferroblk` with these arguments must fail with this exit code and say all of `words`.
    pub fn refuses(&self, args: &[&str], code: i32, words: &[&str]) {
        let line = self.refused(self.ferroblk(args), code);
        for word in words {
            assert!(line.contains(word), "'{word}' is not in: {line}");
        }
    }

    /// Starts `ferroblk serve` with these arguments and waits until it is ready.
    pub fn serve(&self, args: &[&str]) -> Server {
        let mut command = self.ferroblk(&["serve"]);
        command.args(args);
        Server::start(command, self.path("a.raw.sock"))
    }
}

/// The only line of a text, which must be one line and have nothing in it but what shows itself.
fn one_line<'a>(text: &'a str, shown: &str) -> &'a str {
    let line = text.strip_suffix('\n').unwrap_or_else(|| panic!("{shown}: no line: {text:?}"));
    assert!(!line.chars().any(char::is_control), "{shown}: more than a line: {text:?}");
    line
}

/// Waits for a child that must end by itself, and takes its (short) output.
pub fn output(mut child: Child, shown: &str) -> Output {
    let status = wait(&mut child, shown);
    let mut output = Output { status, stdout: Vec::new(), stderr: Vec::new() };
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_end(&mut output.stdout).unwrap();
    }
    if let Some(mut pipe) = child.stderr.take() {
        pipe.read_to_end(&mut output.stderr).unwrap();
    }
    output
}

fn wait(child: &mut Child, shown: &str) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{shown} does not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until something is so.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "it does not come about that {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A running `ferroblk serve`. Killed when dropped.
pub struct Server {
    child: Child,
    shown: String,
    /// What it has printed up to its ready line.
    pub printed: Vec<String>,
    log: File,
    /// Where it listens, if a test needs it.
    pub socket: PathBuf,
}

impl Server {
    /// Starts a command and waits for its ready line, of either kind.
    pub fn start(mut command: Command, socket: PathBuf) -> Server {
        let shown = format!("{command:?}");
        let log = tempfile::tempfile().unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.try_clone().unwrap());
        let mut child = command.spawn().unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        let mut server = Server { child, shown, printed: Vec::new(), log, socket };
        loop {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) => server.printed.push(line),
                Err(why) => panic!("{}: not ready ({why}): {}", server.shown, server.log()),
            }
            let last = server.printed.last().unwrap();
            if last.starts_with("ready: ") || last.starts_with('{') {
                return server;
            }
        }
    }

    /// What it has written to stderr so far.
    pub fn log(&self) -> String {
        // At an offset of our own: the child's is shared with this file.
        let len = self.log.metadata().unwrap().len();
        let mut bytes = vec![0; len as usize];
        std::os::unix::fs::FileExt::read_exact_at(&self.log, &mut bytes, 0).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// The lines of its log at this level.
    pub fn log_lines(&self, level: &str) -> Vec<String> {
        self.log()
            .lines()
            .filter(|l| l.trim_start().starts_with(level))
            .map(str::to_owned)
            .collect()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Sends SIGTERM and checks that the server ends well: see [`Server::ends_well`].
    pub fn stop(self) -> String {
        self.signal(Signal::TERM);
        self.ends_well()
    }

    /// Waits for its end, which must be with exit code 0 and without its socket. Returns its log.
    pub fn ends_well(mut self) -> String {
        let status = wait(&mut self.child, &self.shown);
        let log = self.log();
        assert_eq!(status.code(), Some(0), "{}: {log}", self.shown);
        assert!(!self.socket.exists(), "the socket is removed");
        log
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if the process is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a pipe as they come, read on to its end so that nobody finds it full.
pub fn lines_of(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            // The receiver is gone if nobody wants to know any more.
            let _ = sender.send(line);
        }
    });
    lines
}
