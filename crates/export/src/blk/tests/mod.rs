#![allow(clippy::disallowed_methods, reason = "tests open files")]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod conformance;
mod requests;
mod rig;
mod simulation;
mod trace;
