//! Images that are not what they should be: see each format.
#![allow(clippy::disallowed_methods, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

#[path = "../common/mod.rs"]
mod common;
mod qcow2;
mod qed;

use block::ErrorKind;

/// Names of backing files with which the image `own` is refused in any format, and how.
fn bad_backing_names(own: &str) -> Vec<(Vec<u8>, ErrorKind)> {
    use ErrorKind::{BadRequest, Io, Unsupported};
    let (long, inside, dotted) = ("x".repeat(1023), format!("{own}/"), format!("./{own}"));
    let rows = [
        ("json:{\"driver\":\"raw\"}", Unsupported),
        ("nbd://localhost", Unsupported),
        ("nbd:unix:/tmp/socket", Unsupported),
        ("file:base", Unsupported),
        ("fat:rw:/etc", Unsupported),
        ("missing", Io),
        ("/nonexistent/base", Io),
        (&long, Io),
        ("..", BadRequest),
        (".", BadRequest),
        ("/", BadRequest),
        ("/dev/null", BadRequest),
        ("/dev/zero", BadRequest),
        ("/proc/self/fd", BadRequest),
        (&inside, Io),
        (own, BadRequest),
        (&dotted, BadRequest),
    ];
    rows.map(|(name, kind)| (name.into(), kind)).into()
}
