//! For tests: `qemu-img`, and files for it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};

/// Whether `qemu-img` is there. Where tests must not be left out (`CI` is set), it has to be.
pub fn is_there() -> bool {
    let there = Command::new("qemu-img").arg("--version").output().is_ok();
    if !there {
        assert!(std::env::var_os("CI").is_none(), "there is no qemu-img");
        eprintln!("SKIPPED: there is no qemu-img");
    }
    there
}

/// A file that goes with this value.
#[derive(Debug)]
pub struct TempFile(PathBuf);

impl TempFile {
    /// A name for a file that does not exist yet.
    pub fn new(extension: &str) -> TempFile {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ferroblk-block-{}-{n}.{extension}", std::process::id());
        TempFile(std::env::temp_dir().join(name))
    }

    /// A file with this content.
    #[expect(clippy::disallowed_methods, reason = "a test's own file")]
    pub fn with(extension: &str, bytes: &[u8]) -> TempFile {
        let file = TempFile::new(extension);
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    #[expect(clippy::disallowed_methods, reason = "a test's own file")]
    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Runs `qemu-img`; a word that is a path may be any word's end.
pub fn run(words: &[&str]) -> Output {
    Command::new("qemu-img").args(words).output().unwrap()
}

/// What `qemu-img check` says of an image.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    pub errors: u64,
    pub leaks: u64,
    pub allocated: u64,
    pub fragmented: u64,
}

/// `qemu-img check`.
pub fn check(format: &str, path: &Path) -> Verdict {
    let output = run(&["check", "--output=json", "-f", format, path.to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    let why = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("\"check-errors\": 0"), "{text}{why}");
    let number = |name: &str| {
        let line = text.lines().find(|line| line.contains(&format!("\"{name}\":")));
        let digits = line.and_then(|line| line.split(':').nth(1));
        digits.map_or(0, |digits| digits.trim().trim_end_matches(',').parse().unwrap())
    };
    Verdict {
        errors: number("corruptions"),
        leaks: number("leaks"),
        allocated: number("allocated-clusters"),
        fragmented: number("fragmented-clusters"),
    }
}

/// The disk in an image, as QEMU reads it.
pub fn content(format: &str, path: &Path) -> Vec<u8> {
    let raw = TempFile::new("raw");
    let (from, to) = (path.to_str().unwrap(), raw.path().to_str().unwrap());
    let output = run(&["convert", "-f", format, "-O", "raw", from, to]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    raw.bytes()
}
