//! `ferroblk serve`: one image, offered to virtual machines until a signal ends it.

use crate::{size, text};
use block::{
    BackingFiles, CacheMode, CreateOptions, DetectZeroes, DiscardMode, Format, Image, OpenOptions,
    SECTOR, Secret,
};
use clap::Args;
use export::blk::{BlkDevice, BlkOptions, BlkQueue, QUEUE_SIZE_MAX, QUEUES_MAX};
use export::server::{Listener, Server};
use io_engine::{EngineKind, IoEngine};
use iothread::{IoThread, IoThreadConfig};
use std::error::Error;
use std::ffi::OsString;
use std::io::Write;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod hints;
mod signals;
mod statistics;
mod trace;

const EXAMPLES: &str = "\
Examples:
  ferroblk serve demo.raw --create 10G
      makes a sparse 10 GiB disk and serves it at demo.raw.sock
  ferroblk serve /dev/vg0/vm1 --vhost-user-blk /run/vm1.sock --queues 4 --iothreads 2
      serves a block device with four queues on two I/O threads
  ferroblk serve vm.qcow2 --create 10G
      makes a qcow2 image, which takes space as the guest writes, and serves it at vm.qcow2.sock
  ferroblk serve vm.qcow2 --allow-backing
      serves an image with the backing file it names, which is only read
  ferroblk serve vm.qcow2 --secret-file key.txt
      serves an encrypted image
  ferroblk serve base.raw --read-only --cache writeback
      serves a disk that cannot be written
  ferroblk serve vm.qcow2 --trace way.json
      notes how long the stages of a request take, in one request of 64

Signals: SIGTERM and SIGINT drain, flush and end; SIGHUP looks for a new size of the image and tells the guest;
SIGUSR1 prints a line of statistics and writes the trace, as the end does.";

/// Serves a virtual disk to a virtual machine.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ServeArgs {
    /// The image: a file or a block device
    image: PathBuf,
    /// Format of the image: raw, qcow2, qed; without it, the file name's extension must name it (.raw, .img, .qcow2, .qed; devices are raw), and the content agree
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Opens the files that the image names: backing files, for reading, and the data file; without it, an image that names one is refused
    #[arg(long)]
    allow_backing: bool,
    /// File with the secret of an encrypted image, and of those under it: its bytes as they are, but for one line break at the end
    #[arg(long, value_name = "PATH", conflicts_with = "create")]
    secret_file: Option<PathBuf>,
    /// Makes a new image of this size (bytes, or with k, M, G, T), which takes space as it is written
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    create: Option<u64>,
    /// Path of the vhost-user-blk socket [default: IMAGE.sock]
    #[arg(long, value_name = "SOCKET")]
    vhost_user_blk: Option<PathBuf>,
    /// Cache mode: none, writeback, writethrough, directsync, unsafe
    #[arg(long, default_value_t, value_name = "MODE")]
    cache: CacheMode,
    /// Engine: io_uring, native (Linux AIO), threads [default: io_uring, or threads where the kernel refuses it]
    #[arg(long, value_name = "ENGINE")]
    aio: Option<EngineKind>,
    /// Queues the device offers
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(QUEUES_MAX)))]
    queues: u16,
    /// Entries a queue may have: a power of two
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = queue_size)]
    queue_size: u16,
    /// I/O threads; the queues are spread over them
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    iothreads: u16,
    /// Longest time in microseconds that an I/O thread looks for work before it sleeps; it learns how long pays. 0: never
    #[arg(long, default_value_t = 64, value_name = "US", value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    poll_max_us: u64,
    /// The disk cannot be written
    #[arg(long, conflicts_with = "create")]
    read_only: bool,
    /// What a guest's discard does: unmap gives the space back, ignore nothing
    #[arg(long, default_value_t, value_name = "MODE")]
    discard: DiscardMode,
    /// A discarded cluster of a qcow2 image keeps its place in the file, which so does not end up in pieces; the host's space is given back all the same
    #[arg(long)]
    discard_no_unref: bool,
    /// RAM for an image's tables (bytes, or with k, M, G, T), besides what is not written yet: with clusters of 64 KiB, 1M is enough for 8 GiB of disk [default: 64M]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    l2_cache_size: Option<u64>,
    /// Written zeroes: off, on (write them as zeroes), unmap (and give the space back)
    #[arg(long, default_value_t, value_name = "MODE")]
    detect_zeroes: DetectZeroes,
    /// Serial number the guest sees, at most 20 bytes
    #[arg(long, default_value = "", value_name = "TEXT", value_parser = serial)]
    serial: String,
    /// Writes to this file how long each stage of a request's way through the server takes, as JSON: at the end, and on SIGUSR1. The file is new, empty, or an earlier trace
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Traces one request in so many, on average; 1: all
    #[arg(long, default_value_t = NonZeroU32::MIN.saturating_add(63), value_name = "N", requires = "trace")]
    trace_one_in: NonZeroU32,
    /// Prints the ready line as a JSON object
    #[arg(long)]
    json: bool,
}

