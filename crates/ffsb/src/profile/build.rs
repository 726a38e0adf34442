//! From sections with keys to a [`Profile`].
//!
//! FFSB 5 let a section take what it does not say from the one before; FFSB 6 does not, but has `clone`. Which of the two a
//! profile was written for shows in `num_filesystems` and `num_threadgroups`: 5 demands them, 6 calls them deprecated.

use super::check::{self, Flaw, Place};
use super::error::{Parsed, ProfileError, Warning};
use super::section::{Entry, Kind, Section};
use super::{FileSystem, Op, Profile, Stats, Syscall, ThreadGroup, old, section, value};

/// Bytes of a write where a profile says nothing.
const DEFAULT_BLOCK: u32 = 4096;

impl Profile {
    /// Reads a profile of the form of FFSB 5 and 6, or of 4.0. `docs/ffsb.md` says what is accepted.
    ///
    /// # Errors
    ///
    /// The first line that is wrong, and why.
    pub fn parse(text: &str) -> Result<Parsed, ProfileError> {
        let mut warnings = Vec::new();
        let mut whole = section::parse(text, &mut warnings)?;
        if whole.kind == Kind::OldGlobal {
            whole = old::translate(&whole, &mut warnings)?;
        }
        let profile = build(&mut whole, &mut warnings)?;
        warnings.sort_by_key(|warning| warning.line);
        Ok(Parsed { profile, warnings })
    }
}

fn build(whole: &mut Section<'_>, warnings: &mut Vec<Warning>) -> Result<Profile, ProfileError> {
    let (mut file_systems, mut groups): (Vec<_>, Vec<_>) =
        whole.children.drain(..).partition(|child| child.kind == Kind::FileSystem);
    let of_five = deprecated_counts(whole, file_systems.len(), groups.len(), warnings)?;
    settle_clones(&mut file_systems)?;
    if of_five {
        inherit(&mut file_systems, warnings);
        inherit(&mut groups, warnings);
    }
    let mut profile = global(whole, warnings)?;
    for section in &file_systems {
        profile.filesystems.push(file_system(section, warnings)?);
    }
    for section in &groups {
        let mut group = thread_group(section, warnings)?;
        group.bindfs = bound_to(section, &profile.filesystems)?;
        profile.thread_groups.push(group);
    }
    if profile.time.is_none()
        && profile.thread_groups.iter().all(|group| group.iterations.is_none())
    {
        profile.time = Some(0);
        warnings.push(Warning::new(1, "there is no `time`: only the files will be made"));
    }
    warn_of_blocks(&profile, &groups, warnings);
    match check::check(&profile) {
        Ok(()) => Ok(profile),
        Err(flaw) => {
            Err(ProfileError::new(line_of(&flaw, whole, &file_systems, &groups), flaw.why))
        }
    }
}

