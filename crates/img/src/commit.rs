//! `commit`: what an image has on top of another one goes down into that one.
//!
//! ```text
//!   top    |  A |    | 0 |       |  opened for reading, and for writing if it is emptied at the end
//!   middle |    | B  |   |       |  read, if the base is farther below (-b)
//!   base   |  a |    | c |  d    |  written: A, B, zeroes
//! ```
//!
//! What a power cut or a failure leaves, step by step:
//!
//! 1. the base grows, if it is smaller than the top. Beyond its old end it reads as zeroes, as it did to the top before.
//! 2. What the images above the base have is written to it. Wherever that is done, an image above has the same data and hides the base: so the top
//!    reads the same, whatever part of it arrived. (The base alone is neither the old nor the new disk then, and neither are other images on it: commit
//!    again, which does it all again.)
//! 3. The base is flushed and closed.
//! 4. Only then the top is emptied, one table after the other: each part reads the same from the base.
//!
//! With -b or -d the last step is left out. The images between are not changed.

use crate::rate::Pace;
use crate::status::{Depth, Kind, status};
use crate::{Code, Failure, ImageArgs, Progress, ProgressKind, Session};
use block::{BlockNode, DiskOffset, Format, Image};
use iothread::IoContext;
use std::io::Write;
use std::path::PathBuf;
use std::rc::Rc;

/// Bytes that are copied at once.
const PIECE_BYTES: u64 = 1 << 20;
/// Zeroes that are written at once.
const ZERO_BYTES: u64 = 1 << 30;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct CommitOptions {
    /// Of which image.
    pub image: ImageArgs,
    /// Down to this one; `None`: the one below. With it the image is not emptied.
    pub base: Option<PathBuf>,
    /// The image is not emptied.
    pub keeps: bool,
    /// Bytes in a second at most.
    pub rate: Option<u64>,
    /// Nothing is said about it.
    pub is_quiet: bool,
    /// How it is shown how far it is.
    pub progress: ProgressKind,
}

/// Does it.
pub fn run(options: &CommitOptions, out: &mut dyn Write) -> Result<Code, Failure> {
    let args = &options.image;
    let format = args.format()?;
    if format == Format::Raw {
        let path = args.path.display();
        return Err(Failure::new(format!("committing {path}: a raw image has no backing file")));
    }
    // QED has no way to be emptied, as with QEMU.
    let empties = options.base.is_none() && !options.keeps && format == Format::Qcow2;
    let open = args.options(format, !empties);
    let (image, depth) = Image::open_over(&args.path, &open, options.base.as_deref())?;
    let session = Session::new()?;
    let node = session.attach(&image)?;
    let progress = Rc::new(Progress::new(options.progress, image.disk_bytes()));
    let copied = copy(&session, &node, &image, depth, options, progress.clone());
    progress.end(copied.is_ok());
    // Whatever became of it, both are left as ones that are whole.
    let emptied = match copied {
        Ok(()) if empties => empty(&session, &node),
        done => done,
    };
    let closed = session.close(&node);
    emptied?;
    closed?;
    image.sync_unless_unsafe()?;
    if !options.is_quiet {
        writeln!(out, "Image committed.")?;
    }
    Ok(0)
}

/// Steps 1 to 3.
fn copy(
    session: &Session,
    node: &Rc<BlockNode>,
    image: &Image,
    depth: usize,
    options: &CommitOptions,
    progress: Rc<Progress>,
) -> block::Result<()> {
    let mut below = image;
    for _ in 0..depth {
        below = below.backing().expect("as deep as it was found");
    }
    let work = Work {
        context: session.context().clone(),
        top: node.clone(),
        top_bytes: image.disk_bytes(),
        depth,
        base_bytes: below.disk_bytes(),
        pace: Pace::new(options.rate),
        progress,
    };
    session.run(async move {
        let done = work.copy().await;
        let closed = work.close_base().await;
        done.and(closed)
    })
}

/// Step 4.
fn empty(session: &Session, node: &Rc<BlockNode>) -> block::Result<()> {
    let node = node.clone();
    session.run(async move {
        match node.qcow2() {
            Some(qcow2) => qcow2.make_empty().await,
            None => Ok(()),
        }
    })
}

struct Work {
    context: IoContext,
    top: Rc<BlockNode>,
    top_bytes: u64,
    /// How far below the base is: 1 is next to the top.
    depth: usize,
    /// What the base had before it grew.
    base_bytes: u64,
    pace: Pace,
    progress: Rc<Progress>,
}

impl Work {
    fn base(&self) -> &BlockNode {
        let mut node = &*self.top;
        for _ in 0..self.depth {
            node = node.backing().expect("as deep as it was found").0;
        }
        node
    }

    async fn copy(&self) -> block::Result<()> {
        if self.top_bytes > self.base_bytes {
            Box::pin(self.base().resize(self.top_bytes)).await?;
        }
        let pool = crate::pool::Pool::new(1, PIECE_BYTES)?;
        let mut at = 0;
        while at < self.top_bytes {
            let rest = self.top_bytes - at;
            let found = status(&self.top, at, rest, Depth::All).await?.in_sectors(at, rest);
            let is_above = (found.depth as usize) < self.depth;
            let mut len = found.len;
            match found.kind {
                Kind::Data if is_above => {
                    len = len.min(PIECE_BYTES - at % PIECE_BYTES);
                    self.pace.wait(&self.context, len, || self.progress.tell_if_asked()).await;
                    let data = pool.buffer(0, len);
                    self.top.read(DiskOffset(at), data.part(0, len)).await?;
                    self.base().write(DiskOffset(at), data, false).await?;
                }
                // Where it has grown it is zeroes already.
                Kind::Zero if is_above && at < self.base_bytes => {
                    len = len.min(ZERO_BYTES).min(self.base_bytes - at);
                    self.base().write_zeroes(DiskOffset(at), len, true).await?;
                }
                _ => {}
            }
            at += len;
            self.progress.add(len, self.context.now_ns());
        }
        Ok(())
    }

    async fn close_base(&self) -> block::Result<()> {
        self.base().flush().await?;
        self.base().close().await
    }
}
