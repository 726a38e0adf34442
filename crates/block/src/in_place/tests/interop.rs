//! Conversions of images that QEMU made, judged by QEMU.

use crate::in_place::{Converted, qcow2_to_qed, qed_to_qcow2};
use crate::qed::check::{Level, repair};
use crate::qemu_tool::{self, TempFile};
use crate::{Error, HostNode, Result};
use io_engine::{EngineKind, HostFile, IoEngine};
use iothread::{Clock, IoContext};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

/// Runs `work` over a real file.
pub fn with_file<T: 'static, F>(path: &Path, work: impl FnOnce(Rc<HostNode>) -> F) -> Result<T>
where
    F: Future<Output = Result<T>> + 'static,
{
    let context =
        IoContext::new(IoEngine::new(EngineKind::Threads, 32).unwrap(), 16, Clock::monotonic());
    let file = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let file = context.open(HostFile::new(File::from(file), false).unwrap()).unwrap();
    let host = Rc::new(HostNode::new(&context, file, path.display().to_string()));
    context.block_on(work(host)).map_err(|error| Error::io("running", error))?
}

pub fn to_qcow2(path: &Path) -> Result<Converted> {
    with_file(path, |host| async move { Box::pin(qed_to_qcow2(&host, |_, _| ())).await })
}

pub fn to_qed(path: &Path) -> Result<Converted> {
    with_file(path, |host| async move { Box::pin(qcow2_to_qed(&host, |_, _| ())).await })
}

/// `qemu-img`, which must succeed.
pub fn img(words: &[&str]) {
    let output = qemu_tool::run(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `qemu-io` with these commands.
pub fn io(format: &str, path: &Path, commands: &[&str]) {
    let mut run = Command::new("qemu-io");
    run.args(["-f", format]);
    commands.iter().for_each(|command| {
        run.args(["-c", command]);
    });
    let output = run.arg(path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains("failed"), "{commands:?}: {said}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Data and zeroes, scattered; the last sectors of the disk too. (A disk of 64 MiB less 512 bytes.)
const SCATTERED: &[&str] = &[
    "write -P 1 0 64k",
    "write -P 2 100k 3k",
    "write -P 3 5M 2100k",
    "write -z 1M 2M",
    "write -P 4 1500k 10k",
    "write -P 5 40M 512",
    "write -z -u 20M 9M",
    "write -P 6 66846720 262144",
    "write -P 7 67108352 512",
];
const BYTES: &str = "67109376";

struct Case {
    name: String,
    file: TempFile,
    /// What the disk holds.
    content: Vec<u8>,
}

impl Case {
    /// An image made and filled by QEMU; `options` after `-o`.
    fn new(format: &str, options: &str, base: Option<(&TempFile, &str)>) -> Case {
        let file = TempFile::new(format);
        let mut words = vec!["create", "-q", "-f", format, "-o", options];
        if let Some((base, base_format)) = base {
            words.extend(["-b", text(base.path()), "-F", base_format]);
        }
        words.extend([text(file.path()), BYTES]);
        img(&words);
        io(format, file.path(), SCATTERED);
        let content = qemu_tool::content(format, file.path());
        Case { name: format!("{format} {options} {base:?}"), file, content }
    }

    fn judge(&self, format: &str, leaks_too: bool) {
        let verdict = qemu_tool::check(format, self.file.path());
        assert_eq!(verdict.errors, 0, "{}: as {format}", self.name);
        assert!(verdict.leaks == 0 || !leaks_too, "{}: {} leaks", self.name, verdict.leaks);
        let content = qemu_tool::content(format, self.file.path());
        assert!(content == self.content, "{}: as {format}", self.name);
    }

    fn repair(&self) {
        let path = self.file.path();
        let report =
            with_file(
                path,
                |host| async move { Box::pin(repair(&host, Level::Leaks, |_| ())).await },
            );
        assert!(report.unwrap().is_clean(), "{}", self.name);
        self.judge("qed", true);
    }

    fn write_more(&mut self, format: &str) {
        io(format, self.file.path(), &["write -P 9 30M 700k", "write -P 10 2M 70k"]);
        self.content = qemu_tool::content(format, self.file.path());
        self.judge(format, true);
    }
}

fn base() -> TempFile {
    let base = TempFile::new("raw");
    img(&["create", "-q", "-f", "raw", text(base.path()), "50M"]);
    io("raw", base.path(), &["write -P 77 0 50M"]);
    base
}

#[test]
fn qed_images_of_every_shape_become_qcow2_and_qed_again() {
    if !qemu_tool::is_there() {
        return;
    }
    let base = base();
    let shapes = [(4096, 2), (4096, 16), (65536, 4), (65536, 16), (1 << 20, 2), (2 << 20, 4)];
    for (n, (cluster, table)) in shapes.into_iter().enumerate() {
        let options = format!("cluster_size={cluster},table_size={table}");
        let base = (n % 2 == 1).then_some((&base, "raw"));
        let mut case = Case::new("qed", &options, base);
        to_qcow2(case.file.path()).unwrap();
        case.judge("qcow2", true);
        case.write_more("qcow2");
        to_qed(case.file.path()).unwrap();
        case.judge("qed", false);
        case.repair();
    }
}

#[test]
fn qcow2_images_of_every_shape_become_qed() {
    if !qemu_tool::is_there() {
        return;
    }
    let base = base();
    let cases = [
        ("compat=1.1", false),
        ("compat=0.10", true),
        ("compat=0.10,cluster_size=4096", false),
        ("compat=1.1,cluster_size=4096,lazy_refcounts=on", true),
        ("compat=1.1,cluster_size=2M", false),
        ("compat=1.1,refcount_bits=1", true),
        ("compat=1.1,refcount_bits=4", false),
        ("compat=1.1,refcount_bits=64,cluster_size=1M", true),
        ("compat=1.1,preallocation=metadata", false),
        ("compat=1.1,compression_type=zstd", false),
    ];
    for (options, has_base) in cases {
        let mut case = Case::new("qcow2", options, has_base.then_some((&base, "raw")));
        to_qed(case.file.path()).unwrap();
        case.judge("qed", false);
        case.repair();
        to_qcow2(case.file.path()).unwrap();
        case.judge("qcow2", true);
        case.write_more("qcow2");
    }
}

#[test]
fn a_backing_file_is_taken_for_raw_only_where_it_was() {
    if !qemu_tool::is_there() {
        return;
    }
    let info = |file: &TempFile| {
        let output = qemu_tool::run(&["info", text(file.path())]);
        String::from_utf8(output.stdout).unwrap()
    };
    let below = TempFile::new("qcow2");
    img(&["create", "-q", "-f", "qcow2", text(below.path()), "10M"]);
    io("qcow2", below.path(), &["write -P 3 0 1M"]);
    // Raw, with content that looks like qcow2.
    let raw = TempFile::with("raw", &below.bytes());
    for (base, format) in [(&below, "qcow2"), (&raw, "raw")] {
        let case = Case::new("qcow2", "compat=1.1", Some((base, format)));
        to_qed(case.file.path()).unwrap();
        case.judge("qed", false);
        assert_eq!(info(&case.file).contains("backing file format: raw"), format == "raw");
        to_qcow2(case.file.path()).unwrap();
        case.judge("qcow2", true);
        assert_eq!(info(&case.file).contains("backing file format: raw"), format == "raw");
        assert!(info(&case.file).contains(text(base.path())));
    }
}
