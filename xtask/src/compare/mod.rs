//! `cargo xtask compare`: ferroblk beside its peers, on the same file, with the same client.
//!
//! ```text
//! for each case, for each round:   ferroblk   peer   [others]    the next round the other way round
//!                                     |         |
//!                      a fresh server, one client, warm-up, measurement, SIGTERM
//! ```
//!
//! Others are fio on the bare file; where formats are compared, our own server on a raw file, and the peer's with each format.
//!
//! Where formats are compared, each measurement has a file of its own, in memory that the host of a virtual machine has at hand (`warm`): which pages a file happens
//! to have decides more than what is in it. So the luck is drawn anew each time.
//!
//! Only one server runs at a time: nothing else takes CPU, and the image's lock is free. What is reported is the
//! median over the rounds and the ratio of medians. It is a measurement, never a test: it exits 0 when a target is missed.

mod cases;
mod img;
mod report;
mod subject;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use blk_client::Rng;
use blk_client::server;

use crate::{Result, sh};
use cases::{CASES, Case, Content, Length, Media};
use report::Results;
use subject::{Program, Role, Subject};

/// Bytes of the files that are read and written.
const FILE_BYTES: u64 = 1 << 30;

const HELP: &str = "\
usage: cargo xtask compare [options]        servers; `cargo xtask compare img` compares the image tool with qemu-img
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
    if let ["img", rest @ ..] = args {
        return img::run(rest);
    }
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
    let lineup = Lineup::new(&options)?;
    let files = Files::create(&cases)?;
    let mut all = Vec::new();
    for case in cases {
        let subjects = lineup.subjects(case);
        let results = measure(case, &subjects, &client, &files, &options)?;
        report::print(case, &subjects, &results);
        all.push((case, subjects, results));
    }
    if let Some(path) = &options.json {
        let json = report::to_json(&all, options.rounds, options.seconds);
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

/// The programs.
struct Lineup {
    ours: Option<Program>,
    before: Option<Program>,
}

impl Lineup {
    fn new(options: &Options) -> Result<Lineup> {
        let ferroblk =
            |binary: PathBuf| Program::Ferroblk { binary, args: options.ferroblk_args.clone() };
        let ours = match (&options.ferroblk, options.peer_only) {
            (_, true) => None,
            (Some(path), false) => Some(path.clone()),
            (None, false) => Some(server::build("ferroblk", true).map_err(|e| e.to_string())?),
        };
        Ok(Lineup { ours: ours.map(ferroblk), before: options.against.clone().map(ferroblk) })
    }

    /// Who is measured in a case: ferroblk first, its peer second.
    fn subjects(&self, case: &Case) -> Vec<Subject> {
        use Role::{Bare, Beside, OurRaw, Ours, Peer};
        let formats = case.content.format().is_some();
        let format = case.content.format().unwrap_or("raw");
        // A raw file of that size says nothing.
        let has_raw = formats && !matches!(case.content, Content::Mapped(_));
        let subject = |name, role, format, program: &Program| {
            let program = program.clone();
            Subject { name, role, format, program }
        };
        let daemon = Program::QemuStorageDaemon;
        let mut subjects = Vec::new();
        subjects.extend(self.ours.as_ref().map(|ours| subject("ferroblk", Ours, format, ours)));
        subjects.push(match &self.before {
            Some(before) => subject("before", Peer, format, before),
            None => subject("qemu-storage-daemon", Peer, format, &daemon),
        });
        if has_raw {
            subjects.extend(self.ours.as_ref().map(|o| subject("ferroblk, raw", OurRaw, "raw", o)));
        }
        if has_raw && self.before.is_none() {
            subjects.push(subject("qemu-storage-daemon, raw", Beside, "raw", &daemon));
            if format != "qcow2" {
                subjects.push(subject("qemu-storage-daemon, qcow2", Beside, "qcow2", &daemon));
            }
        }
        if case.fio {
            subjects.push(subject("fio", Bare, "raw", &Program::Fio));
        }
        subjects
    }
}

/// All rounds of one case.
fn measure(
    case: &Case,
    subjects: &[Subject],
    client: &Path,
    files: &Files,
    options: &Options,
) -> Result<Results> {
    let mut results = Results::default();
    let (rounds, seconds) = match case.length {
        Length::AsAsked => (options.rounds, options.seconds),
        Length::Rounds(seconds) => (options.rounds, seconds),
        Length::Once(seconds) => (1, seconds),
    };
    for round in 0..rounds {
        let mut order: Vec<&Subject> = subjects.iter().collect();
        // Whatever drifts with time meets each subject first as often as last.
        if round % 2 == 1 {
            order.reverse();
        }
        for subject in order {
            let seed = u64::try_from(round).unwrap_or(0) + 1;
            let image = files.image(case, subject.format)?;
            let values = subject.measure(case, client, &image.path, seconds, seed)?;
            results.add(subject.name, values);
            // Let the kernel finish what the last one left: workers ending, memory going back.
            drop(image);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(results)
}

/// An image for one measurement.
struct Image {
    path: PathBuf,
    is_new: bool,
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.is_new {
            // In memory; if it cannot be removed there is nothing more to be done.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The files filled with random bytes, and images with the same content; those in memory go away with this value.
struct Files {
    memory: PathBuf,
    disk: PathBuf,
}

/// Formats that images are made in.
const FORMATS: [&str; 2] = ["qed", "qcow2"];

impl Files {
    fn create(cases: &[&Case]) -> Result<Files> {
        let dir = sh::target_dir().join("compare");
        std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let memory = PathBuf::from("/dev/shm/ferroblk-compare.raw");
        let files = Files { memory, disk: dir.join("disk.raw") };
        let is_fresh =
            |case: &Case| matches!(case.content, Content::Fresh(..) | Content::Mapped(_));
        if cases.iter().any(|case| case.media == Media::Memory && !is_fresh(case)) {
            fill(&files.memory)?;
        }
        if cases.iter().any(|case| case.media == Media::Disk) {
            fill(&files.disk)?;
        }
        if cases.iter().any(|case| matches!(case.content, Content::Filled(_))) {
            for format in FORMATS {
                let mut convert = Command::new("qemu-img");
                convert.args(["convert", "-f", "raw", "-O", format]).arg(&files.memory);
                sh::output(convert.arg(files.memory.with_extension(format)))?;
            }
        }
        Ok(files)
    }

    /// The image for one measurement of a case in a format.
    fn image(&self, case: &Case, format: &str) -> Result<Image> {
        let file = match case.media {
            Media::Memory => &self.memory,
            Media::Disk => &self.disk,
        };
        let new = |format: &str| {
            let path = file.with_extension(format!("new.{format}"));
            Image { path, is_new: true }
        };
        if case.content != Content::File && case.media == Media::Memory {
            warm(&file.with_extension("warm"))?;
        }
        let (bytes, options) = match case.content {
            Content::Filled(_) => {
                let (from, image) = (file.with_extension(format), new(format));
                let copied = std::fs::copy(&from, &image.path);
                return copied.map(|_| image).map_err(|e| format!("{}: {e}", from.display()));
            }
            Content::Fresh(_, bytes) => (bytes, ""),
            Content::Mapped(bytes) => (bytes, "preallocation=metadata,cluster_size=16k"),
            Content::File => return Ok(Image { path: file.with_extension(format), is_new: false }),
        };
        let image = new(format);
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", format]).arg(&image.path);
        if !options.is_empty() {
            create.args(["-o", options]);
        }
        sh::output(create.arg(bytes.to_string()))?;
        Ok(image)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for format in ["raw"].into_iter().chain(FORMATS) {
            // Gigabytes of memory; what cannot be removed, or was never made, needs nothing more.
            let _ = std::fs::remove_file(self.memory.with_extension(format));
        }
    }
}

/// Has the memory that a file will take at hand. In a virtual machine that gives free memory back to its host, each page taken anew is the host's to find: several
/// times the cost of writing to it.
pub fn warm(path: &Path) -> Result<()> {
    const BYTES: u64 = 9 << 28;
    let fail = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut file = File::create(path).map_err(fail)?;
    let chunk = vec![0; 1 << 20];
    for _ in 0..BYTES >> 20 {
        file.write_all(&chunk).map_err(fail)?;
    }
    std::fs::remove_file(path).map_err(fail)
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
