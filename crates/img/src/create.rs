//! `create`: a new image, over whatever file is there.

mod qcow2;

use crate::image_name::is_special;
use crate::open::shown;
use crate::preallocate::preallocate;
use crate::{
    Code, Failure, ImageArgs, OptionList, Preallocation, Secrets, Session, escape, parse_size,
};
use block::{BackingName, CreateOptions, Error, Format, Image, OpenOptions, SECTOR, Secret, qed};
use std::fmt;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What is to be made.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// Where.
    pub path: PathBuf,
    /// In which format.
    pub format: Format,
    /// The options of `-o`.
    pub options: OptionList,
    /// The file it stands on, as it is named in the image; before that of `-o backing_file`.
    pub backing: Option<PathBuf>,
    /// The format of that file; before that of `-o backing_fmt`.
    pub backing_format: Option<String>,
    /// The backing file is not looked at.
    pub backing_unchecked: bool,
    /// Bytes of the disk; without it, `-o size` says it, or the backing file.
    pub bytes: Option<u64>,
    /// What `-o encrypt.key-secret` may name.
    pub secrets: Secrets,
}

/// A new image, all known of it.
#[derive(Debug)]
pub(crate) struct Blueprint {
    plan: Plan,
    path: PathBuf,
}

/// What a format makes of what was said.
#[derive(Debug)]
struct Plan {
    create: CreateOptions,
    /// Of a raw image, once it is there.
    preallocation: Preallocation,
    encryption: Option<qcow2::Encryption>,
    /// The options as they are printed, in this order.
    said: Vec<(&'static str, String)>,
}

/// Creates an image.
pub fn run(new: &NewImage, is_quiet: bool, out: &mut dyn Write) -> Result<Code, Failure> {
    let blueprint = new.plan()?;
    if !is_quiet {
        writeln!(out, "{blueprint}")?;
        out.flush()?;
    }
    let is_new = blueprint.make()?;
    blueprint.preallocate().inspect_err(|_| remove(&new.path, is_new))?;
    Ok(0)
}

/// Takes an image away that could not be completed, if there was none before.
pub(crate) fn remove(path: &Path, is_new: bool) {
    if is_new {
        let _ = std::fs::remove_file(path);
    }
}

impl NewImage {
    /// Checks that all that was said goes together.
    pub(crate) fn plan(&self) -> Result<Blueprint, Failure> {
        self.options.check(self.format)?;
        let refuse =
            |why: &str| Err(Failure::new(format!("creating {}: {why}", self.path.display())));
        if is_special(&self.path) {
            return refuse("an image is created as a file, by its path");
        }
        let said = self.options.get("size").map(parse_size).transpose()?;
        let bytes = match (self.bytes, said) {
            (Some(_), Some(_)) => return refuse("its size is given twice"),
            (bytes, None) | (None, bytes) => bytes,
        };
        let backing = self.backing()?;
        let bytes = match (bytes, &backing) {
            (Some(bytes), Some(backing)) if !self.backing_unchecked => {
                self.backing_bytes(backing)?;
                bytes
            }
            (Some(bytes), _) => bytes,
            (None, Some(backing)) if !self.backing_unchecked => self.backing_bytes(backing)?,
            (None, _) => return refuse("it needs a size"),
        };
        let Some(rounded) = bytes.checked_next_multiple_of(SECTOR) else {
            return refuse("it is larger than any file can be");
        };
        let plan = match self.format {
            Format::Raw => self.plan_raw(bytes, rounded)?,
            Format::Qcow2 => qcow2::plan(self, bytes, rounded, backing.as_ref())?,
            Format::Qed => self.plan_qed(bytes, rounded, backing)?,
        };
        Ok(Blueprint { plan, path: self.path.clone() })
    }

    /// How a qcow2 image is to be encrypted, if it is.
    pub(crate) fn encryption(&self) -> Result<Option<qcow2::Encryption>, Failure> {
        qcow2::encryption(self)
    }

    fn plan_raw(&self, bytes: u64, rounded: u64) -> Result<Plan, Failure> {
        let mut said = vec![("size", bytes.to_string())];
        let mut preallocation = Preallocation::Off;
        if let Some(name) = self.options.get("preallocation") {
            preallocation = name.parse()?;
            said.push(("preallocation", preallocation.to_string()));
        }
        self.say_hints(&mut said)?;
        let create = CreateOptions::Raw { bytes: rounded };
        Ok(Plan { create, preallocation, encryption: None, said })
    }

