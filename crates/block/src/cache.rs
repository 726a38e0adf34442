//! Cache modes and the other choices that say what a guest's write means.

use std::fmt;
use std::str::FromStr;

/// How writes reach the disk.
///
/// | mode           | host page cache | write cache the guest sees | completion of a write means |
/// |----------------|-----------------|----------------------------|-----------------------------|
/// | `none`         | bypassed        | yes                        | accepted                    |
/// | `writeback`    | used            | yes                        | accepted                    |
/// | `writethrough` | used            | no                         | durable                     |
/// | `directsync`   | bypassed        | no                         | durable                     |
/// | `unsafe`       | used            | yes, flush is ignored      | accepted                    |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// O_DIRECT, with a write cache.
    #[default]
    None,
    /// Page cache, with a write cache.
    Writeback,
    /// Page cache, each write durable.
    Writethrough,
    /// O_DIRECT, each write durable.
    Directsync,
    /// Page cache, flushes ignored: for data that may be lost.
    Unsafe,
}

impl CacheMode {
    /// Every mode.
    pub const ALL: [CacheMode; 5] = [
        CacheMode::None,
        CacheMode::Writeback,
        CacheMode::Writethrough,
        CacheMode::Directsync,
        CacheMode::Unsafe,
    ];

    /// Whether the host's page cache is bypassed.
    pub fn is_direct(self) -> bool {
        matches!(self, CacheMode::None | CacheMode::Directsync)
    }

    /// Whether the disk starts with a volatile write cache. The guest may switch it later.
    pub fn has_write_cache(self) -> bool {
        !matches!(self, CacheMode::Writethrough | CacheMode::Directsync)
    }

    /// Whether nothing is ever made durable.
    pub fn ignores_flush(self) -> bool {
        self == CacheMode::Unsafe
    }
}

/// What a guest's discard does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DiscardMode {
    /// Gives the host's space back.
    #[default]
    Unmap,
    /// Nothing.
    Ignore,
}

/// What happens to written data that is all zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DetectZeroes {
    /// It is written like any other.
    #[default]
    Off,
    /// It becomes a write of zeroes that keeps the space allocated.
    On,
    /// It becomes a write of zeroes that gives the space back, if discard is `unmap`.
    Unmap,
}

/// A word that names no mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseModeError(&'static str);

impl fmt::Display for ParseModeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected one of {}", self.0)
    }
}

impl std::error::Error for ParseModeError {}

macro_rules! named {
    ($type:ident, $expected:literal, $($variant:ident = $name:literal),+) => {
        impl FromStr for $type {
            type Err = ParseModeError;

            fn from_str(name: &str) -> Result<$type, ParseModeError> {
                match name {
                    $($name => Ok($type::$variant),)+
                    _ => Err(ParseModeError($expected)),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $($type::$variant => $name,)+
                })
            }
        }
    };
}

named!(
    CacheMode,
    "none, writeback, writethrough, directsync, unsafe",
    None = "none",
    Writeback = "writeback",
    Writethrough = "writethrough",
    Directsync = "directsync",
    Unsafe = "unsafe"
);
named!(DiscardMode, "unmap, ignore", Unmap = "unmap", Ignore = "ignore");
named!(DetectZeroes, "off, on, unmap", Off = "off", On = "on", Unmap = "unmap");
