//! `--image-opts`: an image named by options, `driver=qcow2,file.filename=PATH,encrypt.key-secret=ID`.
//!
//! ```text
//!   driver=qcow2   file.driver=blkdebug               file.image.driver=file   file.image.filename=PATH
//!      format         filter: file.inject-error.0.*      protocol: file, or null-co
//! ```
//!
//! What is understood is what leads to a file, its format, its secret and its filters. All else that QEMU knows is refused by its name: an image that
//! is opened otherwise than it was asked for is worse than none.

use crate::option_list::split;
use crate::{Failure, ImageArgs, Secrets, fault_opts};
use block::Format;
use block::filters::{Faults, Filters, NullDisk};
use std::path::PathBuf;
use std::sync::Arc;

/// What goes before the name of an option of the image underneath.
const BELOW: &str = "backing.";

/// Size of a `null-co` disk of which nothing is said.
const NULL_BYTES: u64 = 1 << 30;

/// Alignments that a filter can ask for, in bytes: those that a host can.
const ALIGN: std::ops::RangeInclusive<u64> = 512..=4096;

/// Options by name, which are taken out one after the other. What is left is not supported.
#[derive(Debug)]
pub(crate) struct Options {
    /// What goes before a complaint.
    whose: &'static str,
    pairs: Vec<(String, String)>,
}

impl Options {
    pub fn new(whose: &'static str, pairs: Vec<(String, String)>) -> Options {
        Options { whose, pairs }
    }

    pub fn refuse<T>(&self, why: impl AsRef<str>) -> Result<T, Failure> {
        Err(Failure::new(format!("{}: {}", self.whose, why.as_ref())))
    }

    /// The value of an option.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let at = self.pairs.iter().position(|(other, _)| other == name)?;
        Some(self.pairs.remove(at).1)
    }

    /// A number, decimal or hexadecimal.
    pub fn number(&mut self, name: &str) -> Result<Option<u64>, Failure> {
        let Some(text) = self.take(name) else { return Ok(None) };
        let number = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => text.parse(),
        };
        match number {
            Ok(number) => Ok(Some(number)),
            Err(_) => self.refuse(format!("the option '{name}' is a number, not '{text}'")),
        }
    }

    /// Whether an option is on.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, Failure> {
        match self.take(name).as_deref() {
            None => Ok(None),
            Some("on" | "yes" | "true" | "y") => Ok(Some(true)),
            Some("off" | "no" | "false" | "n") => Ok(Some(false)),
            Some(other) => {
                self.refuse(format!("the option '{name}' is 'on' or 'off', not '{other}'"))
            }
        }
    }

    /// Whether there is an option whose name begins so.
    pub fn has(&self, prefix: &str) -> bool {
        self.pairs.iter().any(|(name, _)| name.starts_with(prefix))
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<(), Failure> {
        match self.pairs.first() {
            None => Ok(()),
            Some((name, _)) => self.refuse(format!("the option '{name}' is not supported")),
        }
    }
}

impl ImageArgs {
    /// The image that a list of options names.
    ///
    /// # Errors
    ///
    /// `BadRequest` for an option that is not supported, a file that is not named, a secret that is not there.
    pub fn from_options(list: &str, secrets: &Secrets) -> Result<ImageArgs, Failure> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for option in split(list) {
            let Some((name, value)) = option.split_once('=') else {
                let what = format!("--image-opts: '{option}' is not of the form name=value");
                return Err(Failure::new(what));
            };
            // Of one that is given several times, the last counts.
            pairs.retain(|(other, _)| other != name);
            pairs.push((name.to_owned(), value.to_owned()));
        }
        ImageArgs::from_pairs(Options::new("--image-opts", pairs), secrets)
    }

    pub(crate) fn from_pairs(
        mut options: Options,
        secrets: &Secrets,
    ) -> Result<ImageArgs, Failure> {
        let driver = options.take("driver");
        let is_protocol =
            driver.as_deref().is_some_and(|name| ["file", "null-co", "blkdebug"].contains(&name));
        let (format, path, filters) = match (is_protocol, driver) {
            // A file as it is.
            (true, driver) => {
                let (path, filters) = protocol(&mut options, "", driver)?;
                (Some(Format::Raw), path, filters)
            }
            (false, driver) => {
                let format = match driver {
                    None => None,
                    Some(name) => match name.parse() {
                        Ok(format) => Some(format),
                        Err(_) => {
                            return options.refuse(format!("the driver '{name}' is not supported"));
                        }
                    },
                };
                let below = options.take("file.driver");
                let (path, filters) = protocol(&mut options, "file.", below)?;
                // A disk without a file has no name that could say its format, and no content either.
                (format.or(filters.null.map(|_| Format::Raw)), path, filters)
            }
        };
        options.take("encrypt.format");
        let mut ids: Vec<String> = Vec::new();
        while let Some(at) = options.pairs.iter().position(|(name, _)| is_secret(name)) {
            ids.push(options.pairs.remove(at).1);
        }
        options.end()?;
        ids.dedup();
        // All images of a chain are opened with one.
        if ids.len() > 1 {
            return options.refuse("an image and those under it can have one secret only");
        }
        let secret = ids.first().map(|id| secrets.get(id)).transpose()?;
        Ok(ImageArgs { format, secret, filters, ..ImageArgs::new(path) })
    }
}

