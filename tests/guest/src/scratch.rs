//! A directory for one test, gone afterwards.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The directory, on the build directory's file system: a real disk, where O_DIRECT works.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    name: String,
}

impl Scratch {
    /// Makes an empty directory that no other test uses.
    pub fn new() -> std::io::Result<Scratch> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("fb-{}-{count}", std::process::id());
        let dir = crate::guest_dir().join("scratch").join(&name);
        std::fs::create_dir_all(&dir)?;
        Ok(Scratch { dir, name })
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A path for a socket: short, because a socket's address holds 107 bytes only.
    pub fn socket(&self, name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("{}-{name}", self.name))
    }

    /// A sparse file of `bytes` bytes.
    pub fn image(&self, name: &str, bytes: u64) -> std::io::Result<PathBuf> {
        let path = self.path(name);
        std::fs::File::create(&path)?.set_len(bytes)?;
        Ok(path)
    }

    /// Whether files here can be opened with O_DIRECT.
    pub fn has_direct_io(&self) -> bool {
        let probe = self.path("direct-io-probe");
        let made = std::fs::write(&probe, [0; 4096]).is_ok();
        let opened = made && open_direct(&probe);
        // Left behind, it goes with the directory.
        let _ = std::fs::remove_file(&probe);
        opened
    }
}

fn open_direct(path: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    /// Linux's O_DIRECT on x86-64 and most others.
    const O_DIRECT: i32 = 0o40000;
    std::fs::OpenOptions::new().read(true).custom_flags(O_DIRECT).open(path).is_ok()
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("left for inspection: {}", self.dir.display());
            return;
        }
        // The next `cargo clean` takes what cannot be removed now.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
