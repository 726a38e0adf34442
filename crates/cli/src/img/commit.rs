//! `commit`: its command line.

use super::{Naming, Show};
use block::CacheMode;
use clap::Args;
use img::commit::{self, CommitOptions};
use img::{Code, Failure, ImageArgs};
use std::io::Write;
use std::path::PathBuf;

/// Writes what an image has down into the one that it stands on, and empties it
#[derive(Args, Debug)]
pub struct CommitArgs {
    #[command(flatten)]
    naming: Naming,
    #[command(flatten)]
    show: Show,
    /// Format of the image: qcow2, qed
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Cache mode of the images
    #[arg(short = 't', long, default_value = "writeback", value_name = "MODE")]
    cache: CacheMode,
    /// Down to this image of the chain, instead of the first one; and the image is not emptied
    #[arg(short, long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// The image is not emptied
    #[arg(short, long)]
    drop: bool,
    /// So many bytes in a second at most
    #[arg(short, long, value_name = "RATE")]
    rate: Option<String>,
    /// Opens the files that the image names (not in qemu-img, which always does)
    #[arg(long)]
    allow_backing: bool,
    /// The image
    filename: PathBuf,
}

impl CommitArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        let format = self.format.as_ref();
        let image = self.naming.image(&self.filename, format, false, self.allow_backing)?;
        let options = CommitOptions {
            image: ImageArgs { cache: self.cache, ..image },
            base: self.base.clone(),
            keeps: self.drop,
            rate: self.rate.as_deref().map(img::parse_size).transpose()?.filter(|rate| *rate > 0),
            is_quiet: self.show.quiet,
            progress: self.show.progress(),
        };
        commit::run(&options, out)
    }
}
