#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod exhaustive;
mod fences;
mod guest;
mod hostile;
mod notify;
mod random;
mod rules;
