//! `cargo xtask compare img`: `ferroblk img` beside qemu-img, on the same input, with the same options.
//!
//! ```text
//! for each case, for each round:   ferroblk img ...   qemu-img ...   the next round the other way round
//!                                        |  wall clock, CPU time of the process  |
//!                                  the two results must be the same disk: `qemu-img compare`
//! ```
//!
//! Everything lies in /dev/shm; one case in an XFS there, whose files can share blocks. What is reported is the median over the rounds and the ratio of
//! medians. Where the source is nothing but data, the bare copy of its file takes turns too: all CPUs, `pread` and `pwrite`, nothing else. That is what a tool
//! can do at best that reads and writes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use blk_client::Rng;
use blk_client::server;

use super::warm;
use crate::{Result, sh};

/// Bytes of data in the sources.
const DATA_BYTES: u64 = 2 << 30;
/// Bytes of data that is compressed.
const COMPRESSIBLE_BYTES: u64 = 512 << 20;
const CHUNK: usize = 1 << 20;

const HELP: &str = "\
usage: cargo xtask compare img [options]
  --rounds N        rounds per case (5)
  --case NAME       only cases whose name contains NAME
  --ferroblk PATH   the binary to measure (default: built from this tree)
";

/// Makes what a case reads.
type Source = fn(&Path) -> Result<()>;

/// One comparison: the same words for both tools, but for qemu-img's own in front.
struct Case {
    name: &'static str,
    what: &'static str,
    /// Makes the source in this directory.
    source: Source,
    /// The verb and its arguments; `OUT` is the result.
    args: &'static [&'static str],
    /// What qemu-img is given besides, to be at its best.
    peer_args: &'static [&'static str],
    /// Most wall-clock time, as a share of qemu-img's.
    wall_max: f64,
    /// The file whose bare copy is measured beside.
    bare: Option<&'static str>,
    /// In an XFS; that takes root.
    on_xfs: bool,
}

impl Case {
    /// The result's format; none if there is no result.
    fn target(&self) -> Option<&'static str> {
        let at = self.args.iter().position(|arg| *arg == "-O")?;
        self.args.get(at + 1).copied()
    }
}

/// Out of order, with as many requests as it can have.
const PARALLEL: &[&str] = &["-W", "-m", "16"];

