//! Image formats, by name, file name and magic.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// A format that an image can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// The file is the disk.
    #[default]
    Raw,
    /// QEMU enhanced disk.
    Qed,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 3] = [Format::Raw, Format::Qcow2, Format::Qed];

    /// The format that a file name's extension stands for.
    pub fn of_extension(path: &Path) -> Option<Format> {
        match path.extension()?.to_str()? {
            "raw" | "img" => Some(Format::Raw),
            "qed" => Some(Format::Qed),
            "qcow2" => Some(Format::Qcow2),
            _ => None,
        }
    }

    /// The name of the format whose magic number begins an image; a format with a magic that we do not read has a name as well.
    pub fn name_of_magic(start: &[u8]) -> Option<&'static str> {
        match start.first_chunk()? {
            b"QED\0" => Some("qed"),
            b"QFI\xfb" => Some("qcow2"),
            b"KDMV" => Some("vmdk"),
            _ => None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Raw => "raw",
            Format::Qed => "qed",
            Format::Qcow2 => "qcow2",
        })
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Format, String> {
        let found = Format::ALL.into_iter().find(|format| format.to_string() == name);
        found.ok_or_else(|| "expected one of raw, qcow2, qed".to_owned())
    }
}
