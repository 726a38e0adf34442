//! `blk-client SOCKET [options]`: load and verification from the command line; see `--help`.
#![allow(
    clippy::disallowed_methods,
    reason = "a client outside the stack: it has its own clock and threads"
)]

use std::process::ExitCode;
use std::time::Duration;

use blk_client::{
    ConnectOptions, Error, Limit, LoadOptions, Notify, Rw, VerifyOptions, run_load, run_verify,
};

const HELP: &str = "\
usage: blk-client SOCKET [options]
  --rw KIND        read, write, randread (default), randwrite, mixed, idle, verify
  --bs SIZE        bytes per request (4k); with verify: at most (64k)
  --depth N        requests in flight per queue (32)
  --queues N       virtqueues (1)
  --queue-size N   entries per virtqueue (256)
  --interrupt      sleep until the server notifies (default)
  --poll           look at the used ring until something is there
  --seconds S      how long (3)
  --ops N          how many requests, instead
  --warmup-ms MS   load before the measurement (300)
  --size SIZE      use the first SIZE bytes of the disk (all; verify: 64M)
  --seed N         seed of everything random (1)
  --server-pid PID measure this process's CPU time as well
  --read-only      accept a read-only disk
  --json           one JSON object on stdout
Sizes take k, M, G. The exit code is 1 if a request failed or data was wrong.
Example: blk-client demo.sock --rw randread --depth 32 --poll --seconds 5
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.is_empty() || args.iter().any(|a| a == "--help" || a == "-h") {
        print!("{HELP}");
        return if args.is_empty() { ExitCode::from(2) } else { ExitCode::SUCCESS };
    }
    match Args::parse(&args).and_then(|args| args.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("blk-client: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Args {
    verify: bool,
    json: bool,
    load: LoadOptions,
    block_bytes: Option<u64>,
}

impl Args {
    fn parse(args: &[String]) -> Result<Args, Error> {
        let connect = ConnectOptions {
            socket: String::new(),
            queues: 1,
            notify: Notify::Interrupt,
            queue_size: 256,
            depth: 32,
            slot_bytes: 0,
            read_only: false,
        };
        let load = LoadOptions {
            connect,
            rw: Rw::RandRead,
            block_bytes: 0,
            span: None,
            limit: Limit::Time(Duration::from_secs(3)),
            warmup: Duration::from_millis(300),
            seed: 1,
            server_pid: None,
        };
        let mut out = Args { verify: false, json: false, load, block_bytes: None };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let load = &mut out.load;
            let mut value = || args.next().ok_or_else(|| Error(format!("{arg} needs a value")));
            match arg.as_str() {
                "--rw" => match value()?.as_str() {
                    "verify" => out.verify = true,
                    name => load.rw = parse_rw(name)?,
                },
                "--bs" => out.block_bytes = Some(parse_size(value()?)?),
                "--depth" => load.connect.depth = parse(value()?)?,
                "--queues" => load.connect.queues = parse(value()?)?,
                "--queue-size" => load.connect.queue_size = parse(value()?)?,
                "--interrupt" => load.connect.notify = Notify::Interrupt,
                "--poll" => load.connect.notify = Notify::Poll,
                "--seconds" => {
                    let time = Duration::try_from_secs_f64(parse(value()?)?);
                    load.limit = Limit::Time(time.map_err(|e| Error(format!("--seconds: {e}")))?);
                }
                "--ops" => load.limit = Limit::Ops(parse(value()?)?),
                "--warmup-ms" => load.warmup = Duration::from_millis(parse(value()?)?),
                "--size" => load.span = Some(parse_size(value()?)?),
                "--seed" => load.seed = parse(value()?)?,
                "--server-pid" => load.server_pid = Some(parse(value()?)?),
                "--read-only" => load.connect.read_only = true,
                "--json" => out.json = true,
                name if name.starts_with("--") => {
                    return Err(Error(format!("no such option: {name}; see --help")));
                }
                socket => load.connect.socket = socket.to_owned(),
            }
        }
        out.check()
    }

    fn check(mut self) -> Result<Args, Error> {
        let default = if self.verify { 64 << 10 } else { 4096 };
        let bytes = self.block_bytes.unwrap_or(default);
        if !(512..=64 << 20).contains(&bytes) || (self.verify && bytes < 4096) {
            return Err(Error(format!("--bs {bytes}: from 512 (verify: 4k) to 64M")));
        }
        let bytes = usize::try_from(bytes).map_err(|e| Error(e.to_string()))?;
        let connect = &mut self.load.connect;
        let slots = connect.depth.saturating_mul(connect.queues);
        if slots == 0 || slots > 1 << 16 {
            return Err(Error("--depth times --queues: from 1 to 65536".to_owned()));
        }
        // Verification needs room between the segments; slots start on pages.
        connect.slot_bytes = (bytes + usize::from(self.verify) * 4096).next_multiple_of(4096);
        self.load.block_bytes = bytes;
        Ok(self)
    }

    fn run(self) -> Result<(), Error> {
        if self.verify {
            return self.run_verify();
        }
        let report = run_load(&self.load)?;
        if self.json {
            println!("{}", report.to_json());
        } else {
            print!("{report}");
        }
        Ok(())
    }

    fn run_verify(self) -> Result<(), Error> {
        let LoadOptions { connect, span, limit, seed, .. } = self.load;
        let span = span.unwrap_or(64 << 20);
        let report = run_verify(&VerifyOptions { connect, span, limit, seed, known: None })?;
        if self.json {
            let json = serde_json::json!({
                "reads": report.reads, "writes": report.writes, "flushes": report.flushes,
                "discards": report.discards, "write_zeroes": report.write_zeroes,
            });
            println!("{json}");
        } else {
            print!("verified: {} reads, {} writes, ", report.reads, report.writes);
            print!("{} flushes, {} discards, ", report.flushes, report.discards);
            println!("{} write-zeroes, and the whole range read back", report.write_zeroes);
        }
        Ok(())
    }
}

fn parse_rw(name: &str) -> Result<Rw, Error> {
    Ok(match name {
        "read" => Rw::Read,
        "write" => Rw::Write,
        "randread" => Rw::RandRead,
        "randwrite" => Rw::RandWrite,
        "mixed" => Rw::Mixed,
        "idle" => Rw::Idle,
        _ => return Err(Error(format!("no such kind of load: {name}; see --help"))),
    })
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T, Error>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e| Error(format!("{text}: {e}")))
}

fn parse_size(text: &str) -> Result<u64, Error> {
    let (number, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = parse(number)?;
    number.checked_mul(1 << shift).ok_or_else(|| Error(format!("{text}: too large")))
}
