#![allow(clippy::disallowed_methods, reason = "tests open files and start threads")]

use super::*;
use crate::context::Target;
use io_engine::{AlignedBuf, Buf, EngineKind, FileRef, HostFile, IoEngine, Op, OpKind, Wait};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

fn context(tasks: u32) -> (IoContext, Rc<Cell<u64>>) {
    let now = Rc::new(Cell::new(0));
    let engine = IoEngine::new(EngineKind::Threads, 8).unwrap();
    (IoContext::new(engine, tasks, Clock::Simulated(now.clone())), now)
}

fn file(context: &IoContext) -> FileRef {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    context.open(HostFile::new(file, false).unwrap()).unwrap()
}

fn filled(byte: u8) -> Buf {
    let mut buf = AlignedBuf::new(4096, 4096);
    buf.as_mut_slice().fill(byte);
    Buf::Owned(buf)
}

async fn write(context: &IoContext, file: &FileRef, at: u64, byte: u8) {
    let op = Op { file: file.clone(), kind: OpKind::Write { fua: false }, at, buf: filled(byte) };
    context.io(op).await.0.unwrap();
}

async fn first_byte(context: &IoContext, file: &FileRef, at: u64) -> u8 {
    let op = Op { file: file.clone(), kind: OpKind::Read, at, buf: filled(0xEE) };
    match context.io(op).await {
        (Ok(()), Buf::Owned(buf)) => buf.as_slice()[0],
        other => panic!("{other:?}"),
    }
}

#[test]
fn tokens_keep_what_they_stand_for() {
    for target in [
        Target::OpSlot(u32::MAX),
        Target::Service(ServiceToken { service: u16::MAX, slot: 0x1234_5678 }),
        Target::Kick { service: 0xABCD },
        Target::Mail,
    ] {
        assert_eq!(Target::unpack(target.pack()), target);
    }
}

#[test]
fn a_task_sees_what_it_wrote() {
    let (context, _) = context(4);
    let file = file(&context);
    let of_task = context.clone();
    let byte = context.block_on(async move {
        write(&of_task, &file, 4096, 7).await;
        first_byte(&of_task, &file, 4096).await
    });
    assert_eq!(byte.unwrap(), 7);
    assert!(context.is_idle());
}

#[test]
fn tasks_beyond_the_slots_are_refused_and_slots_are_used_again() {
    let (context, _) = context(2);
    let gate = Rc::new(WaitList::default());
    let ended = Rc::new(Cell::new(0));
    let task = |context: &IoContext| {
        let (context, gate, ended) = (context.clone(), gate.clone(), ended.clone());
        async move {
            gate.wait(&context).await;
            ended.set(ended.get() + 1);
        }
    };
    assert!(context.spawn(task(&context)) && context.spawn(task(&context)));
    assert!(!context.has_room());
    assert!(!context.spawn(task(&context)));
    context.run_ready();
    assert_eq!(ended.get(), 0);
    gate.wake_all(&context);
    context.run_ready();
    assert_eq!(ended.get(), 2);
    assert!(context.has_room());
}

