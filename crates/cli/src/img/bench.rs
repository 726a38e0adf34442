//! `bench`: its command line.

use super::Naming;
use block::CacheMode;
use clap::Args;
use img::bench::{self, BenchOptions};
use img::{Code, Failure, ImageArgs};
use io_engine::EngineKind;
use std::io::Write;
use std::path::PathBuf;

/// Numbers are not larger than this.
const NUMBER_MAX: u64 = i32::MAX.unsigned_abs() as u64;

/// Sends many requests to an image, and says how long they took
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(flatten)]
    naming: Naming,
    /// Makes no difference here
    #[arg(short, long)]
    quiet: bool,
    /// Format of the image: raw, qcow2, qed
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Cache mode of the image
    #[arg(short = 't', long, default_value = "writeback", value_name = "MODE")]
    cache: CacheMode,
    /// How many requests
    #[arg(short, long, default_value = "75000", value_parser = at_least_one, value_name = "COUNT")]
    count: u64,
    /// How many at the same time
    #[arg(short, long, default_value = "64", value_parser = at_least_one, value_name = "DEPTH")]
    depth: u64,
    /// Where the first one goes
    #[arg(short, long, default_value = "0", value_name = "OFFSET")]
    offset: String,
    /// Bytes of each
    #[arg(short = 's', long, default_value = "4096", value_name = "SIZE")]
    buffer_size: String,
    /// From one to the next [default: the size of each]
    #[arg(short = 'S', long, value_name = "SIZE")]
    step_size: Option<String>,
    /// The engine: io_uring, native, threads
    #[arg(short = 'i', long, value_name = "AIO")]
    aio: Option<EngineKind>,
    /// The engine native
    #[arg(short, long)]
    native: bool,
    /// Writes (and what is in the image is lost)
    #[arg(short, long)]
    write: bool,
    /// Writes this byte
    #[arg(long, default_value = "0", value_parser = byte, value_name = "BYTE")]
    pattern: u8,
    /// A flush after so many writes
    #[arg(long, default_value = "0", value_parser = number, value_name = "COUNT")]
    flush_interval: u64,
    /// A flush does not wait for the writes under way
    #[arg(long)]
    no_drain: bool,
    /// The image may be in use by others
    #[arg(short = 'U', long, conflicts_with = "write")]
    force_share: bool,
    /// Opens the files that the image names (not in qemu-img, which always does)
    #[arg(long)]
    allow_backing: bool,
    /// The image
    filename: PathBuf,
}

/// A number, decimal or hexadecimal.
fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    let number = parsed.ok().filter(|number| *number <= NUMBER_MAX);
    number.ok_or_else(|| format!("it is not a number from 0 to {NUMBER_MAX}"))
}

fn at_least_one(text: &str) -> Result<u64, String> {
    let number = number(text)?;
    if number == 0 { Err("it is not 1 or more".into()) } else { Ok(number) }
}

fn byte(text: &str) -> Result<u8, String> {
    u8::try_from(number(text)?).map_err(|_| "it is not from 0 to 255".into())
}

impl BenchArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        let size = |name: &str, text: &str, least: u64| {
            let bytes = img::parse_size(text)?;
            match bytes {
                bytes if (least..=NUMBER_MAX).contains(&bytes) => Ok(bytes),
                _ => Err(Failure::new(format!("bench: {name} is from {least} to {NUMBER_MAX}"))),
            }
        };
        let step =
            self.step_size.as_ref().map(|text| size("the step (-S)", text, 0)).transpose()?;
        let image = self.naming.image(
            &self.filename,
            self.format.as_ref(),
            self.force_share,
            self.allow_backing,
        )?;
        let options = BenchOptions {
            image: ImageArgs { cache: self.cache, ..image },
            engine: if self.native { Some(EngineKind::Native) } else { self.aio },
            count: self.count,
            depth: self.depth,
            offset: img::parse_size(&self.offset)?,
            buffer_bytes: size("the size of a request (-s)", &self.buffer_size, 1)?,
            // As QEMU: 0 is as if nothing were said.
            step: step.filter(|bytes| *bytes > 0),
            is_write: self.write,
            pattern: self.pattern,
            flush_interval: self.flush_interval,
            no_drain: self.no_drain,
        };
        bench::run(&options, out)
    }
}
