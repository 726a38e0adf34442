#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod config;
mod guest;
mod hostile;
mod parse;
mod ranges;
