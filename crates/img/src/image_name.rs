//! File names that are more than that: what QEMU reads out of a name that begins with a protocol.
//!
//! | name                      | what it stands for                                                      |
//! |---------------------------|-------------------------------------------------------------------------|
//! | `json:{...}`              | the options of `--image-opts`, as an object: nested, or with dotted names |
//! | `blkdebug:RULES:IMAGE`    | the image, under a fault filter with the rules in a file, or with none  |
//! | `null-co://`              | a disk of 1 GiB without a file                                          |
//!
//! Only a command line can name an image so. A name in an image is a path and nothing else: see `block::BackingName`. A file that is really called
//! so can be named with its directory, `./json:x`.

use crate::image_opts::Options;
use crate::{Failure, ImageArgs, Secrets, fault_opts};
use block::Format;
use block::filters::{Faults, Filters};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

impl ImageArgs {
    /// The image of this name.
    ///
    /// # Errors
    ///
    /// `BadRequest` for a name that begins like one of QEMU's and does not go on like it; as [`ImageArgs::from_options`].
    pub fn named(
        name: &Path,
        format: Option<Format>,
        secrets: &Secrets,
    ) -> Result<ImageArgs, Failure> {
        let Some(text) = name.to_str() else {
            return Ok(ImageArgs { format, ..ImageArgs::new(name) });
        };
        let special = if let Some(json) = text.strip_prefix("json:") {
            by_json(json, secrets)?
        } else if let Some(rest) = text.strip_prefix("blkdebug:") {
            by_rules(text, rest)?
        } else if text.starts_with("null-co:") {
            if text != "null-co://" {
                return Err(Failure::new(format!("'{text}': the only such name is 'null-co://'")));
            }
            let nothing = vec![("driver".to_owned(), "null-co".to_owned())];
            ImageArgs::from_pairs(Options::new(NULL, nothing), secrets)?
        } else {
            return Ok(ImageArgs { format, ..ImageArgs::new(name) });
        };
        match (format, special.format) {
            (Some(said), Some(named)) if said != named => {
                let what = format!("'{text}' is of the format {named}, and -f says {said}");
                Err(Failure::new(what))
            }
            (said, named) => Ok(ImageArgs { format: named.or(said), ..special }),
        }
    }
}

/// Whether a name is more than a path.
pub(crate) fn is_special(name: &Path) -> bool {
    let starts = |prefix: &&str| name.as_os_str().as_encoded_bytes().starts_with(prefix.as_bytes());
    [JSON, "blkdebug:", NULL].iter().any(starts)
}

/// Whose options those of a name are.
const JSON: &str = "json:";
const NULL: &str = "null-co:";

fn by_rules(name: &str, rest: &str) -> Result<ImageArgs, Failure> {
    let Some((config, image)) = rest.split_once(':').filter(|(_, image)| !image.is_empty()) else {
        let what = format!("'{name}' is not of the form blkdebug:RULES:IMAGE");
        return Err(Failure::new(what));
    };
    let rules = match config {
        "" => Vec::new(),
        config => fault_opts::from_file(config.as_ref())?,
    };
    let faults = Some(Arc::new(Faults::new(rules)));
    let filters = Filters { faults, ..Filters::default() };
    Ok(ImageArgs { filters, ..ImageArgs::new(image) })
}

fn by_json(text: &str, secrets: &Secrets) -> Result<ImageArgs, Failure> {
    let refuse = |why: String| Err(Failure::new(format!("{JSON} {why}")));
    let value: Json = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => return refuse(format!("not the options of an image: {error}")),
    };
    if !matches!(value, Json::Object(_)) {
        return refuse("the options of an image are an object".into());
    }
    let mut pairs = Vec::new();
    flatten("", value, &mut pairs)?;
    let mut names: Vec<&str> = pairs.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|two| two[0] == two[1]) {
        return refuse(format!("the option '{}' is given twice", twice[0]));
    }
    ImageArgs::from_pairs(Options::new(JSON, pairs), secrets)
}

/// The options in `value`, each under its dotted name.
fn flatten(name: &str, value: Json, into: &mut Vec<(String, String)>) -> Result<(), Failure> {
    let dotted = |part: &str| match name {
        "" => part.to_owned(),
        name => format!("{name}.{part}"),
    };
    match value {
        Json::Object(members) => {
            members.into_iter().try_for_each(|(part, value)| flatten(&dotted(&part), value, into))
        }
        Json::Array(values) => (0..).zip(values).try_for_each(|(index, value): (usize, _)| {
            flatten(&dotted(&index.to_string()), value, into)
        }),
        Json::Scalar(value) => {
            into.push((name.to_owned(), value));
            Ok(())
        }
        Json::Null => Err(Failure::new(format!("{JSON} the option '{name}' cannot be null"))),
    }
}

