//! `info`: what an image says of itself. Nothing is opened that it names, but with [`InfoOptions::backing_chain`].

mod qcow2;

use crate::open::shown;
use crate::snapshot::{self, SnapshotInfo};
use crate::{Code, Failure, ImageArgs, Output, Session, escape, human_size};
use block::qcow2::Header;
use block::qcow2::Snapshot;
use block::qcow2::header::{CryptMethod, DIRTY};
use block::{Description, Error, ErrorKind, Format, Image, Locking};
use serde::{Serialize, Serializer};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Images in a chain at most.
const CHAIN_MAX: usize = 200;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct InfoOptions {
    /// Of which image. Without a format, its content tells it.
    pub image: ImageArgs,
    /// For whom.
    pub output: Output,
    /// Of all images under it too.
    pub backing_chain: bool,
}

/// Everything known of an image, with QEMU's names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ImageInfo {
    children: Vec<Child>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_filename_format: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_infos")]
    snapshots: Vec<Snapshot>,
    virtual_size: u64,
    filename: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_size: Option<u64>,
    format: String,
    actual_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    format_specific: Option<FormatSpecific>,
    #[serde(skip_serializing_if = "Option::is_none")]
    full_backing_filename: Option<String>,
    /// Said only of those that are.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    encrypted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_filename: Option<String>,
    dirty_flag: bool,
}

fn as_infos<S: Serializer>(snapshots: &[Snapshot], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(snapshots.iter().map(SnapshotInfo::from))
}

#[derive(Debug, Serialize)]
struct Child {
    name: &'static str,
    info: Box<ImageInfo>,
}

/// What one format only has. QEMU says nothing here of QED.
#[derive(Debug, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
enum FormatSpecific {
    File {},
    HostDevice {},
    #[serde(rename_all = "kebab-case")]
    Qed {
        need_check: bool,
        cluster_size: u64,
        table_size: u64,
    },
    Qcow2(Box<qcow2::Specific>),
}

/// Prints it.
pub fn run(options: &InfoOptions, out: &mut dyn Write) -> Result<Code, Failure> {
    let mut infos = Vec::new();
    let mut seen = Vec::new();
    let mut next = Some(options.image.clone());
    while let Some(args) = next.take() {
        let (image, described) = open(&args)?;
        let metadata = image.file().file().metadata();
        let metadata = metadata
            .map_err(|error| Error::io(format!("looking at {}", args.path.display()), error))?;
        let id = (metadata.dev(), metadata.ino());
        if seen.contains(&id) || seen.len() == CHAIN_MAX {
            let what = format!("{}: the chain of backing files has no end", args.path.display());
            return Err(Failure::new(what));
        }
        seen.push(id);
        infos.push(describe(&image, &described, metadata.blocks() * 512)?);
        if let (true, Some(backing)) = (options.backing_chain, described.backing) {
            let below = ImageArgs { format: backing.format, ..args.clone() };
            // What stands between is between this image and its file.
            let filters = block::Filters::default();
            next = Some(ImageArgs { path: backing.path(&args.path)?, filters, ..below });
        }
    }
    match (options.output, options.backing_chain) {
        (Output::Human, _) => {
            for (n, info) in infos.iter().enumerate() {
                if n > 0 {
                    writeln!(out)?;
                }
                print(info, out)?;
            }
        }
        (Output::Json, true) => print_json(&infos, out)?,
        (Output::Json, false) => print_json(&infos[0], out)?,
    }
    Ok(0)
}

/// Prints what only qcow2 images have to say of themselves.
pub(crate) fn qcow2_specific(
    image: &Image,
    header: &Header,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    qcow2::Specific::new(image, header)?.print(out)
}

fn open(args: &ImageArgs) -> Result<(Image, Description), Failure> {
    let format = match args.format {
        Some(format) => format,
        None => Image::format_by_content(&args.path)?,
    };
    // A raw image has nothing that we look at and others change.
    let locking = match args.force_share || format == Format::Raw {
        true => Locking::Shared,
        false => Locking::Locked,
    };
    let image = Image::open_alone(&args.path, &args.options(format, true), locking)?;
    let described = image.describe()?;
    Ok((image, described))
}

/// What kind of file it is.
fn protocol(image: &Image) -> (&'static str, Option<FormatSpecific>) {
    let is_device = image.file().facts().is_block_device;
    match image.options().filters.null {
        Some(_) => ("null-co", None),
        None if is_device => ("host_device", Some(FormatSpecific::HostDevice {})),
        None => ("file", Some(FormatSpecific::File {})),
    }
}

