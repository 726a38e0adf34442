//! `amend`: options of a qcow2 image changed, that was made with others.
//!
//! ```text
//!   size --> zero clusters given up, for compat=0.10 ---- flush ----> the header, by one sector
//!   a key slot:  added:  material --sync--> header      removed:  material overwritten --sync--> header
//! ```
//!
//! What a power cut or a failure leaves: the disk as it was, or with its new size; and the header as it was, or as it is to be
//! ([`block::qcow2::Qcow2::amend`]). A key slot that was to be added is there or not; one that was to be removed opens nothing any more, even if it
//! says so still; all others are as they were.
//!
//! What cannot be changed, and says so by its name: the backing file (that is `rebase`), the width of reference counts, whether a data file is raw
//! (from no to yes), and all that `create` alone has. An image with snapshots, bitmaps, or in which there is more than version 2 can say is not made
//! one of version 2.

use crate::pool::Pool;
use crate::status::{Depth, Kind, status};
use crate::{
    Code, Failure, ImageArgs, OptionList, Progress, ProgressKind, Secrets, Session, parse_size,
};
use block::crypt::{self, Luks, LuksOptions};
use block::qcow2::header::{DATA_FILE_RAW, EXTERNAL_DATA, LAZY_REFCOUNTS};
use block::qcow2::{Amendment, Header, Qcow2};
use block::{
    BlockNode, DiskOffset, Error, ErrorKind, FileOffset, Format, HostNode, Image, SECTOR, Secret,
};
use iothread::Clock;
use std::rc::Rc;

/// Zeroes that are written at once.
const PIECE_BYTES: u64 = 1 << 20;
/// The LUKS header, in whole sectors.
const LUKS_BYTES: u64 = (Luks::HEADER_BYTES as u64).next_multiple_of(SECTOR);

/// All options, and what they mean.
const OPTIONS: [(&str, &str); 13] = [
    ("backing_file=<str>", "File name of a base image"),
    ("backing_fmt=<str>", "Image format of the base image"),
    ("compat=<str>", "Compatibility level (v2 [0.10] or v3 [1.1])"),
    ("data_file=<str>", "File name of an external data file"),
    ("data_file_raw=<bool (on/off)>", "The external data file must stay valid as a raw image"),
    ("encrypt.iter-time=<num>", "Time to spend in PBKDF in milliseconds"),
    ("encrypt.keyslot=<num>", "Select a single keyslot to modify explicitly"),
    (
        "encrypt.new-secret=<str>",
        "New secret to set in the matching keyslots. Empty string to erase",
    ),
    ("encrypt.old-secret=<str>", "Select all keyslots that match this password"),
    ("encrypt.state=<str>", "Select new state of affected keyslots (active/inactive)"),
    ("lazy_refcounts=<bool (on/off)>", "Postpone refcount updates"),
    ("refcount_bits=<num>", "Width of a reference count entry in bits"),
    ("size=<size>", "Virtual disk size"),
];

/// What is asked for.
#[derive(Clone, Debug)]
pub struct AmendOptions {
    /// Of which image.
    pub image: ImageArgs,
    /// What (`-o`).
    pub options: OptionList,
    /// What options may name.
    pub secrets: Secrets,
    /// How it is shown how far it is.
    pub progress: ProgressKind,
}

/// What becomes of key slots.
#[derive(Clone, Debug)]
enum Slots {
    Add {
        secret: Secret,
        slot: Option<u64>,
        iter_time_ms: Option<u64>,
    },
    RemoveOne(u64),
    /// Those that this opens.
    RemoveAll(Secret),
}

/// What is changed.
#[derive(Clone, Debug)]
struct Change {
    bytes: Option<u64>,
    amendment: Amendment,
    slots: Option<Slots>,
}

/// What `-o help` prints.
pub fn help() -> String {
    let lines = OPTIONS.map(|(name, meaning)| format!("  {name:<22} - {meaning}\n"));
    format!("Amend options for 'qcow2':\n{}", lines.concat())
}

