//! The options of a new qcow2 image: what `-o` says, in the block layer's words and as `create` prints it.

use super::{NewImage, Plan};
use crate::{Failure, parse_size};
use block::crypt::{self, LuksOptions};
use block::qcow2::BackingFile;
use block::qcow2::create::{CreateOptions, NewLuks, Preallocation};
use block::qcow2::header::Compression;
use block::{BackingName, Secret};
use iothread::Clock;

/// All options in the order in which they are printed, and what is printed of one that is not given. Of those that are numbers, the number is.
const PRINTED: &[(&str, Option<&str>)] = &[
    ("encryption", None),
    ("encrypt.format", None),
    ("encrypt.key-secret", None),
    ("encrypt.cipher-alg", None),
    ("encrypt.cipher-mode", None),
    ("encrypt.ivgen-alg", None),
    ("encrypt.ivgen-hash-alg", None),
    ("encrypt.hash-alg", None),
    ("encrypt.iter-time", None),
    ("cluster_size", Some("65536")),
    ("extended_l2", Some("off")),
    ("preallocation", None),
    ("compression_type", Some("zlib")),
    ("size", None),
    ("compat", None),
    ("backing_file", None),
    ("backing_fmt", None),
    ("data_file", None),
    ("data_file_raw", None),
    ("lazy_refcounts", Some("off")),
    ("refcount_bits", Some("16")),
    ("nocow", None),
    ("extent_size_hint", None),
];

/// How a disk is to be encrypted.
#[derive(Clone, Debug)]
pub(crate) struct Encryption {
    options: LuksOptions,
    secret: Secret,
}

/// What an image of `bytes` bytes is to be, `rounded` to whole sectors.
pub(super) fn plan(
    new: &NewImage,
    bytes: u64,
    rounded: u64,
    backing: Option<&BackingName>,
) -> Result<Plan, Failure> {
    let options = &new.options;
    let usual = CreateOptions::new(rounded);
    let cluster_bytes = options.get("cluster_size").map(parse_size).transpose()?;
    let refcount_bits = match options.number("refcount_bits")? {
        // What is no width is refused with all that is none.
        Some(bits) => u32::try_from(bits).unwrap_or(u32::MAX),
        None => usual.refcount_bits,
    };
    let version = match options.get("compat") {
        None | Some("1.1" | "v3") => 3,
        Some("0.10" | "v2") => 2,
        Some(other) => return Err(refuse("compat", other, "0.10, v2, 1.1 or v3")),
    };
    let compression = match options.get("compression_type") {
        None | Some("zlib") => Compression::Zlib,
        Some("zstd") => Compression::Zstd,
        Some(other) => return Err(refuse("compression_type", other, "zlib or zstd")),
    };
    let preallocation = match options.get("preallocation") {
        None | Some("off") => Preallocation::Off,
        Some("metadata") => Preallocation::Metadata,
        Some("falloc") => Preallocation::Falloc,
        Some("full") => Preallocation::Full,
        Some(other) => return Err(refuse("preallocation", other, "off, metadata, falloc or full")),
    };
    let data_file = options.get("data_file").filter(|name| !name.is_empty());
    let create = CreateOptions {
        version,
        cluster_bytes: cluster_bytes.unwrap_or(usual.cluster_bytes),
        refcount_bits,
        extended_l2: options.flag("extended_l2")?.unwrap_or(false),
        lazy_refcounts: options.flag("lazy_refcounts")?.unwrap_or(false),
        compression,
        backing: backing.map(|below| BackingFile {
            name: below.name.clone(),
            format: below.format.map(|format| format.to_string().into_bytes()),
        }),
        data_file: data_file.map(|name| name.as_bytes().to_vec()),
        data_file_raw: options.flag("data_file_raw")?.unwrap_or(false),
        preallocation,
        ..usual
    };
    let encryption = encryption(new)?;
    options.flag("nocow")?;
    let said = said(new, bytes, backing)?;
    let create = block::CreateOptions::Qcow2(create);
    // The space is part of a qcow2 image, and made with it.
    Ok(Plan { create, preallocation: crate::Preallocation::Off, encryption, said })
}

