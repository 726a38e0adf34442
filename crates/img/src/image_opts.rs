//! `--image-opts`: an image named by options, `driver=qcow2,file.filename=PATH,encrypt.key-secret=ID`.
//!
//! What is understood is what leads to a file, its format and its secret. All else that QEMU knows is refused by its name: an image that
//! is opened otherwise than it was asked for is worse than none.

use crate::option_list::split;
use crate::{Failure, ImageArgs, OptionList, Secrets};

/// What goes before the name of an option of the image underneath.
const BELOW: &str = "backing.";

impl ImageArgs {
    /// The image that a list of options names.
    ///
    /// # Errors
    ///
    /// `BadRequest` for an option that is not supported, a file that is not named, a secret that is not there.
    pub fn from_options(list: &str, secrets: &Secrets) -> Result<ImageArgs, Failure> {
        let refuse = |why: String| Err(Failure::new(format!("--image-opts: {why}")));
        let mut options = OptionList::default();
        for option in split(list) {
            match option.split_once('=') {
                Some((name, value)) => options.set(name, value),
                None => return refuse(format!("'{option}' is not of the form name=value")),
            }
        }
        let known = ["driver", "file.driver", "file.filename", "encrypt.format"];
        let is_known = |name: &str| known.contains(&name) || is_secret(name);
        if let Some(name) = options.names().find(|name| !is_known(name)) {
            return refuse(format!("the option '{name}' is not supported"));
        }
        if options.get("file.driver").is_some_and(|driver| driver != "file") {
            return refuse("only files are supported (file.driver=file)".into());
        }
        let Some(path) = options.get("file.filename").filter(|path| !path.is_empty()) else {
            return refuse("file.filename must say where the image is".into());
        };
        let format = options.get("driver").map(|name| {
            let unknown =
                || Failure::new(format!("--image-opts: the driver '{name}' is not supported"));
            name.parse().map_err(|_| unknown())
        });
        let mut ids: Vec<&str> = options.names().filter(|name| is_secret(name)).collect();
        ids = ids.into_iter().filter_map(|name| options.get(name)).collect();
        ids.dedup();
        // All images of a chain are opened with one.
        if ids.len() > 1 {
            return refuse("an image and those under it can have one secret only".into());
        }
        let secret = ids.first().map(|id| secrets.get(id)).transpose()?;
        Ok(ImageArgs { format: format.transpose()?, secret, ..ImageArgs::new(path) })
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
    use block::Format;
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
    fn what_is_not_supported_is_named() {
        for (list, word) in [
            ("a.qcow2", "a.qcow2"),
            ("driver=qcow2", "file.filename"),
            ("driver=qcow2,file.filename=", "file.filename"),
            ("driver=vmdk,file.filename=a", "'vmdk'"),
            ("driver=nbd,host=h", "'host'"),
            ("file.driver=nbd,file.filename=a", "file.driver"),
            ("file.filename=a,backing.file.filename=b", "'backing.file.filename'"),
            ("file.filename=a,lazy-refcounts=on", "'lazy-refcounts'"),
            ("file.filename=a,encrypt.key-secret=u", "'u'"),
            ("file.filename=a,encrypt.key-secret=s,backing.encrypt.key-secret=t", "one secret"),
        ] {
            let refused = parsed(list).unwrap_err().to_string();
            assert!(refused.contains(word), "{list}: {refused}");
        }
    }
}