/// Where the image is, and what stands between: the options that begin with `prefix`, of this driver.
fn protocol(
    options: &mut Options,
    prefix: &str,
    driver: Option<String>,
) -> Result<(PathBuf, Filters), Failure> {
    let of = |name: &str| format!("{prefix}{name}");
    match driver.as_deref() {
        None | Some("file") => {
            match options.take(&of("filename")).filter(|path| !path.is_empty()) {
                Some(path) => Ok((path.into(), Filters::default())),
                None => options.refuse(format!("{} must say where the image is", of("filename"))),
            }
        }
        Some("null-co") => {
            let bytes = match options.take(&of("size")) {
                Some(size) => crate::parse_size(&size)?,
                None => NULL_BYTES,
            };
            // It reads as zeroes in any case; without this QEMU's reads as anything.
            options.flag(&of("read-zeroes"))?;
            let latency_ns = options.number(&of("latency-ns"))?.unwrap_or(0);
            let null = Some(NullDisk { bytes, latency_ns });
            Ok(("null-co://".into(), Filters { null, ..Filters::default() }))
        }
        Some("blkdebug") => {
            let config = options.take(&of("config")).filter(|path| !path.is_empty());
            let mut rules = match config {
                Some(path) => fault_opts::from_file(path.as_ref())?,
                None => Vec::new(),
            };
            rules.extend(fault_opts::from_options(options, prefix)?);
            let align = options.number(&of("align"))?.unwrap_or(0);
            if align != 0 && !(align.is_power_of_two() && ALIGN.contains(&align)) {
                let what = format!("{} is a power of two from 512 to 4096", of("align"));
                return options.refuse(what);
            }
            let below = options.take(&of("image.driver"));
            if below.as_deref() == Some("blkdebug") {
                return options.refuse(format!("{}: one filter is all there can be", of("image")));
            }
            let (path, filters) = protocol(options, &of("image."), below)?;
            let faults = Some(Arc::new(Faults::new(rules)));
            Ok((path, Filters { faults, align, ..filters }))
        }
        Some(_) => {
            let what = "only the drivers file, null-co and blkdebug are supported";
            options.refuse(format!("{}: {what}", of("driver")))
        }
    }
}

