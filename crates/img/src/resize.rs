//! `resize`: another size for the disk.

use crate::preallocate::preallocate;
use crate::{Code, Failure, ImageArgs, Preallocation, Session, parse_size};
use block::{Format, SECTOR};
use std::io::Write;
use std::str::FromStr;

/// The size that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSize {
    /// So many bytes.
    Bytes(u64),
    /// So many bytes more.
    Grow(u64),
    /// So many bytes less.
    Shrink(u64),
}

impl FromStr for NewSize {
    type Err = Failure;

    fn from_str(text: &str) -> Result<NewSize, Failure> {
        Ok(match (text.strip_prefix('+'), text.strip_prefix('-')) {
            (Some(bytes), _) => NewSize::Grow(parse_size(bytes)?),
            (_, Some(bytes)) => NewSize::Shrink(parse_size(bytes)?),
            _ => NewSize::Bytes(parse_size(text)?),
        })
    }
}

impl NewSize {
    /// The size that a disk of `bytes` bytes gets; `None` if it is not positive, or too large.
    fn of(self, bytes: u64) -> Option<u64> {
        let bytes = match self {
            NewSize::Bytes(bytes) => Some(bytes),
            NewSize::Grow(more) => bytes.checked_add(more),
            NewSize::Shrink(less) => bytes.checked_sub(less),
        };
        bytes.filter(|bytes| (1..=i64::MAX.unsigned_abs()).contains(bytes))
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct ResizeOptions {
    /// Of which image.
    pub image: ImageArgs,
    /// Which size.
    pub size: NewSize,
    /// It may lose what lies beyond.
    pub shrink: bool,
    /// What is done for the space that is added.
    pub preallocation: Preallocation,
}

/// Does it.
pub fn run(options: &ResizeOptions, is_quiet: bool, out: &mut dyn Write) -> Result<Code, Failure> {
    let refuse = |why: &str| {
        let path = options.image.path.display();
        Err(Failure::new(format!("resizing {path}: {why}")))
    };
    let image = options.image.open_to_write()?;
    let before = image.disk_bytes();
    let Some(bytes) = options.size.of(before) else {
        return refuse("the new size must be positive, and less than 2^63 bytes");
    };
    if bytes <= before && options.preallocation != Preallocation::Off {
        return refuse("only what is added can be preallocated");
    }
    if bytes < before && !options.shrink {
        return refuse(
            "it would become smaller, and lose what lies beyond its new end: say --shrink if that is wanted",
        );
    }
    if image.format() != Format::Raw && options.preallocation != Preallocation::Off {
        return refuse(&format!("preallocation is not supported in the format {}", image.format()));
    }
    if image.file().facts().is_block_device && image.format() == Format::Raw {
        return refuse("a block device has the size it has");
    }
    let session = Session::new()?;
    let node = session.attach(&image)?;
    let resized = node.clone();
    let rounded = bytes.next_multiple_of(SECTOR);
    session.run(async move {
        resized.resize(if let block::BlockNode::Raw(_) = *resized { rounded } else { bytes }).await
    })?;
    preallocate(&session, &image, &node, before..rounded, options.preallocation)?;
    session.close(&node)?;
    image.sync()?;
    if !is_quiet {
        writeln!(out, "Image resized.")?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_absolute_or_relative() {
        let of = |text: &str| text.parse::<NewSize>().ok().and_then(|size| size.of(1 << 20));
        for (text, bytes) in [
            ("2M", Some(2 << 20)),
            ("+1M", Some(2 << 20)),
            ("-1k", Some((1 << 20) - 1024)),
            ("+0", Some(1 << 20)),
            ("0", None),
            ("-1M", None),
            ("-2M", None),
            ("+8E", None),
            ("+-5", None),
            ("--5", None),
            ("", None),
        ] {
            assert_eq!(of(text), bytes, "{text}");
        }
    }
}
