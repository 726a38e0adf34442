//! The driver that ships, on simulated disks and on the test's own thread.

use crate::setup::Setup;
use block::{BlockNode, DiskOffset, Health, HostNode, NodeOptions, Result};
use guest_mem::{GuestAddr, GuestMemory, IoVecs, MemHandle};
use io_engine::sim::SimDisk;
use io_engine::{AlignedBuf, Buf, IoEngine, Op, OpKind};
use iothread::{Clock, IoContext};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

const MEMORY: u64 = 16 << 20;

/// An engine, a clock and memory: made once, used for many disks.
#[derive(Clone)]
pub struct Machine {
    pub context: IoContext,
    clock: Rc<Cell<u64>>,
    memory: MemHandle,
    next: Rc<Cell<u64>>,
}

impl Machine {
    pub fn new(seed: u64) -> Machine {
        let clock = Rc::new(Cell::new(0));
        let engine = IoEngine::sim(seed, 64).unwrap();
        let context = IoContext::new(engine, 32, Clock::Simulated(clock.clone()));
        let (memory, _) = GuestMemory::memfd(MEMORY).unwrap();
        let memory = MemHandle::new(Arc::new(memory));
        Machine { context, clock, memory, next: Rc::default() }
    }

    /// Timers that are due by then go off with the next request.
    pub fn pass(&self, ns: u64) {
        self.clock.set(self.clock.get() + ns);
    }

    /// Memory that holds `bytes`.
    pub fn data(&self, bytes: &[u8]) -> IoVecs {
        let len = bytes.len() as u64;
        let at = if self.next.get() + len > MEMORY { 0 } else { self.next.get() };
        self.next.set((at + len).next_multiple_of(4096));
        let mut iov = IoVecs::new(&self.memory);
        iov.push(GuestAddr(at), len).unwrap();
        iov.copy_from(0, bytes);
        iov
    }

    fn host(&self, disk: &SimDisk, name: &str) -> HostNode {
        let file = self.context.with_engine(|engine| engine.open_sim(disk)).unwrap();
        HostNode::new(&self.context, file, name.into())
    }

    /// Opens an image of this setup.
    pub fn open(
        &self,
        setup: &Setup,
        disk: &SimDisk,
        backing: Option<&SimDisk>,
        read_only: bool,
    ) -> Result<Rc<BlockNode>> {
        let top = self.host(disk, "image");
        let below = backing.map(|disk| (BlockNode::Raw(self.host(disk, "base")), disk.len()));
        let health = Arc::new(Health::new(0));
        // One slice of the tables: where there are several, they leave RAM and come back.
        let table_cache_bytes = setup.cluster().min(4096);
        let options = NodeOptions {
            read_only,
            unsafe_sync: false,
            health,
            table_cache_bytes,
            discard_no_unref: setup.discard_no_unref,
        };
        let format = setup.kind.format();
        self.run(async move { BlockNode::open(top, format, &options, below).await }).map(Rc::new)
    }

    pub fn run<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> T {
        self.context.block_on(Box::pin(work)).unwrap()
    }

    /// Lets some time of the disk pass, as a read of it takes: others come to their turn.
    pub fn tick(&self, disk: &SimDisk) {
        let file = self.context.with_engine(|engine| engine.open_sim(disk)).unwrap();
        let buf = Buf::Owned(AlignedBuf::new(4096, 4096));
        let read = self.context.io(Op { file, kind: OpKind::Read, at: 0, buf });
        self.run(async move { read.await.0 }).unwrap();
    }

    pub fn read(&self, node: &Rc<BlockNode>, len: usize) -> Result<Vec<u8>> {
        let node = node.clone();
        self.run(async move {
            let mut bytes = vec![0; len];
            node.read_to(DiskOffset(0), &mut bytes).await.map(|()| bytes)
        })
    }

    pub fn close(&self, node: Rc<BlockNode>) -> Result<()> {
        self.run(async move { node.close().await })
    }
}

/// Writes as a virtqueue does: straight to the engine if the node says where, as a task of the node otherwise. The future must be awaited.
pub fn write(
    machine: &Machine,
    node: &Rc<BlockNode>,
    at: u64,
    data: IoVecs,
    fua: bool,
) -> impl Future<Output = bool> + 'static {
    let (context, node) = (machine.context.clone(), node.clone());
    let direct = node.write_direct(DiskOffset(at), &data, fua).map(|(f, to)| (f.clone(), to.0));
    let pin = direct.as_ref().and_then(|_| node.pin());
    async move {
        match direct {
            Some((file, to)) => {
                let kind = OpKind::Write { fua };
                let op = Op { file, kind, at: to, buf: Buf::Guest(data) };
                let (result, _) = context.io(op).await;
                pin.into_iter().for_each(|pin| node.unpin(pin));
                result.is_ok()
            }
            None => node.write(DiskOffset(at), data, fua).await.is_ok(),
        }
    }
}