const CASES: &[Case] = &[
    Case {
        name: "raw-qcow2",
        what: "2 GiB of data, raw to qcow2",
        source: |dir| data(&dir.join("s.raw"), DATA_BYTES, 1, u64::MAX),
        args: &["convert", "-f", "raw", "-O", "qcow2", "s.raw", "OUT"],
        peer_args: PARALLEL,
        wall_max: 0.7,
        bare: Some("s.raw"),
        on_xfs: false,
    },
    Case {
        name: "qcow2-raw",
        what: "2 GiB of data, qcow2 to raw",
        source: qcow2_source,
        args: &["convert", "-f", "qcow2", "-O", "raw", "s.qcow2", "OUT"],
        peer_args: PARALLEL,
        wall_max: 0.7,
        bare: Some("s.qcow2"),
        on_xfs: false,
    },
    Case {
        name: "qcow2-qed",
        what: "2 GiB of data, qcow2 to QED",
        source: qcow2_source,
        args: &["convert", "-f", "qcow2", "-O", "qed", "s.qcow2", "OUT"],
        // Out of order it aborts.
        peer_args: &["-m", "16"],
        wall_max: 0.7,
        bare: Some("s.qcow2"),
        on_xfs: false,
    },
    Case {
        name: "sparse-64g",
        what: "64 GiB with 2 GiB of data in 16 places, raw to qcow2",
        source: |dir| data(&dir.join("s.raw"), DATA_BYTES, 32, u64::MAX),
        args: &["convert", "-f", "raw", "-O", "qcow2", "s.raw", "OUT"],
        peer_args: PARALLEL,
        wall_max: 0.7,
        bare: None,
        on_xfs: false,
    },
    Case {
        name: "chain",
        what: "an overlay on an overlay on 1 GiB, flattened to qcow2",
        source: chain_source,
        args: &["convert", "-f", "qcow2", "-O", "qcow2", "s.qcow2", "OUT"],
        peer_args: PARALLEL,
        wall_max: 0.7,
        bare: None,
        on_xfs: false,
    },
    Case {
        name: "reflink",
        what: "2 GiB of data, raw to qcow2 in an XFS",
        source: |dir| data(&dir.join("s.raw"), DATA_BYTES, 1, u64::MAX),
        args: &["convert", "-f", "raw", "-O", "qcow2", "s.raw", "OUT"],
        peer_args: PARALLEL,
        wall_max: 0.7,
        bare: None,
        on_xfs: true,
    },
    Case {
        name: "zlib",
        what: "512 MiB that shrink to half, raw to qcow2 with -c",
        source: |dir| data(&dir.join("s.raw"), COMPRESSIBLE_BYTES, 1, 0x0F0F_0F0F_0F0F_0F0F),
        args: &["convert", "-c", "-f", "raw", "-O", "qcow2", "s.raw", "OUT"],
        peer_args: &["-m", "16"],
        wall_max: 0.6,
        bare: None,
        on_xfs: false,
    },
    Case {
        name: "zstd",
        what: "512 MiB that shrink to half, raw to qcow2 with -c, zstd",
        source: |dir| data(&dir.join("s.raw"), COMPRESSIBLE_BYTES, 1, 0x0F0F_0F0F_0F0F_0F0F),
        args: &[
            "convert",
            "-c",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-o",
            "compression_type=zstd",
            "s.raw",
            "OUT",
        ],
        peer_args: &["-m", "16"],
        wall_max: 0.6,
        bare: None,
        on_xfs: false,
    },
    Case {
        name: "check-1t",
        what: "check of a qcow2 image of 1 TiB, all of it mapped",
        source: |dir| {
            let args = ["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "s.qcow2"];
            sh::run(Command::new("qemu-img").args(args).arg("1T").current_dir(dir))
        },
        args: &["check", "-f", "qcow2", "s.qcow2"],
        peer_args: &[],
        wall_max: 0.5,
        bare: None,
        on_xfs: false,
    },
];

/// Writes `bytes` of random data, each eight masked, in chunks of 128 MiB of which one in `every` is not a hole.
fn data(path: &Path, bytes: u64, every: u64, mask: u64) -> Result<()> {
    const PART: u64 = 128 << 20;
    let failed = |e| format!("{}: {e}", path.display());
    let file = File::create(path).map_err(failed)?;
    file.set_len(bytes * every).map_err(failed)?;
    let mut rng = Rng::new(bytes);
    let mut chunk = vec![0; CHUNK];
    for part in 0..bytes / PART {
        for at in (0..PART).step_by(CHUNK) {
            for word in chunk.as_chunks_mut::<8>().0 {
                *word = (rng.number() & mask).to_le_bytes();
            }
            file.write_all_at(&chunk, part * every * PART + at).map_err(failed)?;
        }
    }
    Ok(())
}

fn qemu_img(dir: &Path, args: &[&str]) -> Result<()> {
    sh::run(Command::new("qemu-img").args(args).current_dir(dir))
}

fn qcow2_source(dir: &Path) -> Result<()> {
    data(&dir.join("s.raw"), DATA_BYTES, 1, u64::MAX)?;
    qemu_img(dir, &["convert", "-f", "raw", "-O", "qcow2", "s.raw", "s.qcow2"])?;
    remove(&dir.join("s.raw"))
}

fn chain_source(dir: &Path) -> Result<()> {
    data(&dir.join("base.raw"), 1 << 30, 1, u64::MAX)?;
    qemu_img(dir, &["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "mid.qcow2"])?;
    qemu_img(dir, &["create", "-q", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", "s.qcow2"])?;
    for (image, pattern) in [("mid.qcow2", 7u64), ("s.qcow2", 9)] {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "qcow2", image]).current_dir(dir).stdout(Stdio::null());
        for n in 0..64 {
            let write = format!("write -q -P {pattern} {}k 100k", (n * 2 * pattern + pattern) * 64);
            command.args(["-c", &write]);
        }
        sh::run(&mut command)?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// What one run took, in seconds.
#[derive(Clone, Copy)]
struct Took {
    wall: f64,
    cpu: f64,
}

/// Runs a tool to its end.
fn time(dir: &Path, words: &[String]) -> Result<Took> {
    // The shell tells its children's times; the last line has them.
    let script = "\"$@\" >/dev/null; status=$?; times; exit $status";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).args(words).current_dir(dir);
    let start = Instant::now();
    let said = sh::output(&mut command)?;
    let wall = start.elapsed().as_secs_f64();
    let last = said.lines().last().unwrap_or_default();
    let seconds = |word: &str| {
        let (minutes, seconds) = word.trim_end_matches('s').split_once('m')?;
        Some(minutes.parse::<f64>().ok()? * 60.0 + seconds.parse::<f64>().ok()?)
    };
    let cpu = last.split_whitespace().map(seconds).sum::<Option<f64>>();
    Ok(Took { wall, cpu: cpu.ok_or_else(|| format!("sh: times said {last:?}"))? })
}

/// Copies a file as fast as it can be done; in seconds.
fn bare_copy(from: &Path, to: &Path) -> Result<f64> {
    let failed = |e| format!("{} to {}: {e}", from.display(), to.display());
    let source = File::open(from).map_err(failed)?;
    let bytes = source.metadata().map_err(failed)?.len();
    let target = File::create(to).map_err(failed)?;
    target.set_len(bytes).map_err(failed)?;
    let next = AtomicU64::new(0);
    let copy = || -> std::io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let at = next.fetch_add(CHUNK as u64, Ordering::Relaxed);
            let Some(left) = bytes.checked_sub(at).filter(|left| *left > 0) else { return Ok(()) };
            let part = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            source.read_exact_at(&mut chunk[..part], at)?;
            target.write_all_at(&chunk[..part], at)?;
        }
    };
    let start = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(copy)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("it does not panic"))
    })
    .map_err(failed)?;
    Ok(start.elapsed().as_secs_f64())
}

