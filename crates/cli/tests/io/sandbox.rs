//! Directories with images, and the tools run in them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Says why a test does not run. In continuous integration every test must run, so there it fails.
pub fn skip(why: &str) {
    println!("SKIPPED: {why}");
    assert!(std::env::var_os("CI").is_none(), "no test may be skipped here: {why}");
}

/// Whether QEMU's tools are installed, in the version whose words are the measure; if not, the test that asks is skipped.
pub fn has_qemu() -> bool {
    let said = Command::new("qemu-io").arg("--version").stdin(Stdio::null()).output();
    let is_it =
        said.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains("version 10."));
    if !is_it {
        skip("qemu-io of version 10 is not installed; `cargo xtask setup` installs it");
    }
    is_it
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The exit code; of one that was killed 128 and the signal's number, as a shell has it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Whose tool it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    Qemu,
    /// Our binary under the name `qemu-io`.
    Ours,
    /// Our binary under its own name.
    Ferroblk,
}

/// A directory of a test's own, with a link to our binary beside it.
pub struct Sandbox {
    dir: tempfile::TempDir,
}

impl Sandbox {
    pub fn new() -> Sandbox {
        let dir = tempfile::Builder::new().prefix("ferroblk-io-").tempdir().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        symlink(env!("CARGO_BIN_EXE_ferroblk"), dir.path().join("bin/qemu-io")).unwrap();
        fs::create_dir(dir.path().join("files")).unwrap();
        Sandbox { dir }
    }

    /// All files once more.
    pub fn copy(&self) -> Sandbox {
        self.copy_for(&[])
    }

    /// A copy of the files that a command line names, and of those that any may use.
    pub fn copy_for(&self, args: &[&str]) -> Sandbox {
        let copy = Sandbox::new();
        for name in self.names() {
            let is_shared = ["base.raw", "pattern", "empty"].contains(&name.as_str());
            if args.is_empty() || is_shared || args.iter().any(|arg| arg.contains(&name)) {
                fs::copy(self.path(&name), copy.path(&name)).unwrap();
            }
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

    /// `qemu-img`, which must succeed unless it says that images differ. Arguments are separated by single spaces.
    pub fn img(&self, args: &str) -> Ended {
        let mut command = Command::new("qemu-img");
        command.args(args.split(' '));
        self.end(&mut command, "")
    }

    /// As [`Sandbox::img`], and it must succeed.
    pub fn img_does(&self, args: &str) {
        let ended = self.img(args);
        assert_eq!(ended.code, 0, "qemu-img {args}: {ended:?}");
    }

    /// Runs a tool with nothing on its standard input.
    pub fn run(&self, tool: Tool, args: &[&str]) -> Ended {
        self.run_with(tool, args, "")
    }

    /// Runs a tool with `input` on its standard input.
    pub fn run_with(&self, tool: Tool, args: &[&str], input: &str) -> Ended {
        let mut command = self.command(tool);
        self.end(command.args(args), input)
    }

    pub fn command(&self, tool: Tool) -> Command {
        let mut command = match tool {
            Tool::Qemu => Command::new("qemu-io"),
            Tool::Ours => Command::new(self.dir.path().join("bin/qemu-io")),
            Tool::Ferroblk => Command::new(env!("CARGO_BIN_EXE_ferroblk")),
        };
        if tool == Tool::Ferroblk {
            command.arg("io");
        }
        // Snapshots are kept where they can be seen to be gone.
        command.current_dir(self.dir()).env_remove("FERROBLK_LOG").env("TMPDIR", self.dir());
        command
    }

    fn end(&self, command: &mut Command, input: &str) -> Ended {
        command.current_dir(self.dir()).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It may end before it has read all.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let killed = || 128 + output.status.signal().unwrap();
        Ended {
            code: output.status.code().unwrap_or_else(killed),
            stdout: String::from_utf8(output.stdout).expect("what is printed is UTF-8"),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The names of all files, in order.
    pub fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir()).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}
