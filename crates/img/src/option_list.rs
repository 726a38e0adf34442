//! The lists of `-o`: `name=value,name=value`, a comma in a value written twice.

use crate::Failure;
use block::Format;
use std::fmt::Write;

/// What `-o` may hold for each format, and what it means.
const RAW: &[(&str, &str)] = &[
    ("preallocation=<str>", "Preallocation mode (allowed values: off, falloc, full)"),
    ("size=<size>", "Virtual disk size"),
];
const QCOW2: &[(&str, &str)] = &[
    ("backing_file=<str>", "File name of a base image"),
    ("backing_fmt=<str>", "Image format of the base image"),
    ("cluster_size=<size>", "qcow2 cluster size"),
    ("compat=<str>", "Compatibility level (v2 [0.10] or v3 [1.1])"),
    ("compression_type=<str>", "Compression method used for image cluster compression"),
    ("data_file=<str>", "File name of an external data file"),
    ("data_file_raw=<bool (on/off)>", "The external data file must stay valid as a raw image"),
    ("encrypt.cipher-alg=<str>", "Name of encryption cipher algorithm"),
    ("encrypt.cipher-mode=<str>", "Name of encryption cipher mode"),
    ("encrypt.format=<str>", "Encrypt the image, format choices: 'luks'"),
    ("encrypt.hash-alg=<str>", "Name of encryption hash algorithm"),
    ("encrypt.iter-time=<num>", "Time to spend in PBKDF in milliseconds"),
    ("encrypt.ivgen-alg=<str>", "Name of IV generator algorithm"),
    ("encrypt.ivgen-hash-alg=<str>", "Name of IV generator hash algorithm"),
    ("encrypt.key-secret=<str>", "ID of secret providing LUKS passphrase"),
    ("encryption=<bool (on/off)>", "Encrypt the image with format 'aes': off only"),
    ("extended_l2=<bool (on/off)>", "Extended L2 tables"),
    ("lazy_refcounts=<bool (on/off)>", "Postpone refcount updates"),
    ("preallocation=<str>", "Preallocation mode (allowed values: off, metadata, falloc, full)"),
    ("refcount_bits=<num>", "Width of a reference count entry in bits"),
    ("size=<size>", "Virtual disk size"),
];
const QED: &[(&str, &str)] = &[
    ("backing_file=<str>", "File name of a base image"),
    ("backing_fmt=<str>", "Image format of the base image"),
    ("cluster_size=<size>", "Cluster size (in bytes)"),
    ("size=<size>", "Virtual disk size"),
    ("table_size=<size>", "L1/L2 table size (in clusters)"),
];

/// What `-o` may hold for every format, because it is for the file. Hints, which are taken and not followed.
const FILE: &[(&str, &str)] = &[
    ("extent_size_hint=<size>", "Extent size hint for the image file: taken, and not followed"),
    ("nocow=<bool (on/off)>", "Turn off copy-on-write: taken, and not followed"),
];

/// Options by name, each once. Of one that is given several times, the last counts.
#[derive(Clone, Debug, Default)]
pub struct OptionList(Vec<(String, String)>);

impl OptionList {
    /// Reads the lists of all `-o` of a command line.
    ///
    /// # Errors
    ///
    /// `BadRequest` for an option without a name.
    pub fn parse(lists: &[String]) -> Result<OptionList, Failure> {
        let mut options = OptionList::default();
        for option in lists.iter().flat_map(|list| split(list)) {
            match option.split_once('=') {
                Some((name, value)) if !name.is_empty() => options.set(name, value),
                // As QEMU: what has no value is on.
                None => options.set(&option, "on"),
                Some(_) => {
                    let what = format!("the option '{option}' is not of the form name=value");
                    return Err(Failure::new(what));
                }
            }
        }
        Ok(options)
    }

    /// Sets an option.
    pub fn set(&mut self, name: &str, value: &str) {
        self.0.retain(|(other, _)| other != name);
        self.0.push((name.to_owned(), value.to_owned()));
    }

