#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod interop;
mod power;
mod reader;
mod refusals;
