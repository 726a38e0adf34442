//! `ferroblk man` and `ferroblk completions`: what packages install beside the binary, made from its own options.

use crate::Cli;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::io::Write;

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  ferroblk completions bash > /usr/share/bash-completion/completions/ferroblk
  ferroblk completions zsh > /usr/share/zsh/site-functions/_ferroblk";

const MAN_EXAMPLES: &str = "\
Examples:
  ferroblk man > /usr/share/man/man1/ferroblk.1
  ferroblk man serve > /usr/share/man/man1/ferroblk-serve.1";

/// Prints a shell's completion script.
#[derive(Args, Debug)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Prints a manual page (roff).
#[derive(Args, Debug)]
#[command(after_help = MAN_EXAMPLES)]
pub struct ManArgs {
    /// The page of this command; without it, that of ferroblk as a whole
    command: Option<String>,
}

/// Prints the completion script. The error is one line for the user.
pub fn completions(args: &CompletionsArgs) -> Result<(), String> {
    // Into memory first: clap_complete panics on an output that cannot be written.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ferroblk", &mut script);
    print(&script)
}

/// Prints the manual page. The error is one line for the user.
pub fn man(args: &ManArgs) -> Result<(), String> {
    // Without the command `help`, which has no page.
    let mut command = Cli::command().disable_help_subcommand(true);
    // Gives each command the name of its page: ferroblk-serve.
    command.build();
    let command = match &args.command {
        None => command,
        Some(name) => command
            .find_subcommand(name)
            .ok_or_else(|| format!("there is no command '{name}', and so no page"))?
            .clone(),
    };
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(command);
    let made = man.source(concat!("ferroblk ", env!("CARGO_PKG_VERSION"))).render(&mut page);
    made.map_err(|error| format!("making the manual page: {error}"))?;
    print(&page)
}

fn print(text: &[u8]) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    let printed = out.write_all(text).and_then(|()| out.flush());
    printed.map_err(|error| format!("printing: {error}"))
}