/// Does it.
pub fn run(options: &AmendOptions) -> Result<Code, Failure> {
    let path = options.image.path.display();
    let format = options.image.format()?;
    if format != Format::Qcow2 {
        let what = format!("amending {path}: nothing can be amended in the format {format}");
        return Err(Failure::new(what));
    }
    options.check_names()?;
    let image = options.image.open_to_write()?;
    let Some(header) = image.describe()?.qcow2 else {
        return Err(Failure::new(format!("amending {path}: it is not a qcow2 image")));
    };
    let change = options.change(&header)?;
    let session = Session::new()?;
    let node = session.attach(&image)?;
    let progress = Progress::new(options.progress, 1);
    let done = apply(&session, options, &image, &node, &change);
    // Whatever became of it, the image is left as one that is whole.
    let closed = session.close(&node);
    progress.end(done.is_ok());
    done?;
    closed?;
    image.sync_unless_unsafe()?;
    Ok(0)
}

impl AmendOptions {
    fn refuse<T>(&self, why: &str) -> Result<T, Failure> {
        Err(Failure::new(format!("amending {}: {why}", self.image.path.display())))
    }

    fn check_names(&self) -> Result<(), Failure> {
        if self.options.is_empty() {
            return self.refuse("say what: -o");
        }
        let is_known =
            |name: &str| OPTIONS.iter().any(|(known, _)| known.split('=').next() == Some(name));
        match self.options.names().find(|name| !is_known(name)) {
            None => Ok(()),
            Some(name) => self.refuse(&format!("the option '{name}' cannot be amended")),
        }
    }

    fn change(&self, header: &Header) -> Result<Change, Failure> {
        let options = &self.options;
        if options.get("backing_file").is_some() || options.get("backing_fmt").is_some() {
            return self.refuse("its backing file is changed by rebase");
        }
        let version = match options.get("compat") {
            None => header.version,
            Some("1.1" | "v3") => 3,
            Some("0.10" | "v2") => 2,
            Some(other) => {
                return self.refuse(&format!("compat is 0.10, v2, 1.1 or v3, not '{other}'"));
            }
        };
        if options.number("refcount_bits")?.is_some_and(|n| n != u64::from(header.refcount_bits()))
        {
            return self.refuse("refcount_bits cannot be changed: convert the image");
        }
        let said_lazy = options.flag("lazy_refcounts")?;
        let is_lazy = header.compatible & LAZY_REFCOUNTS != 0 && version == 3;
        let bytes = options.get("size").map(parse_size).transpose()?.filter(|bytes| *bytes > 0);
        if bytes.is_some_and(|bytes| !bytes.is_multiple_of(SECTOR)) {
            return self.refuse("its size is a multiple of 512");
        }
        let is_raw = header.autoclear & DATA_FILE_RAW != 0;
        let raw = options.flag("data_file_raw")?;
        if raw == Some(true) && !is_raw {
            return self.refuse("data_file_raw is set when an image is made, and not later");
        }
        let data_file = options.get("data_file");
        if data_file.is_some() && !header.has(EXTERNAL_DATA) {
            return self.refuse("it has no data file, so data_file does not name it");
        }
        if data_file == Some("") {
            return self.refuse("the data file must have a name (data_file)");
        }
        Ok(Change {
            bytes,
            amendment: Amendment {
                version,
                lazy_refcounts: said_lazy.unwrap_or(is_lazy),
                data_file: data_file.map(|name| name.as_bytes().to_vec()),
                data_file_is_not_raw: raw == Some(false),
            },
            slots: self.slots(header)?,
        })
    }

