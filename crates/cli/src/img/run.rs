//! From a command line of the image tool to the options of its verbs.

use super::{
    CheckArgs, CompareArgs, ConvertArgs, CreateArgs, FOLLOWS, InfoArgs, MapArgs, Naming, Reflink,
    RepairArg, ResizeArgs, Show, SnapshotArgs,
};
use crate::complain;
use block::{BackingFiles, Format, qed};
use img::{
    Code, Failure, ImageArgs, OptionList, ProgressKind, Secrets, SnapshotName, check, compare,
    convert, create, in_place, info, map, resize, snapshot,
};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Images could not be opened: `compare` has a code for that.
const COMPARE_NOT_OPENED: u8 = 2;

pub(super) fn format_of(name: &str) -> Result<Format, Failure> {
    name.parse().map_err(|_| {
        Failure::new(format!(
            "images in the format '{name}' are not supported: raw, qcow2 and qed are"
        ))
    })
}

/// From here on SIGINT and SIGTERM stop a copy, which then removes what it has made; a second one ends the program at once.
pub(super) fn stop_on_signals() -> Result<(), Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 128 + signal, stop.clone())?;
        flag::register(signal, stop.clone())?;
    }
    img::stop_when(stop);
    Ok(())
}

/// From here on SIGUSR1 makes a verb say how far it is.
pub(super) fn tell_on_signal() -> Result<(), Failure> {
    let tell = Arc::new(AtomicBool::new(false));
    flag::register(SIGUSR1, tell.clone())?;
    img::tell_when(tell);
    Ok(())
}

/// Refuses what is said of an image where there is none.
pub(super) fn refuse_without_image(options: &[(&str, bool)]) -> Result<(), Failure> {
    match options.iter().find(|(_, is_given)| *is_given) {
        Some((name, _)) => Err(Failure::new(format!("{name} goes with the name of an image only"))),
        None => Ok(()),
    }
}

/// Whether the files that an image names are opened.
fn backing_files(allow_backing: bool) -> BackingFiles {
    match allow_backing || FOLLOWS.load(Ordering::Relaxed) {
        true => BackingFiles::Follow,
        false => BackingFiles::Refuse,
    }
}

impl Naming {
    pub(super) fn secrets(&self) -> Result<Secrets, Failure> {
        Secrets::parse(&self.object)
    }

    /// An image, with what all verbs can say of one.
    pub(super) fn image(
        &self,
        name: &Path,
        format: Option<&String>,
        force_share: bool,
        allow_backing: bool,
    ) -> Result<ImageArgs, Failure> {
        let image = match self.image_opts {
            true if format.is_some() => {
                return Err(Failure::new("--image-opts says the format: it goes without -f"));
            }
            true => by_options(name, &self.secrets()?)?,
            false => {
                let format = format.map(|name| format_of(name)).transpose()?;
                ImageArgs::named(name, format, &self.secrets()?)?
            }
        };
        Ok(ImageArgs { force_share, backing_files: backing_files(allow_backing), ..image })
    }
}

/// The image that a list of options names.
fn by_options(list: &Path, secrets: &Secrets) -> Result<ImageArgs, Failure> {
    let Some(list) = list.to_str() else {
        return Err(Failure::new("--image-opts: the options are not UTF-8"));
    };
    ImageArgs::from_options(list, secrets)
}

/// How it is shown how far a verb is: as QEMU does it if that is asked for; otherwise as a bar, for somebody at a terminal.
fn progress(is_asked: bool, is_quiet: bool) -> ProgressKind {
    match (is_asked, is_quiet) {
        (_, true) => ProgressKind::Off,
        (true, false) => ProgressKind::Percent,
        (false, false) if std::io::stderr().is_terminal() => ProgressKind::Bar,
        (false, false) => ProgressKind::Off,
    }
}

impl Show {
    /// See [`progress`].
    pub(super) fn progress(&self) -> ProgressKind {
        progress(self.progress, self.quiet)
    }
}

impl CheckArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        let image =
            self.naming.image(&self.filename, self.format.as_ref(), self.force_share, false)?;
        let options = check::CheckOptions {
            image: ImageArgs { cache: self.cache, ..image },
            output: self.output.into(),
            repair: self.repair.map(|level| match level {
                RepairArg::Leaks => qed::check::Level::Leaks,
                RepairArg::All => qed::check::Level::All,
            }),
            plan: self.plan,
            is_quiet: self.quiet,
            progress: progress(false, self.quiet),
        };
        check::run(&options, out, &mut std::io::stderr())
    }
}

impl CompareArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        let open = |path: &Path, format: Option<&String>| {
            let image = self.naming.image(path, format, self.force_share, self.allow_backing);
            let image = image.map_err(|failure| failure.with_code(COMPARE_NOT_OPENED))?;
            Ok::<_, Failure>(ImageArgs { cache: self.cache, ..image })
        };
        let options = compare::CompareOptions {
            images: [
                open(&self.filename1, self.a_format.as_ref())?,
                open(&self.filename2, self.b_format.as_ref())?,
            ],
            strict: self.strict,
            is_quiet: self.show.quiet,
            progress: self.show.progress(),
        };
        compare::run(&options, out)
    }
}

