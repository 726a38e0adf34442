//! Mounts, and what a file system and its options mean for the images on it.

use super::finding::{Finding, Id, Status};
use super::host::{Host, Unread, human};
use super::spot::{Kind, Spot};

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug)]
pub struct Mount {
    id: u64,
    /// `major:minor`; major 0 where no block device stands for the file system.
    device: String,
    /// Where it is mounted.
    pub point: String,
    /// Type of the file system.
    pub kind: String,
    /// What was mounted: a device, an export, a name.
    pub source: String,
    /// Options of the mount and of the file system.
    options: Vec<String>,
}

impl Mount {
    /// proc(5): `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
    fn parse(line: &str) -> Option<Mount> {
        let (front, back) = line.split_once(" - ")?;
        let front: Vec<&str> = front.split(' ').collect();
        let back: Vec<&str> = back.split(' ').collect();
        let &[id, _, device, _, point, of_mount, ..] = &front[..] else { return None };
        let &[kind, source, ref of_fs @ ..] = &back[..] else { return None };
        let of_fs = of_fs.first().copied().unwrap_or("");
        let options = of_mount.split(',').chain(of_fs.split(','));
        Some(Mount {
            id: id.parse().ok()?,
            device: device.to_owned(),
            point: unescape(point),
            kind: kind.to_owned(),
            source: unescape(source),
            options: options.map(unescape).collect(),
        })
    }

    /// Whether it has this option, in full.
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|own| own == option)
    }

    /// The value of an option `name=value`.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find_map(|own| own.strip_prefix(name)?.strip_prefix('='))
    }

    /// Whether its files are on another machine, or behind a program that may not answer.
    pub fn is_remote(&self) -> bool {
        let remote = [
            "nfs",
            "nfs4",
            "cifs",
            "smb3",
            "smbfs",
            "ceph",
            "9p",
            "afs",
            "lustre",
            "glusterfs",
            "gfs2",
            "ocfs2",
            "virtiofs",
            "fuse",
            "fuseblk",
        ];
        remote.contains(&self.kind.as_str()) || self.kind.starts_with("fuse.")
    }
}

/// `\040` and the like, as the kernel writes white space in names.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        let code = match more {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if *first == b'\\' => {
                Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &more[3..] } else { more };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// All mounts that this process sees.
#[derive(Clone, Debug)]
pub struct Mounts(Result<Vec<Mount>, Unread>);

impl Mounts {
    /// Reads them; lines that make no sense are left out.
    pub fn read(host: &Host) -> Mounts {
        Mounts(host.text(MOUNTINFO).map(|text| text.lines().filter_map(Mount::parse).collect()))
    }

    /// All, or why they are not known.
    pub fn all(&self) -> Result<&[Mount], &Unread> {
        self.0.as_deref()
    }

    /// The mount with this id, or the one whose point is the longest prefix of an absolute path without links.
    pub fn holding(&self, id: Option<u64>, path: &str) -> Option<&Mount> {
        let all = self.0.as_deref().ok()?;
        let by_id = all.iter().find(|mount| Some(mount.id) == id);
        // Of several at one point, the last hides the others.
        let by_path = || {
            all.iter().filter(|mount| is_below(path, &mount.point)).max_by_key(|m| m.point.len())
        };
        by_id.or_else(by_path)
    }

    /// The `major:minor` of the block device under a mount; `None` where there is none.
    pub fn device_of(&self, host: &Host, mount: &Mount) -> Option<String> {
        let mut mount = mount;
        // An overlay over an overlay is rare, a loop of them impossible; a made-up file may claim anything.
        for _ in 0..8 {
            if !mount.device.starts_with("0:") {
                return Some(mount.device.clone());
            }
            let Some(upper) = mount.option("upperdir").filter(|_| mount.kind == "overlay") else {
                return by_name(host, &mount.source);
            };
            mount = self.holding(None, upper)?;
        }
        None
    }
}

