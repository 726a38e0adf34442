#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::single_range_in_vec_init
)]

mod bitmaps;
mod discard;
mod model;
mod resize;
mod rewrite;
mod snapshots;
