//! `ferroblk img`: the command line of the image tool, which is that of `qemu-img`; and `qemu-img` itself, if we are called by that name.
//!
//! Two things are not as there, unless we are called `qemu-img`: files that an image names are opened only with `--allow-backing`, and a format that
//! is not said is told by the name of the file, and not by what is in it (design rules 4 and 6).

mod amend;
mod bench;
mod bitmap;
mod commit;
mod dd;
mod measure;
mod rebase;
mod run;

use crate::{NAME as PROGRAM, complain};
use block::CacheMode;
use clap::{Args, Parser, Subcommand, ValueEnum};
use img::{Failure, Output, Preallocation};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// The name by which we are QEMU's tool.
pub const NAME: &str = "qemu-img";
/// The exit code for a command line that makes no sense, as `qemu-img` has it.
pub const USAGE_CODE: u8 = 1;

const EXAMPLES: &str = "\
Examples:
  ferroblk img create -f qed vm.qed 10G
  ferroblk img convert -p -f raw -O qed vm.raw vm.qed
  ferroblk img create -f qcow2 --object secret,id=s,file=key.txt -o encrypt.format=luks,encrypt.key-secret=s vm.qcow2 10G
  ferroblk img convert --object secret,id=s,file=key.txt --image-opts driver=qcow2,file.filename=vm.qcow2,encrypt.key-secret=s vm.raw
  ferroblk img convert -p -c -O qcow2 -o compression_type=zstd vm.raw small.qcow2
  ferroblk img check --plan vm.qed
      says what a repair would change
  ferroblk img convert --in-place -O qcow2 vm.qed
      makes it a qcow2 image, without copying its data
  ln -s ferroblk qemu-img; ./qemu-img info vm.qed
      under that name it is qemu-img";

/// Whether files that images name are opened without being asked to: as `qemu-img` does it.
static FOLLOWS: AtomicBool = AtomicBool::new(false);

/// Makes, inspects, checks and converts images: qemu-img's verbs, options, output and exit codes.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ImgArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Parser, Debug)]
#[command(name = NAME, infer_long_args = true, version = concat!("version 10.0.2 (ferroblk ", env!("CARGO_PKG_VERSION"), ")"))]
struct QemuImg {
    #[command(flatten)]
    args: ImgArgs,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Amend(amend::AmendArgs),
    Bench(bench::BenchArgs),
    Bitmap(bitmap::BitmapArgs),
    Check(CheckArgs),
    Commit(commit::CommitArgs),
    Compare(CompareArgs),
    Convert(ConvertArgs),
    Create(CreateArgs),
    Dd(dd::DdArgs),
    Info(InfoArgs),
    Map(MapArgs),
    Measure(measure::MeasureArgs),
    Rebase(rebase::RebaseArgs),
    Resize(ResizeArgs),
    Snapshot(SnapshotArgs),
}

/// What encrypted images are opened with, and how images are named.
#[derive(Args, Debug)]
struct Naming {
    /// A secret: secret,id=ID,file=PATH or secret,id=ID,data=TEXT (which others can see), with ,format=base64 if it is
    #[arg(long, value_name = "OBJDEF")]
    object: Vec<String>,
    /// Images are named by options: driver=FMT,file.filename=PATH,encrypt.key-secret=ID
    #[arg(long, alias = "source-image-opts")]
    image_opts: bool,
}

