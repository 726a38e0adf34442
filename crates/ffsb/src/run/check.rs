//! What a profile must be before anything is touched. A parser finds most of it with a line number; a profile made by hand, or
//! scaled, is checked here.

use super::draw::{OpTable, Sizes};
use super::error::{RunError, RunErrorKind};
use crate::profile::{FileSystem, Op, Profile, ThreadGroup};
use crate::verify::{CELL, CELL_BYTES};

/// Longest block: more is a slip of the pen, and would only cost memory.
const MAX_BLOCK: u32 = 1 << 30;

pub(crate) fn check(profile: &Profile) -> Result<(), RunError> {
    if profile.filesystems.is_empty() {
        return Err(refuse("the profile has no [filesystem]"));
    }
    for (index, spec) in profile.filesystems.iter().enumerate() {
        check_file_system(profile, spec)
            .map_err(|why| refuse(&format!("filesystem {index}: {why}")))?;
    }
    if profile.time != Some(0) && profile.thread_groups.is_empty() {
        return Err(refuse("the profile has no [threadgroup]"));
    }
    for (index, group) in profile.thread_groups.iter().enumerate() {
        check_group(profile, group)
            .and_then(|()| match (profile.time, group.iterations) {
                (None, None) => Err("neither a time nor iterations say when it ends".to_owned()),
                _ => Ok(()),
            })
            .map_err(|why| refuse(&format!("threadgroup {index}: {why}")))?;
    }
    Ok(())
}

fn refuse(why: &str) -> RunError {
    RunError::new(RunErrorKind::Profile, why)
}

fn check_file_system(profile: &Profile, spec: &FileSystem) -> Result<(), String> {
    if spec.min_filesize > spec.max_filesize {
        return Err("min_filesize is more than max_filesize".to_owned());
    }
    check_block("create_blocksize", spec.create_blocksize, profile.verify)?;
    let grows = spec.num_files == 0 && (spec.init_size.is_some() || spec.init_util.is_some());
    if grows && Sizes::new(spec, 1).are_zero() {
        return Err("files without size never reach init_size or init_util".to_owned());
    }
    let util = [spec.init_util, spec.desired_util];
    if util.into_iter().flatten().any(|util| !(0.0..=1.0).contains(&util)) {
        return Err("a utilisation is between 0 and 1".to_owned());
    }
    if let Some(group) = &spec.ageing {
        check_block("age_blocksize", spec.age_blocksize, profile.verify)?;
        check_group(profile, group).map_err(|why| format!("ageing threadgroup: {why}"))?;
        if spec.desired_util.is_none() {
            return Err("ageing without desired_util".to_owned());
        }
    }
    Ok(())
}

fn check_group(profile: &Profile, group: &ThreadGroup) -> Result<(), String> {
    if group.num_threads == 0 {
        return Err("num_threads is 0".to_owned());
    }
    if OpTable::new(group).is_empty() {
        return Err("no operation has a weight".to_owned());
    }
    if group.bindfs.is_some_and(|index| index >= profile.filesystems.len()) {
        return Err("bindfs names no file system of the profile".to_owned());
    }
    let has = |ops: &[Op]| group.weights.iter().any(|(op, weight)| *weight > 0 && ops.contains(op));
    let reads = has(&[Op::Read, Op::Readall]);
    let writes = has(&[Op::Write, Op::WriteFsync, Op::Writeall, Op::WriteallFsync]);
    let grows = has(&[Op::Create, Op::CreateFsync, Op::Append, Op::AppendFsync]);
    if reads {
        check_block("read_blocksize", group.read_blocksize, profile.verify)?;
        check_size("read_size", group.read_size, profile.verify)?;
        check_size("read_skipsize", group.read_skip.map(u64::from), profile.verify)?;
        if group.read_random && group.read_skip.is_some() {
            return Err("read_random and read_skip exclude each other".to_owned());
        }
    }
    if writes || grows {
        check_block("write_blocksize", group.write_blocksize, profile.verify)?;
        check_size("write_size", group.write_size, profile.verify)?;
    }
    Ok(())
}

fn check_block(key: &str, bytes: u32, verify: bool) -> Result<(), String> {
    if bytes == 0 || bytes > MAX_BLOCK {
        return Err(format!("{key} is {bytes}; it must be from 1 byte to 1 GiB"));
    }
    check_size(key, Some(bytes.into()), verify)
}

fn check_size(key: &str, bytes: Option<u64>, verify: bool) -> Result<(), String> {
    match bytes {
        Some(bytes) if verify && !bytes.is_multiple_of(CELL_BYTES) => {
            Err(format!("{key} is {bytes}; with verify it must be a multiple of {CELL}"))
        }
        _ => Ok(()),
    }
}

/// Bytes of the longest block that is read or written.
pub(crate) fn longest_block(profile: &Profile) -> u32 {
    let of_group = |group: &ThreadGroup| group.read_blocksize.max(group.write_blocksize);
    let of_file_system = |spec: &FileSystem| {
        let ageing =
            spec.ageing.as_deref().map_or(0, |group| spec.age_blocksize.max(of_group(group)));
        spec.create_blocksize.max(ageing)
    };
    let groups = profile.thread_groups.iter().map(of_group);
    let blocks = groups.chain(profile.filesystems.iter().map(of_file_system));
    blocks.map(|block| block.min(MAX_BLOCK)).max().unwrap_or(0).next_multiple_of(4096)
}
