//! Space for a raw image before it is written.

use crate::pool::Pool;
use crate::{Failure, Session};
use block::{BlockNode, DiskOffset, Error, Image, Result};
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use std::str::FromStr;

/// Bytes of zeroes in one write.
const PIECE_BYTES: u64 = 1 << 20;

/// What is done for new space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Preallocation {
    /// Nothing: a hole.
    #[default]
    Off,
    /// The file system sets it aside.
    Falloc,
    /// It is written with zeroes.
    Full,
}

impl fmt::Display for Preallocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Preallocation::Off => "off",
            Preallocation::Falloc => "falloc",
            Preallocation::Full => "full",
        })
    }
}

impl FromStr for Preallocation {
    type Err = Failure;

    fn from_str(name: &str) -> std::result::Result<Preallocation, Failure> {
        match name {
            "off" => Ok(Preallocation::Off),
            "falloc" => Ok(Preallocation::Falloc),
            "full" => Ok(Preallocation::Full),
            _ => Err(Failure::new(format!(
                "the preallocation '{name}' is none of off, falloc and full"
            ))),
        }
    }
}

/// Sees to the space of `range` in a raw image, which is a hole at its end so far.
pub(crate) fn preallocate(
    session: &Session,
    image: &Image,
    node: &Rc<BlockNode>,
    range: Range<u64>,
    how: Preallocation,
) -> Result<()> {
    if range.is_empty() || how == Preallocation::Off {
        return Ok(());
    }
    let len = range.end - range.start;
    let flags = rustix::fs::FallocateFlags::empty();
    match rustix::fs::fallocate(image.file().file(), flags, range.start, len) {
        // What is to be full is written even so, or the first write of each block would cost more than the later ones.
        Ok(()) if how == Preallocation::Falloc => Ok(()),
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {
            let (node, pool) = (node.clone(), Pool::new(1, PIECE_BYTES)?);
            session.run(async move {
                let mut at = range.start;
                while at < range.end {
                    let len = PIECE_BYTES.min(range.end - at);
                    node.write(DiskOffset(at), pool.buffer(0, len), false).await?;
                    at += len;
                }
                node.flush().await
            })
        }
        Err(error) => {
            let doing = format!("setting aside {len} bytes for {}", image.path().display());
            Err(Error::io(doing, error.into()))
        }
    }
}
