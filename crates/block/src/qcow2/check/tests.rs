//! Checks and repairs of qcow2 images: made by QEMU, and damaged by hand.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod damage;
mod hostile;
mod power;
mod rig;
mod seeded;
mod sound;
mod special;
