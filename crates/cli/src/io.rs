//! `ferroblk io`: the command line of the disk exerciser, which is that of `qemu-io`; and `qemu-io` itself, if we are called by that name.
//!
//! As with [`crate::img`], two things are not as there, unless we are called `qemu-io`: files that an image names are opened only with
//! `--allow-backing`. And under both names, a format that is not said is told by the name of the file, and never by what is in it.

mod lines;

use crate::{NAME as PROGRAM, complain};
use block::{BackingFiles, CacheMode, DiscardMode};
use clap::{Args, Parser};
use img::io::{Next, OpenArgs, Printer, Shell, ShellOptions, discard_named, engine_named};
use img::{Failure, ImageArgs, Secrets};
use lines::Lines;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The name by which we are QEMU's tool.
pub const NAME: &str = "qemu-io";
/// The exit code for a command line that makes no sense, as `qemu-io` has it.
pub const USAGE_CODE: u8 = 1;

const EXAMPLES: &str = "\
Examples:
  ferroblk io -f qed -c 'write -P 5 1M 64k' -c 'read -P 5 1M 64k' vm.qed
      writes, and checks what is there
  ferroblk io -r -f raw -c 'read -v 0 512' vm.raw
      shows the first sector
  ferroblk io vm.qcow2
      reads commands from standard input; help lists them
  ln -s ferroblk qemu-io; ./qemu-io -f raw -c map vm.raw
      under that name it is qemu-io";

/// Reads, writes and looks at an image by commands: qemu-io's, with its options, output and exit codes.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct IoArgs {
    /// A secret: secret,id=ID,file=PATH or secret,id=ID,data=TEXT (which others can see), with ,format=base64 if it is
    #[arg(long, value_name = "OBJDEF")]
    object: Vec<String>,
    /// The image is named by options: driver=FMT,file.filename=PATH,encrypt.key-secret=ID
    #[arg(long)]
    image_opts: bool,
    /// A command; several are run one after another. Without any they are read from standard input
    #[arg(short, long, value_name = "STRING", allow_hyphen_values = true)]
    cmd: Vec<String>,
    /// Format of the image: raw, qcow2, qed
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// No writes
    #[arg(short, long)]
    read_only: bool,
    /// What is written is kept aside, and gone in the end
    #[arg(short, long)]
    snapshot: bool,
    /// Goes past the host's page cache: --cache none
    #[arg(short, long)]
    nocache: bool,
    /// Memory of requests is not where O_DIRECT wants it
    #[arg(short, long)]
    misalign: bool,
    /// As --aio native
    #[arg(short = 'k', long)]
    native_aio: bool,
    /// What does the I/O: threads, native or io_uring
    #[arg(short = 'i', long, value_name = "MODE")]
    aio: Option<String>,
    /// Cache mode of the image [default: writeback]
    #[arg(short = 't', long, value_name = "MODE")]
    cache: Option<String>,
    /// What discards do: unmap or ignore [default: unmap]
    #[arg(short, long, value_name = "MODE")]
    discard: Option<String>,
    /// The image may be in use by others (with --read-only)
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Opens the files that images name (not in qemu-io, which always does)
    #[arg(long)]
    allow_backing: bool,
    #[arg(short = 'C', long, hide = true)]
    copy_on_read: bool,
    #[arg(short = 'T', long, value_name = "OPTIONS", hide = true)]
    trace: Vec<String>,
    /// The image
    filename: Option<PathBuf>,
}

#[derive(Parser, Debug)]
#[command(name = NAME, infer_long_args = true, version = concat!("version 10.0.2 (ferroblk ", env!("CARGO_PKG_VERSION"), ")"))]
struct QemuIo {
    #[command(flatten)]
    args: IoArgs,
}

/// Whose name stands in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Ferroblk,
    QemuIo,
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Tool::Ferroblk => PROGRAM,
            Tool::QemuIo => NAME,
        }
    }

    fn prompt(self) -> &'static str {
        match self {
            Tool::Ferroblk => "ferroblk io> ",
            Tool::QemuIo => "qemu-io> ",
        }
    }

    fn backing_files(self, is_allowed: bool) -> BackingFiles {
        match is_allowed || self == Tool::QemuIo {
            true => BackingFiles::Follow,
            false => BackingFiles::Refuse,
        }
    }
}

/// The command line, if we are called `qemu-io`.
pub fn as_qemu_io() -> Option<Result<IoArgs, clap::Error>> {
    is_qemu_io().then(|| QemuIo::try_parse().map(|tool| tool.args))
}

fn is_qemu_io() -> bool {
    let name = std::env::args_os().next();
    name.is_some_and(|name| Path::new(&name).file_name().is_some_and(|name| name == NAME))
}

/// Whether the command line is one for us, even if it makes no sense.
pub fn is_asked_for() -> bool {
    std::env::args_os().nth(1).is_some_and(|verb| verb == "io")
}

