//! QEMU's images: what `qemu-img info` says of them and what we read is the same, and is still said of what we write.

use super::*;
use crate::qemu_tool::{TempFile, check, is_there, run};

/// An image of QEMU's making, with `options` for `create` and what is done to it afterwards: words of `qemu-img`, with IMAGE for its path.
struct Made {
    image: TempFile,
    _others: Vec<TempFile>,
}

const SECRET: &str = "secret,id=s,data=abc";

fn qemu_img(words: &[&str]) {
    let output = run(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Made {
    /// BASE and DATA in the options are other files' paths.
    fn new(options: &str, size: &str, then: &[&[&str]]) -> Made {
        let image = TempFile::new("qcow2");
        let base = TempFile::with("raw", &[7; 4096]);
        let data = TempFile::new("data");
        let path = |file: &TempFile| file.path().to_str().unwrap().to_string();
        let options = options.replace("BASE", &path(&base)).replace("DATA", &path(&data));
        let at = path(&image);
        let create = ["create", "-q", "-f", "qcow2", "--object", SECRET];
        let named = ["-o", &options, &at, size];
        let rest = if options.is_empty() { &named[2..] } else { &named[..] };
        qemu_img(&[&create[..], rest].concat());
        for words in then {
            let words: Vec<&str> =
                words.iter().map(|word| if *word == "IMAGE" { &at } else { *word }).collect();
            qemu_img(&words);
        }
        Made { image, _others: vec![base, data] }
    }

    fn path(&self) -> &str {
        self.image.path().to_str().unwrap()
    }

    fn header(&self) -> Header {
        let bytes = self.image.bytes();
        Header::parse(&bytes[..bytes.len().min(2 << 20)], bytes.len() as u64).unwrap()
    }

    fn info(&self) -> Info {
        let output = run(&["info", "--output=json", "-f", "qcow2", self.path()]);
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{why}");
        Info(String::from_utf8(output.stdout).unwrap())
    }
}

/// QEMU's description, one value a line.
#[derive(PartialEq, Eq, Debug)]
struct Info(String);

impl Info {
    /// The value of a name at a depth: 1 is the image, 3 the format's own.
    fn get(&self, depth: usize, name: &str) -> Option<&str> {
        let start = format!("{}\"{name}\": ", " ".repeat(4 * depth));
        let line = self.0.lines().find_map(|line| line.strip_prefix(start.as_str()))?;
        Some(line.trim_end_matches(',').trim_matches('"'))
    }

    fn own(&self, name: &str) -> Option<&str> {
        // The format of the children is at another depth, or has none of these names.
        self.get(3, name)
    }

    fn is(&self, name: &str) -> bool {
        self.own(name) == Some("true")
    }

    /// How often a name comes within the list `list`.
    fn count(&self, depth: usize, list: &str, name: &str) -> usize {
        let indent = " ".repeat(4 * depth);
        let (start, end) = (format!("{indent}\"{list}\": ["), format!("{indent}]"));
        let lines = self.0.lines().skip_while(|line| *line != start);
        let inside = lines.take_while(|line| line.trim_end_matches(',') != end);
        inside.filter(|line| line.trim_start().starts_with(&format!("\"{name}\": "))).count()
    }

    /// Without what a rewritten header may change: the space that the file takes.
    fn lasting(&self) -> Vec<&str> {
        self.0.lines().filter(|line| !line.contains("\"actual-size\"")).collect()
    }
}

fn assert_agrees(header: &Header, info: &Info, name: &str) {
    let text = |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).unwrap();
    let number = |value: u64| Some(value.to_string());
    let owned = |value: Option<&str>| value.map(str::to_string);
    let backing = header.backing.as_ref();
    let compat = if header.version == 2 { "0.10" } else { "1.1" };
    assert_eq!(owned(info.get(1, "virtual-size")), number(header.disk_bytes), "{name}");
    assert_eq!(owned(info.get(1, "cluster-size")), number(header.cluster_bytes()), "{name}");
    assert_eq!(info.own("compat"), Some(compat), "{name}");
    assert_eq!(owned(info.own("refcount-bits")), number(header.refcount_bits().into()), "{name}");
    assert_eq!(info.is("lazy-refcounts"), header.compatible & LAZY_REFCOUNTS != 0, "{name}");
    assert_eq!(info.is("extended-l2"), header.has_subclusters(), "{name}");
    assert_eq!(info.is("corrupt"), header.has(CORRUPT), "{name}");
    let compression = format!("{:?}", header.compression).to_lowercase();
    assert_eq!(info.own("compression-type"), Some(&compression[..]), "{name}");
    assert_eq!(
        owned(info.get(1, "backing-filename")),
        backing.map(|backing| text(&backing.name)),
        "{name}"
    );
    let format = backing.and_then(|backing| backing.format.as_ref());
    assert_eq!(owned(info.get(1, "backing-filename-format")), format.map(text), "{name}");
    assert_eq!(owned(info.own("data-file")), header.data_file.as_ref().map(text), "{name}");
    assert_eq!(header.data_file.is_some(), header.has(EXTERNAL_DATA), "{name}");
    assert_eq!(info.is("data-file-raw"), header.autoclear & DATA_FILE_RAW != 0, "{name}");
    let is_encrypted = header.crypt_method != CryptMethod::None;
    assert_eq!(info.get(1, "encrypted") == Some("true"), is_encrypted, "{name}");
    assert_eq!(info.count(1, "snapshots", "id"), header.snapshots as usize, "{name}");
    let bitmaps = header.bitmaps.map_or(0, |bitmaps| bitmaps.count as usize);
    assert_eq!(info.count(3, "bitmaps", "granularity"), bitmaps, "{name}");
    assert_eq!(info.get(1, "dirty-flag") == Some("true"), header.has(DIRTY), "{name}");
}

fn replace_first_cluster(made: &Made, header: &Header) {
    let mut bytes = made.image.bytes();
    let cluster = bytes.len().min(header.cluster_bytes() as usize);
    let raw = header.encode().unwrap();
    bytes[..cluster].fill(0);
    bytes[..raw.len()].copy_from_slice(&raw);
    write_file(made, &bytes);
}

#[test]
fn headers_of_qemu() {
    if !is_there() {
        return;
    }
    let snapshot: &[&str] = &["snapshot", "-c", "one", "IMAGE"];
    let add: &[&str] = &["bitmap", "--add", "IMAGE", "first"];
    let other: &[&str] = &["bitmap", "--add", "-g", "512", "IMAGE", "second"];
    let luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let cases: &[(&str, &str, &[&[&str]])] = &[
        ("", "0", &[]),
        ("", "512", &[]),
        ("", "64M", &[]),
        ("", "64T", &[]),
        ("compat=v2", "1G", &[snapshot]),
        ("compat=v2,backing_file=BASE,backing_fmt=raw", "1M", &[]),
        ("cluster_size=512,refcount_bits=64", "1M", &[]),
        ("cluster_size=512,backing_file=BASE,backing_fmt=raw", "1M", &[]),
        ("cluster_size=2M,refcount_bits=1,lazy_refcounts=on", "1T", &[]),
        ("cluster_size=2M,extended_l2=on", "1T", &[snapshot, snapshot]),
        ("cluster_size=4k,refcount_bits=2,compression_type=zstd", "1G", &[]),
        ("extended_l2=on,cluster_size=16k,backing_file=BASE,backing_fmt=raw", "1M", &[add]),
        ("data_file=DATA", "1M", &[]),
        ("data_file=DATA,data_file_raw=on,preallocation=metadata", "1M", &[]),
        ("preallocation=metadata", "3M", &[snapshot, add, other]),
        ("", "1M", &[add, other]),
        ("cluster_size=512", "32G", &[]),
        (&format!("{luks},cluster_size=4k,backing_file=BASE,backing_fmt=raw"), "1M", &[]),
        ("encrypt.format=aes,encrypt.key-secret=s", "1M", &[]),
    ];
    for (options, size, then) in cases {
        let made = Made::new(options, size, then);
        let (header, info) = (made.header(), made.info());
        assert_agrees(&header, &info, options);
        assert_eq!(header.crypto.is_some(), options.contains("luks"), "{options}");
        assert_eq!(header.unknown_autoclear() | header.incompatible & (DIRTY | CORRUPT), 0);
        if *size == "64M" {
            assert_eq!(header.feature_names, known_features());
        }
        replace_first_cluster(&made, &header);
        assert_eq!(made.header(), header, "{options}");
        assert_eq!(made.info().lasting(), info.lasting(), "{options}");
        if header.crypt_method == CryptMethod::None {
            let verdict = check("qcow2", made.image.path());
            assert_eq!((verdict.errors, verdict.leaks), (0, 0), "{options}");
        }
    }
}

#[test]
fn bits_set_by_a_patch_are_seen_by_qemu() {
    if !is_there() {
        return;
    }
    let made = Made::new("lazy_refcounts=on", "1M", &[]);
    let header = made.header();
    for bits in [DIRTY, CORRUPT, DIRTY | CORRUPT, 0] {
        let changed = Header { incompatible: bits, ..header.clone() };
        let mut bytes = made.image.bytes();
        changed.patch(&mut bytes[..512]);
        write_file(&made, &bytes);
        assert_agrees(&changed, &made.info(), &format!("{bits:#b}"));
        assert_eq!(made.header(), changed);
    }
}

#[expect(clippy::disallowed_methods, reason = "a test's own file")]
fn write_file(made: &Made, bytes: &[u8]) {
    std::fs::write(made.image.path(), bytes).unwrap();
}