/// Whether an option names the secret of the image, or of one under it.
fn is_secret(name: &str) -> bool {
    let mut name = name;
    while let Some(below) = name.strip_prefix(BELOW) {
        name = below;
    }
    name == "encrypt.key-secret"
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::filters::IoKind;
    use std::path::Path;

    fn parsed(list: &str) -> Result<ImageArgs, Failure> {
        let objects = ["secret,id=s,data=one", "secret,id=t,data=two"].map(str::to_owned);
        ImageArgs::from_options(list, &Secrets::parse(&objects)?)
    }

    #[test]
    fn a_file_a_format_and_a_secret() {
        let image = parsed("driver=qcow2,file.driver=file,file.filename=a,,b=c").unwrap();
        assert_eq!((image.path.as_path(), image.format), (Path::new("a,b=c"), Some(Format::Qcow2)));
        assert!(image.secret.is_none());
        let secret = |list: &str| parsed(list).unwrap().secret.unwrap().bytes().to_vec();
        assert_eq!(secret("file.filename=a,encrypt.format=luks,encrypt.key-secret=s"), b"one");
        assert_eq!(secret("file.filename=a,backing.backing.encrypt.key-secret=t"), b"two");
        assert_eq!(
            secret("file.filename=a,encrypt.key-secret=t,backing.encrypt.key-secret=t"),
            b"two"
        );
        assert_eq!(parsed("file.filename=a").unwrap().format, None);
    }

    #[test]
    fn filters() {
        let image = parsed(
            "driver=qcow2,file.driver=blkdebug,file.image.driver=file,file.image.filename=a,file.align=512,\
             file.inject-error.0.event=none,file.inject-error.0.errno=28,file.inject-error.0.once=on,\
             file.inject-error.1.event=none,file.inject-error.1.sector=0x1,file.inject-error.1.iotype=write",
        );
        // Sectors are decimal.
        assert!(image.unwrap_err().to_string().contains("sector"));
        let image = parsed(
            "file.driver=blkdebug,file.image.filename=a,file.inject-error.0.event=none,file.inject-error.0.errno=28,\
             file.inject-error.0.once=on,file.inject-error.1.event=none,file.inject-error.1.sector=1",
        );
        let image = image.unwrap();
        assert_eq!((image.path.as_path(), image.format), (Path::new("a"), None));
        let faults = image.filters.faults.unwrap();
        let errno = |at| faults.check(IoKind::Write, at, 512).err().and_then(|e| e.raw_os_error());
        assert_eq!([errno(0), errno(0), errno(512), errno(1024)], [Some(28), None, Some(5), None]);
        let null =
            parsed("driver=raw,file.driver=null-co,file.size=2G,file.read-zeroes=on").unwrap();
        assert_eq!(null.filters.null.unwrap().bytes, 2 << 30);
        let both = parsed("driver=blkdebug,image.driver=null-co").unwrap();
        assert!(both.filters.null.is_some() && both.filters.faults.is_some());
        assert_eq!(both.format, Some(Format::Raw));
        assert_eq!(parsed("driver=file,filename=a").unwrap().format, Some(Format::Raw));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (list, word) in [
            ("a.qcow2", "a.qcow2"),
            ("driver=qcow2", "file.filename"),
            ("driver=qcow2,file.filename=", "file.filename"),
            ("driver=vmdk,file.filename=a", "'vmdk'"),
            ("driver=nbd,host=h", "'nbd'"),
            ("file.driver=nbd,file.filename=a", "file.driver"),
            ("file.filename=a,backing.file.filename=b", "'backing.file.filename'"),
            ("file.filename=a,lazy-refcounts=on", "'lazy-refcounts'"),
            ("file.filename=a,encrypt.key-secret=u", "'u'"),
            ("driver=null-co,size=x", "'x'"),
            ("driver=null-co,read-zeroes=x", "'x'"),
            ("driver=null-co,filename=a", "'filename'"),
            ("driver=null-co,size=9E", "size"),
            ("driver=blkdebug", "image.filename"),
            ("driver=blkdebug,image.filename=a,align=513", "align"),
            ("driver=blkdebug,image.filename=a,align=8192", "align"),
            ("driver=blkdebug,image.filename=a,max-transfer=4096", "'max-transfer'"),
            (
                "driver=blkdebug,image.filename=a,inject-error.1.event=none",
                "'inject-error.1.event'",
            ),
            ("driver=blkdebug,image.filename=a,inject-error.0.event=nine", "'nine'"),
            ("driver=blkdebug,image.driver=blkdebug,image.image.filename=a", "one filter"),
            ("driver=blkdebug,image.driver=qcow2,image.file.filename=a", "image.driver"),
            ("driver=blkdebug,image.filename=a,config=/does/not/exist", "/does/not/exist"),
            ("file.filename=a,encrypt.key-secret=s,backing.encrypt.key-secret=t", "one secret"),
        ] {
            let refused = parsed(list).unwrap_err().to_string();
            assert!(refused.contains(word), "{list}: {refused}");
        }
    }
}
