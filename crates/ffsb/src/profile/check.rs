//! What must hold in a profile, wherever it comes from.

use super::{FileSystem, Op, Profile, ThreadGroup, value};
use std::fmt;

/// Bytes of the largest block: every thread has one in memory.
pub(super) const MAX_BLOCK: u32 = 1 << 30;
/// Threads of one group.
const MAX_THREADS: u32 = 65536;
/// Entries in a list.
const MAX_LIST: usize = 4096;

/// The part of a profile that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Global,
    FileSystem(usize),
    /// The thread group that ages a file system.
    Ageing(usize),
    ThreadGroup(usize),
}

/// Something wrong.
#[derive(Debug)]
pub(super) struct Flaw {
    pub place: Place,
    pub key: &'static str,
    pub why: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Global => f.write_str("profile"),
            Place::FileSystem(index) => write!(f, "filesystem {index}"),
            Place::Ageing(index) => write!(f, "ageing threadgroup of filesystem {index}"),
            Place::ThreadGroup(index) => write!(f, "threadgroup {index}"),
        }
    }
}

impl Profile {
    /// Checks a profile that was made or changed by hand. One that was parsed has passed.
    ///
    /// # Errors
    ///
    /// One sentence that names the part and says what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        check(self).map_err(|flaw| format!("{}: {}", flaw.place, flaw.why))
    }
}

