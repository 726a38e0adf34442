//! A private I/O context for one verb: engine, tasks and clock, run by the verb's own thread.

use block::{BlockNode, Error, HostNode, Image, Result};
use io_engine::{EngineKind, IoEngine};
use iothread::{Clock, IoContext};
use std::rc::Rc;

/// Ops in flight at most.
const DEPTH: u32 = 256;
/// Tasks at most: the workers of a copy, and what images do in the background.
const TASKS: u32 = 64;

/// Where a verb's I/O is done.
#[derive(Debug)]
pub struct Session {
    context: IoContext,
}

impl Session {
    /// A context with io_uring, or with threads where the kernel refuses that.
    ///
    /// # Errors
    ///
    /// The host's, if neither can be had.
    pub fn new() -> Result<Session> {
        Session::with(None, 0)
    }

    /// A context for a copy: what is read is read by other threads, while the verb's own writes.
    ///
    /// # Errors
    ///
    /// As [`Session::new`].
    pub fn for_copy() -> Result<Session> {
        Session::made(None, 0, true)
    }

    /// A context with this engine, in which so many tasks more than usual may be under way.
    ///
    /// # Errors
    ///
    /// As [`Session::new`].
    pub fn with(kind: Option<EngineKind>, more: u32) -> Result<Session> {
        Session::made(kind, more, false)
    }

    fn made(kind: Option<EngineKind>, more: u32, is_for_copy: bool) -> Result<Session> {
        let depth = DEPTH + more;
        let engine = match kind {
            Some(kind) => IoEngine::new(kind, depth),
            None => IoEngine::new(EngineKind::IoUring, depth).or_else(|error| {
                tracing::info!("the kernel refuses io_uring ({error}): using the engine threads");
                IoEngine::new(EngineKind::Threads, depth)
            }),
        };
        let mut engine = engine.map_err(|error| Error::io("starting an I/O engine", error))?;
        if is_for_copy {
            engine.read_aside();
        }
        Ok(Session { context: IoContext::new(engine, TASKS + more, Clock::monotonic()) })
    }

    /// The context.
    pub fn context(&self) -> &IoContext {
        &self.context
    }

    /// Runs `future` to its end.
    ///
    /// # Errors
    ///
    /// Its own, or that of the engine.
    pub fn run<T: 'static>(&self, future: impl Future<Output = Result<T>> + 'static) -> Result<T> {
        // Boxed, as a task's slot is small.
        let done = self.context.block_on(Box::pin(future));
        done.map_err(|error| Error::io("running the I/O engine", error))?
    }

    /// Makes an image usable here.
    ///
    /// # Errors
    ///
    /// As [`BlockNode::attach`].
    pub fn attach(&self, image: &Image) -> Result<Rc<BlockNode>> {
        let (image, context) = (image.clone(), self.context.clone());
        self.run(async move { Ok(Rc::new(BlockNode::attach(&image, &context).await?)) })
    }

    /// Makes an image's file usable here, whatever is in it.
    ///
    /// # Errors
    ///
    /// As [`HostNode::attach`].
    pub fn attach_file(&self, image: &Image) -> Result<HostNode> {
        HostNode::attach(image, &self.context)
    }

    /// Ends the use of an image that was written: see [`BlockNode::close`].
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn close(&self, node: &Rc<BlockNode>) -> Result<()> {
        let node = node.clone();
        self.run(async move { node.close().await })
    }
}
