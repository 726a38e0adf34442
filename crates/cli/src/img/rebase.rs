//! `rebase`: its command line.

use super::{Naming, Show};
use block::CacheMode;
use clap::Args;
use clap::builder::OsStringValueParser;
use img::rebase::{self, RebaseOptions};
use img::{Code, Failure, ImageArgs};
use std::ffi::OsString;
use std::path::PathBuf;

/// Makes an image stand on another file, or on none
#[derive(Args, Debug)]
pub struct RebaseArgs {
    #[command(flatten)]
    naming: Naming,
    #[command(flatten)]
    show: Show,
    /// Format of the image: qcow2, qed
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Cache mode of the image
    #[arg(short = 't', long, default_value = "writeback", value_name = "MODE")]
    cache: CacheMode,
    /// The new backing file, as the image is to name it; "" for none
    #[arg(short, long, required_unless_present = "backing_unsafe", value_parser = OsStringValueParser::new(), value_name = "FILE")]
    backing: Option<OsString>,
    /// Format of that file
    #[arg(short = 'F', long, value_name = "FMT")]
    backing_format: Option<String>,
    /// Cache mode of that file
    #[arg(short = 'T', long, default_value = "writeback", value_name = "MODE")]
    backing_cache: CacheMode,
    /// Changes the name alone: nothing is compared, and no such file needed
    #[arg(short = 'u', long)]
    backing_unsafe: bool,
    /// Compresses what is copied (qcow2)
    #[arg(short, long)]
    compress: bool,
    /// The new backing file may be in use by others
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Opens the files that the image names (not in qemu-img, which always does)
    #[arg(long)]
    allow_backing: bool,
    /// The image
    filename: PathBuf,
}

impl RebaseArgs {
    pub(super) fn run(&self) -> Result<Code, Failure> {
        let format = self.format.as_ref();
        let image =
            self.naming.image(&self.filename, format, self.force_share, self.allow_backing)?;
        let options = RebaseOptions {
            image: ImageArgs { cache: self.cache, ..image },
            backing: self.backing.clone().filter(|name| !name.is_empty()).map(PathBuf::from),
            backing_format: self.backing_format.clone(),
            backing_cache: self.backing_cache,
            is_unsafe: self.backing_unsafe,
            compress: self.compress,
            progress: self.show.progress(),
        };
        rebase::run(&options)
    }
}
