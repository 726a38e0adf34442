//! For tests: what a power cut at any moment of a run may leave of a simulated disk.

use io_engine::sim::{LogEvent, SimDisk};
use sim::enumerate::{Options, enumerate};

/// Calls `judge` with every state (or, where there are too many, a choice of them) that a cut during the run leaves. `begin` is the disk before
/// the run, `log` what was done to it. Each state is a disk of its own. Gives how many there were.
pub fn each_state(begin: &SimDisk, log: &[LogEvent], mut judge: impl FnMut(SimDisk)) -> u64 {
    let options = Options {
        exhaustive_bits: 6,
        samples: 24,
        states_max: 4096,
        // What is right does not depend on when the power was cut.
        promise: &|_| 0,
        ..Options::default()
    };
    let judged = enumerate(begin, log, &options, |state| {
        judge(state.disk.clone());
        Ok(())
    });
    judged.expect("a wrong state has failed its test already").states
}
