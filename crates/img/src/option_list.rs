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
    ("size=<size>", "Virtual disk size"),
];
const QED: &[(&str, &str)] = &[
    ("backing_file=<str>", "File name of a base image"),
    ("backing_fmt=<str>", "Image format of the base image"),
    ("cluster_size=<size>", "Cluster size (in bytes)"),
    ("size=<size>", "Virtual disk size"),
    ("table_size=<size>", "L1/L2 table size (in clusters)"),
];

/// Options by name, each once. Of one that is given several times, the last counts.
#[derive(Clone, Debug, Default)]
pub struct OptionList(Vec<(String, String)>);

impl OptionList {
    /// Reads the lists of all `-o` of a command line.
    ///
    /// # Errors
    ///
    /// `BadRequest` for an option without a name or a value.
    pub fn parse(lists: &[String]) -> Result<OptionList, Failure> {
        let mut options = OptionList::default();
        for option in lists.iter().flat_map(|list| split(list)) {
            match option.split_once('=') {
                Some((name, value)) if !name.is_empty() => options.set(name, value),
                _ => {
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

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses what the format does not have.
    pub(crate) fn check(&self, format: Format) -> Result<(), Failure> {
        let known = known(format);
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
    for (name, meaning) in known(format) {
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
fn split(list: &str) -> Vec<String> {
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
    fn what_is_no_option_is_refused() {
        for list in ["size", "=5", "size=1,x"] {
            assert!(parsed(&[list]).is_err(), "{list}");
        }
        assert!(parsed(&["table_size=4"]).unwrap().check(Format::Raw).is_err());
        assert!(parsed(&["table_size=4"]).unwrap().check(Format::Qed).is_ok());
        assert!(parsed(&["table=4"]).unwrap().check(Format::Qed).is_err());
    }
}
