//! The images that a command line names.

use crate::{Failure, OptionList, Session};
use block::qcow2::Snapshot;
use block::{
    BackingFiles, BlockNode, CacheMode, Error, ErrorKind, Filters, Format, Image, Locking,
    OpenOptions, Result, Secret,
};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// An image as a command line names it.
#[derive(Clone, Debug)]
pub struct ImageArgs {
    /// Its path.
    pub path: PathBuf,
    /// Its format, if that is said; otherwise its name's extension must say it, and its content agree.
    pub format: Option<Format>,
    /// Its cache mode.
    pub cache: CacheMode,
    /// It may be in use by others: no lock is taken, and none heeded.
    pub force_share: bool,
    /// Whether the files are opened that it names.
    pub backing_files: BackingFiles,
    /// What opens it, and those under it, if they are encrypted.
    pub secret: Option<Secret>,
    /// What stands between it and its file.
    pub filters: Filters,
    /// The disk is meant as it was at this one of its snapshots.
    pub snapshot: Option<SnapshotName>,
}

/// A snapshot as a command line names it (`-l`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotName {
    /// An id, or else a name.
    IdOrName(String),
    /// What is said of it: its id, its name, or both.
    Exactly {
        /// Its id.
        id: Option<String>,
        /// Its name.
        name: Option<String>,
    },
}

impl SnapshotName {
    /// Reads `snapshot.id=ID,snapshot.name=NAME`, or else an id or a name.
    ///
    /// # Errors
    ///
    /// `BadRequest` for other options.
    pub fn parse(text: &str) -> std::result::Result<SnapshotName, Failure> {
        if !text.starts_with("snapshot.") {
            return Ok(SnapshotName::IdOrName(text.to_owned()));
        }
        let options = OptionList::parse(&[text.to_owned()])?;
        let known = ["snapshot.id", "snapshot.name"];
        if let Some(name) = options.names().find(|name| !known.contains(name)) {
            return Err(Failure::new(format!("-l: there is no option '{name}'")));
        }
        let of = |name| options.get(name).map(str::to_owned);
        Ok(SnapshotName::Exactly { id: of(known[0]), name: of(known[1]) })
    }

    fn is(&self, snapshot: &Snapshot) -> bool {
        let same = |said: &Option<String>, has: &[u8]| {
            said.as_ref().is_none_or(|said| said.as_bytes() == has)
        };
        match self {
            SnapshotName::IdOrName(text) => text.as_bytes() == snapshot.id,
            SnapshotName::Exactly { id, name } => {
                same(id, &snapshot.id) && same(name, &snapshot.name)
            }
        }
    }

    /// The one that is meant.
    fn find<'a>(&self, all: &'a [Snapshot]) -> Option<&'a Snapshot> {
        let by_name = || match self {
            SnapshotName::IdOrName(text) => all.iter().find(|one| one.name == text.as_bytes()),
            SnapshotName::Exactly { .. } => None,
        };
        all.iter().find(|one| self.is(one)).or_else(by_name)
    }
}

impl ImageArgs {
    /// An image of which nothing is known but where it is.
    pub fn new(path: impl Into<PathBuf>) -> ImageArgs {
        ImageArgs {
            path: path.into(),
            format: None,
            cache: CacheMode::Writeback,
            force_share: false,
            backing_files: BackingFiles::Refuse,
            secret: None,
            filters: Filters::default(),
            snapshot: None,
        }
    }

    /// The format that it is said to have, or that its name tells.
    ///
    /// # Errors
    ///
    /// As [`Image::format_by_name`].
    pub fn format(&self) -> Result<Format> {
        self.format.map_or_else(|| Image::format_by_name(&self.path), Ok)
    }

    pub(crate) fn options(&self, format: Format, read_only: bool) -> OpenOptions {
        OpenOptions {
            read_only,
            cache: self.cache,
            format,
            backing_files: self.backing_files,
            secret: self.secret.clone(),
            filters: self.filters.clone(),
            ..OpenOptions::default()
        }
    }

    /// Opens it for reading, with what it stands on. Writers are kept out.
    pub(crate) fn open(&self) -> Result<Image> {
        let locking = if self.force_share { Locking::Shared } else { Locking::Locked };
        self.open_with(locking)
    }

