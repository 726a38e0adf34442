//! qcow2: under construction in this commit's successors.

pub mod create;
pub mod header;
