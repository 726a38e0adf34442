//! `measure`: its command line.

use super::run::{format_of, refuse_without_image};
use super::{Naming, OutputArg};
use clap::Args;
use img::measure::{self, MeasureOptions, Subject};
use img::{Code, Failure, ImageArgs, OptionList, SnapshotName};
use std::io::Write;
use std::path::PathBuf;

/// Says how large the file of a new image will be
#[derive(Args, Debug)]
pub struct MeasureArgs {
    #[command(flatten)]
    naming: Naming,
    /// Format of the new image: raw, qcow2 (and qed, not in qemu-img) [default: raw]
    #[arg(short = 'O', long, default_value = "raw", value_name = "FMT")]
    target_format: String,
    /// Options of that format
    #[arg(short = 'o', long = "options", value_name = "OPTIONS")]
    target_options: Vec<String>,
    /// An empty disk of this size
    #[arg(short, long, value_name = "SIZE")]
    size: Option<String>,
    /// Format of the image
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// The disk as it was at this snapshot
    #[arg(short = 'l', long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Who reads what is printed
    #[arg(long, default_value = "human")]
    output: OutputArg,
    /// The image may be in use by others
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Opens the files that the image names (not in qemu-img, which always does)
    #[arg(long)]
    allow_backing: bool,
    /// The image that is to be copied
    filename: Option<PathBuf>,
}

impl MeasureArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        let format = format_of(&self.target_format)?;
        let subject = match (&self.filename, &self.size) {
            (Some(path), None) => {
                let image = self.naming.image(
                    path,
                    self.format.as_ref(),
                    self.force_share,
                    self.allow_backing,
                )?;
                let snapshot = self.snapshot.as_deref().map(SnapshotName::parse).transpose()?;
                Subject::Image(ImageArgs { snapshot, ..image })
            }
            (None, Some(size)) => {
                refuse_without_image(&[
                    ("--image-opts", self.naming.image_opts),
                    ("-f", self.format.is_some()),
                    ("-l", self.snapshot.is_some()),
                ])?;
                Subject::Size(img::parse_size(size)?)
            }
            _ => return Err(Failure::new("measure takes a size (--size) or the name of an image")),
        };
        let options = MeasureOptions {
            subject,
            format,
            options: OptionList::parse(&self.target_options)?,
            secrets: self.naming.secrets()?,
            output: self.output.into(),
        };
        measure::run(&options, out)
    }
}
