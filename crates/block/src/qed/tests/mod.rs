#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod backing;
pub(crate) mod check;
mod model;
mod requests;
mod resize;