    /// As [`ImageArgs::open`]; but of a raw image, which has no tables that could change under a reader, writers are left alone: as QEMU does it.
    pub(crate) fn open_to_look(&self) -> Result<Image> {
        let raw = self.format()? == Format::Raw;
        let locking = if self.force_share || raw { Locking::Shared } else { Locking::Locked };
        self.open_with(locking)
    }

    fn open_with(&self, locking: Locking) -> Result<Image> {
        Image::open_with(&self.path, &self.options(self.format()?, true), locking)
    }

    /// Opens it for writing, with what it stands on.
    pub(crate) fn open_to_write(&self) -> Result<Image> {
        Image::open(&self.path, &self.options(self.format()?, false))
    }

    /// Opens the file itself, whatever it stands on.
    pub(crate) fn open_alone(&self, read_only: bool) -> Result<Image> {
        let locking = if self.force_share && read_only { Locking::Shared } else { Locking::Locked };
        Image::open_alone(&self.path, &self.options(self.format()?, read_only), locking)
    }
}

/// A disk that is read.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub node: Rc<BlockNode>,
    /// Its size in bytes.
    pub bytes: u64,
    /// Holds the locks.
    _image: Image,
}

impl Disk {
    /// Opens an image for reading, as it is or as it was at a snapshot.
    pub fn open(session: &Session, args: &ImageArgs) -> std::result::Result<Disk, Failure> {
        let mut disk = Disk::attach(session, args.open()?)?;
        let Some(wanted) = args.snapshot.clone() else { return Ok(disk) };
        let node = disk.node.clone();
        disk.bytes = session.run(async move {
            let refuse = |what: &str| {
                let what = format!("showing a snapshot of {}: {what}", node.host().path());
                Err(Error::new(ErrorKind::BadRequest, what))
            };
            let Some(qcow2) = node.qcow2() else {
                return refuse("its format has no snapshots");
            };
            let all = qcow2.snapshots().await?;
            let Some(found) = wanted.find(&all) else {
                return refuse("there is none of this name");
            };
            qcow2.show_snapshot(&found.id).await?;
            Ok(qcow2.disk_bytes())
        })?;
        Ok(disk)
    }

    pub fn attach(session: &Session, image: Image) -> std::result::Result<Disk, Failure> {
        let node = session.attach(&image)?;
        Ok(Disk { node, bytes: image.disk_bytes(), _image: image })
    }
}

/// A path as it is shown.
pub(crate) fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create;

    #[test]
    fn an_image_without_what_it_stands_on_is_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let new = create::NewImage {
            path: dir.path().join("over.qed"),
            format: Format::Qed,
            options: OptionList::default(),
            backing: Some("none.raw".into()),
            backing_format: Some("raw".into()),
            backing_unchecked: true,
            bytes: Some(1 << 20),
            secrets: crate::Secrets::default(),
        };
        create::run(&new, true, &mut Vec::new()).unwrap();
        let args = ImageArgs::new(&new.path);
        let refused = args.open().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::BadRequest, "{refused}");
        let image = args.open_alone(true).unwrap();
        assert_eq!(image.disk_bytes(), 1 << 20);
        let session = Session::new().unwrap();
        assert_eq!(session.attach(&image).unwrap_err().kind(), ErrorKind::BadRequest);
    }

    #[test]
    fn nothing_is_written_without_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.raw");
        Image::overwrite(&path, &block::CreateOptions::Raw { bytes: 4096 }).unwrap();
        let options = ImageArgs::new(&path).options(Format::Raw, false);
        let refused = Image::open_with(&path, &options, Locking::Shared).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::BadRequest);
        let _writer = Image::open(&path, &options).unwrap();
        let refused = Image::overwrite(&path, &block::CreateOptions::Raw { bytes: 0 });
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Locked);
        assert_eq!(ImageArgs::new(&path).open().unwrap_err().kind(), ErrorKind::Locked);
        let shared = ImageArgs { force_share: true, ..ImageArgs::new(&path) };
        assert_eq!(shared.open().unwrap().disk_bytes(), 4096);
    }
}