    /// What becomes of key slots, if anything.
    fn slots(&self, header: &Header) -> Result<Option<Slots>, Failure> {
        let options = &self.options;
        if !options.names().any(|name| name.starts_with("encrypt.")) {
            return Ok(None);
        }
        if header.crypto.is_none() {
            return self.refuse("it is not encrypted with LUKS, so it has no key slots");
        }
        let secret = |name| options.get(name).map(|id| self.secrets.get(id)).transpose();
        let (new, old) = (secret("encrypt.new-secret")?, secret("encrypt.old-secret")?);
        let slot = options.number("encrypt.keyslot")?;
        let iter_time_ms = options.number("encrypt.iter-time")?;
        let slots = match (options.get("encrypt.state"), new, old, slot) {
            (Some("active"), Some(secret), None, slot) => Slots::Add { secret, slot, iter_time_ms },
            (Some("inactive"), None, None, Some(slot)) if iter_time_ms.is_none() => {
                Slots::RemoveOne(slot)
            }
            (Some("inactive"), None, Some(old), None) if iter_time_ms.is_none() => {
                Slots::RemoveAll(old)
            }
            _ => {
                return self.refuse(
                    "of its key slots one is added (encrypt.state=active, encrypt.new-secret), or \
                     some are removed (encrypt.state=inactive, and encrypt.old-secret or encrypt.keyslot)",
                );
            }
        };
        Ok(Some(slots))
    }
}

fn apply(
    session: &Session,
    options: &AmendOptions,
    image: &Image,
    node: &Rc<BlockNode>,
    change: &Change,
) -> Result<(), Failure> {
    if let Some(slots) = &change.slots {
        let Some(secret) = options.image.secret.clone() else {
            return options.refuse("no secret was given that opens it");
        };
        change_slots(session, image, &secret, slots)?;
    }
    let (node, change) = (node.clone(), change.clone());
    Ok(session.run(async move {
        let qcow2 = node.qcow2().expect("its format was looked at");
        // What cannot be is found out before anything is changed.
        qcow2.check_amendment(&change.amendment)?;
        if let Some(bytes) = change.bytes {
            Box::pin(node.resize(bytes)).await?;
        }
        if change.amendment.version < qcow2.header().version {
            Box::pin(expand_zeroes(&node, qcow2)).await?;
        }
        node.flush().await?;
        Box::pin(qcow2.amend(&change.amendment)).await
    })?)
}

/// Makes of clusters that say that they are zeroes such as are, or are none: version 2 cannot say it.
async fn expand_zeroes(node: &BlockNode, qcow2: &Qcow2) -> block::Result<()> {
    let bytes = qcow2.disk_bytes();
    let zeroes = Pool::new(1, PIECE_BYTES)?;
    let hides = node.backing().is_some();
    let mut at = 0;
    while at < bytes {
        let found = status(node, at, bytes - at, Depth::Top).await?;
        let mut len = found.len;
        if found.kind == Kind::Zero && found.present {
            if hides {
                len = len.min(PIECE_BYTES);
                node.write(DiskOffset(at), zeroes.buffer(0, len), false).await?;
            } else {
                qcow2.give_up_zeroes(at..at + len).await?;
            }
        }
        at += len;
    }
    Ok(())
}

/// The area of an image for a LUKS header and its keys.
struct Area {
    host: HostNode,
    at: u64,
    bytes: u64,
}

impl Area {
    async fn read(&self, at: u64, len: usize) -> block::Result<Vec<u8>> {
        let pool = Pool::new(1, (len as u64).next_multiple_of(4096))?;
        let data = pool.buffer(0, (len as u64).next_multiple_of(SECTOR));
        self.host.read(FileOffset(self.at + at), data.part(0, data.bytes())).await?;
        let mut bytes = vec![0; len];
        data.copy_to(0, &mut bytes);
        Ok(bytes)
    }

    /// Writes whole sectors, durably.
    async fn write(&self, at: u64, bytes: &[u8]) -> block::Result<()> {
        let pool = Pool::new(1, (bytes.len() as u64).next_multiple_of(4096))?;
        let data = pool.buffer(0, bytes.len() as u64);
        data.copy_from(0, bytes);
        self.host.write(FileOffset(self.at + at), data, true).await
    }

    /// Of the header, the second sector first: a slot in both of them counts by the first.
    async fn write_header(&self, header: &[u8]) -> block::Result<()> {
        let mut sectors = self.read(0, header.len().max(index(LUKS_BYTES))).await?;
        sectors[..header.len()].copy_from_slice(header);
        let (first, second) = sectors.split_at(index(SECTOR));
        self.write(SECTOR, second).await?;
        self.write(0, first).await
    }