fn queue_size(text: &str) -> Result<u16, String> {
    let size = text
        .parse::<u16>()
        .ok()
        .filter(|n| n.is_power_of_two() && (2..=QUEUE_SIZE_MAX).contains(n));
    size.ok_or_else(|| format!("expected a power of two from 2 to {QUEUE_SIZE_MAX}"))
}

fn serial(text: &str) -> Result<String, String> {
    match text.len() {
        0..=20 => Ok(text.to_owned()),
        len => Err(format!("{len} bytes, but a serial number has at most 20")),
    }
}

/// Ops in flight at most on one I/O thread; also the size of its kernel queues.
const DEPTH: u32 = 1024;
/// Requests at most, on one I/O thread, that need more than one host operation.
const TASKS: u32 = 256;

/// Serves until a signal ends it. The error is one line for the user.
pub fn run(args: &ServeArgs) -> Result<(), String> {
    let format = choose_format(args)?;
    let signals =
        signals::Signals::catch().map_err(|error| format!("catching signals: {error}"))?;
    let wake = signals.wake_fd().map_err(|error| format!("catching signals: {error}"))?;
    let socket = socket_path(args);
    let listener = Listener::bind(&socket).map_err(|error| chain(&error))?;
    let engine = choose_engine(args.aio)?;
    let (image, created) = open(args, format)?;
    if args.iothreads > 1 && image.needs_home_thread() {
        tracing::warn!(
            "{}: its queues are served by one of the {} I/O threads, because its metadata has one writer",
            args.image.display(),
            args.iothreads
        );
    }
    let trace = args.trace.as_deref().map(trace::File::create).transpose()?;
    let threads = start_threads(args, engine)?;
    let options = BlkOptions {
        queues: args.queues,
        queue_size: args.queue_size,
        serial: args.serial.clone(),
        trace_one_in: trace.as_ref().map(|_| args.trace_one_in),
    };
    let mut device = BlkDevice::new(image, &options, &threads).map_err(|error| chain(&error))?;
    announce(args, &socket, &device)?;
    created.keep();
    let trace = trace.map(trace::File::keep);
    let meter = device.meter();
    let write_trace = || match (&trace, meter.trace()) {
        (Some(file), Some(trace)) => file.write(&trace),
        _ => Ok(()),
    };
    let print = || statistics::print(&meter.read(), args.json);
    // The trace first: who reads the line finds the file written.
    let tell = || {
        if let Err(why) = write_trace() {
            tracing::warn!("{why}");
        }
        print();
    };
    let mut control = signals::Control::new(&signals, device.image().clone(), &tell);
    let served = Server::new(listener, wake).run(&mut device, &mut control);
    let traced = write_trace();
    print();
    let closed = device.close();
    served.map_err(|error| chain(&error))?;
    closed.map_err(|error| chain(&error))?;
    traced
}

/// A format is never guessed from the content of an image: see the rules in `ARCHITECTURE.md`.
fn choose_format(args: &ServeArgs) -> Result<Format, String> {
    match (args.format, args.create) {
        (Some(format), _) => Ok(format),
        (None, Some(_)) => Ok(Format::of_extension(&args.image).unwrap_or_default()),
        (None, None) => Image::format_by_name(&args.image).map_err(|error| chain(&error)),
    }
}

