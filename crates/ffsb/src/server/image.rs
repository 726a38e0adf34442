//! New images.

use super::{ServerError, explain, spawn};
use block::Format;
use std::path::Path;
use std::process::Command;

/// Makes an image of `bytes` bytes that takes space as it is written, by `ferroblk img create` of the binary `program`. `options` are
/// the format's own, as `cluster_size=64k`.
///
/// # Errors
///
/// The line that `ferroblk img create` says; nothing is left then.
pub fn create_image(
    program: &Path,
    path: &Path,
    format: Format,
    bytes: u64,
    options: &[String],
) -> Result<(), ServerError> {
    let mut command = Command::new(program);
    command.args(["img", "create", "-q", "-f", &format.to_string()]);
    for option in options {
        command.args(["-o", option]);
    }
    command.arg("--").arg(path).arg(bytes.to_string());
    let (mut child, mut output) = spawn(&mut command, "ferroblk")?;
    let status = child.wait();
    let status = status.map_err(|error| ServerError(format!("waiting for ferroblk: {error}")))?;
    match status.success() {
        true => Ok(()),
        false => Err(ServerError(format!(
            "making the image {} failed {}{}",
            path.display(),
            explain(status),
            output.final_words()
        ))),
    }
}
