//! `open`, `close`, `reopen`.

use super::disk::{Disk, OpenArgs};
use super::{Call, Shell, Stop, printer};
use crate::open::shown;
use crate::{ImageArgs, OptionList, Session, create};
use block::{BackingFiles, CacheMode, DiscardMode, Error, Format, Image, Locking};
use io_engine::EngineKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::rc::Rc;

/// Names for directories that are tried: the others are somebody else's.
const NAMES_MAX: u32 = 100;

/// The engine of this name.
#[must_use]
pub fn engine_named(name: &str) -> Option<EngineKind> {
    match name {
        "threads" => Some(EngineKind::Threads),
        "native" => Some(EngineKind::Native),
        "io_uring" => Some(EngineKind::IoUring),
        _ => None,
    }
}

/// What `-d` takes.
#[must_use]
pub fn discard_named(name: &str) -> Option<DiscardMode> {
    match name {
        "unmap" | "on" => Some(DiscardMode::Unmap),
        "ignore" | "off" => Some(DiscardMode::Ignore),
        _ => None,
    }
}

/// Opens an image; there must be none.
pub(super) fn open_image(shell: &mut Shell, args: OpenArgs) -> Result<(), Stop> {
    if shell.disk.is_some() {
        return Err(shell.complain_named("file open already, try 'help close'"));
    }
    let path = shown(&args.image.path);
    let failed = |shell: &Shell, why: &str| {
        shell.complain_named(&format!("can't open device {path}: {why}"))
    };
    args.check().map_err(|why| failed(shell, &why))?;
    if args.engine != shell.engine {
        let session = Session::with(args.engine, 0);
        shell.session = session.map_err(|error| failed(shell, &printer::story(&error)))?;
        shell.engine = args.engine;
    }
    let opened = match args.snapshot {
        true => open_snapshot(&shell.session, args),
        false => Disk::open(&shell.session, args).map_err(|error| printer::story(&error)),
    };
    shell.disk = Some(Rc::new(opened.map_err(|why| failed(shell, &why))?));
    Ok(())
}

/// Ends all requests and closes the image, if there is one.
pub(super) fn close_image(shell: &mut Shell) -> Result<(), Stop> {
    shell.drain()?;
    let Some(disk) = shell.disk.take() else { return Ok(()) };
    let done = shell.session.run(async move { disk.close().await });
    done.map_err(|error| shell.fail_with(&error))
}

/// Opens a new image over the one that is asked for. It has no name any more as soon as it is open, and so is gone when it is closed.
fn open_snapshot(session: &Session, args: OpenArgs) -> Result<Disk, String> {
    let told = |error: Error| printer::story(&error);
    // First as it is to be opened by itself: what an image names is opened only where that is allowed, under another one too.
    let format = args.image.format().map_err(told)?;
    let options = args.image.options(format, true);
    let below = Image::open_with(&args.image.path, &options, Locking::Locked).map_err(told)?;
    let path = std::path::absolute(&args.image.path)
        .map_err(|error| format!("finding where it is: {error}"))?;
    let dir = private_dir()?;
    let new = create::NewImage {
        path: dir.join("snapshot.qcow2"),
        format: Format::Qcow2,
        options: OptionList::default(),
        backing: Some(path),
        backing_format: Some(format.to_string()),
        backing_unchecked: true,
        bytes: Some(below.disk_bytes()),
        secrets: crate::Secrets::default(),
    };
    drop(below);
    let image = ImageArgs {
        path: new.path.clone(),
        format: Some(Format::Qcow2),
        cache: CacheMode::Unsafe,
        backing_files: BackingFiles::Follow,
        ..args.image.clone()
    };
    let made = create::run(&new, true, &mut std::io::sink()).map_err(|failure| failure.to_string());
    let opened = made.and_then(|_| {
        let args = OpenArgs { image, ..args };
        Disk::open(session, args).map_err(told)
    });
    let _ = std::fs::remove_file(&new.path);
    let _ = std::fs::remove_dir(&dir);
    opened
}