fn socket_path(args: &ServeArgs) -> PathBuf {
    args.vhost_user_blk.clone().unwrap_or_else(|| {
        let mut name = OsString::from(&args.image);
        name.push(".sock");
        PathBuf::from(name)
    })
}

/// The engine asked for; or io_uring, and threads where the kernel refuses that.
fn choose_engine(asked: Option<EngineKind>) -> Result<EngineKind, String> {
    let kind = asked.unwrap_or(EngineKind::IoUring);
    match (IoEngine::new(kind, 8), asked) {
        (Ok(_), _) => Ok(kind),
        (Err(error), Some(_)) => Err(format!("starting the engine {kind}: {error}")),
        (Err(error), None) => {
            tracing::warn!("the kernel refuses io_uring ({error}): using the engine threads");
            Ok(EngineKind::Threads)
        }
    }
}

/// Opens the image, or makes it: then a failure takes it away again, until it is kept.
fn open(args: &ServeArgs, format: Format) -> Result<(Image, Created), String> {
    let options = OpenOptions {
        read_only: args.read_only,
        cache: args.cache,
        discard: args.discard,
        discard_no_unref: args.discard_no_unref,
        table_cache_bytes: args.l2_cache_size,
        detect_zeroes: args.detect_zeroes,
        format,
        backing_files: if args.allow_backing { BackingFiles::Follow } else { BackingFiles::Refuse },
        secret: args.secret_file.as_deref().map(read_secret).transpose()?,
        filters: block::Filters::default(),
    };
    let image = match args.create {
        Some(bytes) => {
            let bytes = bytes.checked_next_multiple_of(SECTOR).unwrap_or(bytes);
            Image::create(&args.image, &CreateOptions::new(format, bytes), &options)
        }
        None => Image::open(&args.image, &options),
    };
    let image = image.map_err(|error| chain(&error))?;
    let created = Created(args.create.map(|_| args.image.clone()));
    let file_bytes = image.file().len().map_err(|error| error.to_string())?;
    if format == Format::Raw && file_bytes != image.disk_bytes() {
        tracing::warn!(
            "{} has {file_bytes} bytes, not a multiple of 512: served as {} bytes, zeroes at the end",
            args.image.display(),
            image.disk_bytes()
        );
    }
    Ok((image, created))
}

/// What opens an encrypted image. Editors end each line, the last one too: that end is no part of it.
fn read_secret(path: &Path) -> Result<Secret, String> {
    let mut bytes = img::read_secret(path).map_err(|failure| failure.to_string())?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Ok(Secret::new(bytes))
}

fn start_threads(
    args: &ServeArgs,
    engine: EngineKind,
) -> Result<Vec<Arc<IoThread<BlkQueue>>>, String> {
    let start = |index| {
        let config = IoThreadConfig {
            name: format!("iothread-{index}"),
            engine,
            depth: DEPTH,
            tasks: TASKS,
            poll_max_ns: args.poll_max_us * 1000,
        };
        IoThread::start(config).map(Arc::new)
    };
    let threads: Result<_, _> = (0..args.iothreads).map(start).collect();
    threads.map_err(|error| format!("starting I/O threads with the engine {engine}: {error}"))
}

/// Says that clients may connect, and how.
fn announce(args: &ServeArgs, socket: &Path, device: &BlkDevice) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    let shown = socket.to_string_lossy();
    let printed = if args.json {
        let ready = serde_json::json!({
            "ready": "vhost-user-blk",
            "socket": shown,
            "image": args.image.to_string_lossy(),
            "bytes": device.image().disk_bytes(),
            "queues": args.queues,
        });
        writeln!(out, "{ready}")
    } else {
        // Who names the socket knows what to do with it.
        let hints = match args.vhost_user_blk {
            Some(_) => String::new(),
            None => hints::attach(&shown, args.queues),
        };
        writeln!(out, "{hints}ready: vhost-user-blk {}", text::escape(&shown))
    };
    printed.and_then(|()| out.flush()).map_err(|error| format!("saying that we are ready: {error}"))
}

/// An error with its causes, as one line.
fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

/// A new image, removed again unless all went well.
struct Created(Option<PathBuf>);

impl Created {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}
