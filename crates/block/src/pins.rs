//! Pins: how a format knows that nobody uses a freed cluster any more.
//!
//! ```text
//!   request:  pin ---- reads or writes at a place in the file that it looked up ---- unpin
//!   freeing:        the mapping goes .... fence: waits for every pin older than itself .... the place may be used again
//! ```
//!
//! A request that starts after the mapping has gone cannot find the place; one that started before holds a pin until it is done. So
//! who waits once for all pins that exist has waited for every user. There are two counts: new pins go to the one, a fence waits for
//! the other to reach zero.

use iothread::{IoContext, WaitList};
use std::cell::Cell;
use std::rc::Rc;

/// A request's claim on the places it has looked up.
#[derive(Debug)]
#[must_use = "unpin it when the request is done, or freed space is never used again"]
pub struct Pin(usize);

/// The pins of one disk.
#[derive(Debug, Default)]
pub struct Pins {
    newest: Cell<usize>,
    counts: [Cell<u64>; 2],
    waiters: WaitList,
}

/// A pin of a task.
#[derive(Debug)]
pub struct PinGuard {
    pins: Rc<Pins>,
    context: IoContext,
    side: usize,
}

impl Pins {
    #[inline]
    pub fn pin(&self) -> Pin {
        let side = self.newest.get();
        self.counts[side].set(self.counts[side].get() + 1);
        Pin(side)
    }

    #[inline]
    pub fn unpin(&self, pin: Pin, context: &IoContext) {
        self.unpin_side(pin.0, context);
    }

    pub fn guard(self: &Rc<Pins>, context: &IoContext) -> PinGuard {
        let Pin(side) = self.pin();
        PinGuard { pins: self.clone(), context: context.clone(), side }
    }

    /// Waits until every pin made so far is gone. One fence at a time.
    pub async fn fence(&self, context: &IoContext) {
        let old = self.newest.get();
        self.newest.set(1 - old);
        while self.counts[old].get() > 0 {
            self.waiters.wait(context).await;
        }
    }

    #[inline]
    fn unpin_side(&self, side: usize, context: &IoContext) {
        let left = self.counts[side].get() - 1;
        self.counts[side].set(left);
        if left == 0 {
            self.waiters.wake_all(context);
        }
    }
}

impl Drop for PinGuard {
    fn drop(&mut self) {
        self.pins.unpin_side(self.side, &self.context);
    }
}
