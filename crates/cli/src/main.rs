//! The binary `ferroblk`.

mod serve;
mod size;

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
    let cli = Cli::parse();
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
