//! `cargo xtask compare`: ferroblk beside its peers, on the same file, with the same client.
//!
//! ```text
//! for each case, for each round:   ferroblk   peer   [fio]       the next round the other way round
//!                                     |         |
//!                      a fresh server, one client, warm-up, measurement, SIGTERM
//! ```
//!
//! Only one server runs at a time: nothing else takes CPU, and the image's lock is free. What is reported is the
//! median over the rounds and the ratio of medians. It is a measurement, never a test: it exits 0 when a target is missed.

mod cases;
mod report;
mod subject;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blk_client::Rng;
use blk_client::server;

use crate::{Result, sh};
use cases::{CASES, Case, Media};
use report::Results;
use subject::Subject;

/// Bytes of the files that are read and written.
const FILE_BYTES: u64 = 1 << 30;

const HELP: &str = "\
usage: cargo xtask compare [options]
  --rounds N            rounds per case (5)
  --seconds S           measurement per round (3)
  --case NAME           only cases whose name contains NAME; may be repeated
  --list                print the cases
  --json FILE           write everything that was measured
  --ferroblk PATH       the binary to measure (default: built from this tree)
  --ferroblk-args ARGS  more arguments of `ferroblk serve`, separated by spaces
  --peer-only           do not measure ferroblk
  --against PATH        compare with another ferroblk binary instead of qemu-storage-daemon
";

/// What was asked for.
struct Options {
    rounds: usize,
    seconds: f64,
    cases: Vec<String>,
    json: Option<PathBuf>,
    ferroblk: Option<PathBuf>,
    ferroblk_args: Vec<String>,
    against: Option<PathBuf>,
    peer_only: bool,
}

