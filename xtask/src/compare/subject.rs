//! What is measured: a server with `blk-client` on its socket, or fio on the bare file.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use blk_client::server::Server;
use serde_json::{Value, json};

use super::cases::{Case, Content};
use crate::{Result, sh};

/// Bytes of a cluster, in every format that has them, as they are made here.
const CLUSTER_BYTES: u64 = 65536;
/// Bytes that a write of a raw file in memory allocates at least.
const PAGE_BYTES: u64 = 4096;

/// A program that is measured.
#[derive(Clone, Debug)]
pub enum Program {
    /// A ferroblk binary.
    Ferroblk {
        /// The program.
        binary: PathBuf,
        /// More arguments of `serve`.
        args: Vec<String>,
    },
    /// QEMU's daemon, one iothread, io_uring.
    QemuStorageDaemon,
    /// fio with io_uring on the file itself: what the machine can do.
    Fio,
}

/// What a subject is in the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// What it is all about.
    Ours,
    /// Whom we are to beat.
    Peer,
    /// Our own, on a raw file.
    OurRaw,
    /// What the machine can do.
    Bare,
    /// Shown beside.
    Beside,
}

/// One of the things compared.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Column title, and key in the JSON file.
    pub name: &'static str,
    /// What it is in the comparison.
    pub role: Role,
    /// Format of the image it serves.
    pub format: &'static str,
    /// The program.
    pub program: Program,
}

impl Subject {
    /// One measurement on the image in `file`: the values of `blk-client --json`.
    pub fn measure(
        &self,
        case: &Case,
        client: &Path,
        file: &Path,
        seconds: f64,
        seed: u64,
    ) -> Result<Value> {
        let socket = std::env::temp_dir().join(format!("xtask-compare-{}", std::process::id()));
        let server = match &self.program {
            Program::Fio => return fio(file, seconds, seed),
            Program::QemuStorageDaemon => Server::qemu_storage_daemon(file, &socket, case.cache, 1),
            Program::Ferroblk { binary, args } => {
                let mut all = vec!["--cache", case.cache];
                all.extend(args.iter().map(String::as_str));
                Server::ferroblk(binary, file, &socket, &all)
            }
        };
        let server = server.map_err(|e| e.to_string())?;
        let mut command = Command::new(client);
        command.arg(server.socket()).args(case.client).arg("--json");
        command.args(["--seconds", &seconds.to_string(), "--seed", &seed.to_string()]);
        command.args(["--server-pid", &server.pid().to_string()]);
        let values = sh::output(&mut command).map_err(|e| format!("{}: {e}", self.name))?;
        if self.may_hang(case) {
            server.kill();
        } else {
            server.stop().map_err(|e| format!("{}: {e}", self.name))?;
        }
        let mut values: Value =
            serde_json::from_str(&values).map_err(|e| format!("what blk-client printed: {e}"))?;
        if matches!(case.content, Content::Fresh(..)) {
            let writes = values["requests"].as_f64().ok_or("blk-client counted no requests")?;
            values["allocating_percent"] = json!(100.0 * self.allocated(file)? / writes);
        }
        Ok(values)
    }

    /// QEMU 10.0's daemon, after writes that allocated in a QED image, waits for ever when it is told to end.
    fn may_hang(&self, case: &Case) -> bool {
        let is_fresh = matches!(case.content, Content::Fresh(..));
        matches!(self.program, Program::QemuStorageDaemon) && self.format == "qed" && is_fresh
    }

    /// Clusters (of a raw file: pages) that an image has now.
    fn allocated(&self, file: &Path) -> Result<f64> {
        let facts = std::fs::metadata(file).map_err(|e| format!("{}: {e}", file.display()))?;
        let count = match self.format {
            "raw" => facts.blocks() * 512 / PAGE_BYTES,
            _ => facts.len() / CLUSTER_BYTES,
        };
        Ok(count as f64)
    }
}

/// Random 4 KiB reads at depth 32 on the bare file.
fn fio(file: &Path, seconds: f64, seed: u64) -> Result<Value> {
    let mut command = Command::new("fio");
    command.args(["--name=bare", "--ioengine=io_uring", "--direct=1", "--rw=randread", "--bs=4k"]);
    command.args(["--iodepth=32", "--time_based", "--ramp_time=300ms", "--output-format=json"]);
    command.args([format!("--runtime={seconds}s"), format!("--randseed={seed}")]);
    command.args([format!("--filename={}", file.display())]);
    let text = sh::output(&mut command)?;
    // fio puts its notes before the object.
    let start = text.find('{').ok_or("fio printed no JSON")?;
    let all: Value = serde_json::from_str(&text[start..]).map_err(|e| format!("fio: {e}"))?;
    let read = &all["jobs"][0]["read"];
    let number = |v: &Value| v.as_f64().ok_or("fio's JSON lacks a number");
    Ok(json!({
        "iops": number(&read["iops"])?,
        "mb_per_s": number(&read["bw_bytes"])? / 1e6,
        "lat_mean_us": number(&read["clat_ns"]["mean"])? / 1000.0,
    }))
}
