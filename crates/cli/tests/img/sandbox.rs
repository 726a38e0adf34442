//! Directories with images, and the tools run in them.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Says why a test does not run. In continuous integration every test must run, so there it fails.
pub fn skip(why: &str) {
    println!("SKIPPED: {why}");
    assert!(std::env::var_os("CI").is_none(), "no test may be skipped here: {why}");
}

/// Whether QEMU's tools are installed, in the version whose words are the measure; if not, the test that asks is skipped.
pub fn has_qemu() -> bool {
    let said = Command::new("qemu-img").arg("--version").stdin(Stdio::null()).output();
    match said {
        Ok(said) if String::from_utf8_lossy(&said.stdout).contains("version 10.") => true,
        Ok(_) => {
            skip("qemu-img is not of version 10");
            false
        }
        Err(_) => {
            skip("qemu-img is not installed; `cargo xtask setup` installs it");
            false
        }
    }
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A directory of a test's own.
pub struct Sandbox {
    dir: tempfile::TempDir,
}

impl Sandbox {
    pub fn new() -> Sandbox {
        let dir = tempfile::Builder::new().prefix("ferroblk-img-").tempdir().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        symlink(env!("CARGO_BIN_EXE_ferroblk"), dir.path().join("bin/qemu-img")).unwrap();
        fs::create_dir(dir.path().join("files")).unwrap();
        Sandbox { dir }
    }

    /// A copy of the files that a command line names, and of those that they may stand on.
    pub fn copy_for(&self, args: &str) -> Sandbox {
        let names_one = |names: &[&str]| names.iter().any(|name| args.contains(name));
        let has_chain = names_one(&["o.qed", "p.qed", "sub", "o.qcow2", "p.qcow2", "k.qcow2"]);
        let below = ["a.raw", "o.qed", "o.qcow2", "o.luks.qcow2"];
        let is_needed = |name: &String| {
            args.contains(name.as_str())
                || has_chain && (below.contains(&name.as_str()) || name.starts_with("sub/"))
                || name.strip_suffix(".data").is_some_and(|image| args.contains(image))
        };
        let copy = Sandbox::new();
        let names: Vec<_> = self.names().into_iter().filter(is_needed).collect();
        if !names.is_empty() {
            let mut command = Command::new("cp");
            command.args(["-a", "--sparse=always", "--parents"]).args(names).arg(copy.dir());
            assert!(command.current_dir(self.dir()).status().unwrap().success());
        }
        copy
    }

    /// Where the images are.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().join("files")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Writes bytes into a file.
    pub fn poke(&self, name: &str, at: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(self.path(name)).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    /// A number of 8 bytes in a file.
    pub fn peek(&self, name: &str, at: u64) -> u64 {
        let mut bytes = [0; 8];
        File::open(self.path(name)).unwrap().read_exact_at(&mut bytes, at).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Makes a file that is sparse but for `data`.
    pub fn raw(&self, name: &str, bytes: u64, data: &[(u64, &[u8])]) {
        File::create(self.path(name)).unwrap().set_len(bytes).unwrap();
        data.iter().for_each(|(at, data)| self.poke(name, *at, data));
    }

    /// Runs a shell script, in which our binary is `$IMG`, with mounts of its own; `None` where that is not allowed.
    pub fn with_mounts(&self, script: &str) -> Option<Ended> {
        let unshare = || {
            let mut command = Command::new("unshare");
            command.args(["-rm", "sh", "-c"]).env("IMG", self.dir.path().join("bin/qemu-img"));
            command
        };
        let is_allowed = self.run_command(unshare().arg("mount -t tmpfs none .")).code == 0;
        if !is_allowed {
            skip("no mounts in a user namespace here");
        }
        is_allowed.then(|| self.run_command(unshare().arg(script)))
    }

    /// Runs a shell script, in which our binary is `$IMG`, in a new XFS whose files can share blocks; `None` where that is not allowed.
    pub fn on_xfs(&self, script: &str) -> Option<Ended> {
        let mount = "set -e
            truncate -s 2G disk.xfs; mkfs.xfs -q -f -m reflink=1 disk.xfs
            mkdir -p xfs; mount -o loop disk.xfs xfs; cd xfs";
        let unshare = |script: &str| {
            let mut command = Command::new("unshare");
            command.args(["-m", "sh", "-c", script]);
            command.env("IMG", self.dir.path().join("bin/qemu-img"));
            self.run_command(&mut command)
        };
        let is_allowed = unshare(mount).code == 0;
        if !is_allowed {
            skip("no XFS on a loop device here: it takes root, and mkfs.xfs");
        }
        is_allowed.then(|| unshare(&format!("{mount}\n{script}")))
    }

    /// Our binary as `qemu-img`.
    pub fn ours(&self, args: &str) -> Ended {
        self.run(Command::new(self.dir.path().join("bin/qemu-img")), args)
    }

    /// Our binary as itself: `ferroblk img`.
    pub fn ferroblk(&self, args: &str) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ferroblk"));
        command.arg("img");
        self.run(command, args)
    }

    /// QEMU's tool.
    pub fn qemu(&self, args: &str) -> Ended {
        self.run(Command::new("qemu-img"), args)
    }

    /// QEMU's tool, which must succeed; gives what it prints.
    pub fn qemu_does(&self, args: &str) -> String {
        let ended = self.qemu(args);
        assert_eq!(ended.code, 0, "qemu-img {args}: {ended:?}");
        ended.stdout
    }

    /// Our tool, which must succeed; gives what it prints.
    pub fn ours_does(&self, args: &str) -> String {
        let ended = self.ours(args);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "our qemu-img {args}: {ended:?}");
        ended.stdout
    }

    /// Commands for qemu-io on an image.
    pub fn qemu_io(&self, format: &str, name: &str, commands: &[&str]) {
        let mut command = Command::new("qemu-io");
        command.args(["-f", format]);
        commands.iter().for_each(|one| {
            command.args(["-c", one]);
        });
        let ended = self.run(command, name);
        assert!(ended.code == 0 && !ended.stdout.contains("failed"), "{commands:?}: {ended:?}");
    }

    /// The parts of the disk that a bitmap says were written, as QEMU reads it: where, and how many bytes.
    pub fn dirty(&self, name: &str, bitmap: &str) -> Vec<(u64, u64)> {
        let mut server = Command::new("qemu-nbd");
        // The one before may still be about to end.
        let socket = self.path(&format!("{name}.{bitmap}.sock"));
        server.args(["-f", "qcow2", "-r", "-B", bitmap, "-k"]).arg(&socket).arg(name);
        server.arg("--fork");
        assert_eq!(self.run_command(&mut server).code, 0, "{name} {bitmap}");
        let options = format!(
            "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}",
            socket.display()
        );
        let mapped = self.qemu_does(&format!("map --output json --image-opts {options}"));
        let runs: Vec<serde_json::Value> = serde_json::from_str(&mapped).unwrap();
        // What is dirty is shown as what has no data.
        let dirty = runs.iter().filter(|run| run["data"] == false);
        dirty.map(|run| (run["start"].as_u64().unwrap(), run["length"].as_u64().unwrap())).collect()
    }

    /// As [`Sandbox::qemu_io`], and then it is killed: the image is not closed.
    pub fn qemu_io_killed(&self, name: &str, command: &str) {
        let mut killed = Command::new("qemu-io");
        killed.args(["-f", "qcow2", "-c", command, "-c", "flush", "-c", "sigraise 9", name]);
        killed.current_dir(self.dir()).stdin(Stdio::null());
        killed.stdout(Stdio::null()).stderr(Stdio::null());
        assert_eq!(killed.status().unwrap().code(), None, "a signal ends it");
    }

    /// Runs a program in the directory; arguments are separated by single spaces.
    fn run(&self, mut command: Command, args: &str) -> Ended {
        command.args(args.split(' ').filter(|arg| !arg.is_empty()));
        self.run_command(&mut command)
    }

    pub fn run_command(&self, command: &mut Command) -> Ended {
        command.current_dir(self.dir()).stdin(Stdio::null()).env_remove("FERROBLK_LOG");
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = output.status.code();
        Ended {
            code: code.unwrap_or_else(|| panic!("{command:?}: {}: {stderr}", output.status)),
            stdout: String::from_utf8(output.stdout).expect("what is printed is UTF-8"),
            stderr,
        }
    }

    /// The names of all files, in order.
    pub fn names(&self) -> Vec<String> {
        fn walk(dir: &Path, prefix: &str, names: &mut Vec<String>) {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
                if entry.file_type().unwrap().is_dir() {
                    walk(&entry.path(), &format!("{name}/"), names);
                } else {
                    names.push(name);
                }
            }
        }
        let mut names = Vec::new();
        walk(&self.dir(), "", &mut names);
        names.sort();
        names
    }
}

/// The format that a file's name stands for.
pub fn format_of(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((_, "qed")) => "qed",
        Some((_, "qcow2")) => "qcow2",
        _ => "raw",
    }
}

/// A complaint must be one line, begin with the program's name, and have nothing in it but what shows itself.
pub fn assert_one_line(stderr: &str, program: &str, shown: &str) {
    let line = stderr.strip_suffix('\n').unwrap_or_else(|| panic!("{shown}: no line: {stderr:?}"));
    assert!(!line.chars().any(char::is_control), "{shown}: more than a line: {stderr:?}");
    assert!(line.starts_with(&format!("{program}: ")), "{shown}: {line}");
}
