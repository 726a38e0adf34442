//! What the tests of this package have in common: the choice of the server, and skipping honestly.

use std::path::Path;

use blk_client::Error;
use blk_client::server::{Server, ferroblk_binary};
use ffsb::guest::find_program;

/// The server a test runs against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerKind {
    /// The one this project is about.
    Ferroblk,
    /// The one it is compared with: shows that a failing test is not the test's fault.
    QemuStorageDaemon,
}

impl ServerKind {
    /// `$FERROBLK_GUEST_SERVER`, else ferroblk.
    pub fn from_env() -> ServerKind {
        match std::env::var("FERROBLK_GUEST_SERVER").as_deref() {
            Ok("qemu-storage-daemon") => ServerKind::QemuStorageDaemon,
            _ => ServerKind::Ferroblk,
        }
    }

    /// Starts the server on an image with default engine, in the given cache mode.
    pub fn start(
        self,
        image: &Path,
        socket: &Path,
        cache: &str,
        queues: usize,
    ) -> Result<Server, Error> {
        let count = queues.to_string();
        match self {
            ServerKind::QemuStorageDaemon => {
                Server::qemu_storage_daemon(image, socket, cache, queues)
            }
            ServerKind::Ferroblk => {
                let args = [
                    "--cache",
                    cache,
                    "--queues",
                    &count,
                    "--iothreads",
                    &count,
                    "--allow-backing",
                ];
                Server::ferroblk(&ferroblk_binary()?, image, socket, &args)
            }
        }
    }
}

/// What a guest test needs and this machine lacks, in words.
pub fn missing_for_guest(programs: &[&str]) -> Option<String> {
    let qemu = ["qemu-system-x86_64", "busybox"];
    let missing = crate::guest::missing_kernel().or_else(|| missing_programs(&qemu));
    missing.or_else(|| missing_programs(programs))
}

/// The first of these programs that is not installed, in words.
pub fn missing_programs(programs: &[&str]) -> Option<String> {
    let lacking = programs.iter().find(|p| find_program(p).is_none())?;
    Some(format!("{lacking} is not installed"))
}

/// Says why a test does not run. In continuous integration every test must run, so there it fails.
pub fn skip(why: &str) {
    println!("SKIPPED: {why}; `cargo xtask setup` installs what is missing");
    assert!(std::env::var_os("CI").is_none(), "no test may be skipped here: {why}");
}
