//! What is measured: a server with `blk-client` on its socket, or fio on the bare file.

use std::path::{Path, PathBuf};
use std::process::Command;

use blk_client::server::Server;
use serde_json::{Value, json};

use super::cases::Case;
use crate::{Result, sh};

/// One of the things compared.
#[derive(Debug)]
pub enum Subject {
    /// A ferroblk binary.
    Ferroblk {
        /// Column title.
        name: &'static str,
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

impl Subject {
    /// Column title, and key in the JSON file.
    pub fn name(&self) -> &'static str {
        match self {
            Subject::Ferroblk { name, .. } => name,
            Subject::QemuStorageDaemon => "qemu-storage-daemon",
            Subject::Fio => "fio",
        }
    }

    /// One measurement: the values of `blk-client --json`.
    pub fn measure(
        &self,
        case: &Case,
        client: &Path,
        file: &Path,
        seconds: f64,
        seed: u64,
    ) -> Result<Value> {
        let socket = std::env::temp_dir().join(format!("xtask-compare-{}", std::process::id()));
        let server = match self {
            Subject::Fio => return fio(file, seconds, seed),
            Subject::QemuStorageDaemon => Server::qemu_storage_daemon(file, &socket, case.cache, 1),
            Subject::Ferroblk { binary, args, .. } => {
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
        let values = sh::output(&mut command).map_err(|e| format!("{}: {e}", self.name()))?;
        server.stop().map_err(|e| format!("{}: {e}", self.name()))?;
        serde_json::from_str(&values).map_err(|e| format!("what blk-client printed: {e}"))
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
