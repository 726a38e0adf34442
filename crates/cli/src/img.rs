//! `ferroblk img`: the command line of the image tool, which is that of `qemu-img`; and `qemu-img` itself, if we are called by that name.
//!
//! Two things are not as there, unless we are called `qemu-img`: files that an image names are opened only with `--allow-backing`, and a format that
//! is not said is told by the name of the file, and not by what is in it (design rules 4 and 6).

use crate::{NAME as PROGRAM, complain};
use block::{BackingFiles, CacheMode, Format, qed};
use clap::{Args, Parser, Subcommand, ValueEnum};
use img::{
    Code, Failure, ImageArgs, OptionList, Output, Preallocation, ProgressKind, check, compare,
    convert, create, in_place, info, map, resize,
};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// The name by which we are QEMU's tool.
pub const NAME: &str = "qemu-img";
/// The exit code for a command line that makes no sense, as `qemu-img` has it.
pub const USAGE_CODE: u8 = 1;
/// Images could not be opened: `compare` has a code for that.
const COMPARE_NOT_OPENED: u8 = 2;

const EXAMPLES: &str = "\
Examples:
  ferroblk img create -f qed vm.qed 10G
  ferroblk img convert -p -f raw -O qed vm.raw vm.qed
  ferroblk img info --output json vm.qed
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
    Check(CheckArgs),
    Compare(CompareArgs),
    Convert(ConvertArgs),
    Create(CreateArgs),
    Info(InfoArgs),
    Map(MapArgs),
    Resize(ResizeArgs),
}

/// What `qemu-img` has and we have not.
#[derive(Args, Debug)]
struct Missing {
    #[arg(long, value_name = "OBJDEF", hide = true)]
    object: Vec<String>,
    #[arg(long, hide = true)]
    image_opts: bool,
}

impl Missing {
    fn check(&self) -> Result<(), Failure> {
        refuse(&[("--object", !self.object.is_empty()), ("--image-opts", self.image_opts)])
    }
}

