//! Builds the guest's root file system: a cpio archive in the "newc" format the kernel unpacks
//! (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! ```text
//! entry:  "070701"  13 numbers of 8 hexadecimal digits  name NUL  padding  data  padding     (padding to 4 bytes)
//!                   ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
//! ```
//!
//! Written here and not by cpio(1), so that device nodes need no root and nothing has to be staged in a directory.

use super::{GuestError, elf, files};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Initramfs {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Initramfs {
    /// An archive with a console and nothing else.
    pub fn new() -> Initramfs {
        let mut archive = Initramfs::default();
        archive.make_parents("dev/console");
        archive.entry("dev/console", CHARACTER_DEVICE, (5, 1), &[]);
        archive
    }

    /// Adds a directory.
    pub fn add_dir(&mut self, name: &str) {
        self.make_parents(&format!("{name}/x"));
    }

    /// Adds an executable file.
    pub fn add_data(&mut self, name: &str, data: &[u8]) {
        self.make_parents(name);
        self.entry(name, PROGRAM, (0, 0), data);
    }

    /// Adds a copy of a host file.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn add_file(&mut self, name: &str, from: &Path) -> Result<(), GuestError> {
        self.add_data(name, &read(from)?);
        Ok(())
    }

    /// Adds a host program as `bin/NAME`, with the shared libraries it needs at the paths they have on the host, each as it is on the host.
    ///
    /// # Errors
    ///
    /// It is not installed.
    pub fn add_program(&mut self, program: &str) -> Result<(), GuestError> {
        let path = find_program(program)
            .ok_or_else(|| GuestError::missing(format!("{program} is not installed")))?;
        self.add_file(&format!("bin/{program}"), &path)?;
        self.add_libraries(&path)
    }

    /// Adds the binary `from` as `name`, without what only a debugger reads, and its shared libraries.
    ///
    /// # Errors
    ///
    /// A file that cannot be read.
    pub fn add_binary(&mut self, name: &str, from: &Path) -> Result<(), GuestError> {
        let mut data = read(from)?;
        elf::strip(&mut data);
        self.add_data(name, &data);
        self.add_libraries(from)
    }

    fn add_libraries(&mut self, program: &Path) -> Result<(), GuestError> {
        for library in shared_libraries(program)? {
            self.add_file(library.trim_start_matches('/'), Path::new(&library))?;
        }
        Ok(())
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.names.clear();
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn make_parents(&mut self, name: &str) {
        for (at, _) in name.match_indices('/') {
            self.entry(&name[..at], DIRECTORY, (0, 0), &[]);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        if !self.names.insert(name.to_owned()) {
            return;
        }
        let len = |n: usize| u32::try_from(n).expect("the format's sizes have 32 bits");
        let ino = len(self.names.len());
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let (major, minor) = device;
        let name_len = len(name.len() + 1);
        let fields = [ino, mode, 0, 0, links, 0, len(data.len()), 0, 0, major, minor, name_len, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Where a program lies; the sbin directories are searched too, which users' paths leave out.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn read(path: &Path) -> Result<Vec<u8>, GuestError> {
    files::read(path).map_err(|e| GuestError::missing(format!("{}: {e}", path.display())))
}

/// What ldd(1) says a program needs; nothing for a static one.
fn shared_libraries(program: &Path) -> Result<Vec<String>, GuestError> {
    let output = Command::new("ldd").arg(program).output();
    let output = output.map_err(|e| GuestError::missing(format!("ldd: {e}")))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // "name => /path (address)" or, for the loader, "/path (address)".
    let words = text.lines().filter_map(|l| l.split_whitespace().find(|w| w.starts_with('/')));
    Ok(words.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_and_directories_come_once_before_what_they_hold() {
        let mut archive = Initramfs::new();
        archive.add_data("a/b/one", b"12345");
        archive.add_data("a/b/two", b"");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(text.matches("070701").count(), 2 + 4 + 1);
        let at = |name: &str| text.find(name).unwrap();
        assert!(at("a/b\0") < at("a/b/one\0") && at("a/b/one\0") < at("a/b/two\0"));
        let data = at("12345");
        assert_eq!(data % 4, 0, "data starts on a multiple of 4");
        assert_eq!(&bytes[data..data + 8], b"12345\0\0\0");
    }
}
