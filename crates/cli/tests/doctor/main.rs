//! `ferroblk doctor` on the host that the tests run on, whatever that is: nothing is expected of what it finds, but of how it says it.
//! What is found on which host is tested on made-up ones, beside the code.
#![allow(
    clippy::disallowed_methods,
    reason = "a test outside the stack: it has its own clock, files and threads"
)]

mod refusals;
mod reports;
mod sandbox;
