//! A limit on how much is done in a second.

use crate::stop;
use iothread::IoContext;
use std::cell::Cell;

const SECOND_NS: u128 = 1_000_000_000;
/// How often who waits looks round, in nanoseconds.
const LOOK_NS: u64 = 50_000_000;

/// Lets so many bytes pass in a second, one piece after the other.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: Option<u64>,
    /// When the next piece may begin, by the context's clock.
    next_ns: Cell<u64>,
}

impl Pace {
    /// At most so many bytes in a second; `None`: no limit.
    pub fn new(bytes_per_second: Option<u64>) -> Pace {
        Pace { bytes_per_second, next_ns: Cell::new(0) }
    }

    /// Waits until a piece of `bytes` bytes may begin, or somebody asks to stop; the first one may begin at once. Does `meanwhile` now and then.
    pub async fn wait(&self, context: &IoContext, bytes: u64, meanwhile: impl Fn()) {
        let Some(rate) = self.bytes_per_second else { return };
        let begins_ns = self.book(context.now_ns(), rate, bytes);
        while context.now_ns() < begins_ns && !stop::is_asked() {
            meanwhile();
            context.sleep_until(begins_ns.min(context.now_ns() + LOOK_NS)).await;
        }
    }

    /// Takes the next time for a piece, and gives when that is.
    fn book(&self, now_ns: u64, rate: u64, bytes: u64) -> u64 {
        let begins_ns = self.next_ns.get().max(now_ns);
        let takes_ns = u128::from(bytes) * SECOND_NS / u128::from(rate.max(1));
        let takes_ns = u64::try_from(takes_ns).unwrap_or(u64::MAX);
        self.next_ns.set(begins_ns.saturating_add(takes_ns));
        begins_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_follow_each_other_at_the_rate() {
        let pace = Pace::new(Some(1 << 20));
        let at: Vec<_> = (0..4).map(|_| pace.book(5, 1 << 20, 1 << 19)).collect();
        assert_eq!(at, [5, 500_000_005, 1_000_000_005, 1_500_000_005]);
        // Time that nobody used is not saved up.
        assert_eq!(pace.book(9_000_000_000, 1 << 20, 1), 9_000_000_000);
        assert_eq!(Pace::new(Some(0)).book(1, 0, u64::MAX), 1);
    }
}
