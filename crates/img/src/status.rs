//! Block status: what a part of a disk is, and in which image of a chain that is decided.
//!
//! ```text
//!   depth 0   [ data |      | zero |             ]   the image
//!   depth 1   | data   data   data | hole |      ]   what it stands on: shorter, so zeroes from there on, decided at depth 0
//! ```

use block::{BlockNode, DiskOffset, ExtentKind, HostNode, Result, SECTOR};

/// What a run of a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Data, or what may be data.
    Data,
    /// Zeroes.
    Zero,
    /// In none of the images that were looked at.
    Unallocated,
}

/// A run of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub kind: Kind,
    /// From where was asked, in bytes; not 0, and not more than was asked for.
    pub len: u64,
    /// The image in which that is decided: 0 for the topmost.
    pub depth: u32,
    /// That image says so itself; if not, it is what is left when none does.
    pub present: bool,
    /// Where it is in the file of that image.
    pub offset: Option<u64>,
    /// It is compressed there.
    pub is_compressed: bool,
}

/// How much of a chain counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// The topmost image alone: what it does not have is `Unallocated`.
    Top,
    /// All of it: what no image has is zeroes.
    All,
}

/// What `len` bytes of the disk at `at` are, as far as they are alike. `len` is not 0, and within the disk.
pub(crate) async fn status(node: &BlockNode, at: u64, len: u64, depth: Depth) -> Result<Status> {
    let (mut node, mut len, mut level) = (node, len, 0);
    loop {
        let extent = match node {
            BlockNode::Raw(host) => return Ok(raw(host, at, len, level)),
            _ => node.map(DiskOffset(at), len).await?,
        };
        len = len.min(extent.len);
        let found = |kind, present, offset| Status {
            kind,
            len,
            depth: level,
            present,
            offset,
            is_compressed: extent.kind == ExtentKind::Compressed,
        };
        match extent.kind {
            // What is encrypted cannot be read there.
            ExtentKind::Data(place) => {
                let offset = (!node.is_encrypted()).then_some(place.0);
                return Ok(found(Kind::Data, true, offset));
            }
            ExtentKind::Compressed => return Ok(found(Kind::Data, true, None)),
            ExtentKind::Zero => return Ok(found(Kind::Zero, true, None)),
            ExtentKind::Unallocated if depth == Depth::Top && node.backing().is_some() => {
                return Ok(found(Kind::Unallocated, false, None));
            }
            ExtentKind::Unallocated => match node.backing() {
                Some((below, bytes)) if at < bytes => {
                    len = len.min(bytes - at);
                    node = below;
                    level += 1;
                }
                _ => return Ok(found(Kind::Zero, false, None)),
            },
        }
    }
}

impl Status {
    /// Of which nothing is known but that it may be data.
    pub fn unknown(len: u64) -> Status {
        let (kind, offset) = (Kind::Data, None);
        Status { kind, len, depth: 0, present: true, offset, is_compressed: false }
    }

    /// Whole sectors of the disk from `at` on, of which `rest` bytes are left: where a raw file ends within a sector, all of it counts as what it
    /// begins with.
    pub fn in_sectors(self, at: u64, rest: u64) -> Status {
        let end = (at + self.len).checked_next_multiple_of(SECTOR);
        Status { len: end.map_or(rest, |end| rest.min(end - at)), ..self }
    }
}

/// Of a raw image: data, or a hole in the file.
fn raw(host: &HostNode, at: u64, len: u64, depth: u32) -> Status {
    let end = at + len;
    let data = host.file().next_data(at).map_or(end, |data| data.min(end));
    let (kind, stop) = if data > at {
        (Kind::Zero, data)
    } else {
        (Kind::Data, host.file().next_hole(at).min(end))
    };
    // A file may change while it is looked at; the answer is then of no use, but must not be empty.
    let len = if stop > at { stop - at } else { len };
    Status { kind, len, depth, present: true, offset: Some(at), is_compressed: false }
}
