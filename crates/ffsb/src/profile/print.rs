//! A profile as text that [`Profile::parse`] reads as the same profile, and a person can edit.

use super::value::{size_text, text_form};
use super::{FileSystem, Profile, Stats, ThreadGroup};
use std::fmt::{self, Display, Formatter};

/// Behind a key that FFSB would refuse.
const OURS: &str = "  # not in FFSB";

/// The form of FFSB 5 and 6, without the two deprecated counts. Where a profile uses nothing of ours, FFSB 6 reads it as well.
impl Display for Profile {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.time {
            Some(seconds) => writeln!(f, "time = {seconds}  # seconds")?,
            None => writeln!(f, "# No time: each thread does its iterations.")?,
        }
        writeln!(f, "directio = {}  # O_DIRECT", u8::from(self.directio))?;
        writeln!(
            f,
            "alignio = {}  # random offsets are multiples of 4 KiB",
            u8::from(self.alignio)
        )?;
        if let Some(callout) = &self.callout {
            writeln!(f, "callout = {}", text_form(callout))?;
        }
        if let Some(seed) = self.seed {
            writeln!(f, "seed = {seed}{OURS}: the same seed draws the same operations")?;
        }
        if self.verify {
            writeln!(f, "verify = 1{OURS}: what is read is checked")?;
        }
        for fs in &self.filesystems {
            file_system(f, fs)?;
        }
        for group in &self.thread_groups {
            let bound = group.bindfs.map(|index| {
                let there = self.filesystems.get(index);
                there.map_or_else(|| index.to_string(), |fs| text_form(&fs.location))
            });
            f.write_str("\n")?;
            thread_group(f, group, bound.as_deref(), "")?;
        }
        Ok(())
    }
}

fn file_system(f: &mut Formatter<'_>, fs: &FileSystem) -> fmt::Result {
    writeln!(f, "\n[filesystem]")?;
    writeln!(f, "\tlocation = {}", text_form(&fs.location))?;
    writeln!(f, "\tnum_files = {}", fs.num_files)?;
    if let Some(max) = fs.max_files {
        writeln!(f, "\tmax_files = {max}{OURS}: a create beyond removes a file first")?;
    }
    writeln!(f, "\tnum_dirs = {}", fs.num_dirs)?;
    writeln!(f, "\tmin_filesize = {}", size_text(fs.min_filesize))?;
    writeln!(f, "\tmax_filesize = {}", size_text(fs.max_filesize))?;
    for (size, weight) in &fs.size_weights {
        writeln!(f, "\tsize_weight {} {weight}", size_text(*size))?;
    }
    writeln!(f, "\tcreate_blocksize = {}", size_text(fs.create_blocksize.into()))?;
    if fs.reuse {
        writeln!(f, "\treuse = 1")?;
    }
    if let Some(bytes) = fs.init_size {
        writeln!(f, "\tinit_size = {}", size_text(bytes))?;
    }
    if let Some(part) = fs.init_util {
        writeln!(f, "\tinit_util = {part}")?;
    }
    if let Some(part) = fs.desired_util {
        writeln!(f, "\tdesired_util = {part}")?;
    }
    writeln!(f, "\tage_blocksize = {}", size_text(fs.age_blocksize.into()))?;
    if let Some(group) = &fs.ageing {
        writeln!(f, "\tagefs = 1")?;
        thread_group(f, group, None, "\t")?;
    }
    writeln!(f, "[end]")
}

fn thread_group(
    f: &mut Formatter<'_>,
    group: &ThreadGroup,
    bound: Option<&str>,
    indent: &str,
) -> fmt::Result {
    writeln!(f, "{indent}[threadgroup]")?;
    let mut line = |key: &str, value: String| writeln!(f, "{indent}\t{key} = {value}");
    line("num_threads", group.num_threads.to_string())?;
    if let Some(location) = bound {
        line("bindfs", location.to_owned())?;
    }
    for (op, weight) in &group.weights {
        line(&format!("{}_weight", op.name()), weight.to_string())?;
    }
    let (read, write) = (group.read_blocksize, group.write_blocksize);
    for (key, on) in [("read_random", group.read_random), ("write_random", group.write_random)] {
        if on {
            line(key, "1".into())?;
        }
    }
    if let Some(skip) = group.read_skip {
        line("read_skip", "1".into())?;
        line("read_skipsize", size_text(skip.into()))?;
    }
    for (key, bytes) in [
        ("read_size", group.read_size),
        ("read_blocksize", Some(read.into()).filter(|bytes| *bytes > 0)),
        ("write_size", group.write_size),
        ("write_blocksize", Some(write.into()).filter(|bytes| *bytes > 0)),
    ] {
        if let Some(bytes) = bytes {
            line(key, size_text(bytes))?;
        }
    }
    if group.op_delay > 0 {
        line("op_delay", format!("{}  # milliseconds", group.op_delay))?;
    }
    if let Some(count) = group.iterations {
        line("iterations", format!("{count}{OURS}: operations of each thread"))?;
    }
    stats(f, &group.stats, indent)?;
    writeln!(f, "{indent}[end]")
}

fn stats(f: &mut Formatter<'_>, stats: &Stats, indent: &str) -> fmt::Result {
    if *stats == Stats::default() {
        return Ok(());
    }
    writeln!(f, "{indent}\t[stats]")?;
    writeln!(f, "{indent}\t\tenable_stats = {}", u8::from(stats.enabled))?;
    writeln!(f, "{indent}\t\tenable_range = {}", u8::from(stats.ranges_enabled))?;
    for call in &stats.ignore {
        writeln!(f, "{indent}\t\tignore = {}", call.name())?;
    }
    for (low, high) in &stats.ranges {
        writeln!(f, "{indent}\t\tmsec_range {low} {high}")?;
    }
    writeln!(f, "{indent}\t[end]")
}
