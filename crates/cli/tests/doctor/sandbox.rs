//! Running the doctor.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The user and group `nobody`.
pub const NOBODY: u32 = 65534;

/// Says why a test does not run. In continuous integration every test must run, so there it fails.
pub fn skip(why: &str) {
    println!("SKIPPED: {why}");
    assert!(std::env::var_os("CI").is_none(), "no test may be skipped here: {why}");
}

/// A directory of a test's own, that all users may enter.
pub fn scratch() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("ferroblk-doctor-").tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// `ferroblk doctor` with these arguments.
pub fn doctor(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferroblk"));
    command.arg("doctor").args(args).stdin(Stdio::null()).env_remove("FERROBLK_LOG");
    command
}

/// A copy of the binary where any user may start it: the build's directory may be closed to them.
pub fn copy_of_binary(dir: &Path) -> PathBuf {
    let copy = dir.join("ferroblk");
    fs::copy(env!("CARGO_BIN_EXE_ferroblk"), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    copy
}

/// Its output, which must be all there is to say.
pub fn succeeds(mut command: Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""), "{command:?}");
    String::from_utf8(stdout).unwrap()
}

/// The document that a command with `--json` prints, checked for its form.
pub fn document(command: Command) -> Value {
    let text = succeeds(command);
    let document: Value = serde_json::from_str(&text).unwrap();
    check(&document);
    document
}

/// The finding with this name; the first, where several devices or paths have one.
pub fn finding<'a>(document: &'a Value, id: &str) -> &'a Value {
    let findings = document["findings"].as_array().unwrap();
    findings
        .iter()
        .find(|finding| finding["id"] == id)
        .unwrap_or_else(|| panic!("no {id}: {document:#}"))
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Whether a document is as `docs/doctor.md` says.
fn check(document: &Value) {
    let fields = ["version", "ferroblk", "machine", "paths", "findings", "summary"];
    assert_eq!(keys(document), BTreeSet::from(fields));
    assert_eq!(document["version"], 1);
    let fields = ["kernel", "cpu", "cpus", "numa_nodes", "memory_bytes", "guest_of"];
    assert_eq!(keys(&document["machine"]), BTreeSet::from(fields));
    for path in document["paths"].as_array().unwrap() {
        assert_eq!(keys(path), BTreeSet::from(["path", "kind", "mount", "layers", "devices"]));
        assert!(Path::new(path["path"].as_str().unwrap()).is_absolute());
    }
    let statuses = ["problem", "warning", "unknown", "note", "ok"];
    assert_eq!(keys(&document["summary"]), BTreeSet::from(statuses));
    let docs = include_str!("../../../../docs/doctor.md");
    let mut known = BTreeSet::new();
    for finding in document["findings"].as_array().unwrap() {
        let fields = ["id", "group", "subject", "status", "what", "source", "means", "do"];
        assert_eq!(keys(finding), BTreeSet::from(fields));
        let text =
            |field: &str| finding[field].as_str().unwrap_or_else(|| panic!("{field}: {finding}"));
        for field in ["what", "source", "means"] {
            assert!(!text(field).is_empty(), "{finding}");
        }
        assert!(statuses.contains(&text("status")), "{finding}");
        assert!(finding["do"].is_string() || finding["do"].is_null());
        assert!(finding["subject"].is_string() || finding["subject"].is_null());
        assert!(docs.contains(&format!("| `{}` |", text("id"))), "{finding}");
        assert!(known.insert((text("id"), finding["subject"].to_string())), "twice: {finding}");
    }
    for status in statuses {
        let all = document["findings"].as_array().unwrap();
        let count = all.iter().filter(|finding| finding["status"] == status).count();
        assert_eq!(document["summary"][status], count, "{status}");
    }
}
