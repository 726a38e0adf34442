//! What the tests of all formats share.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

pub mod model;
pub mod rig;
