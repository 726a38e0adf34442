//! The binary `ferroblk`.

mod serve;
mod size;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

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
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    start_log();
    let done = match cli.command {
        Command::Serve(args) => serve::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("ferroblk: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Help and version as they come; anything else as one line, and exit code 2.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
    }
    let text = error.to_string();
    // The first paragraph says what is wrong; hints and usage follow after an empty line.
    let lines = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim);
    let line = lines.collect::<Vec<_>>().join(" ");
    eprintln!("ferroblk: {} (see --help)", line.strip_prefix("error: ").unwrap_or(&line));
    ExitCode::from(2)
}

/// Log lines go to stderr; `FERROBLK_LOG` chooses which (default: info).
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FERROBLK_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .init();
}