type Checked = Result<(), (&'static str, String)>;

fn holds(condition: bool, key: &'static str, why: impl FnOnce() -> String) -> Checked {
    if condition { Ok(()) } else { Err((key, why())) }
}

pub(super) fn check(profile: &Profile) -> Result<(), Flaw> {
    let flaw = |place| move |(key, why)| Flaw { place, key, why };
    global(profile).map_err(flaw(Place::Global))?;
    for (index, fs) in profile.filesystems.iter().enumerate() {
        file_system(fs).map_err(flaw(Place::FileSystem(index)))?;
        let same = |other: &FileSystem| {
            other.location.trim_end_matches('/') == fs.location.trim_end_matches('/')
        };
        holds(!profile.filesystems[..index].iter().any(same), "location", || {
            format!("{} is the location of two file systems", value::shown(&fs.location))
        })
        .map_err(flaw(Place::FileSystem(index)))?;
        if let Some(group) = &fs.ageing {
            ageing(group).map_err(flaw(Place::Ageing(index)))?;
        }
    }
    let created: Vec<bool> = (0..profile.filesystems.len())
        .map(|fs| profile.thread_groups.iter().any(|group| works_on(group, fs) && creates(group)))
        .collect();
    for (index, group) in profile.thread_groups.iter().enumerate() {
        let place = Place::ThreadGroup(index);
        thread_group(group).map_err(flaw(place))?;
        let in_range = group.bindfs.is_none_or(|fs| fs < profile.filesystems.len());
        holds(in_range, "bindfs", || "bindfs: there is no such file system".into())
            .map_err(flaw(place))?;
        for (fs, made) in profile
            .filesystems
            .iter()
            .zip(&created)
            .enumerate()
            .filter_map(|(index, (fs, made))| works_on(group, index).then_some((fs, *made)))
        {
            against_files(group, fs, made).map_err(flaw(place))?;
        }
    }
    Ok(())
}

fn works_on(group: &ThreadGroup, fs: usize) -> bool {
    group.bindfs.is_none_or(|bound| bound == fs)
}

fn creates(group: &ThreadGroup) -> bool {
    does(group, &[Op::Create, Op::CreateFsync])
}

fn does(group: &ThreadGroup, ops: &[Op]) -> bool {
    group.weights.iter().any(|(op, _)| ops.contains(op))
}

fn global(profile: &Profile) -> Checked {
    holds(!profile.filesystems.is_empty(), "", || "there is no [filesystem]".into())?;
    holds(!profile.thread_groups.is_empty(), "", || "there is no [threadgroup]".into())?;
    let ends = |group: &ThreadGroup| group.iterations.is_some();
    holds(profile.time.is_some() || profile.thread_groups.iter().all(ends), "time", || {
        "time: without it, every [threadgroup] needs iterations".into()
    })?;
    holds(profile.callout.as_deref().is_none_or(value::text_is_fit), "callout", || {
        "callout: it is empty, too long, or has a NUL in it".into()
    })
}

fn file_system(fs: &FileSystem) -> Checked {
    holds(value::text_is_fit(&fs.location), "location", || {
        "location: it is empty, too long, or has a NUL in it".into()
    })?;
    holds(fs.min_filesize <= fs.max_filesize, "min_filesize", || {
        format!("min_filesize is {}, more than max_filesize, {}", fs.min_filesize, fs.max_filesize)
    })?;
    let largest = largest_file(fs);
    holds(i64::try_from(largest).is_ok(), "max_filesize", || "files cannot be that large".into())?;
    let sum = fs.size_weights.iter().try_fold(0u32, |sum, (_, weight)| sum.checked_add(*weight));
    let weights = sum.is_some() && fs.size_weights.iter().all(|(_, weight)| *weight > 0);
    holds(weights && fs.size_weights.len() <= MAX_LIST, "size_weight", || {
        "size_weight: weights must be 1 or more, and together not more than 32 bits hold".into()
    })?;
    for (key, bytes) in
        [("create_blocksize", fs.create_blocksize), ("age_blocksize", fs.age_blocksize)]
    {
        let why = || format!("{key} must be from 1 byte to 1 GiB");
        holds((1..=MAX_BLOCK).contains(&bytes), key, why)?;
    }
    for (key, part) in [("init_util", fs.init_util), ("desired_util", fs.desired_util)] {
        let why = || format!("{key} must be from 0.0 to 1.0");
        holds(part.is_none_or(|part| (0.0..=1.0).contains(&part)), key, why)?;
    }
    growth(fs, largest)?;
    if fs.ageing.is_some() {
        holds(fs.desired_util.is_some(), "agefs", || {
            "agefs needs a desired_util to say how full is full enough".into()
        })?;
        holds(!fs.reuse, "reuse", || "reuse and agefs exclude each other".into())?;
    }
    Ok(())
}

/// How many files there are at first and later.
fn growth(fs: &FileSystem, largest: u64) -> Checked {
    let ways = [fs.num_files > 0, fs.init_size.is_some(), fs.init_util.is_some()];
    holds(ways.into_iter().filter(|way| *way).count() <= 1, "num_files", || {
        "num_files, init_size and init_util exclude each other".into()
    })?;
    let grows = fs.init_size.is_some() || fs.init_util.is_some();
    let key = if fs.init_size.is_some() { "init_size" } else { "init_util" };
    holds(!grows || largest > 0, key, || format!("{key} is never reached: files have 0 bytes"))?;
    holds(fs.init_size != Some(0), "init_size", || "init_size: 0 bytes are no files".into())?;
    holds(fs.max_files.is_none_or(|max| max >= fs.num_files.max(1)), "max_files", || {
        format!("max_files is less than num_files, {}", fs.num_files)
    })?;
    holds(fs.max_files.is_none() || !grows, "max_files", || {
        format!("max_files and {key} exclude each other")
    })
}

fn smallest_file(fs: &FileSystem) -> u64 {
    fs.size_weights.iter().map(|(size, _)| *size).min().unwrap_or(fs.min_filesize)
}

fn largest_file(fs: &FileSystem) -> u64 {
    fs.size_weights.iter().map(|(size, _)| *size).max().unwrap_or(fs.max_filesize)
}

fn ageing(group: &ThreadGroup) -> Checked {
    thread_group(group)?;
    holds(group.bindfs.is_none(), "bindfs", || "bindfs: ageing has one file system".into())?;
    let may = [Op::Create, Op::Append, Op::Delete, Op::CreateFsync, Op::AppendFsync];
    let other = group.weights.iter().find(|(op, _)| !may.contains(op));
    if let Some((op, _)) = other {
        let why = format!(
            "a [threadgroup] that ages can create, append and delete, but not {}",
            op.name()
        );
        return Err(("", why));
    }
    holds(does(group, &may[..2]) || does(group, &may[3..]), "", || {
        "a [threadgroup] that ages must create or append, or the file system never gets fuller"
            .into()
    })
}

fn thread_group(group: &ThreadGroup) -> Checked {
    holds((1..=MAX_THREADS).contains(&group.num_threads), "num_threads", || {
        format!("num_threads must be from 1 to {MAX_THREADS}")
    })?;
    holds(!group.weights.is_empty(), "", || {
        "this [threadgroup] has no operation with a weight above 0".into()
    })?;
    let in_order = group.weights.is_sorted_by(|(a, _), (b, _)| a < b);
    let sum = group.weights.iter().try_fold(0u32, |sum, (_, weight)| sum.checked_add(*weight));
    let weights = in_order && sum.is_some() && group.weights.iter().all(|(_, weight)| *weight > 0);
    holds(weights, "", || {
        "weights must be 1 or more, each operation once and in order, and together not more than 32 bits hold".into()
    })?;
    holds(group.iterations != Some(0), "iterations", || "iterations must be 1 or more".into())?;
    blocks(group)?;
    let stats = &group.stats;
    let max = f64::from(u32::MAX / 1000);
    let range = |(low, high): &(f64, f64)| *low >= 0.0 && low <= high && *high <= max;
    holds(stats.ranges.iter().all(range) && stats.ranges.len() <= MAX_LIST, "msec_range", || {
        format!("msec_range must have a low and a high bound from 0 to {max}")
    })?;
    let once = (1..stats.ignore.len()).all(|at| !stats.ignore[..at].contains(&stats.ignore[at]));
    holds(once, "ignore", || "ignore: the same system call twice".into())
}

/// Sizes that the group's operations need.
fn blocks(group: &ThreadGroup) -> Checked {
    let reads = does(group, &[Op::Read, Op::Readall]);
    holds(!reads || group.read_blocksize > 0, "read_blocksize", || {
        "read and readall need a read_blocksize".into()
    })?;
    let appends = does(group, &[Op::Append, Op::AppendFsync]);
    let writes = appends
        || creates(group)
        || does(group, &[Op::Write, Op::WriteFsync, Op::Writeall, Op::WriteallFsync]);
    holds(!writes || group.write_blocksize > 0, "write_blocksize", || {
        "write, writeall, create and append need a write_blocksize".into()
    })?;
    holds(!appends || group.write_size.is_some(), "write_size", || {
        "append needs a write_size".into()
    })?;
    let sizes = [
        ("read_blocksize", group.read_blocksize),
        ("write_blocksize", group.write_blocksize),
        ("read_skipsize", group.read_skip.unwrap_or(0)),
    ];
    for (key, bytes) in sizes {
        holds(bytes <= MAX_BLOCK, key, || format!("{key} must be from 1 byte to 1 GiB"))?;
    }
    for (key, bytes) in [("read_size", group.read_size), ("write_size", group.write_size)] {
        let fits = bytes.is_none_or(|bytes| bytes > 0 && i64::try_from(bytes).is_ok());
        holds(fits, key, || format!("{key} must be 1 or more, and not more than a file can have"))?;
    }
    holds(group.read_skip != Some(0), "read_skipsize", || {
        "read_skipsize must be 1 or more".into()
    })?;
    holds(!group.read_random || group.read_skip.is_none(), "read_skip", || {
        "read_random and read_skip exclude each other".into()
    })
}

/// Whether the operations have files, and files that are large enough.
fn against_files(group: &ThreadGroup, fs: &FileSystem, made: bool) -> Checked {
    let without = [Op::Create, Op::CreateFsync, Op::Metaop, Op::Createdir];
    let needy = group.weights.iter().find(|(op, _)| !without.contains(op));
    let place = || value::shown(&fs.location);
    if let Some((op, _)) = needy {
        let any = fs.num_files > 0 || fs.init_size.is_some() || fs.init_util.is_some();
        holds(any || made, "", || {
            format!("{} has no files to {}, and nothing creates any", place(), op.name())
        })?;
    }
    let smallest = smallest_file(fs);
    let is = |what: &str, bytes: u128| {
        format!(
            "{what} takes {bytes} bytes, but a file in {} may have no more than {smallest}",
            place()
        )
    };
    if does(group, &[Op::Read]) {
        let (key, bytes) = read_extent(group);
        holds(bytes <= u128::from(smallest), key, || is("one read", bytes))?;
        let whole = group.read_size.unwrap_or(smallest) >= u64::from(group.read_blocksize);
        holds(!group.read_random || whole, "read_size", || {
            "read_size is less than read_blocksize: with read_random, nothing would be read".into()
        })?;
    }
    if does(group, &[Op::Write, Op::WriteFsync]) {
        let block = if group.write_random { u64::from(group.write_blocksize) } else { 0 };
        let (key, bytes) = match group.write_size {
            Some(bytes) if bytes >= block => ("write_size", bytes),
            _ => ("write_blocksize", block),
        };
        holds(bytes <= smallest, key, || is("one write", bytes.into()))?;
        let whole = group.write_size.unwrap_or(smallest) >= block;
        holds(whole, "write_size", || {
            "write_size is less than write_blocksize: with write_random, nothing would be written"
                .into()
        })?;
    }
    Ok(())
}

/// Bytes a file must have for one `read`, and the key that says so.
fn read_extent(group: &ThreadGroup) -> (&'static str, u128) {
    let block = u128::from(group.read_blocksize).max(1);
    match (group.read_size, group.read_skip) {
        (Some(bytes), Some(skip)) => {
            let (whole, last) = (u128::from(bytes) / block, u128::from(bytes) % block);
            let stride = block + u128::from(skip);
            let extent =
                if last > 0 { whole * stride + last } else { whole * stride - u128::from(skip) };
            ("read_skipsize", extent)
        }
        (Some(bytes), None) => ("read_size", u128::from(bytes)),
        (None, _) => ("read_blocksize", if group.read_random { block } else { 0 }),
    }
}
