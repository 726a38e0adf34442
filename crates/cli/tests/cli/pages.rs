//! Manual pages and completions.

use crate::common::{Scratch, output};
use std::process::{Command, Stdio};

fn printed(args: &[&str]) -> String {
    let scratch = Scratch::new();
    let mut command = scratch.ferroblk(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    // Read while it runs: a script may be larger than a pipe.
    let output = command.output().unwrap();
    assert!(output.status.success(), "{args:?}");
    assert!(output.stderr.is_empty(), "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_shell_has_completions_for_serve() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = printed(&["completions", shell]);
        assert!(script.contains("serve") && script.contains("vhost-user-blk"), "{shell}");
    }
}

#[test]
fn bash_reads_its_completions() {
    let mut bash = Command::new("bash");
    bash.args(["-euc", r#"source <("$1" completions bash); complete -p ferroblk"#, "-"]);
    bash.arg(env!("CARGO_BIN_EXE_ferroblk")).stdout(Stdio::piped());
    let done = output(bash.spawn().unwrap(), "bash");
    assert!(done.status.success());
    assert!(String::from_utf8(done.stdout).unwrap().contains("_ferroblk"));
}

#[test]
fn there_is_a_page_for_each_command_and_for_all() {
    let page = printed(&["man"]);
    assert!(page.contains(".TH ferroblk 1"));
    for command in ["serve", "io", "bench", "doctor", "man", "completions"] {
        assert!(page.contains(&format!(r"ferroblk\-{command}(1)")), "{command}");
        let own = printed(&["man", command]);
        assert!(own.contains(&format!(".TH ferroblk-{command} 1")), "{own}");
    }
    assert!(!page.contains(r"ferroblk\-help(1)"), "no page is promised that is not there");
    let serve = printed(&["man", "serve"]);
    for word in [r"\-\-vhost\-user\-blk", r"\-\-poll\-max\-us", "SIGHUP", "Examples:"] {
        assert!(serve.contains(word), "{word}");
    }
}

#[test]
fn pages_that_do_not_exist_are_refused() {
    let scratch = Scratch::new();
    scratch.refuses(&["man", "brew"], 1, &["brew"]);
    scratch.refuses(&["completions", "dos"], 2, &["dos", "bash"]);
    scratch.refuses(&["completions"], 2, &["<SHELL>"]);
}

#[test]
fn a_full_disk_under_the_output_is_an_error() {
    for args in [&["man"][..], &["completions", "zsh"]] {
        let scratch = Scratch::new();
        let mut command = scratch.ferroblk(args);
        command.stdout(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
        command.stderr(Stdio::piped());
        let done = output(command.spawn().unwrap(), "ferroblk");
        assert_eq!(done.status.code(), Some(1));
        assert!(String::from_utf8(done.stderr).unwrap().contains("printing: No space left"));
    }
}