/// How much a verb says while it is at work.
#[derive(Args, Debug)]
struct Show {
    /// Prints nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Prints how far it is
    #[arg(short, long)]
    progress: bool,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum OutputArg {
    Human,
    Json,
}

impl From<OutputArg> for Output {
    fn from(output: OutputArg) -> Output {
        match output {
            OutputArg::Human => Output::Human,
            OutputArg::Json => Output::Json,
        }
    }
}

/// Says whether an image is consistent, and mends it
#[derive(Args, Debug)]
struct CheckArgs {
    #[command(flatten)]
    naming: Naming,
    /// Prints nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Format of the image: raw, qcow2, qed
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Cache mode of the image
    #[arg(short = 'T', long, default_value = "writeback", value_name = "MODE")]
    cache: CacheMode,
    /// The image may be in use by others
    #[arg(short = 'U', long, conflicts_with = "repair")]
    force_share: bool,
    /// Who reads what is printed
    #[arg(long, default_value = "human")]
    output: OutputArg,
    /// What is mended
    #[arg(short, long)]
    repair: Option<RepairArg>,
    /// Prints what a repair would change, and changes nothing (not in qemu-img)
    #[arg(long)]
    plan: bool,
    /// The image
    filename: PathBuf,
}

/// Whether files share blocks instead of having copies.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Reflink {
    /// Where the file system can.
    Auto,
    Never,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum RepairArg {
    Leaks,
    All,
}

/// Says whether two images have the same content
#[derive(Args, Debug)]
struct CompareArgs {
    #[command(flatten)]
    naming: Naming,
    #[command(flatten)]
    show: Show,
    /// Format of the first image: raw, qcow2, qed
    #[arg(short = 'f', long, value_name = "FMT")]
    a_format: Option<String>,
    /// Format of the second image
    #[arg(short = 'F', long, value_name = "FMT")]
    b_format: Option<String>,
    /// Sizes and allocation must be the same too
    #[arg(short, long)]
    strict: bool,
    /// Cache mode of the images
    #[arg(short = 'T', long, default_value = "writeback", value_name = "MODE")]
    cache: CacheMode,
    /// The images may be in use by others
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Opens the files that the images name (not in qemu-img, which always does)
    #[arg(long)]
    allow_backing: bool,
    /// The first image
    filename1: PathBuf,
    /// The second image
    filename2: PathBuf,
}

/// Copies images to a new one, in the same or another format
#[derive(Args, Debug)]
struct ConvertArgs {
    #[command(flatten)]
    naming: Naming,
    #[command(flatten)]
    show: Show,
    /// Format of the sources: raw, qcow2, qed
    #[arg(short = 'f', long, value_name = "FMT")]
    source_format: Option<String>,
    /// Cache mode of the sources
    #[arg(short = 'T', long, default_value = "writeback", value_name = "MODE")]
    source_cache: CacheMode,
    /// Format of the target: raw, qcow2, qed [default: raw]
    #[arg(short = 'O', long, value_name = "FMT")]
    target_format: Option<String>,
    /// Options of the target's format; help lists them
    #[arg(short = 'o', long, value_name = "OPTIONS")]
    target_options: Vec<String>,
    /// Cache mode of the target [default: as fast as can be, and a sync at the end]
    #[arg(short = 't', long, value_name = "MODE")]
    target_cache: Option<CacheMode>,
    /// The target stands on this file, and gets only what the source has on top of the like
    #[arg(short = 'B', long, value_name = "FILE")]
    backing: Option<PathBuf>,
    /// Format of that file
    #[arg(short = 'F', long, value_name = "FMT")]
    backing_format: Option<String>,
    /// The target is there already
    #[arg(short, long)]
    no_create: bool,
    /// And it reads as zeroes
    #[arg(long)]
    target_is_zero: bool,
    /// So many zero bytes become a hole; 0: none [default: 4k]
    #[arg(short = 'S', long, value_name = "SIZE")]
    sparse_size: Option<String>,
    /// So many bytes of data in a second at most
    #[arg(short, long, value_name = "RATE")]
    rate: Option<String>,
    /// What cannot be read of the sources is left out, and said
    #[arg(long)]
    salvage: bool,
    /// The host shares or copies the data without a look at it, if it can: zeroes in it are not found
    #[arg(short = 'C', long, conflicts_with_all = ["sparse_size", "compress", "salvage"])]
    copy_range_offloading: bool,
    /// Where the file system can share blocks between files, the target gets the source's instead of a copy: auto, never (not in qemu-img)
    #[arg(long, default_value = "auto", value_name = "WHEN")]
    reflink: Reflink,
    /// Pieces under way: 1 to 16
    #[arg(short = 'm', long, default_value_t = 8, value_name = "N")]
    parallel: u64,
    /// Compresses what is copied, on all CPUs (qcow2)
    #[arg(short, long)]
    compress: bool,
    /// The source as it was at this snapshot: an id or a name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Copies the persistent bitmaps too (qcow2)
    #[arg(long)]
    bitmaps: bool,
    /// Leaves bitmaps out that cannot be used
    #[arg(long, requires = "bitmaps")]
    skip_broken_bitmaps: bool,
    /// The target is named by options, as with --image-opts; it must be there already (-n)
    #[arg(long, requires = "no_create")]
    target_image_opts: bool,
    /// Writes are started in any order
    #[arg(short = 'W', long)]
    oob_writes: bool,
    /// Makes the one image named a qcow2 or QED image (-O) in the same file, where its data stays (not in qemu-img)
    #[arg(long, conflicts_with_all = ["target_options", "compress", "backing", "no_create", "force_share", "snapshot", "bitmaps"])]
    in_place: bool,
    /// The sources may be in use by others
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Opens the files that the sources name (not in qemu-img, which always does)
    #[arg(long)]
    allow_backing: bool,
    /// The sources, and at last the target
    #[arg(required_unless_present = "target_options", value_name = "FILENAME")]
    filenames: Vec<PathBuf>,
}

/// Makes a new image
#[derive(Args, Debug)]
struct CreateArgs {
    /// A secret, for -o encrypt.key-secret: secret,id=ID,file=PATH or secret,id=ID,data=TEXT (which others can see)
    #[arg(long, value_name = "OBJDEF")]
    object: Vec<String>,
    /// Prints nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Format of the image: raw, qcow2, qed
    #[arg(short, long, default_value = "raw", value_name = "FMT")]
    format: String,
    /// Options of the format; help lists them
    #[arg(short, long, value_name = "OPTIONS")]
    options: Vec<String>,
    /// The image stands on this file
    #[arg(short, long, value_name = "FILE")]
    backing: Option<PathBuf>,
    /// Format of that file
    #[arg(short = 'F', long, value_name = "FMT")]
    backing_format: Option<String>,
    /// Does not look at that file
    #[arg(short = 'u', long)]
    backing_unsafe: bool,
    /// The image; what is there is replaced
    #[arg(required_unless_present = "options")]
    filename: Option<PathBuf>,
    /// Size of the disk, with a suffix k, M, G, T, P or E; without it, that of the backing file
    size: Option<String>,
}

/// Prints what an image says of itself
#[derive(Args, Debug)]
struct InfoArgs {
    #[command(flatten)]
    naming: Naming,
    /// Format of the image; without it, its content tells it
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Opens the files that the image names, and tells of them too
    #[arg(short, long)]
    backing_chain: bool,
    /// The image may be in use by others
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Who reads what is printed
    #[arg(long, default_value = "human")]
    output: OutputArg,
    /// The image
    filename: PathBuf,
}

/// Prints where a disk's data is
#[derive(Args, Debug)]
struct MapArgs {
    #[command(flatten)]
    naming: Naming,
    /// Format of the image: raw, qcow2, qed
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// From this byte of the disk on
    #[arg(short, long, default_value = "0", value_name = "OFFSET")]
    start_offset: String,
    /// So many bytes at most
    #[arg(short = 'l', long, value_name = "LENGTH")]
    max_length: Option<String>,
    /// Who reads what is printed
    #[arg(long, default_value = "human")]
    output: OutputArg,
    /// The image may be in use by others
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Opens the files that the image names (not in qemu-img, which always does)
    #[arg(long)]
    allow_backing: bool,
    /// The image
    filename: PathBuf,
}

/// Gives a disk another size
#[derive(Args, Debug)]
struct ResizeArgs {
    #[command(flatten)]
    naming: Naming,
    /// Prints nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Format of the image: raw, qcow2, qed
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// It may lose what lies beyond its new end
    #[arg(long)]
    shrink: bool,
    /// What is done for new space: off, falloc, full
    #[arg(long, default_value = "off", value_name = "HOW")]
    preallocation: Preallocation,
    /// Opens the files that the image names (not in qemu-img, which always does)
    #[arg(long)]
    allow_backing: bool,
    /// The image
    filename: PathBuf,
    /// The new size, or with + or - by how much
    #[arg(allow_hyphen_values = true, value_name = "[+-]SIZE")]
    size: String,
}

/// Lists, makes, goes back to or deletes the snapshots in a qcow2 image
#[derive(Args, Debug)]
struct SnapshotArgs {
    #[command(flatten)]
    naming: Naming,
    /// Makes no difference here
    #[arg(short, long)]
    quiet: bool,
    /// Format of the image
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// The image may be in use by others: for a list
    #[arg(short = 'U', long, conflicts_with_all = ["create", "apply", "delete"])]
    force_share: bool,
    /// Lists them (dates are in UTC)
    #[arg(short, long, group = "action")]
    list: bool,
    /// Makes one of this name
    #[arg(short, long, value_name = "NAME", group = "action")]
    create: Option<String>,
    /// Makes the disk what it was at this one: an id or a name
    #[arg(short, long, value_name = "SNAPSHOT", group = "action")]
    apply: Option<String>,
    /// Deletes the one of this name
    #[arg(short, long, value_name = "NAME", group = "action")]
    delete: Option<String>,
    /// Opens the files that the image names (not in qemu-img, which always does)
    #[arg(long)]
    allow_backing: bool,
    /// The image
    filename: PathBuf,
}

/// The command line, if we are called `qemu-img`.
pub fn as_qemu_img() -> Option<Result<ImgArgs, clap::Error>> {
    let name = std::env::args_os().next()?;
    (Path::new(&name).file_name()? == NAME).then(|| {
        FOLLOWS.store(true, Ordering::Relaxed);
        QemuImg::try_parse().map(|tool| tool.args)
    })
}

/// Whether the command line is one for us, even if it makes no sense.
pub fn is_asked_for() -> bool {
    std::env::args_os().nth(1).is_some_and(|verb| verb == "img")
}

/// The name by which we were called, at the start of what we complain of.
fn name() -> &'static str {
    if FOLLOWS.load(Ordering::Relaxed) { NAME } else { PROGRAM }
}

/// Does what was asked for.
pub fn run(args: &ImgArgs) -> ExitCode {
    let mut out = std::io::stdout().lock();
    let told = run::tell_on_signal();
    let done = told.and_then(|()| match &args.verb {
        Verb::Amend(args) => args.run(&mut out),
        Verb::Bench(args) => args.run(&mut out),
        Verb::Bitmap(args) => args.run(),
        Verb::Check(args) => args.run(&mut out),
        Verb::Commit(args) => args.run(&mut out),
        Verb::Compare(args) => args.run(&mut out),
        Verb::Convert(args) => args.run(&mut out),
        Verb::Create(args) => args.run(&mut out),
        Verb::Dd(args) => args.run(),
        Verb::Info(args) => args.run(&mut out),
        Verb::Map(args) => args.run(&mut out),
        Verb::Measure(args) => args.run(&mut out),
        Verb::Rebase(args) => args.run(),
        Verb::Resize(args) => args.run(&mut out),
        Verb::Snapshot(args) => args.run(&mut out),
    });
    let done = done.and_then(|code| out.flush().map(|()| code).map_err(Failure::from));
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            complain(name(), &failure.to_string());
            ExitCode::from(failure.code)
        }
    }
}
