//! `bitmap`: the persistent dirty bitmaps of a qcow2 image made, removed, cleared, switched on and off, merged.
//!
//! What is asked for is done in the order in which it was said; what was done before the first failure stays, as with QEMU. Bitmaps of other images
//! are read there, and added as parts of the disk: their granules may have another size.

use crate::open::Disk;
use crate::{Code, Failure, ImageArgs, Session, escape};
use block::qcow2::Qcow2;
use block::{BlockNode, Error, ErrorKind, Result};
use std::ops::Range;
use std::rc::Rc;

/// Parts of a disk that are carried from one bitmap to another at once: each time the bitmap is stored.
const RANGES_MAX: usize = 1 << 16;

/// What is done to a bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is made.
    Add,
    /// It is removed.
    Remove,
    /// All its bits are cleared.
    Clear,
    /// It records writes.
    Enable,
    /// It stays as it is.
    Disable,
    /// It gets the bits of this one too.
    Merge(String),
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct BitmapOptions {
    /// Of which image.
    pub image: ImageArgs,
    /// The bitmap.
    pub name: String,
    /// What, one after the other.
    pub actions: Vec<Action>,
    /// Bytes of a granule of a new bitmap.
    pub granularity: Option<u64>,
    /// The image that has the bitmaps which are merged, if not the same.
    pub source: Option<ImageArgs>,
}

/// Does it.
pub fn run(options: &BitmapOptions) -> std::result::Result<Code, Failure> {
    options.check()?;
    let session = Session::new()?;
    let image = options.image.open_to_write()?;
    let node = session.attach(&image)?;
    let done = options.act(&session, &node);
    // Whatever became of it, the image is left as one that is whole.
    let closed = session.close(&node);
    done?;
    closed?;
    image.sync()?;
    Ok(0)
}

impl BitmapOptions {
    fn check(&self) -> std::result::Result<(), Failure> {
        let refuse = |why: &str| Err(Failure::new(format!("bitmap: {why}")));
        let merges = |action: &Action| matches!(action, Action::Merge(_));
        match () {
            () if self.actions.is_empty() => {
                refuse("say --add, --remove, --clear, --enable, --disable or --merge")
            }
            () if self.granularity.is_some() && !self.actions.contains(&Action::Add) => {
                refuse("-g goes with --add only")
            }
            () if self.source.is_some() && !self.actions.iter().any(merges) => {
                refuse("-b goes with --merge only")
            }
            () => Ok(()),
        }
    }

    fn act(&self, session: &Session, node: &Rc<BlockNode>) -> std::result::Result<(), Failure> {
        let source = self.source.as_ref().map(|args| Disk::open(session, args)).transpose()?;
        let (node, from) = (node.clone(), source.as_ref().map(|disk| disk.node.clone()));
        let (name, granularity) = (self.name.clone(), self.granularity);
        let actions = self.actions.clone();
        Ok(session.run(async move {
            for action in &actions {
                apply(&node, from.as_deref(), name.as_bytes(), granularity, action).await?;
            }
            Ok(())
        })?)
    }
}

async fn apply(
    node: &BlockNode,
    from: Option<&BlockNode>,
    name: &[u8],
    granularity: Option<u64>,
    action: &Action,
) -> Result<()> {
    let image = with_bitmaps(node)?;
    match action {
        Action::Add => {
            let granularity = granularity.unwrap_or_else(|| image.default_granularity());
            // Without a word about it, a new one records.
            image.add_bitmap(name, granularity, true).await
        }
        Action::Remove => image.remove_bitmap(name).await,
        Action::Clear => image.clear_bitmap(name).await,
        Action::Enable => image.enable_bitmap(name).await,
        Action::Disable => image.disable_bitmap(name).await,
        Action::Merge(other) => match from {
            None => image.merge_bitmap(name, other.as_bytes()).await,
            Some(from) => {
                let (here, there) = (image.disk_bytes(), with_bitmaps(from)?.disk_bytes());
                if here != there {
                    let what = format!(
                        "merging the bitmap '{}' of {}: its disk has {there} bytes, not {here}",
                        escape(other),
                        from.host().path()
                    );
                    return Err(Error::new(ErrorKind::BadRequest, what));
                }
                carry(from, other.as_bytes(), node, name).await
            }
        },
    }
}

/// Adds what the bitmap `from_name` of one image says to the bitmap `name` of another.
pub(crate) async fn carry(
    from: &BlockNode,
    from_name: &[u8],
    to: &BlockNode,
    name: &[u8],
) -> Result<()> {
    let source = with_bitmaps(from)?;
    let target = with_bitmaps(to)?;
    let mut at = 0;
    loop {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        while ranges.len() < RANGES_MAX {
            let Some(range) = source.next_dirty(from_name, at).await? else { break };
            at = range.end;
            ranges.push(range);
        }
        let is_all = ranges.len() < RANGES_MAX;
        // Even without a range: so a bitmap that cannot be used is found out.
        target.mark_in_bitmap(name, &ranges).await?;
        if is_all {
            return Ok(());
        }
    }
}

/// The image, if it can have bitmaps.
pub(crate) fn with_bitmaps(node: &BlockNode) -> Result<&Qcow2> {
    let qcow2 = node.qcow2().filter(|qcow2| qcow2.header().version >= 3);
    qcow2.ok_or_else(|| {
        let what = format!("{}: its format has no bitmaps", node.host().path());
        Error::new(ErrorKind::BadRequest, what)
    })
}