/// JSON in which nothing is lost: of two members of one name, the second too. Its depth is limited by who reads it.
enum Json {
    Object(Vec<(String, Json)>),
    Array(Vec<Json>),
    /// As an option's text.
    Scalar(String),
    Null,
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Json, D::Error> {
        from.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("options of an image")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Json::Object(members))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element()? {
            values.push(value);
        }
        Ok(Json::Array(values))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Scalar(if value { "on" } else { "off" }.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Scalar(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Scalar(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Scalar(value.to_string()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Scalar(value.to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Result<ImageArgs, Failure> {
        ImageArgs::named(name.as_ref(), None, &Secrets::default())
    }

    #[test]
    fn names_of_all_kinds() {
        let plain = named("./json:{").unwrap();
        assert!(plain.path == Path::new("./json:{") && plain.filters.is_empty());
        for name in [
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"a b"}}"#,
            r#"json:{"driver":"qcow2","file.driver":"file","file.filename":"a b"}"#,
            r#"json:{"driver":"qcow2","file":{"filename":"a b"}}"#,
        ] {
            let image = named(name).unwrap();
            assert_eq!(
                (image.path.as_path(), image.format),
                (Path::new("a b"), Some(Format::Qcow2))
            );
            assert!(image.filters.is_empty());
        }
        let image = named(
            r#"json:{"file":{"driver":"blkdebug","align":4096,"image":{"filename":"a:b"},
                "inject-error":[{"event":"none","once":true,"iotype":"read"},{"event":"read_aio"}],
                "set-state":[{"event":"l2_load","new_state":3}]}}"#,
        );
        let image = image.unwrap();
        assert_eq!((image.path.as_path(), image.format), (Path::new("a:b"), None));
        assert_eq!(image.filters.align, 4096);
        let faults = image.filters.faults.unwrap();
        let read = || faults.check(block::filters::IoKind::Read, 0, 512);
        assert!(read().is_err() && read().is_ok());
        let image = named("blkdebug::x:y").unwrap();
        assert!(image.path == Path::new("x:y") && image.filters.faults.is_some());
        let null = named("null-co://").unwrap();
        assert_eq!(null.filters.null.unwrap().bytes, 1 << 30);
        assert_eq!(null.format, Some(Format::Raw));
        let null = named(r#"json:{"driver":"null-co","size":"3M","latency-ns":7}"#).unwrap();
        let null = null.filters.null.unwrap();
        assert_eq!((null.bytes, null.latency_ns), (3 << 20, 7));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let deep = format!("json:{}", "[".repeat(100_000));
        for (name, word) in [
            ("json:", "json:"),
            ("json:[]", "an object"),
            ("json:\"a\"", "an object"),
            ("json:{\"driver\":\"qcow2\"", "json:"),
            (r#"json:{"file":{"filename":"a"},"file":{"filename":"b"}}"#, "'file.filename'"),
            (r#"json:{"file":{"filename":"a"},"file.filename":"a"}"#, "'file.filename'"),
            (r#"json:{"file":{"filename":null}}"#, "'file.filename'"),
            (r#"json:{"file":{"filename":"a"},"foo":{"bar":1}}"#, "'foo.bar'"),
            (r#"json:{"file":{"filename":"a"},"backing":{"file.filename":"b"}}"#, "'backing"),
            (r#"json:{"driver":"file","filename":"a","size":1}"#, "'size'"),
            (r#"json:{"driver":"vmdk","file":{"filename":"a"}}"#, "'vmdk'"),
            (&deep, "json:"),
            ("blkdebug:", "blkdebug:"),
            ("blkdebug:x", "blkdebug:"),
            ("blkdebug::", "blkdebug:"),
            ("blkdebug:/does/not/exist:a", "/does/not/exist"),
            ("null-co://x", "null-co"),
            ("null-co:", "null-co"),
        ] {
            let refused = named(name).unwrap_err().to_string();
            assert!(refused.contains(word) && !refused.contains('\n'), "{name}: {refused}");
        }
        let other = ImageArgs::named("null-co://".as_ref(), Some(Format::Qed), &Secrets::default());
        assert!(other.is_err());
    }
}