    fn plan_qed(
        &self,
        bytes: u64,
        rounded: u64,
        backing: Option<BackingName>,
    ) -> Result<Plan, Failure> {
        let usual = qed::CreateOptions::new(rounded);
        let size_of = |name| self.options.get(name).map(parse_size).transpose();
        let cluster_bytes = size_of("cluster_size")?.unwrap_or(usual.cluster_bytes);
        let tables = size_of("table_size")?;
        let mut said = vec![("size", bytes.to_string())];
        if let Some(backing) = &backing {
            said.push(("backing_file", String::from_utf8_lossy(&backing.name).into_owned()));
            said.extend(backing.format.map(|format| ("backing_fmt", format.to_string())));
        }
        said.push(("cluster_size", cluster_bytes.to_string()));
        said.extend(tables.map(|clusters| ("table_size", clusters.to_string())));
        self.say_hints(&mut said)?;
        let create = CreateOptions::Qed(qed::CreateOptions {
            cluster_bytes,
            table_clusters: tables.unwrap_or(usual.table_clusters),
            backing: backing.map(|below| (below.name, below.format == Some(Format::Raw))),
            ..usual
        });
        Ok(Plan { create, preallocation: Preallocation::Off, encryption: None, said })
    }

    /// What is said for the file, and not followed.
    fn say_hints(&self, said: &mut Vec<(&'static str, String)>) -> Result<(), Failure> {
        if self.options.flag("nocow")?.is_some() {
            said.extend(self.options.get("nocow").map(|text| ("nocow", text.to_owned())));
        }
        if let Some(text) = self.options.get("extent_size_hint") {
            said.push(("extent_size_hint", parse_size(text)?.to_string()));
        }
        Ok(())
    }

    /// The backing file it is to name.
    fn backing(&self) -> Result<Option<BackingName>, Failure> {
        let refuse =
            |why: String| Err(Failure::new(format!("creating {}: {why}", self.path.display())));
        let named = self.options.get("backing_file").map(PathBuf::from);
        let format = self.backing_format.as_deref().or_else(|| self.options.get("backing_fmt"));
        let Some(name) = self.backing.clone().or(named).filter(|name| !name.as_os_str().is_empty())
        else {
            return match format {
                Some(_) => refuse("a backing format is given, and no backing file".into()),
                None => Ok(None),
            };
        };
        if self.format == Format::Raw {
            return refuse("an image in the format raw has no backing file".into());
        }
        if name == self.path {
            return refuse("it would be its own backing file".into());
        }
        let Some(format) = format else {
            return refuse("the format of the backing file must be said (-F)".into());
        };
        let Ok(format) = format.parse() else {
            return refuse(format!("backing files in the format '{format}' are not supported"));
        };
        let name = name.as_os_str().as_bytes().to_vec();
        Ok(Some(BackingName { name, format: Some(format), format_name: None }))
    }

    /// Size of the disk that the backing file is.
    fn backing_bytes(&self, backing: &BackingName) -> Result<u64, Failure> {
        let named = |error: Error| {
            let what = format!("creating {}: {error}", self.path.display());
            Failure::from(Error::new(error.kind(), what))
        };
        let path = backing.path(&self.path).map_err(named)?;
        let mut args = ImageArgs::new(path);
        args.format = backing.format;
        args.force_share = true;
        // What is below that is not looked at.
        Ok(args.open_alone(true)?.disk_bytes())
    }
}

impl Blueprint {
    /// Makes the image, over what is there; of an encrypted one, that takes the time that a guess at its secret is to take. Tells whether the file is new.
    pub fn make(&self) -> Result<bool, Failure> {
        let mut create = self.plan.create.clone();
        if let (CreateOptions::Qcow2(create), Some(encryption)) =
            (&mut create, &self.plan.encryption)
        {
            let named = |error: Error| {
                Error::new(error.kind(), format!("creating {}: {error}", self.path.display()))
            };
            // Before the time that a key takes.
            block::qcow2::create::Layout::new(create).map_err(named)?;
            create.encryption = Some(encryption.header().map_err(named)?);
        }
        Ok(Image::overwrite(&self.path, &create)?)
    }

    /// What opens the image.
    pub fn secret(&self) -> Option<&Secret> {
        self.plan.encryption.as_ref().map(qcow2::Encryption::secret)
    }

    /// What is to be done for its space, once it is made.
    pub fn preallocation(&self) -> Preallocation {
        self.plan.preallocation
    }

    /// Sees to the space of an image that was just made.
    pub fn preallocate(&self) -> Result<(), Failure> {
        if self.preallocation() == Preallocation::Off {
            return Ok(());
        }
        let options = OpenOptions {
            cache: block::CacheMode::Writeback,
            format: self.plan.create.format(),
            ..OpenOptions::default()
        };
        let image = Image::open(&self.path, &options)?;
        let session = Session::new()?;
        let node = session.attach(&image)?;
        preallocate(&session, &image, &node, 0..image.disk_bytes(), self.preallocation())?;
        Ok(())
    }
}

impl fmt::Display for Blueprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Formatting '{}', fmt={}",
            escape(&shown(&self.path)),
            self.plan.create.format()
        )?;
        self.plan.said.iter().try_for_each(|(name, value)| write!(f, " {name}={}", escape(value)))
    }
}
