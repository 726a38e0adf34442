//! Profiles of FFSB 4.0, put into the words of FFSB 6.
//!
//! FFSB 5 read them as well, with one `[config]`, a running time from the command line, and `readseeksize` taken for random reads.
//! Here there may be several, each thread does as many operations as it was told, and `readseeksize` is what it was in 4.0: bytes
//! left out between two blocks. `write` was appending in 4.0; that is kept, as FFSB 5 did.

use super::error::{ProfileError, Warning};
use super::section::{Entry, Kind, Section};
use super::value;

/// Bytes that ageing wrote at a time.
const AGE_WRITE: &str = "4096";

/// (4.0, 6) of the beginning.
const FILE_SYSTEM: &[(&str, &[&str])] = &[
    ("location", &["location"]),
    ("numfiles", &["num_files"]),
    ("numdirs", &["num_dirs"]),
    ("minfilesize", &["min_filesize"]),
    ("maxfilesize", &["max_filesize"]),
];

/// (4.0, 6) of a `[config]`.
const THREAD_GROUP: &[(&str, &[&str])] = &[
    ("threads", &["num_threads"]),
    ("iterations", &["iterations"]),
    ("readsize", &["read_size"]),
    ("readblocksize", &["read_blocksize"]),
    ("writesize", &["write_size", "write_blocksize"]),
    ("readweight", &["read_weight"]),
    ("writeweight", &["append_weight"]),
    ("createweight", &["create_weight"]),
    ("deleteweight", &["delete_weight"]),
    ("metaweight", &["metaop_weight"]),
];

/// The same profile as FFSB 6 would have it.
pub(super) fn translate<'a>(
    old: &Section<'a>,
    warnings: &mut Vec<Warning>,
) -> Result<Section<'a>, ProfileError> {
    let mut new = Section::new(Kind::Global, old.line);
    new.entries = renamed(
        old,
        &[("directio", &["directio"]), ("bufferedio", &["bufferio"]), ("verbose", &["verbose"])],
    );
    new.children.push(file_system(old, warnings)?);
    for config in &old.children {
        let mut group = Section::new(Kind::ThreadGroup, config.line);
        group.entries = renamed(config, THREAD_GROUP);
        // A size of 0 stood where there was nothing to read or to write.
        group.entries.retain(|entry| !entry.key.ends_with("size") || entry.value != "0");
        if config.get("readseeksize", value::size)?.is_some_and(|bytes| bytes > 0) {
            let seek = config.entry("readseeksize").expect("it has a value");
            group.entries.push(Entry { key: "read_skipsize", ..*seek });
            group.entries.push(Entry { key: "read_skip", value: "1", ..*seek });
        }
        new.children.push(group);
    }
    let said = old.get("numconfigs", |text| value::count(text, 0))?;
    let there = old.children.len();
    if said.is_some_and(|said| usize::try_from(said) != Ok(there)) {
        let line = old.entry("numconfigs").map_or(1, |entry| entry.line);
        let what =
            format!("numconfigs is not {there}, the number of [config] sections; all are used");
        warnings.push(Warning::new(line, what));
    }
    Ok(new)
}

fn file_system<'a>(
    old: &Section<'a>,
    warnings: &mut Vec<Warning>,
) -> Result<Section<'a>, ProfileError> {
    let mut new = Section::new(Kind::FileSystem, old.line);
    new.entries = renamed(old, FILE_SYSTEM);
    if old.get("reage", value::flag)? == Some(true) {
        let line = old.entry("reage").map_or(1, |entry| entry.line);
        warnings.push(Warning::new(line, "reage does nothing: files are always made anew"));
    }
    let create = old.get("initialcreateweight", |text| value::count(text, 0))?;
    old.get("initialdeleteweight", |text| value::count(text, 0))?;
    if old.get("utilization", value::part)?.is_some_and(|part| part > 0.0) {
        let until = old.entry("utilization").expect("it has a value");
        if create.unwrap_or(0) == 0 {
            let why =
                "utilization needs an initialcreateweight, or the file system never gets fuller";
            return Err(ProfileError::new(until.line, why));
        }
        new.entries.push(Entry { key: "desired_util", ..*until });
        new.entries.push(Entry { key: "agefs", value: "1", ..*until });
        let mut group = Section::new(Kind::ThreadGroup, until.line);
        let weights: &[(&str, &[&'static str])] = &[
            ("initialcreateweight", &["create_weight"]),
            ("initialdeleteweight", &["delete_weight"]),
        ];
        group.entries = renamed(old, weights);
        group.entries.push(Entry { key: "num_threads", value: "1", ..*until });
        group.entries.push(Entry { key: "write_size", value: AGE_WRITE, ..*until });
        group.entries.push(Entry { key: "write_blocksize", value: AGE_WRITE, ..*until });
        new.children.push(group);
    }
    Ok(new)
}

fn renamed<'a>(section: &Section<'a>, names: &[(&str, &[&'static str])]) -> Vec<Entry<'a>> {
    let mut out = Vec::new();
    for (old, new) in names {
        for entry in section.list(old) {
            out.extend(new.iter().map(|key| Entry { key, ..*entry }));
        }
    }
    out
}
