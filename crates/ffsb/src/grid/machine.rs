//! The machine in words, for the report.

use std::fs::read_to_string;
use std::path::Path;

/// (what, value), as far as the host says it.
pub(crate) fn describe(dir: &Path) -> Vec<(String, String)> {
    let mut facts = Vec::new();
    let mut add = |what: &str, value: Option<String>| {
        facts.extend(value.map(|value| (what.to_owned(), value)));
    };
    let uname = rustix::system::uname();
    let part = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let kernel = [part(uname.sysname()), part(uname.release()), part(uname.machine())];
    add("kernel", Some(kernel.join(" ")));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let model = read_to_string("/proc/cpuinfo").ok().and_then(|text| model(&text));
    let model = model.unwrap_or_else(|| "CPU".to_owned());
    add("processors", Some(format!("{cpus} of {model}")));
    add("memory", read_to_string("/proc/meminfo").ok().and_then(|text| memory(&text)));
    let mounts = read_to_string("/proc/self/mountinfo").unwrap_or_default();
    add("file system of the images", mount(&mounts, dir));
    facts
}

fn model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory(meminfo: &str) -> Option<String> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(format!("{} MiB", kib >> 10))
}

/// Kind, device and mount point of the file system that holds a directory.
fn mount(mountinfo: &str, dir: &Path) -> Option<String> {
    let of_line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?.to_owned();
        let mut right = right.split(' ');
        Some((point, right.next()?.to_owned(), right.next()?.to_owned()))
    };
    let holding =
        mountinfo.lines().filter_map(of_line).filter(|(point, ..)| dir.starts_with(point));
    // Of mounts at one point the last lies on top.
    let (point, kind, source) = holding.max_by_key(|(point, ..)| point.len())?;
    Some(format!("{kind} from {source} on {point}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_mount_on_top_is_named() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/vda rw\n2 1 0:5 / /srv rw shared:1 - xfs /dev/vdb rw\n\
                      3 2 0:6 / /srv rw - tmpfs none rw\n";
        assert_eq!(mount(mounts, Path::new("/srv/a")).unwrap(), "tmpfs from none on /srv");
        assert_eq!(mount(mounts, Path::new("/srvx")).unwrap(), "ext4 from /dev/vda on /");
        assert_eq!(memory("MemTotal:  2048 kB\n").unwrap(), "2 MiB");
        assert_eq!(model("x: y\nmodel name\t: A CPU\n").unwrap(), "A CPU");
        assert!(describe(Path::new("/")).len() >= 2);
    }
}
