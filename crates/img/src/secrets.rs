//! `--object secret,id=NAME,...`: what opens encrypted images, by the names that options give to it.
//!
//! A secret's bytes come from the command line (`data=`, for tests: others can see it there) or from a file (`file=`), as they are or in base64.

use crate::option_list::split;
use crate::{Failure, OptionList};
use block::{Error, Secret};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
use std::path::Path;

/// A secret is not longer than this.
const BYTES_MAX: usize = 1 << 20;

/// Secrets by their ids.
#[derive(Clone, Debug, Default)]
pub struct Secrets(BTreeMap<String, Secret>);

impl Secrets {
    /// Reads all `--object` of a command line.
    ///
    /// # Errors
    ///
    /// `BadRequest` for objects that are no secrets, or cannot be; the host's, if a file cannot be read.
    pub fn parse(objects: &[String]) -> Result<Secrets, Failure> {
        let mut secrets = Secrets::default();
        for object in objects {
            let (id, secret) = parse_one(object)?;
            if secrets.0.insert(id.clone(), secret).is_some() {
                return Err(Failure::new(format!("--object: there are two of the id '{id}'")));
            }
        }
        Ok(secrets)
    }

    /// The secret of this id.
    ///
    /// # Errors
    ///
    /// `BadRequest` if there is none.
    pub fn get(&self, id: &str) -> Result<Secret, Failure> {
        let found = self.0.get(id).cloned();
        found.ok_or_else(|| Failure::new(format!("there is no secret with the id '{id}'")))
    }
}

fn parse_one(object: &str) -> Result<(String, Secret), Failure> {
    // Nothing of what was given is repeated: it may be the secret.
    let refuse = |why: &str| Err(Failure::new(format!("--object: {why}")));
    let (mut parts, mut options) = (split(object), OptionList::default());
    let has_kind = parts.first().is_some_and(|first| !first.contains('='));
    let kind = has_kind.then(|| parts.remove(0));
    for part in &parts {
        match part.split_once('=') {
            Some((name, value)) => options.set(name, value),
            None => return refuse("an option is not of the form name=value"),
        }
    }
    if kind.as_deref().or(options.get("qom-type")) != Some("secret") {
        return refuse("only objects of the type secret are supported");
    }
    let known = ["qom-type", "id", "data", "file", "format"];
    if let Some(name) = options.names().find(|name| !known.contains(name)) {
        return refuse(&format!("the option '{name}' of a secret is not supported"));
    }
    let Some(id) = options.get("id").filter(|id| !id.is_empty()) else {
        return refuse("a secret needs an id");
    };
    let bytes = match (options.get("data"), options.get("file")) {
        (Some(data), None) => data.as_bytes().to_vec(),
        (None, Some(path)) => read_secret(Path::new(path))?,
        _ => return refuse("a secret needs data or a file, and not both"),
    };
    let bytes = match options.get("format") {
        None | Some("raw") => bytes,
        Some("base64") => match base64(&bytes) {
            Some(bytes) => bytes,
            None => return refuse(&format!("the secret '{id}' is not base64")),
        },
        Some(_) => return refuse("the format of a secret is raw or base64"),
    };
    Ok((id.to_owned(), Secret::new(bytes)))
}

/// All bytes of a file that holds a secret.
///
/// # Errors
///
/// The host's; `BadRequest` if it is too long for one.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, Failure> {
    let doing = || format!("reading the secret in {}", path.display());
    let failed = |error: rustix::io::Errno| Error::io(doing(), error.into());
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let file = file.map_err(failed)?;
    // All room at once: bytes that are moved would stay behind in memory.
    let mut bytes = vec![0; BYTES_MAX + 1];
    let mut len = 0;
    while len < bytes.len() {
        match rustix::io::read(&file, &mut bytes[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error).into()),
        }
    }
    if len > BYTES_MAX {
        return Err(Failure::new(format!("{}: it is longer than 1 MiB", doing())));
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// The bytes that `text` stands for in base64 (RFC 4648, with padding); line breaks do not count.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.iter().copied().filter(|c| !c.is_ascii_whitespace()).collect();
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3);
    let groups = digits.len() / 4;
    if !digits.len().is_multiple_of(4) {
        return None;
    }
    for (n, group) in digits.chunks_exact(4).enumerate() {
        let is_last = n + 1 == groups;
        let padding = group.iter().rev().take_while(|c| **c == b'=').count();
        if padding > if is_last { 2 } else { 0 } {
            return None;
        }
        let mut value = 0u32;
        for c in &group[..4 - padding] {
            value = value << 6 | digit(*c)?;
        }
        value <<= 6 * padding;
        bytes.extend_from_slice(&value.to_be_bytes()[1..4 - padding]);
    }
    Some(bytes)
}

fn digit(c: u8) -> Option<u32> {
    Some(u32::from(match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(object: &str) -> Result<Vec<u8>, Failure> {
        let secrets = Secrets::parse(&[object.to_owned()])?;
        Ok(secrets.get("s")?.bytes().to_vec())
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test has files of its own")]
    fn a_secret_is_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a,b");
        std::fs::write(&path, b"from a file\n").unwrap();
        let file = path.to_str().unwrap().replace(',', ",,");
        for (object, bytes) in [
            ("secret,id=s,data=hello".to_owned(), &b"hello"[..]),
            ("qom-type=secret,id=s,data=a,,b=c".to_owned(), b"a,b=c"),
            ("secret,id=s,data=aGVsbG8=,format=base64".to_owned(), b"hello"),
            ("secret,id=s,data=,format=raw".to_owned(), b""),
            (format!("secret,id=s,file={file}"), b"from a file\n"),
        ] {
            assert_eq!(parsed(&object).unwrap(), bytes, "{object}");
        }
    }

    #[test]
    fn what_is_no_secret_is_refused_and_not_shown() {
        for object in [
            "secret,id=s",
            "secret,data=hidden",
            "secret,id=s,data=hidden,file=hidden",
            "secret,id=s,data=hidden,format=hex",
            "secret,id=s,data=hidden!,format=base64",
            "secret,id=s,data=hidden,keyid=master",
            "secret,id=s,hidden",
            "tls-creds-x509,id=s,dir=hidden",
            "id=s,data=hidden",
            "",
        ] {
            let refused = parsed(object).unwrap_err().to_string();
            assert!(!refused.contains("hidden"), "{object}: {refused}");
        }
        let twice = ["secret,id=s,data=a", "secret,id=s,data=b"].map(str::to_owned);
        assert!(Secrets::parse(&twice).is_err());
        assert!(Secrets::default().get("s").is_err());
    }

    #[test]
    fn base64_of_every_length() {
        for (text, bytes) in [
            ("", Some(&b""[..])),
            ("YQ==", Some(b"a")),
            ("YWI=", Some(b"ab")),
            ("YWJj", Some(b"abc")),
            ("YWJj\nZA==\n", Some(b"abcd")),
            ("+/+/", Some(&[0xfb, 0xff, 0xbf])),
            ("YQ", None),
            ("YQ=", None),
            ("Y===", None),
            ("====", None),
            ("YQ==YQ==", None),
            ("Y-==", None),
        ] {
            assert_eq!(base64(text.as_bytes()).as_deref(), bytes, "{text}");
        }
    }
}