fn is_below(path: &str, point: &str) -> bool {
    let rest = path.strip_prefix(point.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The `major:minor` of a device by its name under `/dev`, as btrfs and others give it.
fn by_name(host: &Host, source: &str) -> Option<String> {
    let name = source.strip_prefix("/dev/")?;
    let Some(mapped) = name.strip_prefix("mapper/") else {
        let sys_name = name.replace('/', "!");
        return host.text(&format!("/sys/class/block/{sys_name}/dev")).ok();
    };
    let blocks = host.names("/sys/class/block");
    let is_it = |name: &&String| {
        host.text(&format!("/sys/class/block/{name}/dm/name")).is_ok_and(|own| own == mapped)
    };
    let found = blocks.iter().filter(|name| name.starts_with("dm-")).find(is_it)?;
    host.text(&format!("/sys/class/block/{found}/dev")).ok()
}

/// What the file system under a path means.
pub fn check(mounts: &Mounts, spot: &Spot, out: &mut Vec<Finding>) {
    // A device is used past the file system that its name is in.
    if spot.kind == Kind::Device {
        return;
    }
    let path = spot.shown();
    if let Err(why) = mounts.all() {
        out.push(Finding::unknown(Id::FsType, "file system", MOUNTINFO, why).about(&path));
        return;
    }
    let Some(mount) = mounts.holding(spot.mount_id, &path) else {
        let why = "the path is under none of the mounts";
        out.push(Finding::unknown(Id::FsType, "file system", MOUNTINFO, why).about(&path));
        return;
    };
    let at = &mount.point;
    let mut push = |finding: Finding| out.push(finding.about(at));
    push(fs_type(mount));
    for finding in [barrier(mount), journal(mount), discard(mount)].into_iter().flatten() {
        push(finding);
    }
    push(sync(mount));
    push(read_only(mount));
    push(atime(mount));
    push(space(spot));
}

/// How a type of file system is judged, what that means, and what to do.
type Judgement = (Status, &'static str, Option<&'static str>);

/// Types of file systems that are known.
const TYPES: &[(&[&str], Status, &str, Option<&str>)] = &[
    (
        &["ext4", "xfs"],
        Status::Ok,
        "overwrites in place and takes direct I/O: a disk image costs little more \
         than the device",
        None,
    ),
    (
        &["f2fs"],
        Status::Note,
        "a log-structured file system: random writes go elsewhere each time, and \
         space must be cleaned up later",
        None,
    ),
    (
        &["ext2", "ext3"],
        Status::Note,
        "maps large files block by block: more metadata to read than ext4 or xfs",
        Some("for images, a file system of type xfs or ext4"),
    ),
    (
        &["btrfs", "bcachefs"],
        Status::Warning,
        "copies on write: each guest write goes to a new place, images fall to \
         pieces, and checksums are kept for each block",
        Some(
            "chattr +C on the (empty) directory of the images, or a file system of type \
             xfs or ext4 for them",
        ),
    ),
    (
        &["zfs"],
        Status::Warning,
        "copies on write in records of 128 KiB: a guest's 4 KiB write reads and \
         writes a record",
        Some("zfs set recordsize=16K on the data set of the images, or serve a zvol"),
    ),
    (
        &["overlay", "aufs"],
        Status::Warning,
        "a container's layered file system: the first write to an image copies the \
         whole file, each open goes through two file systems",
        Some("keep images on a volume or a bind mount of the host's file system"),
    ),
    (
        &["tmpfs", "ramfs", "hugetlbfs"],
        Status::Note,
        "lives in RAM: figures measured here are of memory, flushes do nothing, and \
         a restart loses all",
        Some("give a path on the disk you want to know about"),
    ),
    (&["squashfs", "erofs", "iso9660"], Status::Note, "can only be read", None),
    (
        &["vfat", "exfat", "msdos", "ntfs", "ntfs3"],
        Status::Warning,
        "has no holes or no journal: an image takes its full size at once, and a \
         crash may damage it",
        Some("for images, a file system of type xfs or ext4"),
    ),
];

const REMOTE: Judgement = (
    Status::Warning,
    "over a network or a program of its own: each flush is a round trip, direct \
     I/O and holes depend on the other side, and when that is gone all I/O waits",
    Some(
        "for speed, a local file system; for sharing, a block protocol (iSCSI, NVMe \
         over fabrics, RBD)",
    ),
);

const UNHEARD_OF: Judgement = (
    Status::Note,
    "a file system that ferroblk knows nothing about; see below what it can do",
    None,
);

fn fs_type(mount: &Mount) -> Finding {
    let kind = mount.kind.as_str();
    let known = TYPES.iter().find(|(names, ..)| names.contains(&kind));
    let (status, means, fix) = match known {
        Some(&(_, status, means, fix)) => (status, means, fix),
        None if mount.is_remote() => REMOTE,
        None => UNHEARD_OF,
    };
    let what = format!("{kind}, mounted from {}", mount.source);
    let finding = Finding::new(Id::FsType, status, what, MOUNTINFO, means);
    match fix {
        Some(fix) => finding.fix(fix),
        None => finding,
    }
}

/// Of file systems on a device with a write cache that they must flush.
fn barrier(mount: &Mount) -> Option<Finding> {
    if !["ext3", "ext4", "xfs", "btrfs", "f2fs", "reiserfs", "jfs"].contains(&mount.kind.as_str()) {
        return None;
    }
    let off =
        ["nobarrier", "barrier=0", "barrier=none"].into_iter().find(|option| mount.has(option));
    Some(match off {
        Some(option) => Finding::new(
            Id::FsBarrier,
            Status::Problem,
            format!("write barriers are off ({option})"),
            MOUNTINFO,
            "no flush reaches the device: syncs look fast, and a power cut loses or mixes up what was synced, \
             the guest's file system with it. Figures with and without barriers do not compare",
        )
        .fix(format!("mount -o remount,barrier {}, and take {option} out of /etc/fstab", mount.point)),
        None => Finding::new(
            Id::FsBarrier,
            Status::Ok,
            "write barriers are on",
            MOUNTINFO,
            "a sync flushes the device's write cache: what the guest was told is safe \
             survives a power cut",
        ),
    })
}

/// Of file systems whose journal may hold data.
fn journal(mount: &Mount) -> Option<Finding> {
    if !["ext3", "ext4"].contains(&mount.kind.as_str()) {
        return None;
    }
    let mode = mount.option("data").unwrap_or("ordered");
    let (status, means) = match mode {
        "journal" => (
            Status::Warning,
            "each byte is written twice, once into the journal, and direct I/O is turned \
             into buffered I/O",
        ),
        "writeback" => (
            Status::Note,
            "after a power cut, blocks that were just added to a file may show what was \
             there before",
        ),
        _ => (Status::Ok, "data goes to its place only, before the journal says that it is there"),
    };
    let finding = Finding::new(
        Id::FsJournal,
        status,
        format!("journal mode is data={mode}"),
        MOUNTINFO,
        means,
    );
    Some(finding.fix_unless_ok("take data= out of the options in /etc/fstab and mount anew"))
}

/// Of file systems that may discard at each delete.
fn discard(mount: &Mount) -> Option<Finding> {
    if !["ext4", "xfs", "btrfs", "f2fs"].contains(&mount.kind.as_str()) {
        return None;
    }
    let at_once = mount.has("discard") || mount.option("discard") == Some("sync");
    // f2fs discards in the background in any case.
    let status = if at_once && mount.kind != "f2fs" { Status::Note } else { Status::Ok };
    let (what, means) = match status {
        Status::Note => (
            "freed blocks are discarded at once (discard)",
            "a delete, and each hole that a guest's discard makes, sends discards to the \
             device, between the reads and writes of others",
        ),
        _ => (
            "freed blocks are not discarded one by one",
            "deletes and holes do not disturb other I/O",
        ),
    };
    Some(
        Finding::new(Id::FsDiscard, status, what, MOUNTINFO, means)
            .fix_unless_ok("mount without discard, and systemctl enable --now fstrim.timer"),
    )
}

fn sync(mount: &Mount) -> Finding {
    if mount.has("sync") {
        let means =
            "each write to each file waits for the medium, whatever cache mode the disk has";
        return Finding::new(Id::FsSync, Status::Warning, "mounted with sync", MOUNTINFO, means)
            .fix(format!(
                "mount -o remount,async {}; for durable writes of one disk: --cache writethrough",
                mount.point
            ));
    }
    let means = "writes wait for the medium only where the disk's cache mode says so";
    Finding::new(Id::FsSync, Status::Ok, "not mounted with sync", MOUNTINFO, means)
}

fn read_only(mount: &Mount) -> Finding {
    if mount.has("ro") {
        let means = "images there can be served only with --read-only. After an error a file \
            system may have turned itself so: see dmesg";
        return Finding::new(
            Id::FsReadOnly,
            Status::Warning,
            "mounted read-only",
            MOUNTINFO,
            means,
        )
        .fix(format!("mount -o remount,rw {}", mount.point));
    }
    Finding::new(
        Id::FsReadOnly,
        Status::Ok,
        "can be written",
        MOUNTINFO,
        "images there can be changed",
    )
}

fn atime(mount: &Mount) -> Finding {
    let option = ["noatime", "relatime", "lazytime"].into_iter().find(|option| mount.has(option));
    match option {
        Some(option) => Finding::new(
            Id::FsAtime,
            Status::Ok,
            format!("times of access: {option}"),
            MOUNTINFO,
            "reading does not cause writing",
        ),
        // A file system that can only be read keeps no times.
        None if mount.has("ro") => Finding::new(
            Id::FsAtime,
            Status::Ok,
            "times of access: none, read-only",
            MOUNTINFO,
            "reading does not cause writing",
        ),
        None => Finding::new(
            Id::FsAtime,
            Status::Note,
            "times of access: strictatime",
            MOUNTINFO,
            "each read of an image also changes its inode, which is written later",
        )
        .fix(format!("mount -o remount,noatime {}", mount.point)),
    }
}

fn space(spot: &Spot) -> Finding {
    let source = "statvfs";
    let space = match &spot.space {
        Ok(space) => space,
        Err(why) => return Finding::unknown(Id::FsSpace, "free space", source, why),
    };
    let what = format!("{} of {} free", human(space.free), human(space.total));
    // Sparse images grow: what is free is what all guests together can still write.
    let scarce = space.free < space.total / 20;
    if scarce && space.total > 0 {
        let means = "sparse images grow into this space. When it is used up guests are stopped \
            or get errors; and a nearly full file system finds free blocks slowly and \
            far apart";
        return Finding::new(Id::FsSpace, Status::Warning, what, source, means)
            .fix("make room, or let guests discard (fstrim) with --discard unmap");
    }
    Finding::new(Id::FsSpace, Status::Ok, what, source, "room for images to grow")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_mountinfo_are_unescaped() {
        assert_eq!(unescape(r"/a\040b\134c\0"), r"/a b\c\0");
        assert_eq!(unescape(r"\"), r"\");
    }

    #[test]
    fn lines_that_make_no_sense_are_no_mounts() {
        for odd in ["", " - ", "1 2 3 - 4", "x 1 0:1 / / rw - ext4 a rw", "1 1 0:1 / /"] {
            assert!(Mount::parse(odd).is_none(), "{odd}");
        }
        let line = "36 35 98:0 /in /on rw,noatime master:1 shared:2 - ext3 /dev/x rw,data=journal";
        let mount = Mount::parse(line).unwrap();
        assert_eq!((mount.device.as_str(), mount.point.as_str()), ("98:0", "/on"));
        assert_eq!((mount.kind.as_str(), mount.option("data")), ("ext3", Some("journal")));
    }

    #[test]
    fn a_path_is_below_whole_names_only() {
        assert!(is_below("/a/b", "/a") && is_below("/a", "/a") && is_below("/a", "/"));
        assert!(!is_below("/ab", "/a"));
    }
}