/// A new directory that is nobody else's.
fn private_dir() -> Result<PathBuf, String> {
    let parent = std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
    let mut last = None;
    for n in 0..NAMES_MAX {
        let dir = parent.join(format!("ferroblk-io-{}-{n}", std::process::id()));
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) => last = Some(error),
        }
    }
    let why = last.map_or_else(String::new, |error| error.to_string());
    Err(format!("making a directory in {}: {why}", parent.display()))
}

/// `close`.
pub(super) fn close(shell: &mut Shell, _: &Call<'_>) -> Result<(), Stop> {
    close_image(shell)
}

/// A cache mode that a command names.
fn cache_named(shell: &Shell, name: &str) -> Result<CacheMode, Stop> {
    let name = if name == "off" { "none" } else { name };
    name.parse().map_err(|_| shell.complain_named(&format!("Invalid cache option: {name}")))
}

/// `open`.
pub(super) fn open(shell: &mut Shell, call: &Call<'_>) -> Result<(), Stop> {
    let mut args = OpenArgs::new(ImageArgs::new(""));
    let (mut cache, mut force_share, mut list) = (CacheMode::Writeback, false, Vec::new());
    let operands = call.options(shell, "snCro:ki:t:d:U", |letter, value| {
        match letter {
            's' => args.snapshot = true,
            'n' => cache = CacheMode::None,
            'r' => args.read_only = true,
            'o' => list.push(value.to_owned()),
            'k' => args.engine = Some(EngineKind::Native),
            'i' => {
                let unknown = || shell.complain_named(&format!("Invalid aio option: {value}"));
                args.engine = Some(engine_named(value).ok_or_else(unknown)?);
            }
            't' => cache = cache_named(shell, value)?,
            'd' => {
                let unknown = || shell.complain_named(&format!("Invalid discard option: {value}"));
                args.discard = discard_named(value).ok_or_else(unknown)?;
            }
            'U' => force_share = true,
            _ => return Err(shell.complain_named("open: copy on read (-C) is not supported")),
        }
        Ok(())
    })?;
    match operands[..] {
        [] => {}
        [path] if list.is_empty() => {
            let image = ImageArgs::named(path.as_ref(), None, &shell.options.secrets);
            args.image = image.map_err(|failure| {
                shell.complain_named(&format!("can't open device {path}: {failure}"))
            })?;
        }
        [path] => list.push(format!("file.filename={}", path.replace(',', ",,"))),
        _ => return Err(shell.usage(call)),
    }
    if !list.is_empty() {
        let image = ImageArgs::from_options(&list.join(","), &shell.options.secrets);
        args.image = image
            .map_err(|failure| shell.complain_named(&format!("can't open device: {failure}")))?;
    } else if operands.is_empty() {
        return Err(shell.complain_named("can't open: no file is named"));
    }
    args.image =
        ImageArgs { cache, force_share, backing_files: shell.options.backing_files, ..args.image };
    open_image(shell, args)
}

/// `reopen`: the same image, opened otherwise. If that fails, it stays as it was.
pub(super) fn reopen(shell: &mut Shell, call: &Call<'_>) -> Result<(), Stop> {
    let before = shell.disk().args.clone();
    let (mut read_only, mut cache) = (None, None);
    let operands = call.options(shell, "c:o:rw", |letter, value| {
        match letter {
            'c' => cache = Some(cache_named(shell, value)?),
            'o' => {
                let name = value.split('=').next().unwrap_or(value);
                let what = format!("reopen: changing the option '{name}' is not supported");
                return Err(shell.complain_named(&what));
            }
            letter => {
                if read_only.replace(letter == 'r').is_some() {
                    return Err(shell.complain_named("Only one -r/-w option may be given"));
                }
            }
        }
        Ok(())
    })?;
    if !operands.is_empty() {
        return Err(shell.usage(call));
    }
    if before.snapshot {
        // Its file has no name any more.
        return Err(shell.complain_named("reopen: not while what is written is kept aside (-s)"));
    }
    let after = OpenArgs {
        read_only: read_only.unwrap_or(before.read_only),
        image: ImageArgs { cache: cache.unwrap_or(before.image.cache), ..before.image.clone() },
        ..before.clone()
    };
    after.check().map_err(|why| shell.complain_named(&why))?;
    close_image(shell)?;
    open_image(shell, after).inspect_err(|_| {
        let _ = open_image(shell, before);
    })
}
