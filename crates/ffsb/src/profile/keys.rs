//! Which keys there are, and where.

use super::section::Kind;
use super::value::shown;

/// How a key's values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `key = value`, once.
    One,
    /// `key = value`, as often as there are values.
    Each,
    /// `key first second`, as often as there are pairs.
    Two,
}

/// A key that was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// Its name in FFSB 6.
    pub name: &'static str,
    pub form: Form,
    /// Tell the author if it is written with an older name.
    pub warn: bool,
}

const GLOBAL: &[&str] = &[
    "num_filesystems",
    "num_threadgroups",
    "verbose",
    "time",
    "directio",
    "bufferio",
    "alignio",
    "callout",
    "seed",
    "verify",
];

const FILE_SYSTEM: &[&str] = &[
    "location",
    "num_files",
    "num_dirs",
    "reuse",
    "min_filesize",
    "max_filesize",
    "create_blocksize",
    "age_blocksize",
    "desired_util",
    "agefs",
    "size_weight",
    "init_util",
    "init_size",
    "clone",
    "max_files",
];

const THREAD_GROUP: &[&str] = &[
    "bindfs",
    "num_threads",
    "read_weight",
    "readall_weight",
    "write_weight",
    "create_weight",
    "append_weight",
    "delete_weight",
    "metaop_weight",
    "createdir_weight",
    "stat_weight",
    "writeall_weight",
    "writeall_fsync_weight",
    "open_close_weight",
    "write_fsync_weight",
    "create_fsync_weight",
    "append_fsync_weight",
    "read_random",
    "read_skip",
    "read_size",
    "read_blocksize",
    "read_skipsize",
    "write_random",
    "fsync_file",
    "write_size",
    "write_blocksize",
    "op_delay",
    "iterations",
];

const STATS: &[&str] = &["enable_stats", "enable_range", "ignore", "msec_range"];

const OLD_GLOBAL: &[&str] = &[
    "numconfigs",
    "numfiles",
    "maxfilesize",
    "minfilesize",
    "numdirs",
    "utilization",
    "initialcreateweight",
    "initialdeleteweight",
    "location",
    "directio",
    "bufferedio",
    "verbose",
    "reage",
];

const OLD_CONFIG: &[&str] = &[
    "threads",
    "iterations",
    "readsize",
    "readblocksize",
    "readseeksize",
    "writesize",
    "readweight",
    "writeweight",
    "createweight",
    "deleteweight",
    "metaweight",
];

/// Names of older versions: (where, old, new, whether to tell).
const RENAMED: &[(Kind, &str, &str, bool)] = &[
    // FFSB's own README has this name, its parser the other.
    (Kind::Global, "bufferedio", "bufferio", false),
    (Kind::ThreadGroup, "meta_weight", "metaop_weight", true),
    (Kind::ThreadGroup, "rewritefsync_weight", "writeall_fsync_weight", true),
    (Kind::Stats, "bucket", "msec_range", true),
];

const ALL: &[Kind] = &[Kind::Global, Kind::FileSystem, Kind::ThreadGroup, Kind::Stats];

fn known(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Global => GLOBAL,
        Kind::FileSystem => FILE_SYSTEM,
        Kind::ThreadGroup => THREAD_GROUP,
        Kind::Stats => STATS,
        Kind::OldGlobal => OLD_GLOBAL,
        Kind::OldConfig => OLD_CONFIG,
    }
}

/// The key called `name` in a section.
pub(super) fn find(kind: Kind, name: &str) -> Option<Key> {
    let renamed = RENAMED.iter().find(|(place, old, ..)| *place == kind && *old == name);
    let (name, warn) = renamed.map_or((name, false), |(_, _, new, warn)| (*new, *warn));
    let name = known(kind).iter().find(|key| **key == name)?;
    let form = match *name {
        "size_weight" | "msec_range" => Form::Two,
        "ignore" => Form::Each,
        _ => Form::One,
    };
    Some(Key { name, form, warn })
}

/// What to say of a key that is not there.
pub(super) fn unknown(kind: Kind, name: &str) -> String {
    let elsewhere = ALL.iter().find(|other| **other != kind && find(**other, name).is_some());
    let key = shown(name);
    match elsewhere {
        Some(other) => {
            format!("{key} does not belong in {}, but in {}", kind.title(), other.title())
        }
        None => format!("unknown key {key} in {}", kind.title()),
    }
}
