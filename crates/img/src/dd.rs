//! `dd`: a part of a disk, from its start or from a block on, as a new image.
//!
//! ```text
//!   input   |--- skip x bs ---|============================|---------|
//!           0                 from                         end = count x bs, counted from 0
//!   output                    |============================|  and zeroes up to a whole sector
//! ```
//!
//! Two things are QEMU's way, and not that of `dd`: the output is always made new; and `count` counts from the start of the input, what is skipped
//! included. All of the part is written, zeroes too. The size of a block (`bs`) is a unit only: how much is copied at once does not depend on it.

use crate::create::{NewImage, remove};
use crate::open::{Disk, shown};
use crate::stop;
use crate::{Code, Failure, ImageArgs, OptionList, Secrets, Session};
use block::{BackingFiles, BlockNode, CacheMode, DiskOffset, Format, Image, OpenOptions, SECTOR};
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;

/// Bytes that are copied at once.
const PIECE_BYTES: u64 = 1 << 20;
/// Numbers are not larger than this; nor is a block.
const BLOCK_BYTES_MAX: u64 = i32::MAX.unsigned_abs() as u64;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct DdOptions {
    /// The image that is copied.
    pub input: ImageArgs,
    /// Where to.
    pub output: PathBuf,
    /// The format there.
    pub format: Format,
    /// Which part.
    pub operands: Operands,
}

/// `bs=`, `count=`, `skip=`, `if=`, `of=`, as they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operands {
    /// Bytes of a block.
    pub block_bytes: u64,
    /// The last block, counted from the start of the input.
    pub count: Option<u64>,
    /// Blocks that are left out at the start.
    pub skip: u64,
    /// The input.
    pub input: String,
    /// The output.
    pub output: String,
}

impl Operands {
    /// Reads them. Of one that is given several times, the last counts.
    ///
    /// # Errors
    ///
    /// `BadRequest` for what is none, cannot be, or is missing.
    pub fn parse<'a>(list: impl Iterator<Item = &'a str>) -> Result<Operands, Failure> {
        let (mut block_bytes, mut count, mut skip) = (SECTOR, None, 0);
        let (mut input, mut output) = (None, None);
        for operand in list {
            let (name, value) = operand.split_once('=').unwrap_or((operand, ""));
            match name {
                "bs" => block_bytes = crate::parse_size(value)?,
                "count" => count = Some(crate::parse_size(value)?),
                "skip" => skip = crate::parse_size(value)?,
                "if" => input = Some(value.to_owned()),
                "of" => output = Some(value.to_owned()),
                _ => return Err(Failure::new(format!("dd: there is no operand '{name}'"))),
            }
        }
        if !(1..=BLOCK_BYTES_MAX).contains(&block_bytes) {
            return Err(Failure::new("dd: bs is a number of bytes from 1 to 2147483647"));
        }
        let (Some(input), Some(output)) = (input, output) else {
            return Err(Failure::new("dd needs an input and an output: if=FILE of=FILE"));
        };
        Ok(Operands { block_bytes, count, skip, input, output })
    }

    /// The part of a disk of `bytes` bytes; `None` if it begins behind its end.
    fn part(&self, bytes: u64) -> Option<Range<u64>> {
        let end = self.count.map_or(bytes, |count| count.saturating_mul(self.block_bytes));
        let end = end.min(bytes);
        let from = self.skip.saturating_mul(self.block_bytes);
        (from <= end).then_some(from..end)
    }
}

/// Copies. What is to be said about it, and is no failure, goes to `warnings`.
pub fn run(options: &DdOptions, warnings: &mut dyn FnMut(&str)) -> Result<Code, Failure> {
    let session = Session::new()?;
    let input = Disk::open(&session, &options.input)?;
    let part = options.operands.part(input.bytes).unwrap_or_else(|| {
        let name = shown(&options.input.path);
        warnings(&format!("{name}: cannot skip to specified offset"));
        0..0
    });
    let new = NewImage {
        path: options.output.clone(),
        format: options.format,
        options: OptionList::default(),
        backing: None,
        backing_format: None,
        backing_unchecked: false,
        bytes: Some(part.end - part.start),
        secrets: Secrets::default(),
    };
    let is_new = new.plan()?.make()?;
    let copied = write(&session, options, &input, part);
    copied.inspect_err(|_| remove(&options.output, is_new))?;
    Ok(0)
}

fn write(
    session: &Session,
    options: &DdOptions,
    input: &Disk,
    part: Range<u64>,
) -> Result<(), Failure> {
    let open = OpenOptions {
        // Nothing of it counts before the end.
        cache: CacheMode::Unsafe,
        format: options.format,
        backing_files: BackingFiles::Refuse,
        ..OpenOptions::default()
    };
    let target = Image::open(&options.output, &open)?;
    let node = session.attach(&target)?;
    let (from, to) = (input.node.clone(), node.clone());
    session.run(async move { copy(&from, &to, part).await })?;
    session.close(&node)?;
    target.sync()?;
    Ok(())
}

/// Copies a part, in sectors of the output; of the input it may begin and end anywhere.
async fn copy(from: &BlockNode, to: &Rc<BlockNode>, part: Range<u64>) -> block::Result<()> {
    let pool = crate::pool::Pool::new(1, PIECE_BYTES)?;
    let mut around = Vec::new();
    let mut at = part.start;
    while at < part.end {
        stop::check()?;
        let len = PIECE_BYTES.min(part.end - at);
        // Disks are read by sectors, and end with a whole one.
        let first = at / SECTOR * SECTOR;
        let end = (at + len).next_multiple_of(SECTOR);
        around.resize(index(end - first), 0);
        from.read_to(DiskOffset(first), &mut around).await?;
        let data = pool.buffer(0, len.next_multiple_of(SECTOR));
        data.copy_from(0, &around[index(at - first)..][..index(len)]);
        data.zero_from(len);
        to.write(DiskOffset(at - part.start), data, false).await?;
        at += len;
    }
    to.flush().await
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("little more than a piece")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Operands, Failure> {
        Operands::parse(text.split(' '))
    }

    #[test]
    fn the_part_is_within_the_disk() {
        let part = |text: &str| parsed(&format!("if=a of=b {text}")).unwrap().part(10_000);
        for (text, expected) in [
            ("bs=1k", Some(0..10_000)),
            ("count=2", Some(0..1024)),
            ("bs=1k count=3 skip=2", Some(2048..3072)),
            ("bs=1k count=2 skip=2", Some(2048..2048)),
            ("bs=1k count=1 skip=2", None),
            ("bs=1000 skip=10", Some(10_000..10_000)),
            ("bs=1000 skip=11", None),
            ("bs=2147483647 count=7E skip=7E", None),
        ] {
            assert_eq!(part(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_operand_is_refused() {
        for text in [
            "",
            "if=a",
            "of=b",
            "if=a of=b bs=0",
            "if=a of=b bs=2G",
            "if=a of=b conv=sync",
            "if=a of=b count",
            "if=a of=b skip=-1",
            "if=a of=b obs=1",
        ] {
            assert!(parsed(text).is_err(), "{text}");
        }
        assert_eq!(parsed("if=a of=b if=c bs=1k bs=2k").unwrap().block_bytes, 2048);
    }
}