fn describe(
    image: &Image,
    described: &Description,
    actual_size: u64,
) -> Result<ImageInfo, Failure> {
    let filename = shown(image.path());
    let file_bytes = image.file().len().map_err(|error| {
        Error::io(format!("finding the size of {}", image.path().display()), error)
    })?;
    let (protocol, file_specific) = protocol(image);
    let file = ImageInfo {
        children: Vec::new(),
        backing_filename_format: None,
        snapshots: Vec::new(),
        virtual_size: file_bytes.next_multiple_of(512),
        filename: filename.clone(),
        cluster_size: None,
        format: protocol.into(),
        actual_size,
        format_specific: file_specific,
        full_backing_filename: None,
        encrypted: false,
        backing_filename: None,
        dirty_flag: false,
    };
    let (qed, qcow2) = (described.qed.as_ref(), described.qcow2.as_ref());
    let qcow2_specific = qcow2.map(|header| qcow2::Specific::new(image, header)).transpose()?;
    let qed_specific = qed.map(|header| FormatSpecific::Qed {
        need_check: header.needs_check(),
        cluster_size: header.cluster_bytes(),
        table_size: header.table_clusters(),
    });
    let backing = described.backing.as_ref();
    // A name that is no path is shown as it is.
    let full = |below: &block::BackingName| {
        let path = below.path(image.path());
        path.unwrap_or_else(|_| PathBuf::from(String::from_utf8_lossy(&below.name).into_owned()))
    };
    Ok(ImageInfo {
        children: vec![Child { name: "file", info: Box::new(file) }],
        backing_filename_format: backing.and_then(|below| {
            match (&below.format_name, below.format) {
                (Some(name), _) => Some(String::from_utf8_lossy(name).into_owned()),
                (None, format) => format.map(|format| format.to_string()),
            }
        }),
        snapshots: match qcow2.is_some_and(|header| header.snapshots > 0) {
            true => snapshot::read(&Session::new()?, image)?,
            false => Vec::new(),
        },
        virtual_size: image.disk_bytes(),
        filename,
        cluster_size: qed
            .map(|header| header.cluster_bytes())
            .or(qcow2.map(|header| header.cluster_bytes())),
        format: image.format().to_string(),
        actual_size,
        format_specific: qcow2_specific
            .map(|specific| FormatSpecific::Qcow2(Box::new(specific)))
            .or(qed_specific),
        full_backing_filename: backing.map(|below| shown(&full(below))),
        encrypted: qcow2.is_some_and(|header| header.crypt_method != CryptMethod::None),
        backing_filename: backing.map(|below| String::from_utf8_lossy(&below.name).into_owned()),
        dirty_flag: qed.is_some_and(|header| header.needs_check())
            || qcow2.is_some_and(|header| header.has(DIRTY)),
    })
}

fn print(info: &ImageInfo, out: &mut dyn Write) -> Result<(), Failure> {
    let sized = |bytes| format!("{} ({bytes} bytes)", human_size(bytes));
    writeln!(out, "image: {}", escape(&info.filename))?;
    writeln!(out, "file format: {}", info.format)?;
    writeln!(out, "virtual size: {}", sized(info.virtual_size))?;
    writeln!(out, "disk size: {}", human_size(info.actual_size))?;
    if info.encrypted {
        writeln!(out, "encrypted: yes")?;
    }
    if let Some(bytes) = info.cluster_size {
        writeln!(out, "cluster_size: {bytes}")?;
    }
    if info.dirty_flag {
        writeln!(out, "cleanly shut down: no")?;
    }
    if let (Some(name), Some(full)) = (&info.backing_filename, &info.full_backing_filename) {
        write!(out, "backing file: {}", escape(name))?;
        if name != full {
            write!(out, " (actual path: {})", escape(full))?;
        }
        writeln!(out)?;
    }
    if let Some(format) = &info.backing_filename_format {
        writeln!(out, "backing file format: {}", escape(format))?;
    }
    snapshot::print_list(&info.snapshots, out)?;
    match &info.format_specific {
        Some(FormatSpecific::Qed { need_check, table_size, .. }) => {
            writeln!(out, "Format specific information:")?;
            writeln!(out, "    need check: {need_check}")?;
            writeln!(out, "    table size: {table_size}")?;
        }
        Some(FormatSpecific::Qcow2(specific)) => {
            writeln!(out, "Format specific information:")?;
            specific.print(out)?;
        }
        _ => {}
    }
    for child in &info.children {
        writeln!(out, "Child node '/{}':", child.name)?;
        writeln!(out, "    filename: {}", escape(&child.info.filename))?;
        writeln!(out, "    protocol type: {}", child.info.format)?;
        writeln!(out, "    file length: {}", sized(child.info.virtual_size))?;
        writeln!(out, "    disk size: {}", human_size(child.info.actual_size))?;
    }
    Ok(())
}

/// Prints a value as QEMU does, indented by four.
pub(crate) fn print_json(value: &impl Serialize, out: &mut dyn Write) -> Result<(), Failure> {
    let look = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, look);
    value.serialize(&mut serializer).map_err(|error| {
        Failure::from(Error::new(ErrorKind::Io, format!("printing as JSON: {error}")))
    })?;
    out.write_all(&text)?;
    writeln!(out)?;
    Ok(())
}
