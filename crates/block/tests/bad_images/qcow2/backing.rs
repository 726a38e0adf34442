//! The file that an image stands on, or has its data in.

use super::*;
use crate::common::options;
use block::{BackingFiles, Format, Image, OpenOptions};

const RAW: Option<&[u8]> = Some(b"raw");
const QCOW2: Option<&[u8]> = Some(b"qcow2");

#[test]
fn a_backing_name_is_a_plain_path_or_refused() {
    for (name, kind) in crate::bad_backing_names("image.qcow2") {
        for format in [RAW, QCOW2] {
            let shown = String::from_utf8_lossy(&name);
            refused(&format!("backing name {shown:?}"), &Craft::over(&name, format), kind);
        }
    }
}

#[test]
fn a_backing_format_is_one_of_ours_or_refused() {
    use ErrorKind::{BadRequest, Corrupt, Unsupported};
    let rows: &[(&str, Option<&[u8]>, ErrorKind)] = &[
        ("none: never guessed", None, BadRequest),
        ("one that we do not have", Some(b"vmdk"), Unsupported),
        ("a protocol", Some(b"file"), Unsupported),
        ("a host device", Some(b"host_device"), Unsupported),
        ("in other letters", Some(b"RAW"), Unsupported),
        ("no UTF-8", Some(b"\xff\xfe"), Unsupported),
        ("no bytes", Some(b""), Unsupported),
        ("with NUL", Some(b"raw\0"), Corrupt),
    ];
    for (name, format, kind) in rows {
        let dir = Dir::new();
        dir.file("base", &[0x99; 8192]);
        let image = Craft::over(b"base", *format);
        let path = make(&dir, &image);
        for read_only in [true, false] {
            let error = Disk::open(&path, WAY, read_only).map(drop).unwrap_err();
            assert_eq!(error.kind(), *kind, "{name}: {error}");
        }
        unchanged(name, &path, &image);
    }
}

#[test]
fn a_backing_file_is_opened_with_consent_only() {
    let dir = Dir::new();
    dir.file("base", &[0x99; 8192]);
    let image = Craft::over(b"base", RAW);
    let path = make(&dir, &image);
    for read_only in [true, false] {
        let consent = options(Format::Qcow2, WAY, read_only);
        let refuse = OpenOptions { backing_files: BackingFiles::Refuse, ..consent.clone() };
        let error = Image::open(&path, &refuse).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadRequest, "{error}");
        let opened = Image::open(&path, &consent).unwrap();
        let base = opened.backing().unwrap();
        assert!(base.options().read_only && base.format() == Format::Raw);
    }
    unchanged("consent", &path, &image);
}