    /// The value of an option.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// The names of all options.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// Whether an option is on; `None` if it is not given.
    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, Failure> {
        match self.get(name) {
            None => Ok(None),
            Some("on" | "yes" | "true" | "y") => Ok(Some(true)),
            Some("off" | "no" | "false" | "n") => Ok(Some(false)),
            Some(other) => {
                Err(Failure::new(format!("the option {name} is 'on' or 'off', not '{other}'")))
            }
        }
    }

    /// The number that an option is; `None` if it is not given.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Failure> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let number = text
            .strip_prefix("0x")
            .map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
        let no_number = |_| Failure::new(format!("the option {name} is a number, not '{text}'"));
        number.map(Some).map_err(no_number)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses what the format does not have.
    pub(crate) fn check(&self, format: Format) -> Result<(), Failure> {
        let known: Vec<_> = known(format).iter().chain(FILE).collect();
        let is_known = |name: &str| known.iter().any(|(k, _)| k.split('=').next() == Some(name));
        match self.0.iter().find(|(name, _)| !is_known(name)) {
            None => Ok(()),
            Some((name, _)) => {
                Err(Failure::new(format!("an image in the format {format} has no option '{name}'")))
            }
        }
    }
}

/// What `-o help` prints, if that is among the lists.
pub fn help_on_options(lists: &[String], format: Format) -> Option<String> {
    let asks = |option: &String| option == "help" || option == "?";
    if !lists.iter().flat_map(|list| split(list)).any(|option| asks(&option)) {
        return None;
    }
    let mut text = format!("Supported {format} options:\n");
    let mut options: Vec<_> = known(format).iter().chain(FILE).collect();
    options.sort_by_key(|(name, _)| name.split('=').next());
    for (name, meaning) in options {
        writeln!(text, "  {name:<22} - {meaning}").expect("a string takes everything");
    }
    Some(text)
}

fn known(format: Format) -> &'static [(&'static str, &'static str)] {
    match format {
        Format::Raw => RAW,
        Format::Qed => QED,
        Format::Qcow2 => QCOW2,
    }
}

/// The parts between single commas; a double one is a comma.
pub(crate) fn split(list: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        let last = parts.last_mut().expect("there is always one");
        match c {
            ',' if chars.next_if_eq(&',').is_some() => last.push(','),
            ',' => parts.push(String::new()),
            c => last.push(c),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(lists: &[&str]) -> Result<OptionList, Failure> {
        OptionList::parse(&lists.iter().map(|list| (*list).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn lists_are_read_as_one_and_double_commas_are_commas() {
        let options =
            parsed(&["size=1M,backing_file=a,,b=c,,", "cluster_size=4k,,,size=2M,"]).unwrap();
        assert_eq!(options.get("size"), Some("2M"));
        assert_eq!(options.get("backing_file"), Some("a,b=c,"));
        assert_eq!(options.get("cluster_size"), Some("4k,"));
        assert_eq!(options.get("b"), None);
        assert!(parsed(&["", ","]).unwrap().is_empty());
    }

    #[test]
    fn flags_and_numbers() {
        let options = parsed(&["a,b=no,c=maybe,d=12,e=0x10,f=1k"]).unwrap();
        assert_eq!(options.flag("a").unwrap(), Some(true));
        assert_eq!(options.flag("b").unwrap(), Some(false));
        assert_eq!(options.flag("z").unwrap(), None);
        assert!(options.flag("c").is_err());
        assert_eq!(options.number("d").unwrap(), Some(12));
        assert_eq!(options.number("e").unwrap(), Some(16));
        assert!(options.number("f").is_err());
    }

    #[test]
    fn what_is_no_option_is_refused() {
        for list in ["=5", "size=1,=x"] {
            assert!(parsed(&[list]).is_err(), "{list}");
        }
        assert!(parsed(&["size=1,x"]).unwrap().check(Format::Raw).is_err());
        assert!(parsed(&["table_size=4"]).unwrap().check(Format::Raw).is_err());
        assert!(parsed(&["table_size=4"]).unwrap().check(Format::Qed).is_ok());
        assert!(parsed(&["table=4"]).unwrap().check(Format::Qed).is_err());
    }
}
