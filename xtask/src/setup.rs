//! `cargo xtask setup`: brings the machine to where `check` and `compare` can run everything.
//!
//! Each step looks first whether its result is there: a second run does nothing and needs no rights. Debian and its
//! relatives only; elsewhere it names the programs that are missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Result, sh};

/// A program, the package it comes in, and whether the backports' newer one is wanted on Debian 12.
struct Need {
    program: &'static str,
    package: &'static str,
    backports: bool,
}

const fn need(program: &'static str, package: &'static str, backports: bool) -> Need {
    Need { program, package, backports }
}

/// QEMU from the backports: Debian 12's own (7.2) is older than the peer we compare with (10.0).
const NEEDS: &[Need] = &[
    need("qemu-system-x86_64", "qemu-system-x86", true),
    need("qemu-storage-daemon", "qemu-utils", true),
    need("qemu-img", "qemu-utils", true),
    need("fio", "fio", false),
    need("busybox", "busybox-static", false),
    need("mkfs.ext4", "e2fsprogs", false),
    need("e2fsck", "e2fsprogs", false),
    need("mkfs.xfs", "xfsprogs", false),
    need("debugfs", "e2fsprogs", false),
    need("sfdisk", "fdisk", false),
    need("fstrim", "util-linux", false),
    need("ldd", "libc-bin", false),
    need("strace", "strace", false),
    // The report of `ferroblk bench` is looked at in a real browser.
    need("chromium", "chromium", false),
    need("chromedriver", "chromium-driver", false),
];

/// The package that names the newest cloud kernel: small, boots anywhere, virtio as modules.
const KERNEL: &str = "linux-image-cloud-amd64";

const BACKPORTS: &str = "bookworm-backports";
const BACKPORTS_LIST: &str = "/etc/apt/sources.list.d/ferroblk-backports.list";

/// Installs what is missing.
pub fn run() -> Result<()> {
    let missing: Vec<&Need> = NEEDS.iter().filter(|n| !sh::has(n.program)).collect();
    let dir = sh::guest_dir();
    let has_kernel = sh::guest_kernel().is_some();
    if missing.is_empty() && has_kernel {
        println!("everything is there");
        return Ok(());
    }
    if !sh::has("apt-get") {
        let mut names: Vec<&str> = missing.iter().map(|n| n.program).collect();
        if !has_kernel {
            names.push("a kernel in target/guest (boot/vmlinuz-*, lib/modules/*)");
        }
        return Err(format!("only apt-get is known here; please install: {}", names.join(", ")));
    }
    let backports = missing.iter().any(|n| n.backports) && is_bookworm();
    if backports && !knows_backports()? {
        add_backports()?;
    }
    let updated = sh::run(apt().arg("update"));
    if !missing.is_empty() {
        updated?;
        install(missing.iter().filter(|n| !(backports && n.backports)), &[])?;
        install(missing.iter().filter(|n| backports && n.backports), &["-t", BACKPORTS])?;
    }
    if !has_kernel {
        unpack_kernel(&dir)?;
    }
    println!("everything is there now");
    Ok(())
}

fn install<'a>(needs: impl Iterator<Item = &'a &'a Need>, options: &[&str]) -> Result<()> {
    let mut packages: Vec<&str> = needs.map(|n| n.package).collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let mut command = apt();
    command.args(["install", "-y", "--no-install-recommends"]).args(options).args(packages);
    sh::run(&mut command)
}

/// apt-get with the rights to change the system.
fn apt() -> Command {
    let root = sh::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    let mut command = if root { Command::new("env") } else { Command::new("sudo") };
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", "Dpkg::Use-Pty=0"]);
    command
}

fn is_bookworm() -> bool {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    release.lines().any(|line| line == "VERSION_CODENAME=bookworm")
}

fn knows_backports() -> Result<bool> {
    Ok(sh::output(Command::new("apt-cache").arg("policy"))?.contains(BACKPORTS))
}

fn add_backports() -> Result<()> {
    println!("adding {BACKPORTS} to apt's sources in {BACKPORTS_LIST}");
    let line = format!("deb http://deb.debian.org/debian {BACKPORTS} main\n");
    let file = std::env::temp_dir().join(format!("ferroblk-backports-{}", std::process::id()));
    std::fs::write(&file, line).map_err(|e| format!("{}: {e}", file.display()))?;
    let root = sh::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    let mut copy = if root { Command::new("env") } else { Command::new("sudo") };
    let copied = sh::run(copy.args(["install", "-m", "644"]).arg(&file).arg(BACKPORTS_LIST));
    // A stray line of text in the temporary directory does no harm.
    let _ = std::fs::remove_file(&file);
    copied
}

/// Downloads the kernel's package and unpacks what the guest boots from; installs nothing.
fn unpack_kernel(dir: &Path) -> Result<()> {
    let fail = |e: std::io::Error| format!("{}: {e}", dir.display());
    let depends = sh::output(Command::new("apt-cache").args(["depends", KERNEL]))?;
    let mut names = depends.lines().filter_map(|l| l.trim().strip_prefix("Depends: "));
    let package = names.find(|n| n.starts_with("linux-image-"));
    let package = package.ok_or_else(|| format!("apt knows no kernel behind {KERNEL}"))?;
    println!("unpacking {package} into {}", dir.display());
    let work = dir.join("unpacking");
    // What an interrupted run has left.
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(&work).map_err(fail)?;
    sh::run(Command::new("apt-get").args(["-q", "download", package]).current_dir(&work))?;
    let deb = find_deb(&work).map_err(fail)?.ok_or("apt-get downloaded nothing")?;
    sh::run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&work))?;
    for part in ["lib", "boot"] {
        let to = dir.join(part);
        // Half a kernel would look like a whole one: the old part goes first.
        let _ = std::fs::remove_dir_all(&to);
        std::fs::rename(work.join(part), to).map_err(fail)?;
    }
    std::fs::remove_dir_all(&work).map_err(fail)
}

fn find_deb(dir: &Path) -> std::io::Result<Option<PathBuf>> {
    let mut entries = std::fs::read_dir(dir)?.filter_map(|e| Some(e.ok()?.path()));
    Ok(entries.find(|p| p.extension().is_some_and(|e| e == "deb")))
}