/// Refuses what was given and is not supported, by name.
fn refuse(options: &[(&str, bool)]) -> Result<(), Failure> {
    match options.iter().find(|(_, is_given)| *is_given) {
        Some((name, _)) => Err(Failure::new(format!("{name} is not supported"))),
        None => Ok(()),
    }
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
    missing: Missing,
    /// Prints nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Format of the image: raw, qed
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

#[derive(ValueEnum, Clone, Copy, Debug)]
enum RepairArg {
    Leaks,
    All,
}

/// Says whether two images have the same content
#[derive(Args, Debug)]
struct CompareArgs {
    #[command(flatten)]
    missing: Missing,
    /// Prints nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Prints how far it is
    #[arg(short, long)]
    progress: bool,
    /// Format of the first image: raw, qed
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
    missing: Missing,
    #[command(flatten)]
    convert_missing: ConvertMissing,
    /// Prints nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Prints how far it is
    #[arg(short, long)]
    progress: bool,
    /// Format of the sources: raw, qed
    #[arg(short = 'f', long, value_name = "FMT")]
    source_format: Option<String>,
    /// Cache mode of the sources
    #[arg(short = 'T', long, default_value = "writeback", value_name = "MODE")]
    source_cache: CacheMode,
    /// Format of the target: raw, qed
    #[arg(short = 'O', long, default_value = "raw", value_name = "FMT")]
    target_format: String,
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
    /// So many zero bytes become a hole; 0: none
    #[arg(short = 'S', long, default_value = "4k", value_name = "SIZE")]
    sparse_size: String,
    /// Pieces under way: 1 to 16
    #[arg(short = 'm', long, default_value_t = 8, value_name = "N")]
    parallel: u64,
    /// Writes are started in any order
    #[arg(short = 'W', long)]
    oob_writes: bool,
    /// Makes the one image named a qcow2 or QED image (-O) in the same file, where its data stays (not in qemu-img)
    #[arg(long, conflicts_with_all = ["target_options", "backing", "no_create", "force_share"])]
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

/// What `qemu-img convert` has and we have not.
#[derive(Args, Debug)]
struct ConvertMissing {
    #[arg(short, long, hide = true)]
    compress: bool,
    #[arg(short = 'l', long, value_name = "PARAMS", hide = true)]
    source_snapshot: Option<String>,
    #[arg(short, long, value_name = "RATE", hide = true)]
    rate: Option<String>,
    #[arg(short = 'C', long, hide = true)]
    copy_range_offloading: bool,
    #[arg(long, hide = true)]
    salvage: bool,
    #[arg(long, hide = true)]
    bitmaps: bool,
    #[arg(long, hide = true)]
    skip_broken_bitmaps: bool,
    #[arg(long, hide = true)]
    source_image_opts: bool,
    #[arg(long, hide = true)]
    target_image_opts: bool,
}

/// Makes a new image
#[derive(Args, Debug)]
struct CreateArgs {
    #[command(flatten)]
    missing: Missing,
    /// Prints nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Format of the image: raw, qed
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
    missing: Missing,
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
    missing: Missing,
    /// Format of the image: raw, qed
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
    missing: Missing,
    /// Prints nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Format of the image: raw, qed
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

/// Does what was asked for.
pub fn run(args: &ImgArgs) -> ExitCode {
    let mut out = std::io::stdout().lock();
    let done = match &args.verb {
        Verb::Check(args) => args.run(&mut out),
        Verb::Compare(args) => args.run(&mut out),
        Verb::Convert(args) => args.run(&mut out),
        Verb::Create(args) => args.run(&mut out),
        Verb::Info(args) => args.run(&mut out),
        Verb::Map(args) => args.run(&mut out),
        Verb::Resize(args) => args.run(&mut out),
    };
    let done = done.and_then(|code| out.flush().map(|()| code).map_err(Failure::from));
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let name = if FOLLOWS.load(Ordering::Relaxed) { NAME } else { PROGRAM };
            complain(name, &failure.to_string());
            ExitCode::from(failure.code)
        }
    }
}

fn format_of(name: &str) -> Result<Format, Failure> {
    name.parse().map_err(|_| {
        Failure::new(format!("images in the format '{name}' are not supported: raw and qed are"))
    })
}

/// An image, with what all verbs can say of one.
fn image(
    path: &Path,
    format: Option<&String>,
    force_share: bool,
    allow_backing: bool,
) -> Result<ImageArgs, Failure> {
    let follows = allow_backing || FOLLOWS.load(Ordering::Relaxed);
    Ok(ImageArgs {
        format: format.map(|name| format_of(name)).transpose()?,
        force_share,
        backing_files: if follows { BackingFiles::Follow } else { BackingFiles::Refuse },
        ..ImageArgs::new(path)
    })
}

/// How it is shown how far a verb is: as QEMU does it if that is asked for; otherwise as a bar, for somebody at a terminal.
fn progress(is_asked: bool, is_quiet: bool) -> ProgressKind {
    match (is_asked, is_quiet) {
        (_, true) => ProgressKind::Off,
        (true, false) => ProgressKind::Percent,
        (false, false) if std::io::stderr().is_terminal() => ProgressKind::Bar,
        (false, false) => ProgressKind::Off,
    }
}

impl CheckArgs {
    fn run(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        self.missing.check()?;
        let image = image(&self.filename, self.format.as_ref(), self.force_share, false)?;
        let options = check::CheckOptions {
            image: ImageArgs { cache: self.cache, ..image },
            output: self.output.into(),
            repair: self.repair.map(|level| match level {
                RepairArg::Leaks => qed::check::Level::Leaks,
                RepairArg::All => qed::check::Level::All,
            }),
            plan: self.plan,
            is_quiet: self.quiet,
            progress: progress(false, self.quiet),
        };
        check::run(&options, out)
    }
}

impl CompareArgs {
    fn run(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        self.missing.check().map_err(|failure| failure.with_code(COMPARE_NOT_OPENED))?;
        let open = |path: &Path, format: Option<&String>| {
            let image = image(path, format, self.force_share, self.allow_backing);
            let image = image.map_err(|failure| failure.with_code(COMPARE_NOT_OPENED))?;
            Ok::<_, Failure>(ImageArgs { cache: self.cache, ..image })
        };
        let options = compare::CompareOptions {
            images: [
                open(&self.filename1, self.a_format.as_ref())?,
                open(&self.filename2, self.b_format.as_ref())?,
            ],
            strict: self.strict,
            is_quiet: self.quiet,
            progress: progress(self.progress, self.quiet),
        };
        compare::run(&options, out)
    }
}

impl ConvertArgs {
    fn run(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        self.missing.check()?;
        self.convert_missing.check()?;
        if self.in_place {
            return self.run_in_place(out);
        }
        let format = format_of(&self.target_format)?;
        if let Some(help) = img::help_on_options(&self.target_options, format) {
            write!(out, "{help}")?;
            return Ok(0);
        }
        let Some((target, sources)) = self.filenames.split_last().filter(|(_, s)| !s.is_empty())
        else {
            return Err(Failure::new("convert needs a source and a target"));
        };
        let source = |path: &PathBuf| {
            let format = self.source_format.as_ref();
            let image = image(path, format, self.force_share, self.allow_backing)?;
            Ok(ImageArgs { cache: self.source_cache, ..image })
        };
        let options = convert::ConvertOptions {
            sources: sources.iter().map(source).collect::<Result<_, Failure>>()?,
            target: target.clone(),
            format,
            options: OptionList::parse(&self.target_options)?,
            backing: self.backing.clone(),
            backing_format: self.backing_format.clone(),
            cache: self.target_cache,
            sparse_bytes: img::parse_size(&self.sparse_size)?,
            no_create: self.no_create,
            target_is_zero: self.target_is_zero,
            out_of_order: self.oob_writes,
            workers: self.parallel,
            progress: progress(self.progress, self.quiet),
        };
        convert::run(&options)
    }
}

impl ConvertArgs {
    fn run_in_place(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        let [path] = self.filenames.as_slice() else {
            return Err(Failure::new("convert --in-place needs one image"));
        };
        let options = in_place::InPlaceOptions {
            path: path.clone(),
            from: self.source_format.as_ref().map(|name| name.parse()).transpose()?,
            to: self.target_format.parse()?,
            is_quiet: self.quiet,
            progress: progress(self.progress, self.quiet),
        };
        in_place::run(&options, out)
    }
}

impl ConvertMissing {
    fn check(&self) -> Result<(), Failure> {
        refuse(&[
            ("-c (compression)", self.compress),
            ("-l", self.source_snapshot.is_some()),
            ("-r", self.rate.is_some()),
            ("-C", self.copy_range_offloading),
            ("--salvage", self.salvage),
            ("--bitmaps", self.bitmaps),
            ("--skip-broken-bitmaps", self.skip_broken_bitmaps),
            ("--source-image-opts", self.source_image_opts),
            ("--target-image-opts", self.target_image_opts),
        ])
    }
}

impl CreateArgs {
    fn run(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        self.missing.check()?;
        let format = format_of(&self.format)?;
        if let Some(help) = img::help_on_options(&self.options, format) {
            write!(out, "{help}")?;
            return Ok(0);
        }
        let Some(path) = self.filename.clone() else {
            return Err(Failure::new("create needs the name of an image"));
        };
        let new = create::NewImage {
            path,
            format,
            options: OptionList::parse(&self.options)?,
            backing: self.backing.clone(),
            backing_format: self.backing_format.clone(),
            backing_unchecked: self.backing_unsafe,
            bytes: self.size.as_deref().map(img::parse_size).transpose()?,
        };
        create::run(&new, self.quiet, out)
    }
}

impl InfoArgs {
    fn run(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        self.missing.check()?;
        let options = info::InfoOptions {
            image: image(&self.filename, self.format.as_ref(), self.force_share, false)?,
            output: self.output.into(),
            backing_chain: self.backing_chain,
        };
        info::run(&options, out)
    }
}

impl MapArgs {
    fn run(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        self.missing.check()?;
        let format = self.format.as_ref();
        let options = map::MapOptions {
            image: image(&self.filename, format, self.force_share, self.allow_backing)?,
            output: self.output.into(),
            start: img::parse_size(&self.start_offset)?,
            max_len: self.max_length.as_deref().map(img::parse_size).transpose()?,
        };
        map::run(&options, out)
    }
}

impl ResizeArgs {
    fn run(&self, out: &mut dyn Write) -> Result<Code, Failure> {
        self.missing.check()?;
        let options = resize::ResizeOptions {
            image: image(&self.filename, self.format.as_ref(), false, self.allow_backing)?,
            size: self.size.parse()?,
            shrink: self.shrink,
            preallocation: self.preallocation,
        };
        resize::run(&options, self.quiet, out)
    }
}
