//! The verbs of the image tool: what `ferroblk img` does, in the words and with the exit codes of `qemu-img`.
//!
//! ```text
//!   command line --> a verb's options --> verb::run(&options, &mut out)
//!                                            |
//!                      ImageArgs::open    Session: a private I/O context; io_uring, or threads where the kernel refuses that
//!                            |               |
//!                          Image ------> BlockNode: status, reads, writes, zeroes
//! ```
//!
//! What is printed for people and machines is QEMU's, to the letter where it says the same; names are escaped. A verb that is long reports to a
//! [`Progress`]. Errors are one line ([`Failure`]), and come with the exit code that scripts expect of that verb.
//!
//! Invariants:
//!
//! - a source is never written, and locked against writers while it is copied;
//! - a format is guessed by [`info`] alone (design.md section 4, rule 6), which opens nothing that an image names;
//! - a copy that has ended well is on stable storage, unless that was not wanted (`-t unsafe`).

#![forbid(unsafe_code)]

pub mod amend;
pub mod bench;
pub mod bitmap;
pub mod check;
pub mod commit;
pub mod compare;
mod compress;
pub mod convert;
mod copy;
pub mod create;
pub mod dd;
mod failure;
mod fault_opts;
mod image_name;
mod image_opts;
pub mod in_place;
pub mod info;
pub mod io;
pub mod map;
pub mod measure;
mod open;
mod option_list;
mod pool;
mod preallocate;
mod progress;
mod rate;
pub mod rebase;
pub mod resize;
mod secrets;
mod session;
mod size;
pub mod snapshot;
mod status;
mod stop;
mod text;
mod zeroes;

pub use failure::{Code, Failure, Verdict};
pub use open::{ImageArgs, SnapshotName};
pub use option_list::{OptionList, help_on_options};
pub use preallocate::Preallocation;
pub use progress::{Progress, ProgressKind};
pub use secrets::{Secrets, read_secret};
pub use session::Session;
pub use size::{parse as parse_size, suffix_shift};
pub use stop::{stop_when, tell_when};
pub use text::{escape, human_size};

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Output {
    /// For people.
    #[default]
    Human,
    /// For machines.
    Json,
}
