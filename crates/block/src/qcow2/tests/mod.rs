#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod bitmaps;
mod model;
mod resize;
mod snapshots;
