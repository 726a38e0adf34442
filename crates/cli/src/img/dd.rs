//! `dd`: its command line.

use super::Naming;
use super::run::{format_of, stop_on_signals};
use crate::complain;
use clap::Args;
use img::dd::{self, DdOptions, Operands};
use img::{Code, Failure};
use std::path::Path;

/// Copies a part of a disk to a new image
#[derive(Args, Debug)]
pub struct DdArgs {
    #[command(flatten)]
    naming: Naming,
    /// Format of the input: raw, qcow2, qed
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Format of the output [default: raw]
    #[arg(short = 'O', long, default_value = "raw", value_name = "FMT")]
    output_format: String,
    /// The input may be in use by others
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Opens the files that the input names (not in qemu-img, which always does)
    #[arg(long)]
    allow_backing: bool,
    /// if=INPUT, of=OUTPUT, bs=BYTES of a block [default: 512], skip=BLOCKS at the start, count=BLOCKS from the start (with those skipped)
    #[arg(value_name = "OPERAND")]
    operands: Vec<String>,
}

impl DdArgs {
    pub(super) fn run(&self) -> Result<Code, Failure> {
        let operands = Operands::parse(self.operands.iter().map(String::as_str))?;
        let format = self.format.as_ref();
        let input = Path::new(&operands.input);
        let options = DdOptions {
            input: self.naming.image(input, format, self.force_share, self.allow_backing)?,
            output: operands.output.clone().into(),
            format: format_of(&self.output_format)?,
            operands,
        };
        stop_on_signals()?;
        dd::run(&options, &mut |warning| complain(super::name(), warning))
    }
}
