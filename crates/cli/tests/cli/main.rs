//! The command line from outside: the real binary, its exit codes, its one line of complaint, and what it leaves behind.
//!
//! Every refusal is checked the same way ([`common::Scratch::refuses`]): the exit code, exactly one line on stderr that
//! begins with `ferroblk: `, nothing on stdout, and a directory in which no file was made, removed, changed or even touched.
#![allow(
    clippy::disallowed_methods,
    reason = "a test outside the stack: it has its own clock, files and threads"
)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod common;
mod engines;
mod images;
mod lifecycle;
mod locks;
mod options;
mod pages;
mod qcow2;
mod qed;
mod ready;
mod sockets;
mod statistics;
mod trace;
