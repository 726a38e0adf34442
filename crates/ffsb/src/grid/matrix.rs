//! The words of `--matrix`: `format=raw,qcow2 cache=none threads=1,8,16`.

use super::{Device, GridError};
use crate::server::ServerKind;
use block::{CacheMode, Format};
use io_engine::EngineKind;
use std::fmt::Display;

/// Threads of a workload at most.
const THREADS_MAX: u32 = 1024;

/// What a grid goes through. `None`: nothing was said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choices {
    /// `device=`
    pub devices: Option<Vec<Device>>,
    /// `server=`
    pub servers: Option<Vec<ServerKind>>,
    /// `format=`
    pub formats: Option<Vec<Format>>,
    /// `cache=`
    pub caches: Option<Vec<CacheMode>>,
    /// `aio=`
    pub aios: Option<Vec<EngineKind>>,
    /// `threads=`
    pub threads: Option<Vec<u32>>,
}

impl Choices {
    /// Reads words of the form `KEY=VALUE,VALUE`.
    ///
    /// # Errors
    ///
    /// A key or value that is not known, or one that comes twice.
    pub fn parse<S: AsRef<str>>(words: &[S]) -> Result<Choices, GridError> {
        let mut choices = Choices::default();
        for word in words.iter().map(AsRef::as_ref) {
            choices
                .add(word)
                .map_err(|why| GridError::Refused(format!("matrix `{word}`: {why}")))?;
        }
        Ok(choices)
    }

    fn add(&mut self, word: &str) -> Result<(), String> {
        let Some((key, list)) = word.split_once('=') else {
            return Err("expected KEY=VALUE,VALUE (profiles go before --matrix)".to_owned());
        };
        match key {
            "device" => set(&mut self.devices, list, |text| {
                Device::ALL
                    .into_iter()
                    .find(|one| one.to_string() == text)
                    .ok_or(names(&Device::ALL))
            }),
            "server" => set(&mut self.servers, list, |text| {
                text.parse().map_err(|_| names(&ServerKind::ALL))
            }),
            "format" => set(&mut self.formats, list, |text| {
                let found = Format::ALL.into_iter().find(|one| one.to_string() == text);
                found.ok_or(names(&Format::ALL))
            }),
            "cache" => set(&mut self.caches, list, |text| {
                let found = CacheMode::ALL.into_iter().find(|one| one.to_string() == text);
                found.ok_or(names(&CacheMode::ALL))
            }),
            "aio" => set(&mut self.aios, list, |text| {
                let found = EngineKind::ALL.into_iter().find(|one| one.to_string() == text);
                found.ok_or(names(&EngineKind::ALL))
            }),
            "threads" => set(&mut self.threads, list, |text| {
                let number = text.parse().ok().filter(|n| (1..=THREADS_MAX).contains(n));
                number.ok_or(format!("a number from 1 to {THREADS_MAX}"))
            }),
            _ => Err(format!(
                "no key `{key}`: expected device, server, format, cache, aio or threads"
            )),
        }
    }
}

fn set<T: PartialEq>(
    choice: &mut Option<Vec<T>>,
    list: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<(), String> {
    if choice.is_some() {
        return Err("the key comes twice".to_owned());
    }
    let mut values = Vec::new();
    for text in list.split(',') {
        let value = parse(text).map_err(|known| format!("`{text}`: expected {known}"))?;
        if values.contains(&value) {
            return Err(format!("`{text}` comes twice"));
        }
        values.push(value);
    }
    *choice = Some(values);
    Ok(())
}

/// Names for a message.
pub(super) fn names<T: Display>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_command_line_are_understood() {
        let words = ["format=raw,qcow2,qed", "cache=none,writethrough", "threads=1,8,16"];
        let choices = Choices::parse(&words).unwrap();
        assert_eq!(choices.formats, Some(Format::ALL.to_vec()));
        assert_eq!(choices.caches, Some(vec![CacheMode::None, CacheMode::Writethrough]));
        assert_eq!(choices.threads, Some(vec![1, 8, 16]));
        assert_eq!((choices.devices, choices.servers, choices.aios), (None, None, None));
        let more = ["aio=io_uring,native,threads", "device=bare,vhost-user", "server=ferroblk"];
        let choices = Choices::parse(&more).unwrap();
        assert_eq!(choices.aios, Some(EngineKind::ALL.to_vec()));
        assert_eq!(choices.devices, Some(vec![Device::Bare, Device::VhostUser]));
        assert_eq!(choices.servers, Some(vec![ServerKind::Ferroblk]));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (words, error) in [
            (
                &["mail.ffsb"][..],
                "matrix `mail.ffsb`: expected KEY=VALUE,VALUE (profiles go before --matrix)",
            ),
            (
                &["colour=red"],
                "matrix `colour=red`: no key `colour`: expected device, server, format, cache, aio or threads",
            ),
            (&["format=raw,vmdk"], "matrix `format=raw,vmdk`: `vmdk`: expected raw, qcow2, qed"),
            (&["threads=0"], "matrix `threads=0`: `0`: expected a number from 1 to 1024"),
            (&["threads="], "matrix `threads=`: ``: expected a number from 1 to 1024"),
            (&["aio=raw"], "matrix `aio=raw`: `raw`: expected io_uring, native, threads"),
            (&["cache=none,none"], "matrix `cache=none,none`: `none` comes twice"),
            (&["cache=none", "cache=unsafe"], "matrix `cache=unsafe`: the key comes twice"),
            (
                &["server=spdk"],
                "matrix `server=spdk`: `spdk`: expected ferroblk, qemu-storage-daemon",
            ),
            (
                &["device=floppy"],
                "matrix `device=floppy`: `floppy`: expected bare, directory, vhost-user",
            ),
        ] {
            assert_eq!(Choices::parse(words).unwrap_err().to_string(), error);
        }
    }
}
