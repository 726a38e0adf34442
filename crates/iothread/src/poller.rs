//! Adaptive polling: how long to look for the next event before sleeping.
//!
//! Looking costs processor time, sleeping costs a wake-up (several microseconds on both sides, more in a virtual machine). Looking
//! pays if the next event comes soon. So after each wait the poller is told how long the event took to come, and learns:
//!
//! | the event came                     | the window                                    |
//! |------------------------------------|-----------------------------------------------|
//! | within the window                  | stays                                         |
//! | later, but within the bound        | grows: looking longer would have caught it    |
//! | after the bound                    | shrinks, at last to 0: nothing could catch it |
//!
//! An idle disk thus costs a few halvings of the window and then nothing. Waiting for the guest and waiting for the host's disk are
//! learned apart: the guest may answer within the time of a wake-up, while a disk takes longer than one more wake-up matters, so
//! its bound is lower.

/// Whom the loop is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// Nothing is in flight: the next event is a new request.
    Guest,
    /// Requests are in flight on the host.
    Host,
}

/// Shortest window worth the trouble, in nanoseconds.
const WINDOW_MIN_NS: u64 = 4_000;
/// The bound for the host is the guest's divided by this: see `docs/performance.md`.
const HOST_SHARE: u64 = 8;

#[derive(Debug)]
struct Window {
    ns: u64,
    max_ns: u64,
}

impl Window {
    fn learn(&mut self, waited_ns: u64) {
        if waited_ns > self.max_ns {
            self.ns /= 2;
            if self.ns < WINDOW_MIN_NS {
                self.ns = 0;
            }
        } else if waited_ns > self.ns {
            self.ns = (self.ns * 2).max(WINDOW_MIN_NS).min(self.max_ns);
        }
    }
}

/// Learns how long to poll.
#[derive(Debug)]
pub struct Poller {
    guest: Window,
    host: Window,
}

impl Poller {
    /// `max_ns` bounds every window; 0 switches polling off.
    pub fn new(max_ns: u64) -> Poller {
        let window = |max_ns| Window { ns: 0, max_ns };
        Poller { guest: window(max_ns), host: window(max_ns / HOST_SHARE) }
    }

    /// How long to look, in nanoseconds.
    pub fn window_ns(&self, wait_for: WaitFor) -> u64 {
        match wait_for {
            WaitFor::Guest => self.guest.ns,
            WaitFor::Host => self.host.ns,
        }
    }

    /// The next event came `waited_ns` after the loop ran out of work.
    pub fn learn(&mut self, wait_for: WaitFor, waited_ns: u64) {
        match wait_for {
            WaitFor::Guest => self.guest.learn(waited_ns),
            WaitFor::Host => self.host.learn(waited_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_guest_opens_the_window_up_to_the_bound() {
        let mut poller = Poller::new(50_000);
        assert_eq!(poller.window_ns(WaitFor::Guest), 0);
        for _ in 0..10 {
            poller.learn(WaitFor::Guest, 40_000);
        }
        assert_eq!(poller.window_ns(WaitFor::Guest), 50_000);
        poller.learn(WaitFor::Guest, 1_000);
        assert_eq!(poller.window_ns(WaitFor::Guest), 50_000, "caught: nothing to learn");
    }

    #[test]
    fn an_idle_guest_closes_the_window() {
        let mut poller = Poller::new(50_000);
        for _ in 0..10 {
            poller.learn(WaitFor::Guest, 40_000);
        }
        for _ in 0..10 {
            poller.learn(WaitFor::Guest, 1_000_000);
        }
        assert_eq!(poller.window_ns(WaitFor::Guest), 0);
    }

    #[test]
    fn the_host_is_learned_apart_and_0_switches_polling_off() {
        let mut poller = Poller::new(48_000);
        poller.learn(WaitFor::Host, 5_000);
        assert_eq!(poller.window_ns(WaitFor::Guest), 0);
        assert_eq!(poller.window_ns(WaitFor::Host), 4_000);
        let mut off = Poller::new(0);
        off.learn(WaitFor::Guest, 0);
        off.learn(WaitFor::Guest, 1);
        assert_eq!(off.window_ns(WaitFor::Guest), 0);
    }
}
