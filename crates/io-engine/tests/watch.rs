//! Sleeping and being woken: the same on all engines.
#![allow(clippy::disallowed_methods, clippy::cast_possible_truncation)]

mod common;

use common::*;
use io_engine::sim::{Rates, SimOptions};
use io_engine::{IoEngine, Op, OpKind, Reaped, Token, Wait};
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::OwnedFd;
use std::sync::mpsc;

fn engines() -> Vec<IoEngine> {
    let mut engines: Vec<IoEngine> =
        kinds().into_iter().map(|kind| IoEngine::new(kind, DEPTH).unwrap()).collect();
    engines.push(IoEngine::sim(1, DEPTH).unwrap());
    engines
}

fn kick_fd() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn kick(fd: &OwnedFd) {
    rustix::io::write(fd, &1u64.to_le_bytes()).unwrap();
}

/// Sleeps until `token` woke us; a report too many of another token is no error, a completion is.
fn wait_for(engine: &mut IoEngine, token: u64) {
    let mut reaped = Reaped::default();
    while !reaped.woken.contains(&Token(token)) {
        reaped.woken.clear();
        engine.reap(&mut reaped, Wait::Forever).unwrap();
        assert!(reaped.completions.is_empty());
    }
}

/// Takes reports that may be one too many out of the way.
fn settle(engine: &mut IoEngine) {
    let mut reaped = Reaped::default();
    for _ in 0..4 {
        engine.reap(&mut reaped, Wait::Ns(1)).unwrap();
    }
}

#[test]
fn each_kick_wakes_although_the_eventfd_is_never_read() {
    for mut engine in engines() {
        let (first, second) = (kick_fd(), kick_fd());
        engine.watch(first.try_clone().unwrap(), Token(1)).unwrap();
        engine.watch(second.try_clone().unwrap(), Token(2)).unwrap();
        for round in 0..50 {
            let (fd, token) = if round % 3 == 0 { (&first, 1) } else { (&second, 2) };
            kick(fd);
            wait_for(&mut engine, token);
        }
        settle(&mut engine);
        let mut reaped = Reaped::default();
        engine.reap(&mut reaped, Wait::No).unwrap();
        assert!(reaped.woken.is_empty(), "{}: woken by nothing", engine.kind_name());
    }
}

#[test]
fn a_kick_from_another_thread_ends_a_sleep_for_ever() {
    for mut engine in engines() {
        let kicked = kick_fd();
        engine.watch(kicked.try_clone().unwrap(), Token(5)).unwrap();
        let (go, wait) = mpsc::channel::<()>();
        let kicker = std::thread::spawn(move || {
            for () in wait {
                std::thread::sleep(std::time::Duration::from_millis(2));
                kick(&kicked);
            }
        });
        for _ in 0..10 {
            go.send(()).unwrap();
            wait_for(&mut engine, 5);
        }
        drop(go);
        kicker.join().unwrap();
    }
}

#[test]
fn a_descriptor_that_is_readable_already_reports_at_once() {
    for mut engine in engines() {
        let fd = kick_fd();
        kick(&fd);
        engine.watch(fd, Token(9)).unwrap();
        wait_for(&mut engine, 9);
    }
}

#[test]
fn an_ended_watch_is_silent_and_gives_the_descriptor_back() {
    for mut engine in engines() {
        let (old, new) = (kick_fd(), kick_fd());
        let id = engine.watch(old.try_clone().unwrap(), Token(1)).unwrap();
        // The event is there before the watch ends, and must not come out after.
        kick(&old);
        let back = engine.unwatch(id).expect("the descriptor");
        kick(&back);
        assert!(engine.unwatch(id).is_none());
        engine.watch(new.try_clone().unwrap(), Token(2)).unwrap();
        kick(&old);
        kick(&new);
        let mut reaped = Reaped::default();
        while reaped.woken.is_empty() {
            engine.reap(&mut reaped, Wait::Forever).unwrap();
        }
        settle(&mut engine);
        assert!(!reaped.woken.contains(&Token(1)), "{}", engine.kind_name());
    }
}

#[test]
fn a_watch_can_end_while_others_go_on_many_times() {
    for mut engine in engines() {
        let stays = kick_fd();
        engine.watch(stays.try_clone().unwrap(), Token(0)).unwrap();
        for round in 1..200 {
            let fd = kick_fd();
            let id = engine.watch(fd.try_clone().unwrap(), Token(round)).unwrap();
            kick(&fd);
            wait_for(&mut engine, round);
            engine.unwatch(id).unwrap();
        }
        kick(&stays);
        wait_for(&mut engine, 0);
    }
}

#[test]
fn a_bounded_wait_ends_and_completions_do_not_hide_kicks() {
    for mut case in cases(1 << 20) {
        let name = case.name.clone();
        let mut reaped = Reaped::default();
        case.engine.reap(&mut reaped, Wait::Ns(1_000_000)).unwrap();
        assert!(reaped.completions.is_empty() && reaped.woken.is_empty(), "{name}");
        // With ops always in flight and always completing, a kick must be seen all the same.
        let fd = kick_fd();
        case.engine.watch(fd.try_clone().unwrap(), Token(4)).unwrap();
        kick(&fd);
        let mut reaps = 0;
        while !reaped.woken.contains(&Token(4)) {
            let buf = room_for(4096);
            let op = Op { file: case.file.clone(), kind: OpKind::Read, at: 0, buf };
            case.engine.submit(op, Token(0)).unwrap();
            case.engine.reap(&mut reaped, Wait::Forever).unwrap();
            while case.engine.in_flight() > 0 {
                case.engine.reap(&mut reaped, Wait::Forever).unwrap();
            }
            reaps += 1;
            assert!(reaps < 1000, "{name}: a kick is starved by completions");
        }
    }
}

#[test]
fn waiting_for_nothing_for_ever_is_a_deadlock_that_the_simulator_reports() {
    let mut case = sim_case("sim", SimOptions::default(), Rates::default());
    let error = case.engine.reap(&mut Reaped::default(), Wait::Forever).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::Deadlock);
}
