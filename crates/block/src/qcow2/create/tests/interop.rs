//! New images under QEMU: checked, described, written to, checked again.

use super::*;
use crate::qemu_tool::{TempFile, check, content, is_there, run};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

#[expect(clippy::disallowed_methods, reason = "a test's own file")]
fn create(path: &Path) -> File {
    OpenOptions::new().write(true).create_new(true).open(path).unwrap()
}

/// A file with a new image. With nothing preallocated it is made by [`new_image`], otherwise piece by piece.
fn made(options: &CreateOptions) -> TempFile {
    let image = TempFile::new("qcow2");
    let file = create(image.path());
    if options.is_preallocated() {
        let layout = Layout::new(options).unwrap();
        file.set_len(layout.file_bytes()).unwrap();
        for Piece { at, bytes } in layout.pieces() {
            file.write_all_at(&bytes, at).unwrap();
        }
    } else {
        let (bytes, len) = new_image(options).unwrap();
        file.set_len(len).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
    }
    image
}

fn assert_clean(image: &TempFile, allocated: u64, options: &CreateOptions) {
    let verdict = check("qcow2", image.path());
    let found = (verdict.errors, verdict.leaks, verdict.allocated);
    assert_eq!(found, (0, 0, allocated), "{options:?}");
}

/// `qemu-img info` in one string, without the children.
fn info(image: &TempFile) -> String {
    let output = run(&["info", "--output=json", "-f", "qcow2", image.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text[text.find("\n    ],").unwrap()..].to_string()
}

fn assert_described(image: &TempFile, options: &CreateOptions) {
    let info = info(image);
    let compression = if options.compression == Compression::Zlib { "zlib" } else { "zstd" };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut lines = vec![
        format!("\"virtual-size\": {},", options.bytes),
        format!("\"cluster-size\": {},", options.cluster_bytes),
        format!("\"compat\": \"{}\"", if options.version == 2 { "0.10" } else { "1.1" }),
        format!("\"refcount-bits\": {}", options.refcount_bits),
        format!("\"compression-type\": \"{compression}\""),
    ];
    if options.version == 3 {
        lines.push(format!("\"lazy-refcounts\": {}", options.lazy_refcounts));
        lines.push(format!("\"extended-l2\": {}", options.extended_l2));
    }
    if let Some(backing) = &options.backing {
        lines.push(format!("\"backing-filename\": \"{}\"", text(&backing.name)));
        let format = text(backing.format.as_ref().unwrap());
        lines.push(format!("\"backing-filename-format\": \"{format}\""));
    }
    if let Some(name) = &options.data_file {
        lines.push(format!("\"data-file\": \"{}\"", text(name)));
        lines.push(format!("\"data-file-raw\": {}", options.data_file_raw));
    }
    for line in lines {
        assert!(info.contains(&line), "{line} is not in {info}: {options:?}");
    }
}

fn qemu_io(image: &TempFile, commands: &[String]) {
    let mut tool = Command::new("qemu-io");
    for command in commands {
        tool.args(["-c", command]);
    }
    let output = tool.args(["-f", "qcow2"]).arg(image.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = said.contains("failed") || said.contains("error") || !output.status.success();
    assert!(!failed, "{commands:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
}

/// Writes here and there, reads it back in another process, and has the image checked.
fn assert_usable(image: &TempFile, options: &CreateOptions) {
    if options.bytes == 0 {
        return;
    }
    let last = options.bytes - 512;
    let places = [0, options.bytes / 2 / 512 * 512, last];
    let io = |verb: &str| {
        let numbered = places.iter().zip(1..);
        // Two of them may be the same sector: the later one stands.
        let mine = numbered.filter(|(at, n)| places[*n..].iter().all(|other| other != *at));
        mine.map(|(at, n)| format!("{verb} -P {n} {at} 512")).collect::<Vec<String>>()
    };
    qemu_io(image, &io("write"));
    qemu_io(image, &io("read"));
    let verdict = check("qcow2", image.path());
    assert_eq!((verdict.errors, verdict.leaks), (0, 0), "{options:?}");
}

#[test]
fn new_images_of_every_kind() {
    if !is_there() {
        return;
    }
    for cluster_bytes in [512, 4096, 65536, 2 << 20] {
        let large = if cluster_bytes == 512 { 1 << 34 } else { 1 << 40 };
        for bytes in [0, 512, 1 << 20, (1 << 30) + 512, large] {
            let plain = CreateOptions { cluster_bytes, ..CreateOptions::new(bytes) };
            let mut all = vec![CreateOptions { version: 2, ..plain.clone() }];
            for refcount_bits in [1, 2, 4, 8, 16, 32, 64] {
                all.push(CreateOptions {
                    refcount_bits,
                    lazy_refcounts: refcount_bits == 8,
                    compression: match refcount_bits {
                        32 => Compression::Zstd,
                        _ => Compression::Zlib,
                    },
                    extended_l2: cluster_bytes >= 65536 && refcount_bits % 8 == 0,
                    ..plain.clone()
                });
            }
            for options in all {
                let image = made(&options);
                assert_clean(&image, 0, &options);
                assert_described(&image, &options);
                // The others differ in nothing that writing finds.
                if matches!(options.refcount_bits, 1 | 16 | 64) {
                    assert_usable(&image, &options);
                }
            }
        }
    }
}

#[test]
fn preallocated_images() {
    use Preallocation::{Falloc, Full, Metadata};
    if !is_there() {
        return;
    }
    for (cluster_bytes, bytes) in [
        (512, 1 << 20),
        (4096, (8 << 20) + 512),
        (65536, 512),
        (65536, (1 << 30) + 512),
        (2 << 20, 1 << 24),
    ] {
        for refcount_bits in [1, 4, 16, 64] {
            for (preallocation, extended_l2) in
                [(Metadata, false), (Falloc, false), (Full, false), (Metadata, true)]
            {
                let options = CreateOptions {
                    cluster_bytes,
                    refcount_bits,
                    preallocation,
                    extended_l2: extended_l2 && cluster_bytes >= 16384,
                    ..CreateOptions::new(bytes)
                };
                let image = made(&options);
                assert_clean(&image, bytes.div_ceil(cluster_bytes), &options);
                assert_described(&image, &options);
                let before = image.path().metadata().unwrap().len();
                assert_usable(&image, &options);
                // All writes found their clusters there.
                assert_eq!(image.path().metadata().unwrap().len(), before, "{options:?}");
            }
        }
    }
    let options = CreateOptions { preallocation: Metadata, ..CreateOptions::new(3 << 20) };
    assert!(content("qcow2", made(&options).path()) == vec![0; 3 << 20]);
}

#[test]
fn data_and_backing_files() {
    if !is_there() {
        return;
    }
    let disk: Vec<u8> = (0..1u32 << 20).map(|n| (n / 512 % 251) as u8).collect();
    let base = TempFile::with("raw", &disk);
    let path = |file: &TempFile| file.path().to_str().unwrap().as_bytes().to_vec();
    let backing = BackingFile { name: path(&base), format: Some(b"raw".into()) };
    let plain = CreateOptions { backing: Some(backing), ..CreateOptions::new(1 << 20) };
    let extended = CreateOptions { extended_l2: true, ..plain.clone() };
    let metadata = Preallocation::Metadata;
    for options in [
        CreateOptions { version: 2, ..plain.clone() },
        CreateOptions { preallocation: metadata, ..extended.clone() },
        extended,
        plain,
    ] {
        let image = made(&options);
        let verdict = check("qcow2", image.path());
        assert_eq!((verdict.errors, verdict.leaks), (0, 0), "{options:?}");
        assert_described(&image, &options);
        // The backing file is seen through, preallocated or not.
        assert!(content("qcow2", image.path()) == disk, "{options:?}");
        assert_usable(&image, &options);
    }
    for (data_file_raw, preallocation, extended_l2) in [
        (false, Preallocation::Off, false),
        (false, metadata, true),
        (true, Preallocation::Off, false),
        (true, metadata, true),
    ] {
        let data = TempFile::with("data", &disk);
        let options = CreateOptions {
            data_file: Some(path(&data)),
            data_file_raw,
            preallocation,
            extended_l2,
            ..CreateOptions::new(1 << 20)
        };
        let image = made(&options);
        assert_clean(&image, if options.is_preallocated() { 16 } else { 0 }, &options);
        assert_described(&image, &options);
        let seen = content("qcow2", image.path());
        let is_seen = seen == disk;
        assert_eq!(is_seen, options.is_preallocated(), "{options:?}");
        assert_usable(&image, &options);
        assert!(!data_file_raw || data.bytes() == content("qcow2", image.path()));
    }
}
