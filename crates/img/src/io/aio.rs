//! `aio_read`, `aio_write`, `aio_flush`: requests that run in the background, side by side, and tell of their end when it comes.

use super::disk::Zeroes;
use super::transfer::{FILLING, Request, Showing, show_failure};
use super::{Call, Shell, Stop};
use block::Result as BlockResult;
use iothread::{IoContext, WaitList};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;

/// Requests side by side: the others wait.
const WORKERS_MAX: u32 = 32;

/// What kind of request it is.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Write {
        fua: bool,
    },
    /// Of so many bytes, which need no memory.
    Zeroes {
        len: u64,
        how: Zeroes,
    },
}

impl Kind {
    async fn run(self, request: &Request) -> BlockResult<()> {
        let Request { disk, at, buffer, .. } = request;
        match self {
            Kind::Read => disk.read(*at, buffer).await,
            Kind::Write { fua } => disk.write(*at, buffer, fua).await,
            Kind::Zeroes { len, how } => disk.write_zeroes(*at, len, how).await,
        }
    }

    /// What it is called when it fails.
    fn verb(self) -> &'static str {
        match self {
            Kind::Read => "readv",
            Kind::Write { .. } | Kind::Zeroes { .. } => "aio_write",
        }
    }
}

/// What a task does for one request.
type Work = Pin<Box<dyn Future<Output = ()>>>;

/// Requests that run in the background, or wait for their turn.
#[derive(Default)]
pub(super) struct Pending {
    /// Begun and not ended.
    count: Cell<u64>,
    ended: WaitList,
    waiting: RefCell<VecDeque<Work>>,
    workers: Cell<u32>,
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Pending { count, workers, .. } = self;
        f.debug_struct("Pending").field("count", count).field("workers", workers).finish()
    }
}

impl Pending {
    /// Whether there are any.
    pub fn is_busy(&self) -> bool {
        self.count.get() > 0
    }

    /// Waits until there are none.
    pub async fn wait(&self, context: &IoContext) {
        while self.is_busy() {
            self.ended.wait(context).await;
        }
    }

    /// Begins one. All are done by a few tasks: some task slots are for what is not in the background, and for what images do by themselves.
    fn begin(self: &Rc<Self>, context: &IoContext, work: Work) {
        self.count.set(self.count.get() + 1);
        self.waiting.borrow_mut().push_back(work);
        if self.workers.get() == WORKERS_MAX {
            return;
        }
        self.workers.set(self.workers.get() + 1);
        let (this, shared) = (self.clone(), context.clone());
        context.spawn_queued(async move {
            while let Some(work) = this.next() {
                work.await;
                this.count.set(this.count.get() - 1);
                this.ended.wake_all(&shared);
            }
            this.workers.set(this.workers.get() - 1);
        });
    }

    fn next(&self) -> Option<Work> {
        self.waiting.borrow_mut().pop_front()
    }
}

/// Starts a request. Whatever becomes of it, the command was good: that is how `qemu-io` has it.
fn start(shell: &Shell, kind: Kind, request: Request) {
    let context = shell.session.context().clone();
    let (printer, name) = (shell.printer.clone(), shell.options.name.clone());
    let started = context.now_ns();
    let work = async move {
        let done = kind.run(&request).await;
        let ns = context.now_ns() - started;
        match (done, kind) {
            (Err(error), _) => show_failure(&printer, &name, kind.verb(), &error),
            (Ok(()), Kind::Read) => drop(request.show_read(&printer, ns)),
            (Ok(()), Kind::Write { .. }) => {
                request.show("wrote", request.buffer.len(), &printer, ns);
            }
            (Ok(()), Kind::Zeroes { len, .. }) => request.show("wrote", len, &printer, ns),
        }
    };
    shell.pending.begin(shell.session.context(), Box::pin(work));
}

/// `aio_read`.
pub(super) fn read(shell: &mut Shell, call: &Call<'_>) -> Result<(), Stop> {
    let (mut showing, mut pattern, mut is_invalid) = (Showing::default(), None, false);
    let operands = call.options(shell, "CiP:qrv", |letter, value| {
        match letter {
            'C' => showing.is_terse = true,
            'i' => is_invalid = true,
            'P' => pattern = Some(shell.pattern(value)?),
            'q' => showing.is_quiet = true,
            'v' => showing.dumps = true,
            // -r makes no difference here.
            _ => {}
        }
        Ok(())
    })?;
    if is_invalid {
        shell.say("injecting invalid read request\n");
        return Ok(());
    }
    let [at, lens @ ..] = operands.as_slice() else { return Err(shell.usage(call)) };
    if lens.is_empty() {
        return Err(shell.usage(call));
    }
    let at = shell.number(at)?;
    let lens = shell.lengths(lens)?;
    showing.pattern = pattern.map(|pattern| (pattern, 0..lens.iter().sum()));
    // A request that is refused at once is one that was started, and failed.
    if let Ok(request) = shell.request(Kind::Read.verb(), at, &lens, showing) {
        start(shell, Kind::Read, request);
    }
    Ok(())
}

/// `aio_write`.
pub(super) fn write(shell: &mut Shell, call: &Call<'_>) -> Result<(), Stop> {
    let (mut showing, mut how) = (Showing::default(), Zeroes::default());
    let (mut pattern, mut zeroes, mut is_invalid, mut registered) = (FILLING, false, false, false);
    let operands = call.options(shell, "CfiP:qruz", |letter, value| {
        match letter {
            'C' => showing.is_terse = true,
            'f' => how.fua = true,
            'i' => is_invalid = true,
            'P' => pattern = shell.pattern(value)?,
            'q' => showing.is_quiet = true,
            'r' => registered = true,
            'u' => how.unmap = true,
            _ => zeroes = true,
        }
        Ok(())
    })?;
    if is_invalid {
        shell.say("injecting invalid write request\n");
        return Ok(());
    }
    let [at, lens @ ..] = operands.as_slice() else { return Err(shell.usage(call)) };
    if lens.is_empty() {
        return Err(shell.usage(call));
    }
    if zeroes && lens.len() != 1 {
        return Err(shell.refuse("-z supports only a single length parameter"));
    }
    if how.unmap && !zeroes {
        return Err(shell.refuse("-u requires -z to be specified"));
    }
    if zeroes && registered {
        return Err(shell.refuse("cannot combine zero write with registered I/O buffer"));
    }
    let at = shell.number(at)?;
    if zeroes {
        let len = shell.number(lens[0])?;
        let checked = shell.disk().check_range(at, len);
        if let Err(error) = checked {
            show_failure(&shell.printer, &shell.options.name, "aio_write", &error);
            return Ok(());
        }
        let request = shell.request("aio_write", at, &[], showing)?;
        start(shell, Kind::Zeroes { len, how }, request);
        return Ok(());
    }
    let lens = shell.lengths(lens)?;
    let kind = Kind::Write { fua: how.fua };
    if let Ok(request) = shell.request(kind.verb(), at, &lens, showing) {
        request.buffer.fill(&[pattern]);
        start(shell, kind, request);
    }
    Ok(())
}

/// `aio_flush`: waits for all of them. As in QEMU, it makes nothing durable.
pub(super) fn flush(shell: &mut Shell, _: &Call<'_>) -> Result<(), Stop> {
    shell.drain()
}