#[test]
fn a_raw_backing_file_is_never_taken_for_an_image() {
    // A guest may write any bytes to its disk, a header that names another file included.
    let dir = Dir::new();
    dir.file("secret", b"secret");
    let inner = Craft::over(b"secret", RAW);
    dir.file("base", &inner.bytes);
    let path = make(&dir, &Craft::over(b"base", RAW));
    let disk = Disk::open(&path, WAY, true).unwrap();
    assert_eq!(disk.read(4 * 4096, 4096).unwrap(), inner.bytes[16384..20480]);
    disk.close().unwrap();
    // And what is said to be an image and is none is refused.
    dir.file("base", &[0x99; 8192]);
    let path = make(&dir, &Craft::over(b"base", QCOW2));
    assert_eq!(Disk::open(&path, WAY, true).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_backing_disk_may_be_shorter_or_longer() {
    for len in [0, 512, 4096 * 5 + 512, PLAIN.disk_bytes(), PLAIN.disk_bytes() + (1 << 20)] {
        let dir = Dir::new();
        dir.file("base", &vec![0x99; len as usize]);
        let path = make(&dir, &Craft::over(b"base", RAW));
        let disk = Disk::open(&path, WAY, false).unwrap();
        check_good("over", &disk, PLAIN);
        for at in [5 * 4096, PLAIN.disk_bytes() - 4096] {
            disk.write(at + 1024, &[GUEST; 512]).unwrap();
            let mut expected = vec![0; 4096];
            let there = len.saturating_sub(at).min(4096) as usize;
            expected[..there].fill(0x99);
            expected[1024..1536].fill(GUEST);
            assert!(disk.read(at, 4096).unwrap() == expected, "{len}: at {at}");
        }
        disk.close().unwrap();
    }
}

#[test]
fn what_a_backing_image_maps_beyond_its_disk_does_not_show() {
    let dir = Dir::new();
    let mut base = Craft::good();
    let extra = base.add(1, 0x77);
    base.set_count(extra, 1);
    base.set_l2(PLAIN.disk_bytes() / 4096, PLAIN.at(extra) | COPIED);
    dir.file("base", &base.bytes);
    let mut over = Craft::over(b"base", QCOW2);
    over.set64(24, PLAIN.disk_bytes() + (1 << 20));
    over.set_l2(1, 0);
    let path = make(&dir, &over);
    let disk = Disk::open(&path, WAY, false).unwrap();
    assert_eq!(disk.read(4096, 4096).unwrap(), [BYTES[1]; 4096]);
    let end = PLAIN.disk_bytes();
    assert_eq!(disk.read(end - 4096, 8192).unwrap(), [0; 8192]);
    // Copied on write.
    disk.write(end + 512, &[3; 512]).unwrap();
    assert_eq!(disk.read(end, 512).unwrap(), [0; 512]);
    assert_eq!(disk.read(end + 1024, 3072).unwrap(), [0; 3072]);
    disk.close().unwrap();
}

#[test]
fn a_chain_that_bites_its_tail_is_refused() {
    let dir = Dir::new();
    let files = ["a.qcow2", "b.qcow2", "c.qcow2"];
    for (n, name) in files.into_iter().enumerate() {
        dir.file(name, &Craft::over(files[(n + 1) % 3].as_bytes(), QCOW2).bytes);
    }
    std::os::unix::fs::symlink("b.qcow2", dir.path("link")).unwrap();
    dir.file("a2.qcow2", &Craft::over(b"link", QCOW2).bytes);
    dir.file("b2.qcow2", &Craft::over(b"b2link", QCOW2).bytes);
    std::os::unix::fs::symlink("b2.qcow2", dir.path("b2link")).unwrap();
    for name in ["a.qcow2", "a2.qcow2", "b2.qcow2"] {
        for read_only in [true, false] {
            let error = Disk::open(&dir.path(name), WAY, read_only).map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadRequest, "{name} {read_only}: {error}");
        }
    }
}

#[test]
fn a_chain_has_at_most_200_images() {
    let dir = Dir::new();
    dir.file("0", &[0x99; 65536]);
    for n in 1..=200 {
        let below = format!("{}", n - 1);
        let mut image = Craft::over(below.as_bytes(), if n == 1 { RAW } else { QCOW2 });
        // Nothing of its own.
        image.set_l1(0, 0);
        image.set_l1(1, 0);
        image.bytes.truncate(PLAIN.at(L1 + 1) as usize);
        dir.file(&format!("{n}"), &image.bytes);
    }
    let options = options(Format::Qcow2, WAY, false);
    let top = |n: u32| Disk::open_with(&dir.path(&format!("{n}")), WAY.engine, &options);
    assert_eq!(top(200).unwrap_err().kind(), ErrorKind::BadRequest);
    let disk = top(199).unwrap();
    assert_eq!(disk.read(0, 4096).unwrap(), [0x99; 4096]);
    disk.close().unwrap();
}

/// With the data in the file of this name; `None`: the header does not say in which.
fn with_data_file(name: Option<&[u8]>) -> Craft {
    edited(|image| {
        image.set64(AT_INCOMPATIBLE, 4);
        if let Some(name) = name {
            image.set32(112, 0x4441_5441);
            image.set32(116, name.len() as u32);
            image.bytes[120..120 + name.len()].copy_from_slice(name);
        }
        for cluster in 0..4 {
            image.set_l2(cluster, (cluster * 4096) | COPIED);
        }
    })
}

#[test]
fn a_data_file_is_opened_with_consent_only_and_is_a_plain_path() {
    use ErrorKind::{BadRequest, Corrupt, Io, Unsupported};
    let rows: &[(Option<&[u8]>, ErrorKind)] = &[
        (None, Corrupt),
        (Some(b"json:{\"driver\":\"raw\"}"), Unsupported),
        (Some(b"nbd://localhost"), Unsupported),
        (Some(b"missing"), Io),
        (Some(b"/dev/null"), BadRequest),
        (Some(b".."), BadRequest),
        (Some(b"image.qcow2"), BadRequest),
        (Some(b"data\0x"), Corrupt),
    ];
    for (name, kind) in rows {
        refused(&format!("data file {name:?}"), &with_data_file(*name), *kind);
    }
    let dir = Dir::new();
    let data = dir.file("data", &vec![0x66; PLAIN.disk_bytes() as usize]);
    let path = make(&dir, &with_data_file(Some(b"data")));
    let consent = options(Format::Qcow2, WAY, true);
    let refuse = OpenOptions { backing_files: BackingFiles::Refuse, ..consent };
    assert_eq!(Image::open(&path, &refuse).unwrap_err().kind(), BadRequest);
    let disk = Disk::open(&path, WAY, true).unwrap();
    assert_eq!(disk.read(0, 16384).unwrap(), [0x66; 16384]);
    disk.close().unwrap();
    assert!(std::fs::read(data).unwrap().iter().all(|byte| *byte == 0x66));
}

#[test]
fn in_an_image_with_a_data_file_a_place_is_the_disks_own_or_noticed() {
    for value in [5 << 12 | COPIED, 9 << 12 | COPIED, 1 << 40 | COPIED, IS_COMPRESSED | 4096, 2] {
        let dir = Dir::new();
        let data = dir.file("data", &vec![0x66; PLAIN.disk_bytes() as usize]);
        let mut image = with_data_file(Some(b"data"));
        image.set_l2(4, value);
        let path = make(&dir, &image);
        let disk = Disk::open(&path, WAY, false).unwrap();
        let error = disk.write(4 * 4096, &[GUEST; 4096]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{value:#x}: {error}");
        assert!(disk.is_poisoned(), "{value:#x}");
        let _ = disk.close();
        assert!(std::fs::read(data).unwrap().iter().all(|byte| *byte == 0x66), "{value:#x}");
    }
}