/// Where in the text a flaw is: its key, or the section that should have it.
fn line_of(
    flaw: &Flaw,
    whole: &Section<'_>,
    file_systems: &[Section<'_>],
    groups: &[Section<'_>],
) -> usize {
    let section = match flaw.place {
        Place::Global => whole,
        Place::FileSystem(index) => &file_systems[index],
        Place::ThreadGroup(index) => &groups[index],
        Place::Ageing(index) => {
            let mut inner = file_systems[index].children.iter();
            inner.find(|child| child.kind == Kind::ThreadGroup).unwrap_or(&file_systems[index])
        }
    };
    let stats = section.children.iter().find(|child| child.kind == Kind::Stats);
    let entry = section.entry(flaw.key).or_else(|| stats.and_then(|stats| stats.entry(flaw.key)));
    entry.map_or(section.line, |entry| entry.line)
}

/// Reads the two counts of FFSB 5. Returns whether one is there.
fn deprecated_counts(
    whole: &Section<'_>,
    file_systems: usize,
    groups: usize,
    warnings: &mut Vec<Warning>,
) -> Result<bool, ProfileError> {
    let mut any = false;
    for (key, there) in [("num_filesystems", file_systems), ("num_threadgroups", groups)] {
        let Some(said) = whole.get(key, |text| value::count(text, 0))? else { continue };
        any = true;
        let line = whole.entry(key).map_or(1, |entry| entry.line);
        let what = if usize::try_from(said) == Ok(there) {
            format!("{key} is deprecated: sections are counted")
        } else {
            format!("{key} says {said}, but there are {there} sections; all of them are used")
        };
        warnings.push(Warning::new(line, what));
    }
    Ok(any)
}

/// Keys that no section takes from another.
fn stays_out(key: &str) -> bool {
    matches!(key, "location" | "clone" | "bindfs")
        || key.ends_with("_weight") && key != "size_weight"
}

/// What FFSB 5 does: a section has what the one before it has, unless it says otherwise.
fn inherit(sections: &mut [Section<'_>], warnings: &mut Vec<Warning>) {
    for index in 1..sections.len() {
        let (before, here) = sections.split_at_mut(index);
        if here[0].entry("clone").is_some() {
            continue;
        }
        let taken = here[0].fill(&before[index - 1], stays_out);
        if !taken.is_empty() {
            let what = format!(
                "this {} takes from the one before it, as in FFSB 5: {}",
                here[0].kind.title(),
                taken.join(", ")
            );
            warnings.push(Warning::new(here[0].line, what));
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    New,
    Busy,
    Done,
}

/// Gives each file system that is a clone what its base has and it does not say itself.
fn settle_clones(sections: &mut [Section<'_>]) -> Result<(), ProfileError> {
    let mut bases = Vec::new();
    for section in &*sections {
        let Some(wanted) = section.get("clone", value::text)? else {
            bases.push(None);
            continue;
        };
        let mut base = None;
        for (index, other) in sections.iter().enumerate() {
            if base.is_none() && other.get("location", value::text)?.as_ref() == Some(&wanted) {
                base = Some(index);
            }
        }
        let line = section.entry("clone").map_or(section.line, |entry| entry.line);
        let why = || format!("clone: no file system has the location {}", value::shown(&wanted));
        bases.push(Some((base.ok_or_else(|| ProfileError::new(line, why()))?, line)));
    }
    let mut states = vec![State::New; sections.len()];
    (0..sections.len()).try_for_each(|index| settle(index, &bases, sections, &mut states))
}

/// Settles one; as deep as there are file systems, which are few.
fn settle(
    index: usize,
    bases: &[Option<(usize, usize)>],
    sections: &mut [Section<'_>],
    states: &mut [State],
) -> Result<(), ProfileError> {
    if let (Some((base, line)), State::New) = (bases[index], states[index]) {
        states[index] = State::Busy;
        if states[base] == State::Busy {
            return Err(ProfileError::new(line, "clone: the file system is its own clone"));
        }
        settle(base, bases, sections, states)?;
        let base = sections[base].clone();
        sections[index].fill(&base, |key| matches!(key, "location" | "clone"));
    }
    states[index] = State::Done;
    Ok(())
}

fn global(whole: &Section<'_>, warnings: &mut Vec<Warning>) -> Result<Profile, ProfileError> {
    whole.get("verbose", value::flag)?;
    if whole.get("bufferio", value::flag)? == Some(true) {
        let line = whole.entry("bufferio").map_or(1, |entry| entry.line);
        warnings.push(Warning::new(line, "bufferio does nothing, as in FFSB"));
    }
    Ok(Profile {
        time: whole.get("time", |text| value::count(text, 0))?,
        directio: whole.get("directio", value::flag)?.unwrap_or(false),
        alignio: whole.get("alignio", value::flag)?.unwrap_or(false),
        callout: whole.get("callout", value::text)?,
        seed: whole.get("seed", |text| value::whole(text, 0, u64::MAX))?,
        verify: whole.get("verify", value::flag)?.unwrap_or(false),
        filesystems: Vec::new(),
        thread_groups: Vec::new(),
    })
}

fn block(text: &str) -> Result<u32, String> {
    let bytes = value::size(text)?;
    let fits = u32::try_from(bytes).ok().filter(|bytes| (1..=check::MAX_BLOCK).contains(bytes));
    fits.ok_or_else(|| format!("{} is not from 1 byte to 1 GiB", value::shown(text)))
}

fn some_bytes(text: &str) -> Result<u64, String> {
    match value::size(text)? {
        0 => Err("0 bytes would be nothing to do".into()),
        bytes => Ok(bytes),
    }
}

fn file_system(
    section: &Section<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<FileSystem, ProfileError> {
    let Some(location) = section.get("location", value::text)? else {
        return Err(ProfileError::new(section.line, "this [filesystem] has no location"));
    };
    let min_filesize = section.get("min_filesize", value::size)?;
    let max_filesize = section.get("max_filesize", value::size)?;
    if let (Some(_), None) = (min_filesize, max_filesize) {
        let line = section.entry("min_filesize").map_or(section.line, |entry| entry.line);
        return Err(ProfileError::new(line, "min_filesize without a max_filesize"));
    }
    let mut out = FileSystem {
        location,
        num_files: section.get("num_files", |text| value::count(text, 0))?.unwrap_or(0),
        num_dirs: section.get("num_dirs", |text| value::count(text, 0))?.unwrap_or(0),
        reuse: section.get("reuse", value::flag)?.unwrap_or(false),
        min_filesize: min_filesize.unwrap_or(0),
        max_filesize: max_filesize.unwrap_or(0),
        size_weights: size_weights(section)?,
        create_blocksize: section.get("create_blocksize", block)?.unwrap_or(DEFAULT_BLOCK),
        age_blocksize: section.get("age_blocksize", block)?.unwrap_or(DEFAULT_BLOCK),
        init_util: section.get("init_util", value::part)?,
        init_size: section.get("init_size", some_bytes)?,
        desired_util: section.get("desired_util", value::part)?,
        ageing: None,
        max_files: section.get("max_files", |text| value::count(text, 1))?,
    };
    let inner = |kind| section.children.iter().find(move |child| child.kind == kind);
    if let Some(stats) = inner(Kind::Stats) {
        let what = "statistics of a file system are not taken; [stats] belongs in [threadgroup]";
        warnings.push(Warning::new(stats.line, what));
    }
    if section.get("agefs", value::flag)? == Some(true) {
        let line = section.entry("agefs").map_or(section.line, |entry| entry.line);
        let Some(group) = inner(Kind::ThreadGroup) else {
            return Err(ProfileError::new(line, "agefs needs a [threadgroup] in the [filesystem]"));
        };
        if let Some(entry) = group.entry("bindfs") {
            let what = "bindfs does nothing here: an ageing group has one file system";
            warnings.push(Warning::new(entry.line, what));
        }
        out.ageing = Some(Box::new(thread_group(group, warnings)?));
    }
    drop_what_loses(&mut out, section, warnings);
    Ok(out)
}

/// Keys that exclude each other, and which of them FFSB obeys.
fn drop_what_loses(out: &mut FileSystem, section: &Section<'_>, warnings: &mut Vec<Warning>) {
    let mut lost = |key: &str, winner: &str| {
        let line = section.entry(key).map_or(section.line, |entry| entry.line);
        warnings.push(Warning::new(line, format!("{key} is not used, as there is {winner}")));
    };
    if out.num_files > 0 && out.init_size.take().is_some() {
        lost("init_size", "num_files");
    }
    if out.num_files > 0 && out.init_util.take().is_some() {
        lost("init_util", "num_files");
    }
    if out.init_size.is_some() && out.init_util.take().is_some() {
        lost("init_util", "init_size");
    }
    if out.ageing.is_some() && std::mem::take(&mut out.reuse) {
        lost("reuse", "agefs");
    }
}

/// Two words of a list key, with or without a `=` before them.
fn pair<'a>(entry: &Entry<'a>) -> Result<(&'a str, &'a str), ProfileError> {
    let mut words = entry.value.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(first), Some(second), None) => Ok((first, second)),
        _ => {
            let why = format!("{0}: two values are needed: `{0} A B`", entry.written);
            Err(ProfileError::new(entry.line, why))
        }
    }
}

fn size_weights(section: &Section<'_>) -> Result<Vec<(u64, u32)>, ProfileError> {
    let mut out = Vec::new();
    let mut last = None;
    for entry in section.list("size_weight") {
        let (size, weight) = pair(entry)?;
        let bad = |why| ProfileError::new(entry.line, format!("size_weight: {why}"));
        let weight = value::count(weight, 0).map_err(bad)?;
        let size = value::size(size).map_err(bad)?;
        if weight > 0 {
            out.push((size, weight));
        }
        last = Some(entry.line);
    }
    match last {
        Some(line) if out.is_empty() => {
            Err(ProfileError::new(line, "size_weight: all of the weights are 0"))
        }
        _ => Ok(out),
    }
}

fn bound_to(
    section: &Section<'_>,
    file_systems: &[FileSystem],
) -> Result<Option<usize>, ProfileError> {
    let Some(wanted) = section.get("bindfs", value::text)? else { return Ok(None) };
    let named = file_systems.iter().position(|fs| fs.location == wanted);
    // FFSB 5 has a number here.
    let numbered = || wanted.parse().ok().filter(|index| *index < file_systems.len());
    let line = section.entry("bindfs").map_or(section.line, |entry| entry.line);
    let why = || format!("bindfs: no file system has the location {}", value::shown(&wanted));
    named.or_else(numbered).map(Some).ok_or_else(|| ProfileError::new(line, why()))
}

fn thread_group(
    section: &Section<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<ThreadGroup, ProfileError> {
    let Some(num_threads) = section.get("num_threads", |text| value::count(text, 1))? else {
        return Err(ProfileError::new(section.line, "this [threadgroup] has no num_threads"));
    };
    let skip = section.get("read_skip", value::flag)?.unwrap_or(false);
    let skip_size = section.get("read_skipsize", block)?;
    if skip && skip_size.is_none() {
        let line = section.entry("read_skip").map_or(section.line, |entry| entry.line);
        return Err(ProfileError::new(line, "read_skip needs a read_skipsize"));
    }
    let stats = section.children.iter().find(|child| child.kind == Kind::Stats);
    Ok(ThreadGroup {
        num_threads,
        bindfs: None,
        weights: weights(section, warnings)?,
        read_random: section.get("read_random", value::flag)?.unwrap_or(false),
        read_size: section.get("read_size", some_bytes)?,
        read_blocksize: section.get("read_blocksize", block)?.unwrap_or(0),
        read_skip: skip_size.filter(|_| skip),
        write_random: section.get("write_random", value::flag)?.unwrap_or(false),
        write_size: section.get("write_size", some_bytes)?,
        write_blocksize: section.get("write_blocksize", block)?.unwrap_or(0),
        op_delay: section.get("op_delay", |text| value::count(text, 0))?.unwrap_or(0),
        iterations: section.get("iterations", |text| value::whole(text, 1, u64::MAX))?,
        stats: stats.map(stats_of).transpose()?.unwrap_or_default(),
    })
}

fn weights(
    section: &Section<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<(Op, u32)>, ProfileError> {
    let mut out = Vec::new();
    for op in Op::ALL {
        let key = format!("{}_weight", op.name());
        if let Some(weight @ 1..) = section.get(&key, |text| value::count(text, 0))? {
            out.push((op, weight));
        }
    }
    let fsync = section.get("fsync_file", value::flag)?;
    if let Some(on) = fsync {
        let line = section.entry("fsync_file").map_or(section.line, |entry| entry.line);
        let what = if on {
            "fsync_file is deprecated: `write` is read as `write_fsync`"
        } else {
            "fsync_file is deprecated: `write` and `write_fsync` are two operations"
        };
        warnings.push(Warning::new(line, what));
    }
    let plain = out.iter().position(|(op, _)| *op == Op::Write).filter(|_| fsync == Some(true));
    if let Some(at) = plain {
        let (_, weight) = out.remove(at);
        match out.iter_mut().find(|(op, _)| *op == Op::WriteFsync) {
            Some((_, with)) => *with = with.saturating_add(weight),
            None => out.push((Op::WriteFsync, weight)),
        }
        out.sort_unstable();
    }
    Ok(out)
}

fn stats_of(section: &Section<'_>) -> Result<Stats, ProfileError> {
    // FFSB 5 calls the ranges buckets, and has no switch for them.
    let of_five = section.entries.iter().any(|entry| entry.written == "bucket");
    let mut out = Stats {
        enabled: section.get("enable_stats", value::flag)?.unwrap_or(false),
        ranges_enabled: section.get("enable_range", value::flag)?.unwrap_or(of_five),
        ignore: Vec::new(),
        ranges: Vec::new(),
    };
    for entry in section.list("ignore") {
        let called = |call: &Syscall| call.name().eq_ignore_ascii_case(entry.value);
        let Some(call) = Syscall::ALL.into_iter().find(called) else {
            let names = Syscall::ALL.map(Syscall::name).join(", ");
            let why = format!("ignore: {} is none of {names}", value::shown(entry.value));
            return Err(ProfileError::new(entry.line, why));
        };
        if !out.ignore.contains(&call) {
            out.ignore.push(call);
        }
    }
    for entry in section.list("msec_range") {
        let (low, high) = pair(entry)?;
        let bad = |why| ProfileError::new(entry.line, format!("{}: {why}", entry.written));
        let low = value::milliseconds(low).map_err(bad)?;
        let high = value::milliseconds(high).map_err(bad)?;
        if low > high {
            return Err(bad(format!("{low} is larger than {high}")));
        }
        out.ranges.push((low, high));
    }
    Ok(out)
}

/// O_DIRECT wants whole sectors; a file system without that rule is rare, but there are some.
fn warn_of_blocks(profile: &Profile, groups: &[Section<'_>], warnings: &mut Vec<Warning>) {
    if !profile.directio {
        return;
    }
    for (group, section) in profile.thread_groups.iter().zip(groups) {
        let sizes = [
            ("read_blocksize", u64::from(group.read_blocksize)),
            ("write_blocksize", u64::from(group.write_blocksize)),
            ("read_size", group.read_size.unwrap_or(0)),
            ("write_size", group.write_size.unwrap_or(0)),
            ("read_skipsize", u64::from(group.read_skip.unwrap_or(0))),
        ];
        for (key, bytes) in sizes {
            if let (false, Some(entry)) = (bytes.is_multiple_of(512), section.entry(key)) {
                let what = format!(
                    "{key} is not a multiple of 512, which directio needs almost everywhere"
                );
                warnings.push(Warning::new(entry.line, what));
            }
        }
    }
}
