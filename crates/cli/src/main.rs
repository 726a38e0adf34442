//! The binary `ferroblk`.

mod bench;
mod doctor;
mod img;
mod io;
mod pages;
mod serve;
mod size;
mod text;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

/// The name of the program, at the start of what it complains of.
const NAME: &str = "ferroblk";

/// The storage stack under a KVM virtual machine.
#[derive(Parser, Debug)]
#[command(name = "ferroblk", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Serve(serve::ServeArgs),
    Img(img::ImgArgs),
    Io(io::IoArgs),
    Bench(Box<bench::BenchArgs>),
    Doctor(doctor::DoctorArgs),
    Completions(pages::CompletionsArgs),
    Man(pages::ManArgs),
}

fn main() -> ExitCode {
    if ffsb::guest::is_init() {
        ffsb::guest::init();
        return ExitCode::SUCCESS;
    }
    if let Some(args) = img::as_qemu_img() {
        return match args {
            Ok(args) => {
                start_log();
                img::run(&args)
            }
            Err(error) => usage(error, img::NAME, img::USAGE_CODE),
        };
    }
    if let Some(args) = io::as_qemu_io() {
        return match args {
            Ok(args) => {
                start_log();
                io::run(&args)
            }
            Err(error) => usage(error, io::NAME, io::USAGE_CODE),
        };
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if io::is_asked_for() => return usage(error, NAME, io::USAGE_CODE),
        Err(error) if img::is_asked_for() => return usage(error, NAME, img::USAGE_CODE),
        Err(error) => return usage(error, NAME, 2),
    };
    start_log();
    let done = match cli.command {
        Command::Img(args) => return img::run(&args),
        Command::Io(args) => return io::run(&args),
        Command::Bench(args) => return bench::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions(args) => pages::completions(&args),
        Command::Man(args) => pages::man(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            complain(NAME, &message);
            ExitCode::FAILURE
        }
    }
}

/// The one line of the program `name` that says why there is an exit code.
fn complain(name: &str, message: &str) {
    // Not `eprintln!`: it panics where stderr cannot be written, and then there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{name}: {}", text::escape(message));
}

/// Help and version as they come; anything else as one line, and this exit code.
fn usage(mut error: clap::Error, name: &str, code: u8) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(if error.use_stderr() { code } else { 0 });
    }
    // First what the user has typed is made harmless, so that the line breaks which are left are clap's own.
    let typed: Vec<(ContextKind, String)> = error
        .context()
        .filter_map(|(kind, value)| match value {
            ContextValue::String(value) => Some((kind, text::escape(value))),
            _ => None,
        })
        .collect();
    for (kind, value) in typed {
        error.insert(kind, ContextValue::String(value));
    }
    let text = error.to_string();
    // The first paragraph says what is wrong; hints and usage follow after an empty line.
    let lines = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim);
    let line = lines.collect::<Vec<_>>().join(" ");
    complain(name, &format!("{} (see --help)", line.strip_prefix("error: ").unwrap_or(&line)));
    ExitCode::from(code)
}

/// Log lines go to stderr; `FERROBLK_LOG` chooses which (default: info).
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FERROBLK_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| text::Log)
        .with_target(false)
        .without_time()
        .init();
}