impl ConvertArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        if self.in_place {
            return self.run_in_place(out);
        }
        let format = format_of(self.target_format.as_deref().unwrap_or("raw"))?;
        if self.target_image_opts && self.target_format.is_some() {
            return Err(Failure::new("--target-image-opts says the format: it goes without -O"));
        }
        if let Some(help) = img::help_on_options(&self.target_options, format) {
            write!(out, "{help}")?;
            return Ok(0);
        }
        let Some((target, sources)) = self.filenames.split_last().filter(|(_, s)| !s.is_empty())
        else {
            return Err(Failure::new("convert needs a source and a target"));
        };
        let source = |path: &PathBuf| {
            let format = self.source_format.as_ref();
            let image = self.naming.image(path, format, self.force_share, self.allow_backing)?;
            let snapshot = self.snapshot.as_deref().map(SnapshotName::parse).transpose()?;
            Ok(ImageArgs { cache: self.source_cache, snapshot, ..image })
        };
        let secrets = self.naming.secrets()?;
        let target = match self.target_image_opts {
            true => by_options(target, &secrets)?,
            false => ImageArgs::named(target, None, &secrets)?,
        };
        let options = convert::ConvertOptions {
            sources: sources.iter().map(source).collect::<Result<_, Failure>>()?,
            // The options of a target say its format too.
            format: target.format.unwrap_or(format),
            target: target.path,
            target_secret: target.secret,
            target_filters: target.filters,
            secrets,
            compress: self.compress,
            options: OptionList::parse(&self.target_options)?,
            backing: self.backing.clone(),
            backing_format: self.backing_format.clone(),
            cache: self.target_cache,
            sparse_bytes: img::parse_size(self.sparse_size.as_deref().unwrap_or("4k"))?,
            rate: self.rate.as_deref().map(img::parse_size).transpose()?.filter(|rate| *rate > 0),
            salvage: self.salvage,
            share: self.reflink == Reflink::Auto,
            offload: self.copy_range_offloading,
            no_create: self.no_create,
            target_is_zero: self.target_is_zero,
            bitmaps: match (self.bitmaps, self.skip_broken_bitmaps) {
                (false, _) => convert::Bitmaps::None,
                (true, false) => convert::Bitmaps::All,
                (true, true) => convert::Bitmaps::Usable,
            },
            out_of_order: self.oob_writes,
            workers: self.parallel,
            progress: self.show.progress(),
        };
        stop_on_signals()?;
        convert::run(&options, &mut |warning| complain(super::name(), warning))
    }
}

impl ConvertArgs {
    fn run_in_place(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        let [path] = self.filenames.as_slice() else {
            return Err(Failure::new("convert --in-place needs one image"));
        };
        let options = in_place::InPlaceOptions {
            path: path.clone(),
            from: self.source_format.as_ref().map(|name| name.parse()).transpose()?,
            to: self.target_format.as_deref().unwrap_or("raw").parse()?,
            is_quiet: self.show.quiet,
            progress: self.show.progress(),
        };
        in_place::run(&options, out)
    }
}

impl CreateArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        let format = format_of(&self.format)?;
        if let Some(help) = img::help_on_options(&self.options, format) {
            write!(out, "{help}")?;
            return Ok(0);
        }
        let Some(path) = self.filename.clone() else {
            return Err(Failure::new("create needs the name of an image"));
        };
        let new = create::NewImage {
            path,
            format,
            options: OptionList::parse(&self.options)?,
            backing: self.backing.clone(),
            backing_format: self.backing_format.clone(),
            backing_unchecked: self.backing_unsafe,
            bytes: self.size.as_deref().map(img::parse_size).transpose()?,
            secrets: Secrets::parse(&self.object)?,
        };
        create::run(&new, self.quiet, out)
    }
}

impl InfoArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        let options = info::InfoOptions {
            image: self.naming.image(
                &self.filename,
                self.format.as_ref(),
                self.force_share,
                false,
            )?,
            output: self.output.into(),
            backing_chain: self.backing_chain,
        };
        info::run(&options, out)
    }
}

impl MapArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        let format = self.format.as_ref();
        let options = map::MapOptions {
            image: self.naming.image(
                &self.filename,
                format,
                self.force_share,
                self.allow_backing,
            )?,
            output: self.output.into(),
            start: img::parse_size(&self.start_offset)?,
            max_len: self.max_length.as_deref().map(img::parse_size).transpose()?,
        };
        map::run(&options, out)
    }
}

impl ResizeArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        let options = resize::ResizeOptions {
            image: self.naming.image(
                &self.filename,
                self.format.as_ref(),
                false,
                self.allow_backing,
            )?,
            size: self.size.parse()?,
            shrink: self.shrink,
            preallocation: self.preallocation,
        };
        resize::run(&options, self.quiet, out)
    }
}

impl SnapshotArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        let format = self.format.as_ref();
        let image =
            self.naming.image(&self.filename, format, self.force_share, self.allow_backing)?;
        let action = match (&self.create, &self.apply, &self.delete) {
            (Some(name), _, _) => {
                let (seconds, nanos) = now();
                snapshot::Action::Create { name: name.clone(), seconds, nanos }
            }
            (_, Some(name), _) => snapshot::Action::Apply(name.clone()),
            (_, _, Some(name)) => snapshot::Action::Delete(name.clone()),
            _ => snapshot::Action::List,
        };
        snapshot::run(&snapshot::SnapshotOptions { image, action }, out)
    }
}

/// The time of day: seconds since 1970, and nanoseconds.
fn now() -> (u32, u32) {
    #[expect(
        clippy::disallowed_methods,
        reason = "a tool's, for a snapshot's date: no I/O depends on it"
    )]
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (u32::try_from(since.as_secs()).unwrap_or(u32::MAX), since.subsec_nanos())
}
