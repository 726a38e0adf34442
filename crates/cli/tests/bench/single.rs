//! `bench run`, `bench profile` and `bench scenarios`.

use crate::common::{Scratch, skip};
use crate::{bench, done};
use ffsb::outcome::Outcome;
use ffsb::profile::Profile;
use ffsb::profile::scenario::{Scale, Scenario};
use std::fs::{self, File};
use std::process::Command;

const SHORT: [&str; 6] = ["--scale", "1024", "--seconds", "0.2", "--threads", "2"];

fn outcome(scratch: &Scratch, args: &[&str]) -> Outcome {
    serde_json::from_str(&done(scratch, &[args, &["--json"]].concat())).unwrap()
}

#[test]
fn every_scenario_runs_verified_in_a_directory_and_leaves_it_empty() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("d")).unwrap();
    for scenario in Scenario::ALL {
        let args = ["run", scenario.name(), "--dir", "d", "--verify"];
        let outcome = outcome(&scratch, &[&args[..], &SHORT].concat());
        assert!(outcome.groups[0].ops.iter().map(|op| op.transactions).sum::<u64>() > 0);
        assert!(outcome.phases.utilisation[0] > 0.0, "{scenario:?}");
        assert_eq!(fs::read_dir(scratch.path("d")).unwrap().count(), 0, "{scenario:?}");
    }
}

#[test]
fn the_output_is_for_people_or_ffsbs_own() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("d")).unwrap();
    let args = [&["run", "mixed-8k", "--dir", "d"][..], &SHORT].concat();
    let text = done(&scratch, &args);
    for words in ["mixed-8k: 0.", "transactions/s", "a block takes: p50 ", "read: ", "write: "] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains("extent layout"), "a directory has a file system");
    let text = done(&scratch, &[&args[..], &["--ffsb", "--keep"]].concat());
    for words in
        ["FFSB version ", "num_threads      = 2", "Total Results", "Transactions per Second"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(scratch.path("d/data/datafile0").exists(), "--keep");
}

#[test]
fn a_disk_behind_a_socket_is_measured_only_if_it_may_be_destroyed() {
    let scratch = Scratch::new();
    File::create(scratch.path("a.raw")).unwrap().set_len(96 << 20).unwrap();
    let server = scratch.serve(&["a.raw", "--cache", "writeback"]);
    let args = [&["run", "mixed-8k", "--vhost-user", "a.raw.sock"][..], &SHORT].concat();
    scratch.refuses(&[&["bench"], &args[..]].concat(), 1, &["a.raw.sock", "--destroy"]);
    let text = done(&scratch, &[&args[..], &["--destroy", "--verify"]].concat());
    assert!(text.contains("extent layout"), "{text}");
    server.stop();
}

#[test]
fn a_file_with_content_is_kept_and_a_small_one_is_full() {
    let scratch = Scratch::new();
    File::create(scratch.path("hole")).unwrap().set_len(96 << 20).unwrap();
    let args = |file| {
        [
            &["bench", "run", "random-write-8k", "--file", file][..],
            &SHORT,
            &["--cache", "writeback"],
        ]
        .concat()
    };
    done(&scratch, &args("hole")[1..]);
    scratch.refuses(&args("hole"), 1, &["hole: it is not empty", "--destroy"]);
    done(&scratch, &[&args("hole")[1..], &["--destroy"]].concat());
    scratch.refuses(&args("none"), 1, &["none: No such file"]);
    scratch.refuses(&args("/dev/null"), 1, &["/dev/null: "]);
    let small = Scratch::new();
    File::create(small.path("small")).unwrap().set_len(8 << 20).unwrap();
    let output = small.ferroblk(&args("small")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(
        line.contains("random-write-8k: set-up: ") && line.contains("8 MiB")
            || line.contains("full")
            || line.contains("space"),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1);
}

#[test]
fn a_full_file_system_is_said_in_a_line_and_emptied() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("small")).unwrap();
    let script = "mount -t tmpfs -o size=20m none small || exit 77; \
                  \"$1\" bench run random-read-8k --dir small --scale 1024; code=$?; ls -A small; exit $code";
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", script, "-", env!("CARGO_BIN_EXE_ferroblk")]);
    let Ok(output) = command.current_dir(scratch.dir()).output() else {
        return skip("there is no unshare");
    };
    let line = String::from_utf8(output.stderr).unwrap();
    if output.status.code() == Some(77) || line.starts_with("unshare") {
        return skip(&format!("no file system may be mounted here: {line}"));
    }
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(
        line.contains("random-read-8k: ")
            && line.contains("small")
            && line.contains("No space left"),
        "{line}"
    );
    assert_eq!((line.lines().count(), String::from_utf8(output.stdout).unwrap().as_str()), (1, ""));
}

#[test]
fn every_scenario_is_listed_and_written_as_a_profile_that_runs() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("d")).unwrap();
    let list = done(&scratch, &["scenarios"]);
    for scenario in Scenario::ALL {
        assert!(list.lines().any(|line| line == scenario.name()), "{list}");
        let args = [
            "profile",
            scenario.name(),
            "--dir",
            "d",
            "--threads",
            "3",
            "--seconds",
            "7",
            "--scale",
            "64",
        ];
        let text = done(&scratch, &args);
        let parsed = Profile::parse(&text).unwrap();
        assert_eq!(parsed.warnings, []);
        assert_eq!(parsed.profile, scenario.profile(3, "d", 7, Scale::new(64).unwrap()));
    }
    let text = done(&scratch, &["profile", "mail-server-8k", "--dir", "d", "--scale", "1024"]);
    fs::write(scratch.path("mail.ffsb"), text).unwrap();
    let outcome = outcome(&scratch, &["run", "mail.ffsb", "--seconds", "0.2"]);
    assert!(outcome.seconds < 20.0 && outcome.groups[0].ops.len() > 2);
    // A word that FFSB does not know, with its line.
    let wrong =
        fs::read_to_string(scratch.path("mail.ffsb")).unwrap().replace("num_threads", "num_thread");
    fs::write(scratch.path("mail.ffsb"), wrong).unwrap();
    let output = bench(&scratch, &["run", "mail.ffsb"]);
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(line.starts_with("ferroblk: mail.ffsb:") && line.contains("num_thread"), "{line}");
}
