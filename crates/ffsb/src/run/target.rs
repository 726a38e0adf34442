//! A file system of the profile, with the files that are on it.

use super::draw::Sizes;
use crate::files::Files;
use crate::files::set::{File, FileSet, SetKind};
use crate::profile::FileSystem;
use crate::verify::{CELL_BYTES, FileId, Owner};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// O_DIRECT takes sizes in sectors.
const SECTOR: u64 = 512;
/// `alignio`
const ALIGNED: u64 = 4096;

/// A `[filesystem]` at work.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    pub index: usize,
    pub spec: &'a FileSystem,
    pub files: Files,
    pub data: FileSet,
    pub fill: FileSet,
    pub meta: FileSet,
    pub sizes: Sizes,
    /// O_DIRECT, once the files are made.
    pub direct: bool,
    /// Random offsets are multiples.
    pub align: u64,
    /// Identity of the file set in verified content.
    pub set_id: AtomicU64,
    /// Files were made by this run, or an earlier file set removed.
    pub touched: AtomicBool,
}

impl<'a> Target<'a> {
    pub fn new(
        index: usize,
        spec: &'a FileSystem,
        files: Files,
        profile: &crate::profile::Profile,
        set_id: u64,
    ) -> Target<'a> {
        let unit = if profile.directio || profile.verify { SECTOR } else { 1 };
        let align = match profile.directio || profile.alignio {
            true => ALIGNED,
            false if profile.verify => CELL_BYTES,
            false => 1,
        };
        Target {
            index,
            spec,
            files,
            data: FileSet::new(SetKind::Data),
            fill: FileSet::new(SetKind::Fill),
            meta: FileSet::new(SetKind::Meta),
            sizes: Sizes::new(spec, unit),
            direct: profile.directio,
            align,
            set_id: AtomicU64::new(set_id),
            touched: AtomicBool::new(false),
        }
    }

    pub fn set(&self, kind: SetKind) -> &FileSet {
        match kind {
            SetKind::Data => &self.data,
            SetKind::Fill => &self.fill,
            SetKind::Meta => &self.meta,
        }
    }

    /// Who verified content of a file belongs to.
    pub fn owner(&self, set: &FileSet, number: u32) -> Owner {
        let kind = if set.kind() == SetKind::Fill { 1 } else { 0 };
        Owner {
            set: self.set_id.load(Ordering::Relaxed),
            file: FileId::new(self.index, kind, number).0,
        }
    }

    /// A file's whole name, for people.
    pub fn path(&self, set: &FileSet, number: u32, file: &File) -> String {
        let mut name = String::new();
        set.name(number, file, &mut name);
        self.files.path(&name)
    }
}
