//! Reading /proc and /sys: small files, of which nothing is expected but that they may hold anything.
//!
//! All paths go through a root directory, so that tests read made-up trees. Nothing is ever written.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes read of one file at most. `/proc/cpuinfo` of a machine with a thousand CPUs is about as long.
const FILE_MAX: u64 = 4 << 20;
/// Entries read of one directory at most.
const NAMES_MAX: usize = 65536;

/// Why something could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unread {
    /// It is not there.
    Missing,
    /// It is there, and this is what was in the way.
    Refused(String),
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unread::Missing => f.write_str("there is no such file"),
            Unread::Refused(why) => f.write_str(why),
        }
    }
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Unread {
        let missing = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
        if missing.contains(&error.kind()) {
            return Unread::Missing;
        }
        Unread::Refused(plain(&error))
    }
}

/// An error's text without its number.
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// The files of a host.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// The host whose `/proc` and `/sys` are under `root`.
    pub fn at(root: &Path) -> Host {
        Host { root: root.canonicalize().unwrap_or_else(|_| root.to_owned()) }
    }

    fn real(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's content, without white space at the ends.
    pub fn text(&self, path: &str) -> Result<String, Unread> {
        let mut options = OpenOptions::new();
        // A pipe in a strange place must not be waited for.
        let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
        options.read(true).custom_flags(nonblock);
        #[expect(clippy::disallowed_methods, reason = "files of the kernel, not of a disk")]
        let file = options.open(self.real(path))?;
        let mut bytes = Vec::new();
        file.take(FILE_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// A file's content as a number.
    pub fn number(&self, path: &str) -> Result<i64, Unread> {
        let text = self.text(path)?;
        text.parse().map_err(|_| {
            let shown: String = text.chars().take(40).collect();
            Unread::Refused(format!("'{shown}' is not a number"))
        })
    }

    /// The names in a directory, in order; none if it is not there.
    pub fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.real(path)) else { return Vec::new() };
        let names =
            entries.take(NAMES_MAX).filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort_by_key(|name| (name.len(), name.clone()));
        names
    }

    /// Whether there is something at a path.
    pub fn exists(&self, path: &str) -> bool {
        self.real(path).exists()
    }

    /// Where a path leads, links followed: a path without links.
    pub fn resolve(&self, path: &str) -> Result<String, Unread> {
        let real = self.real(path).canonicalize()?;
        let below = real.strip_prefix(&self.root);
        let below =
            below.map_err(|_| Unread::Refused("the link leads out of the tree".to_owned()))?;
        Ok(format!("/{}", below.to_string_lossy()))
    }

    /// A value of `/proc/meminfo` in bytes.
    pub fn meminfo(&self, name: &str) -> Option<u64> {
        let text = self.text("/proc/meminfo").ok()?;
        let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    }

    /// A value of the first CPU in `/proc/cpuinfo`.
    pub fn cpuinfo(&self, name: &str) -> Option<String> {
        let text = self.text("/proc/cpuinfo").ok()?;
        text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    }

    /// CPUs that we may run on; `None` if the kernel does not tell.
    pub fn cpus(&self) -> Option<usize> {
        let status = self.text("/proc/self/status").ok()?;
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        count_list(list.trim())
    }

    /// NUMA nodes that are online; 1 if the kernel does not tell.
    pub fn numa_nodes(&self) -> usize {
        let online = self.text("/sys/devices/system/node/online").ok();
        online.and_then(|list| count_list(&list)).unwrap_or(1)
    }
}

/// How many numbers are in a list as the kernel prints them: `0-3,8`.
fn count_list(list: &str) -> Option<usize> {
    list.split(',').try_fold(0usize, |count, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// The word in brackets of a choice as the kernel prints it: `none [mq-deadline] bfq`. A choice of one may come without them.
pub fn chosen(text: &str) -> Option<&str> {
    let mut words = text.split_whitespace();
    let bracketed = |word: &'_ str| word.starts_with('[') && word.ends_with(']') && word.len() > 2;
    match words.clone().find(|word| bracketed(word)) {
        Some(word) => Some(&word[1..word.len() - 1]),
        None => words.next().filter(|_| words.next().is_none()),
    }
}

/// Bytes for people: `1.5 GiB`.
pub fn human(bytes: u64) -> String {
    let mut scaled = (bytes, 0u64);
    let mut unit = 0;
    while scaled.0 >= 1024 && unit < 5 {
        scaled = (scaled.0 / 1024, scaled.0 % 1024);
        unit += 1;
    }
    let name = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"][unit];
    match scaled.1 * 10 / 1024 {
        0 => format!("{} {name}", scaled.0),
        tenths => format!("{}.{tenths} {name}", scaled.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_the_kernel_are_counted() {
        for (list, count) in [("0", Some(1)), ("0-3", Some(4)), ("0-3,8", Some(5)), ("", None)] {
            assert_eq!(count_list(list), count, "{list}");
        }
        for odd in ["3-0", "a", "0-18446744073709551615", "0,,1", "-"] {
            assert_eq!(count_list(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_choice_is_what_stands_in_brackets_or_alone() {
        assert_eq!(chosen("none [mq-deadline] bfq"), Some("mq-deadline"));
        assert_eq!(chosen("none"), Some("none"));
        for odd in ["", "none bfq", "[]", "["] {
            assert_eq!(chosen(odd).filter(|word| *word != "[" && *word != "[]"), None, "{odd}");
        }
    }

    #[test]
    fn sizes_are_rounded_down() {
        let cases = [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (64 << 20, "64 MiB")];
        for (bytes, text) in cases {
            assert_eq!(human(bytes), text);
        }
        assert_eq!(human(u64::MAX), "16383.9 PiB");
    }
}
