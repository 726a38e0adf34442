//! `convert --in-place`: a QED image becomes a qcow2 image, or the other way round, in the same file; not in `qemu-img`.
//!
//! The data stays where it is: see [`block::in_place`].

use crate::{Code, Failure, ImageArgs, Progress, ProgressKind, Session};
use block::in_place::{Converted, qcow2_to_qed, qed_to_qcow2};
use block::{Error, Format, HostNode, Image, Locking, Result};
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;

/// A format that images are converted to or from in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InPlaceFormat {
    /// QEMU enhanced disk.
    Qed,
    /// QEMU copy on write, version 3.
    Qcow2,
}

impl InPlaceFormat {
    fn other(self) -> InPlaceFormat {
        match self {
            InPlaceFormat::Qed => InPlaceFormat::Qcow2,
            InPlaceFormat::Qcow2 => InPlaceFormat::Qed,
        }
    }
}

impl fmt::Display for InPlaceFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            InPlaceFormat::Qed => "qed",
            InPlaceFormat::Qcow2 => "qcow2",
        })
    }
}

impl FromStr for InPlaceFormat {
    type Err = Failure;

    fn from_str(name: &str) -> std::result::Result<InPlaceFormat, Failure> {
        match name {
            "qed" => Ok(InPlaceFormat::Qed),
            "qcow2" => Ok(InPlaceFormat::Qcow2),
            _ => Err(Failure::new(format!("no image becomes '{name}' in place: qed and qcow2 do"))),
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct InPlaceOptions {
    /// Where the image is.
    pub path: PathBuf,
    /// What it is, if that is said.
    pub from: Option<InPlaceFormat>,
    /// What it is to be.
    pub to: InPlaceFormat,
    /// Prints nothing.
    pub is_quiet: bool,
    /// How it is shown how far it is.
    pub progress: ProgressKind,
}

/// Converts.
pub fn run(options: &InPlaceOptions, out: &mut dyn Write) -> std::result::Result<Code, Failure> {
    let to = options.to;
    if options.from.is_some_and(|from| from != to.other()) {
        let path = options.path.display();
        return Err(Failure::new(format!(
            "converting {path} in place: it is said to be {to} already"
        )));
    }
    // The bytes of the file, locked; what they are, the conversion finds out.
    let open = ImageArgs::new(&options.path).options(Format::Raw, false);
    let image = Image::open_alone(&options.path, &open, Locking::Locked)?;
    let session = Session::new()?;
    let host = session.attach_file(&image)?;
    let converted = convert(&session, host, to, options.progress)?;
    if !options.is_quiet {
        let bytes = converted.metadata_bytes;
        writeln!(out, "Image converted in place to {to}: {bytes} bytes of metadata written.")?;
    }
    Ok(0)
}

fn convert(
    session: &Session,
    host: HostNode,
    to: InPlaceFormat,
    kind: ProgressKind,
) -> std::result::Result<Converted, Error> {
    let progress = Rc::new(Progress::new(kind, 0));
    let (context, told) = (session.context().clone(), progress.clone());
    let converted: Result<Converted> = session.run(async move {
        let tell = |done, of| {
            told.scale(of);
            told.set(done, context.now_ns());
        };
        match to {
            InPlaceFormat::Qcow2 => qed_to_qcow2(&host, tell).await,
            InPlaceFormat::Qed => qcow2_to_qed(&host, tell).await,
        }
    });
    progress.end(converted.is_ok());
    converted
}