fn refuse(name: &str, value: &str, choices: &str) -> Failure {
    Failure::new(format!("the option {name} is {choices}, not '{value}'"))
}

/// How the disk is to be encrypted, if it is.
pub(super) fn encryption(new: &NewImage) -> Result<Option<Encryption>, Failure> {
    let options = &new.options;
    let refuse = |why: &str| Err(Failure::new(format!("creating {}: {why}", new.path.display())));
    if options.flag("encryption")? == Some(true) || options.get("encrypt.format") == Some("aes") {
        return refuse("new images are not encrypted with aes, which is broken: use luks");
    }
    match options.get("encrypt.format") {
        Some("luks") => {}
        Some(_) => return refuse("the option encrypt.format is luks, or nothing"),
        None if options.names().any(|name| name.starts_with("encrypt.")) => {
            return refuse("there are options for encryption, and no encrypt.format");
        }
        None => return Ok(None),
    }
    let Some(id) = options.get("encrypt.key-secret") else {
        return refuse("encryption needs a secret: encrypt.key-secret");
    };
    let mut luks = LuksOptions::default();
    if let Some(name) = options.get("encrypt.cipher-alg") {
        luks.cipher = name.parse()?;
    }
    if let Some(name) = options.get("encrypt.cipher-mode") {
        luks.mode = name.parse()?;
    }
    if let Some(name) = options.get("encrypt.ivgen-alg") {
        luks.ivgen = name.parse()?;
    }
    if let Some(name) = options.get("encrypt.ivgen-hash-alg") {
        luks.ivgen_hash = Some(name.parse()?);
    }
    if let Some(name) = options.get("encrypt.hash-alg") {
        luks.hash = name.parse()?;
    }
    if let Some(time_ms) = options.number("encrypt.iter-time")? {
        luks.iter_time_ms = u32::try_from(time_ms).unwrap_or(u32::MAX);
    }
    luks.suite()?;
    Ok(Some(Encryption { options: luks, secret: new.secrets.get(id)? }))
}

impl Encryption {
    /// The header for a new disk. Takes as long as a guess at the secret is to take.
    pub fn header(&self) -> block::Result<NewLuks> {
        let clock = Clock::monotonic();
        let iterations = self.options.measure(&mut || clock.now_ns())?;
        let made =
            crypt::create(&self.options, self.secret.bytes(), iterations, &mut crypt::os_random);
        Ok(NewLuks { header: made?.0, area_bytes: self.options.area_bytes()? })
    }

    /// Bytes of its header and of all keys.
    pub fn area_bytes(&self) -> block::Result<u64> {
        self.options.area_bytes()
    }

    /// What opens the image.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }
}

fn said(
    new: &NewImage,
    bytes: u64,
    backing: Option<&BackingName>,
) -> Result<Vec<(&'static str, String)>, Failure> {
    let options = &new.options;
    let size = |name| Ok::<_, Failure>(options.get(name).map(parse_size).transpose()?);
    let number = |name| options.number(name);
    let mut said = Vec::new();
    for (name, usual) in PRINTED {
        let value = match *name {
            "size" => Some(bytes.to_string()),
            "cluster_size" | "extent_size_hint" => size(name)?.map(|bytes| bytes.to_string()),
            "refcount_bits" | "encrypt.iter-time" => number(name)?.map(|n| n.to_string()),
            "backing_file" => {
                backing.map(|below| String::from_utf8_lossy(&below.name).into_owned())
            }
            "backing_fmt" => backing.and_then(|below| below.format.map(|f| f.to_string())),
            name => options.get(name).map(str::to_owned),
        };
        let value = value.or_else(|| usual.map(str::to_owned));
        said.extend(value.map(|value| (*name, value)));
    }
    Ok(said)
}