    /// The material of all slots that are active.
    async fn material(&self, luks: &Luks) -> block::Result<Vec<(usize, Vec<u8>)>> {
        let mut material = Vec::new();
        for slot in luks.key_slots() {
            material.push((slot.index, self.read(slot.offset, slot.bytes).await?));
        }
        Ok(material)
    }
}

fn change_slots(
    session: &Session,
    image: &Image,
    secret: &Secret,
    slots: &Slots,
) -> Result<(), Failure> {
    let header = image.describe()?.qcow2.and_then(|header| header.crypto);
    let Some(crypto) = header else {
        return Err(Failure::new("it is not encrypted with LUKS"));
    };
    let area = Area { host: session.attach_file(image)?, at: crypto.at, bytes: crypto.bytes };
    let (secret, slots) = (secret.clone(), slots.clone());
    Ok(session.run(async move {
        let header = area.read(0, Luks::HEADER_BYTES).await?;
        let luks = Luks::parse(&header, area.bytes)?;
        let material = area.material(&luks).await?;
        match slots {
            Slots::Add { secret: new, slot, iter_time_ms } => {
                add(&area, &header, &material, [&secret, &new], slot, iter_time_ms).await
            }
            Slots::RemoveOne(slot) => {
                let slot = usize::try_from(slot).unwrap_or(usize::MAX);
                remove(&area, header, &luks, &[slot]).await
            }
            Slots::RemoveAll(old) => {
                let opens = |(slot, bytes): &(usize, Vec<u8>)| {
                    luks.unlock(old.bytes(), &[(*slot, bytes.clone())]).is_ok()
                };
                let found: Vec<_> =
                    material.iter().filter(|one| opens(one)).map(|(slot, _)| *slot).collect();
                if found.is_empty() {
                    let what = "removing a secret: it opens no key slot";
                    return Err(Error::new(ErrorKind::BadRequest, what));
                }
                remove(&area, header, &luks, &found).await
            }
        }
    })?)
}

async fn add(
    area: &Area,
    header: &[u8],
    material: &[(usize, Vec<u8>)],
    [secret, new]: [&Secret; 2],
    slot: Option<u64>,
    iter_time_ms: Option<u64>,
) -> block::Result<()> {
    let luks = Luks::parse(header, area.bytes)?;
    let info = luks.describe();
    let usual = LuksOptions::default();
    let options = LuksOptions {
        cipher: info.cipher,
        mode: info.mode,
        ivgen: info.ivgen,
        ivgen_hash: info.ivgen_hash,
        hash: info.hash,
        iter_time_ms: iter_time_ms
            .map_or(usual.iter_time_ms, |time| u32::try_from(time).unwrap_or(u32::MAX)),
    };
    let clock = Clock::monotonic();
    let iterations = options.measure(&mut || clock.now_ns())?.slot;
    let random = &mut crypt::os_random;
    let (old, new) = (secret.bytes(), new.bytes());
    let added = crypt::add_secret(header, area.bytes, old, material, new, iterations, random)?;
    if slot.is_some_and(|slot| slot != added.slot.index as u64) {
        let what = format!("adding a secret: the free key slot is {}", added.slot.index);
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    area.write(added.slot.offset, &added.material).await?;
    area.write_header(&added.header).await
}

async fn remove(
    area: &Area,
    mut header: Vec<u8>,
    luks: &Luks,
    slots: &[usize],
) -> block::Result<()> {
    for slot in slots {
        crypt::remove_slot(&mut header, area.bytes, *slot)?;
    }
    // Only now is it certain that another one is left.
    for slot in luks.key_slots().filter(|slot| slots.contains(&slot.index)) {
        let mut noise = vec![0; slot.bytes.next_multiple_of(index(SECTOR))];
        crypt::os_random(&mut noise)?;
        area.write(slot.offset, &noise).await?;
    }
    area.write_header(&header).await
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("some sectors")
}