/// Runs the comparison.
pub fn run(args: &[&str]) -> Result<()> {
    if args.iter().any(|a| matches!(*a, "--help" | "-h")) {
        print!("{HELP}");
        return Ok(());
    }
    if args == ["--list"] {
        for case in CASES {
            println!("{:24} {}", case.name, case.what);
        }
        return Ok(());
    }
    let options = parse(args)?;
    let chosen = |case: &&Case| {
        options.cases.is_empty() || options.cases.iter().any(|name| case.name.contains(name))
    };
    let cases: Vec<&Case> = CASES.iter().filter(chosen).collect();
    if cases.is_empty() {
        return Err("no such case; see `compare --list`".to_owned());
    }

    let client = server::build("blk-client", true).map_err(|e| e.to_string())?;
    let subjects = subjects(&options)?;
    let files = Files::create(&cases)?;
    let mut all = Vec::new();
    for case in cases {
        let results = measure(case, &subjects, &client, files.path(case.media), &options)?;
        report::print(case, &subjects, &results);
        all.push((case, results));
    }
    if let Some(path) = &options.json {
        let json = report::to_json(&all, &subjects, options.rounds, options.seconds);
        std::fs::write(path, json).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

fn parse(args: &[&str]) -> Result<Options> {
    let mut options = Options {
        rounds: 5,
        seconds: 3.0,
        cases: Vec::new(),
        json: None,
        ferroblk: None,
        ferroblk_args: Vec::new(),
        against: None,
        peer_only: false,
    };
    let mut args = args.iter();
    while let Some(&arg) = args.next() {
        if arg == "--peer-only" {
            options.peer_only = true;
            continue;
        }
        let value = *args.next().ok_or_else(|| format!("{arg}: no such option, or no value"))?;
        let bad = |why: String| format!("{arg} {value}: {why}");
        match arg {
            "--rounds" => options.rounds = value.parse().map_err(|e| bad(format!("{e}")))?,
            "--seconds" => options.seconds = value.parse().map_err(|e| bad(format!("{e}")))?,
            "--case" => options.cases.push(value.to_owned()),
            "--json" => options.json = Some(value.into()),
            "--ferroblk" => options.ferroblk = Some(value.into()),
            "--ferroblk-args" => {
                options.ferroblk_args = value.split_whitespace().map(str::to_owned).collect();
            }
            "--against" => options.against = Some(value.into()),
            _ => return Err(format!("no such option: {arg}; see `compare --help`")),
        }
    }
    let seconds_ok = options.seconds > 0.0 && options.seconds < 3600.0;
    if options.rounds == 0 || options.rounds > 1000 || !seconds_ok {
        return Err("--rounds from 1 to 1000, --seconds from 0 to 3600".to_owned());
    }
    Ok(options)
}

/// What is measured: ferroblk first, its peer second.
fn subjects(options: &Options) -> Result<Vec<Subject>> {
    let mut subjects = Vec::new();
    if !options.peer_only {
        let binary = match &options.ferroblk {
            Some(path) => path.clone(),
            None => server::build("ferroblk", true).map_err(|e| e.to_string())?,
        };
        let args = options.ferroblk_args.clone();
        subjects.push(Subject::Ferroblk { name: "ferroblk", binary, args });
    }
    subjects.push(match &options.against {
        Some(binary) => {
            let args = options.ferroblk_args.clone();
            Subject::Ferroblk { name: "before", binary: binary.clone(), args }
        }
        None => Subject::QemuStorageDaemon,
    });
    Ok(subjects)
}

/// All rounds of one case.
fn measure(
    case: &Case,
    subjects: &[Subject],
    client: &Path,
    file: &Path,
    options: &Options,
) -> Result<Results> {
    let mut results = Results::default();
    let fio = [Subject::Fio];
    let with_fio = if case.fio { fio.as_slice() } else { &[] };
    let rounds = if case.seconds.is_some() { 1 } else { options.rounds };
    let seconds = case.seconds.unwrap_or(options.seconds);
    for round in 0..rounds {
        let mut order: Vec<&Subject> = subjects.iter().chain(with_fio).collect();
        // Whatever drifts with time meets each subject first as often as last.
        if round % 2 == 1 {
            order.reverse();
        }
        for subject in order {
            let seed = u64::try_from(round).unwrap_or(0) + 1;
            let values = subject.measure(case, client, file, seconds, seed)?;
            results.add(subject.name(), values);
            // Let the kernel finish what the last one left: workers ending, memory going back.
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(results)
}

/// The two files, filled with random bytes; the one in memory goes away with this value.
struct Files {
    memory: Option<PathBuf>,
    disk: PathBuf,
}

impl Files {
    fn create(cases: &[&Case]) -> Result<Files> {
        let dir = sh::target_dir().join("compare");
        std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let mut files = Files { memory: None, disk: dir.join("disk.raw") };
        if cases.iter().any(|case| case.media == Media::Memory) {
            let path = PathBuf::from("/dev/shm/ferroblk-compare.raw");
            files.memory = Some(path.clone());
            fill(&path)?;
        }
        if cases.iter().any(|case| case.media == Media::Disk) {
            fill(&files.disk)?;
        }
        Ok(files)
    }

    fn path(&self, media: Media) -> &Path {
        match media {
            Media::Memory => self.memory.as_deref().expect("made, as the case is among them"),
            Media::Disk => &self.disk,
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Some(path) = &self.memory {
            // A gigabyte of memory; if it cannot be removed there is nothing more to be done.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Makes a file of random bytes, unless it is there already: written, so that no hole or unwritten extent is read.
fn fill(path: &Path) -> Result<()> {
    if std::fs::metadata(path).is_ok_and(|m| m.len() == FILE_BYTES) {
        return Ok(());
    }
    let fail = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut file = File::create(path).map_err(fail)?;
    let mut rng = Rng::new(FILE_BYTES);
    let mut chunk = vec![0; 1 << 20];
    for _ in 0..FILE_BYTES >> 20 {
        for word in chunk.chunks_exact_mut(8) {
            word.copy_from_slice(&rng.number().to_le_bytes());
        }
        file.write_all(&chunk).map_err(fail)?;
    }
    file.sync_all().map_err(fail)
}