/// Does what was asked for.
pub fn run(args: &IoArgs) -> ExitCode {
    let tool = if is_qemu_io() { Tool::QemuIo } else { Tool::Ferroblk };
    match args.run(tool) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            complain(tool.name(), &failure.to_string());
            ExitCode::FAILURE
        }
    }
}

impl IoArgs {
    /// Whether all commands could be done.
    fn run(&self, tool: Tool) -> Result<bool, Failure> {
        let secrets = Secrets::parse(&self.object)?;
        let image = self.image(&secrets, tool)?;
        let options = ShellOptions {
            name: tool.name().into(),
            secrets,
            backing_files: tool.backing_files(self.allow_backing),
            misaligned: self.misalign,
        };
        let mut shell = Shell::new(options, Printer::new(std::io::stdout(), std::io::stderr()))?;
        if let Some(image) = image
            && !shell.open(image)
        {
            return Ok(false);
        }
        match self.cmd.is_empty() {
            true => run_input(&mut shell, tool)?,
            false => run_commands(&mut shell, &self.cmd),
        }
        Ok(shell.finish())
    }

    /// How the image is opened, if one is named.
    fn image(&self, secrets: &Secrets, tool: Tool) -> Result<Option<OpenArgs>, Failure> {
        let refuse = |why: String| Err(Failure::new(why));
        if self.copy_on_read {
            return refuse("copy on read (-C) is not supported".into());
        }
        if !self.trace.is_empty() {
            return refuse("QEMU's trace events (-T) are not there: see FERROBLK_LOG".into());
        }
        let cache = match (self.nocache, self.cache.as_deref()) {
            (_, Some("off")) => CacheMode::None,
            (_, Some(name)) => match name.parse() {
                Ok(cache) => cache,
                Err(_) => return refuse(format!("Invalid cache option: {name}")),
            },
            (true, None) => CacheMode::None,
            (false, None) => CacheMode::Writeback,
        };
        let discard = match self.discard.as_deref() {
            None => DiscardMode::Unmap,
            Some(name) => match discard_named(name) {
                Some(discard) => discard,
                None => return refuse(format!("Invalid discard option: {name}")),
            },
        };
        let aio = if self.native_aio { Some("native") } else { self.aio.as_deref() };
        let engine = match aio {
            None => None,
            Some(name) => match engine_named(name) {
                Some(engine) => Some(engine),
                None => return refuse(format!("Invalid aio option: {name}")),
            },
        };
        let Some(path) = &self.filename else { return Ok(None) };
        let image = match (self.image_opts, &self.format, path.to_str()) {
            (true, Some(_), _) => {
                return refuse("--image-opts says the format: it goes without -f".into());
            }
            (true, None, Some(list)) => ImageArgs::from_options(list, secrets)?,
            (true, None, None) => return refuse("--image-opts: the options are not UTF-8".into()),
            (false, None, _) => ImageArgs::named(path, None, secrets)?,
            (false, Some(name), _) => match name.parse() {
                Ok(format) => ImageArgs::named(path, Some(format), secrets)?,
                Err(_) => {
                    return refuse(format!(
                        "images in the format '{name}' are not supported: raw, qcow2 and qed are"
                    ));
                }
            },
        };
        let backing_files = tool.backing_files(self.allow_backing);
        let image = ImageArgs { cache, force_share: self.force_share, backing_files, ..image };
        let (read_only, snapshot) = (self.read_only, self.snapshot);
        Ok(Some(OpenArgs { read_only, snapshot, engine, discard, ..OpenArgs::new(image) }))
    }
}

/// Runs the commands of the command line.
fn run_commands(shell: &mut Shell, commands: &[String]) {
    for command in commands {
        if is_over(shell.run(command)) {
            return;
        }
    }
}

/// Runs what standard input says. Requests in the background go on while it says nothing.
fn run_input(shell: &mut Shell, tool: Tool) -> Result<(), Failure> {
    let lines = Lines::start(tool.prompt(), Shell::names().collect())?;
    loop {
        lines.ask();
        let line = loop {
            if !shell.is_busy() {
                break lines.wait();
            }
            match lines.poll() {
                Some(line) => break line,
                None => shell.breathe(),
            }
        };
        match line {
            Some(line) if !is_over(shell.run(&line)) => {}
            _ => return Ok(()),
        }
    }
}

/// Does to this process what a command wants; whether there are to be no further ones.
fn is_over(next: Next) -> bool {
    match next {
        Next::Command => false,
        Next::Quit => true,
        Next::Signal(number) => {
            // A number that is no signal's does nothing, as with raise(3).
            let _ = signal_hook::low_level::raise(number);
            false
        }
        Next::Abort => {
            let _ = std::io::stdout().flush();
            std::process::abort();
        }
    }
}
