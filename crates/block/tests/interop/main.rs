//! Images between QEMU's tools and ours: see each format.
#![allow(clippy::disallowed_methods, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

#[path = "../common/mod.rs"]
mod common;
mod qcow2;
mod qed;