/// A directory in memory that goes with this value.
struct Scratch {
    dir: PathBuf,
    xfs: Option<PathBuf>,
}

impl Scratch {
    fn new(on_xfs: bool) -> Result<Scratch> {
        let dir = PathBuf::from(format!("/dev/shm/ferroblk-compare-img-{}", std::process::id()));
        std::fs::create_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let mut scratch = Scratch { dir, xfs: None };
        if on_xfs {
            let (disk, xfs) = (scratch.dir.join("disk"), scratch.dir.join("xfs"));
            let made = File::create(&disk).and_then(|file| file.set_len(4 * DATA_BYTES));
            made.and(std::fs::create_dir(&xfs)).map_err(|e| format!("{}: {e}", xfs.display()))?;
            sh::run(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&disk))?;
            sh::run(Command::new("mount").args(["-o", "loop"]).args([&disk, &xfs]))?;
            scratch.xfs = Some(xfs);
        }
        Ok(scratch)
    }

    fn dir(&self) -> &Path {
        self.xfs.as_ref().unwrap_or(&self.dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(xfs) = &self.xfs {
            // Fails only if something is still open there, which then is to be seen.
            let _ = sh::run(Command::new("umount").arg(xfs));
        }
        // In memory; if it cannot be removed there is nothing more to be done.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Runs the comparison.
pub fn run(args: &[&str]) -> Result<()> {
    let (mut rounds, mut case, mut binary) = (5usize, "", None);
    for pair in args.chunks(2) {
        match *pair {
            ["--help" | "-h", ..] => {
                print!("{HELP}");
                return Ok(());
            }
            ["--rounds", n] => rounds = n.parse().map_err(|e| format!("--rounds {n}: {e}"))?,
            ["--case", name] => case = name,
            ["--ferroblk", path] => binary = Some(PathBuf::from(path)),
            _ => return Err(format!("no such option, or no value: {}", pair[0])),
        }
    }
    if !(1..=1000).contains(&rounds) {
        return Err("--rounds from 1 to 1000".to_owned());
    }
    let cases: Vec<&Case> = CASES.iter().filter(|one| one.name.contains(case)).collect();
    if cases.is_empty() {
        return Err(format!("no case has {case} in its name"));
    }
    let built = || server::build("ferroblk", true).map_err(|e| e.to_string());
    let binary = binary.map_or_else(built, Ok)?;
    let binary = binary.to_string_lossy().into_owned();
    println!(
        "{:12} {:>10} {:>10} {:>8} {:>10} {:>10} {:>8}",
        "", "wall, s", "qemu-img", "ratio", "CPU, s", "qemu-img", "ratio"
    );
    cases.into_iter().try_for_each(|case| compare(case, rounds, &binary))
}

fn compare(case: &Case, rounds: usize, binary: &str) -> Result<()> {
    let scratch = Scratch::new(case.on_xfs)?;
    let dir = scratch.dir();
    (case.source)(dir)?;
    let mut ours = vec![binary.to_owned(), "img".to_owned(), case.args[0].to_owned()];
    if case.args[0] == "convert" {
        ours.push("--allow-backing".to_owned());
    }
    let peer = [&["qemu-img", case.args[0]][..], case.peer_args].concat();
    let peer: Vec<String> = peer.into_iter().map(str::to_owned).collect();
    let mut took: [Vec<Took>; 3] = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..rounds {
        for turn in [0, 1] {
            let who = (round + turn) % 2;
            let (tool, out) = [(&ours, "out.ours"), (&peer, "out.peer")][who];
            let rest = case.args[1..].iter().map(|arg| if *arg == "OUT" { out } else { arg });
            let words: Vec<String> = tool.iter().cloned().chain(rest.map(str::to_owned)).collect();
            warm(&dir.join("warm"))?;
            took[who].push(time(dir, &words)?);
        }
        if let Some(source) = case.bare {
            warm(&dir.join("warm"))?;
            let wall = bare_copy(&dir.join(source), &dir.join("out.bare"))?;
            took[2].push(Took { wall, cpu: 0.0 });
            remove(&dir.join("out.bare"))?;
        }
        if let Some(format) = case.target() {
            qemu_img(dir, &["compare", "-q", "-f", format, "-F", format, "out.ours", "out.peer"])?;
            remove(&dir.join("out.ours"))?;
            remove(&dir.join("out.peer"))?;
        }
    }
    let median = |who: usize, of: fn(&Took) -> f64| {
        let mut values: Vec<f64> = took[who].iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (wall, peer_wall) = (median(0, |t| t.wall), median(1, |t| t.wall));
    let (cpu, peer_cpu) = (median(0, |t| t.cpu), median(1, |t| t.cpu));
    let verdict = |ratio: f64, most: f64| if ratio <= most { "pass" } else { "MISS" };
    let (wall_ratio, cpu_ratio) = (wall / peer_wall, cpu / peer_cpu);
    println!(
        "{:12} {wall:>10.2} {peer_wall:>10.2} {wall_ratio:>6.2} x {cpu:>10.2} {peer_cpu:>10.2} {cpu_ratio:>6.2} x   wall <= {} {}, CPU <= 1 {}   ({})",
        case.name,
        case.wall_max,
        verdict(wall_ratio, case.wall_max),
        verdict(cpu_ratio, 1.0),
        case.what,
    );
    if case.bare.is_some() {
        let wall = median(2, |t| t.wall);
        println!(
            "{:12} {wall:>10.2} {:>10} {:>6.2} x   (bare copy of the file, all CPUs)",
            "",
            "",
            wall / peer_wall
        );
    }
    Ok(())
}
