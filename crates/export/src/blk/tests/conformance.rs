//! What a guest's write, flush and durable write cause on the host, for each cache mode and engine; kept in `docs/conformance.md`.
//!
//! The operations are counted where the engine hands them to the kernel. `BLESS=1` writes the file anew.

use super::rig::{Rig, T_FLUSH, T_OUT};
use block::{CacheMode, OpenOptions};
use io_engine::{Counters, EngineKind, HostFile, IoEngine, SysKind};
use std::fmt::Write;
use std::fs::{File, OpenOptions as FileOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use virtio_blk::Features;

const BYTES: u64 = 1 << 20;

fn file_in(dir: &Path, direct: bool) -> Option<File> {
    let path = dir.join("disk.raw");
    File::create(&path).unwrap().set_len(BYTES).unwrap();
    let mut options = FileOptions::new();
    options.read(true).write(true);
    if direct {
        options.custom_flags(0o40000);
    }
    options.open(path).ok()
}

fn names(before: Counters, after: Counters) -> String {
    let mut names = Vec::new();
    for (kind, name) in [
        (SysKind::Preadv, "read"),
        (SysKind::Pwritev, "write"),
        (SysKind::PwritevDsync, "write(DSYNC)"),
        (SysKind::Fdatasync, "fdatasync"),
        (SysKind::Fallocate, "fallocate"),
        (SysKind::Ftruncate, "ftruncate"),
    ] {
        match after.count(kind) - before.count(kind) {
            0 => {}
            1 => names.push(name.to_owned()),
            n => names.push(format!("{n} x {name}")),
        }
    }
    if names.is_empty() { "nothing".into() } else { names.join(" + ") }
}

/// One row: what each request caused.
fn row(cache: CacheMode, kind: EngineKind, dir: &Path) -> Option<String> {
    let file = file_in(dir, cache.is_direct())?;
    let options = OpenOptions { cache, ..OpenOptions::default() };
    let rig = |without| {
        let engine = IoEngine::new(kind, 16).unwrap();
        let host = HostFile::new(file.try_clone().unwrap(), cache.is_direct()).unwrap();
        Rig::new(engine, BYTES, &options, without, |context| context.open(host).unwrap())
    };
    let cause = |rig: &mut Rig, request: u32| {
        let counters = |rig: &Rig| rig.io_loop.context().with_engine(|engine| engine.counters());
        let data: &[u8] = if request == T_OUT { &[0x5A; 4096] } else { &[] };
        let before = counters(rig);
        assert_eq!(rig.request(request, 8, data, 0).status, 0);
        names(before, counters(rig))
    };
    let mut rig_with_flush = rig(Features::empty());
    let write = cause(&mut rig_with_flush, T_OUT);
    let flush = cause(&mut rig_with_flush, T_FLUSH);
    rig_with_flush.set_write_cache(true);
    let cached = cause(&mut rig_with_flush, T_OUT);
    rig_with_flush.set_write_cache(false);
    let durable = cause(&mut rig_with_flush, T_OUT);
    let no_flush = cause(&mut rig(Features::FLUSH | Features::CONFIG_WCE), T_OUT);
    Some(format!("| {cache} | {kind} | {write} | {flush} | {cached} | {durable} | {no_flush} |"))
}

#[test]
fn the_host_operations_of_each_mode_and_engine_are_those_documented() {
    // On the build's own disk: /tmp may be a tmpfs, where nothing is ever synced.
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let mut table = String::from(
        "| cache | engine | write | flush | write, cache switched on | write, cache switched off (FUA) | write, driver cannot flush |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for cache in CacheMode::ALL {
        for kind in [EngineKind::IoUring, EngineKind::Native, EngineKind::Threads] {
            if kind == EngineKind::Native && !cache.is_direct() {
                continue;
            }
            match row(cache, kind, dir.path()) {
                Some(row) => writeln!(table, "{row}").unwrap(),
                None => return println!("SKIPPED: this file system has no O_DIRECT"),
            }
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/conformance.md");
    let document = std::fs::read_to_string(&path).unwrap();
    if std::env::var_os("BLESS").is_some() {
        let (before, _) = document.split_once("| cache |").unwrap();
        std::fs::write(&path, format!("{before}{table}")).unwrap();
    } else {
        assert!(document.ends_with(&table), "docs/conformance.md does not say so:\n{table}");
    }
}
