//! `amend`: its command line.

use super::{Naming, Show};
use block::CacheMode;
use clap::Args;
use img::amend::{self, AmendOptions};
use img::{Code, Failure, ImageArgs, OptionList};
use std::io::Write;
use std::path::PathBuf;

/// Changes options of a qcow2 image
#[derive(Args, Debug)]
pub struct AmendArgs {
    #[command(flatten)]
    naming: Naming,
    #[command(flatten)]
    show: Show,
    /// Format of the image: qcow2
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Cache mode of the image
    #[arg(short = 't', long, default_value = "writeback", value_name = "MODE")]
    cache: CacheMode,
    /// What is changed; help lists them
    #[arg(short, long, required = true, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Makes no difference here: nothing is done that would leave an encrypted image which nobody can open
    #[arg(long)]
    force: bool,
    /// Opens the files that the image names (not in qemu-img, which always does)
    #[arg(long)]
    allow_backing: bool,
    /// The image
    #[arg(required_unless_present = "options")]
    filename: Option<PathBuf>,
}

impl AmendArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        let list = OptionList::parse(&self.options)?;
        let asks = list.names().any(|name| name == "help" || name == "?");
        if asks && self.format.as_ref().is_none_or(|format| format == "qcow2") {
            write!(out, "{}", amend::help())?;
            return Ok(0);
        }
        let Some(path) = &self.filename else {
            return Err(Failure::new("amend needs the name of an image"));
        };
        let image = self.naming.image(path, self.format.as_ref(), false, self.allow_backing)?;
        let options = AmendOptions {
            image: ImageArgs { cache: self.cache, ..image },
            options: list,
            secrets: self.naming.secrets()?,
            progress: self.show.progress(),
        };
        amend::run(&options)
    }
}