#[test]
fn a_dropped_op_goes_on_and_its_slot_is_not_mistaken_for_another() {
    let (context, _) = context(4);
    let file = file(&context);
    let of_task = context.clone();
    let bytes = context.block_on(async move {
        let op = |at, byte| Op {
            file: file.clone(),
            kind: OpKind::Write { fua: false },
            at,
            buf: filled(byte),
        };
        {
            let mut dropped = std::pin::pin!(of_task.io(op(0, 1)));
            // Submitted by its first poll, then dropped with the write under way.
            std::future::poll_fn(|cx| {
                assert!(dropped.as_mut().poll(cx).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
        }
        for round in 0..20u8 {
            write(&of_task, &file, 8192, round).await;
            assert_eq!(first_byte(&of_task, &file, 8192).await, round);
        }
        first_byte(&of_task, &file, 0).await
    });
    assert_eq!(bytes.unwrap(), 1);
    assert!(context.is_idle(), "the orphan's slot came free");
}

#[test]
fn more_ops_than_the_engine_takes_wait_for_room() {
    let (context, _) = context(32);
    let file = file(&context);
    let ended = Rc::new(Cell::new(0));
    for index in 0..30u8 {
        let (of_task, file, ended) = (context.clone(), file.clone(), ended.clone());
        assert!(context.spawn(async move {
            write(&of_task, &file, u64::from(index) * 4096, index).await;
            ended.set(ended.get() + 1);
        }));
    }
    let (of_task, all) = (context.clone(), ended.clone());
    let done = context.block_on(async move {
        while all.get() < 30 {
            first_byte(&of_task, &file, 0).await;
        }
    });
    done.unwrap();
    assert_eq!(ended.get(), 30);
}

#[test]
fn overlapping_ranges_exclude_each_other_and_others_do_not() {
    let (context, _) = context(8);
    let locks = RangeLocks::default();
    let log = Rc::new(RefCell::new(Vec::new()));
    let gate = Rc::new(WaitList::default());
    for (name, range) in [("a", 0..10), ("b", 5..6), ("c", 10..12), ("d", 9..11)] {
        let (context2, locks, log, gate) =
            (context.clone(), locks.clone(), log.clone(), gate.clone());
        context.spawn(async move {
            let _guard = locks.lock(&context2, range).await;
            log.borrow_mut().push(name);
            gate.wait(&context2).await;
        });
    }
    context.run_ready();
    assert_eq!(*log.borrow(), ["a", "c"], "b and d overlap a; c touches nobody");
    assert!(locks.overlaps(&(11..20)) && !locks.overlaps(&(12..20)));
    for _ in 0..4 {
        gate.wake_all(&context);
        context.run_ready();
    }
    let mut all = log.borrow().clone();
    all.sort_unstable();
    assert_eq!(all, ["a", "b", "c", "d"]);
    assert!(!locks.overlaps(&(0..u64::MAX)));
}

#[test]
fn timers_wake_in_order_of_time() {
    let (context, now) = context(8);
    let log = Rc::new(RefCell::new(Vec::new()));
    for at in [30u64, 10, 20] {
        let (of_task, log) = (context.clone(), log.clone());
        context.spawn(async move {
            of_task.sleep_until(at).await;
            log.borrow_mut().push(at);
        });
    }
    context.run_ready();
    assert_eq!(context.wait_at_most(), Wait::Ns(10));
    for (time, seen) in [(9, 0), (10, 1), (29, 2), (30, 3)] {
        now.set(time);
        context.wake_due();
        context.run_ready();
        assert_eq!(log.borrow().len(), seen, "at {time}");
    }
    assert_eq!(*log.borrow(), [10, 20, 30]);
    assert_eq!(context.wait_at_most(), Wait::Forever);
}

/// A service whose requests are numbers, each answered after a write of that number.
struct Numbers {
    inbox: Arc<Mutex<Vec<u8>>>,
    outbox: Arc<Mutex<Vec<u8>>>,
    file: FileRef,
    id: ServiceId,
    slots: Vec<Option<u8>>,
    armed: Arc<AtomicBool>,
    use_task: bool,
}

impl Service for Numbers {
    type Local = ();

    fn pump(&mut self, context: &IoContext) -> bool {
        let taken = std::mem::take(&mut *self.inbox.lock().unwrap());
        for number in &taken {
            let slot = u32::try_from(self.slots.len()).unwrap();
            self.slots.push(Some(*number));
            let token = ServiceToken { service: self.id.0, slot };
            let kind = OpKind::Write { fua: false };
            let at = u64::from(*number) * 4096;
            let op = Op { file: self.file.clone(), kind, at, buf: filled(*number) };
            if self.use_task {
                let of_task = context.clone();
                context.spawn(async move {
                    let (result, _) = of_task.io(op).await;
                    of_task.finish(token, result);
                });
            } else {
                context.submit(op, token).unwrap();
            }
        }
        !taken.is_empty()
    }

    fn complete(&mut self, _: &IoContext, slot: u32, result: io::Result<()>, _: Buf) {
        result.unwrap();
        let number = self.slots[slot as usize].take().unwrap();
        self.outbox.lock().unwrap().push(number);
    }

    fn publish(&mut self) {}

    fn has_work(&self) -> bool {
        !self.inbox.lock().unwrap().is_empty()
    }

    fn arm(&mut self) -> bool {
        self.armed.store(true, Ordering::SeqCst);
        self.has_work()
    }

    fn disarm(&mut self) {
        self.armed.store(false, Ordering::SeqCst);
    }

    fn in_flight(&self) -> usize {
        self.slots.iter().flatten().count()
    }
}

#[test]
fn a_thread_serves_kicks_until_its_service_is_drained() {
    for use_task in [false, true] {
        let config = IoThreadConfig {
            name: "test".into(),
            engine: EngineKind::Threads,
            depth: 64,
            tasks: 64,
            poll_max_ns: 0,
        };
        let thread: IoThread<Numbers> = IoThread::start(config).unwrap();
        let (inbox, outbox) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let armed = Arc::new(AtomicBool::new(false));
        let flags = rustix::event::EventfdFlags::NONBLOCK;
        let kick = rustix::event::eventfd(0, flags).unwrap();
        let parts = (inbox.clone(), outbox.clone(), armed.clone(), kick.try_clone().unwrap());
        let id = thread.call(move |io_loop| {
            let (inbox, outbox, armed, kick) = parts;
            let file = file(io_loop.context());
            let id = io_loop
                .add(|_, id| {
                    let slots = Vec::new();
                    Ok::<_, io::Error>(Numbers { inbox, outbox, file, id, slots, armed, use_task })
                })
                .unwrap();
            io_loop.set_kick(id, Some(kick)).unwrap();
            id
        });
        for number in 1..=20u8 {
            // Kicked only when asleep, so each wake-up has to come from the eventfd.
            while !armed.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            inbox.lock().unwrap().push(number);
            ring(&kick);
            while outbox.lock().unwrap().len() < usize::from(number) {
                std::thread::yield_now();
            }
        }
        inbox.lock().unwrap().extend(21..=40);
        ring(&kick);
        let left = thread.call_later(move |io_loop, reply| {
            io_loop.drain(id, move |io_loop| {
                reply(io_loop.remove(id).map(|service| service.in_flight()));
            });
        });
        assert_eq!(left, Some(0));
        let mut done = outbox.lock().unwrap().clone();
        done.sort_unstable();
        // Whatever was taken was answered; what was not taken is still in the inbox.
        done.append(&mut inbox.lock().unwrap());
        assert_eq!(done, (1..=40).collect::<Vec<u8>>());
    }
}

#[test]
fn messages_run_in_order_and_a_stopped_thread_ends() {
    let config = IoThreadConfig {
        name: "test".into(),
        engine: EngineKind::Threads,
        depth: 8,
        tasks: 8,
        poll_max_ns: 10_000,
    };
    let thread: IoThread<Numbers> = IoThread::start(config).unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    for expected in 0..100 {
        let count = count.clone();
        thread.send(move |_| assert_eq!(count.fetch_add(1, Ordering::SeqCst), expected));
    }
    drop(thread);
    assert_eq!(count.load(Ordering::SeqCst), 100);
}

#[test]
fn a_timed_task_notes_when_its_first_op_began_and_its_last_ended_and_other_tasks_do_not() {
    let (context, now) = context(4);
    let file = file(&context);
    let times = Rc::<Cell<OpTimes>>::default();
    let (of_task, of_file, clock) = (context.clone(), file.clone(), now.clone());
    let task = context.time_ops(times.clone(), async move {
        clock.set(10);
        write(&of_task, &of_file, 0, 1).await;
        clock.set(20);
        // The engine never does this at once.
        let flush = Op { file: of_file, kind: OpKind::Flush, at: 0, buf: Buf::None };
        of_task.io(flush).await.0.unwrap();
        clock.set(30);
    });
    context.block_on(task).unwrap();
    let noted = OpTimes { first_ns: Some(10), submitted_ns: Some(10), ended_ns: Some(20) };
    assert_eq!(times.get(), noted);

    let of_task = context.clone();
    context.block_on(async move { write(&of_task, &file, 0, 2).await }).unwrap();
    assert_eq!(times.get(), noted);
}
