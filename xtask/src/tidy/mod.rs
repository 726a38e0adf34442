//! `cargo xtask tidy`: the house rules that no compiler checks.
//!
//! - a file has at most 800 lines, a function at most 70 (tests are free);
//! - no word that marks unfinished work;
//! - `unsafe` only in the crates that are made for it;
//! - every crate takes part in the workspace's lints and has its place in ARCHITECTURE.md.
//!
//! Rust is not parsed here: comments and strings are blanked out and braces counted, which suffices for rustfmt's output.

mod blank;

use std::path::{Path, PathBuf};

use crate::{Result, sh};

const MAX_FILE_LINES: usize = 800;
const MAX_FUNCTION_LINES: usize = 70;

/// Where unsafe code may be: every line of it is argued for there. Elsewhere it has no business.
const UNSAFE_CRATES: &[&str] =
    &["crates/guest-mem", "crates/io-engine", "crates/iothread", "crates/blk-client"];

/// Where the workspace's packages are.
const PACKAGE_DIRS: &[&str] = &["crates", "tests"];

/// Checks the whole workspace and lists what is wrong.
pub fn run() -> Result<()> {
    let mut complaints = Vec::new();
    let mut files = Vec::new();
    for dir in ["crates", "xtask", "tests", "fuzz"] {
        collect(&sh::root().join(dir), &mut files)?;
    }
    files.sort();
    for path in &files {
        let text = read(path)?;
        let name = path.strip_prefix(sh::root()).unwrap_or(path).display().to_string();
        check_file(&name, &text, &mut complaints);
    }
    check_packages(&mut complaints)?;
    for complaint in &complaints {
        println!("{complaint}");
    }
    match complaints.len() {
        0 => Ok(()),
        n => Err(format!("tidy has {n} complaints")),
    }
}

/// All Rust files below a directory; none if it is not there.
fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry.map_err(|e| format!("{}: {e}", dir.display()))?.path();
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn check_file(name: &str, text: &str, complaints: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > MAX_FILE_LINES {
        complaints.push(format!("{name}: {lines} lines, more than {MAX_FILE_LINES}"));
    }
    let code = blank::blank(text);
    for (number, (raw, code)) in (1..).zip(text.lines().zip(code.lines())) {
        // Put together, so that this file passes.
        for word in [concat!("FIX", "ME"), concat!("XX", "X")] {
            if has_word(raw, word) {
                complaints.push(format!("{name}:{number}: {word}"));
            }
        }
        if has_word(code, "todo") && code.contains("todo!") {
            complaints.push(format!("{name}:{number}: unfinished"));
        }
        let allowed = UNSAFE_CRATES.iter().any(|dir| name.starts_with(&format!("{dir}/")));
        if !allowed && has_word(code, "unsafe") {
            complaints
                .push(format!("{name}:{number}: unsafe code does not belong into this crate"));
        }
    }
    if !is_test_file(name) {
        check_functions(name, &code, complaints);
    }
}

fn is_test_file(name: &str) -> bool {
    let mut parts = name.split('/');
    parts.any(|part| part == "tests" || part == "tests.rs" || part.ends_with("_tests.rs"))
}

/// Measures each function from its `fn` to the line where its braces close; stops where unit tests begin.
fn check_functions(name: &str, code: &str, complaints: &mut Vec<String>) {
    let lines: Vec<&str> = code.lines().collect();
    let tests = lines.windows(2).position(|pair| {
        pair[0].trim() == "#[cfg(test)]" && pair[1].trim_start().starts_with("mod ")
    });
    for (start, line) in lines.iter().enumerate().take(tests.unwrap_or(lines.len())) {
        if !has_word(line, "fn") || line.trim_end().ends_with(';') {
            continue;
        }
        let Some(len) = function_lines(&lines[start..]) else {
            continue;
        };
        if len > MAX_FUNCTION_LINES {
            let what = line.trim();
            let at = start + 1;
            complaints.push(format!("{name}:{at}: {len} lines of function: {what}"));
        }
    }
}

/// Lines from here until the first opened brace is closed; `None` if a `;` comes before any brace.
fn function_lines(lines: &[&str]) -> Option<usize> {
    let mut depth = 0;
    for (i, line) in lines.iter().enumerate() {
        for c in line.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 1 => return Some(i + 1),
                '}' => depth -= 1,
                ';' if depth == 0 => return None,
                _ => {}
            }
        }
    }
    None
}

/// Whether `word` stands in `line` with no letter, digit or underscore next to it.
fn has_word(line: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(part_of_word);
        let after = line[at + word.len()..].chars().next().is_some_and(part_of_word);
        !before && !after
    })
}

fn check_packages(complaints: &mut Vec<String>) -> Result<()> {
    let map = std::fs::read_to_string(sh::root().join("ARCHITECTURE.md")).unwrap_or_default();
    if map.is_empty() {
        complaints.push("ARCHITECTURE.md is missing".to_owned());
    }
    let mut manifests = vec![sh::root().join("xtask/Cargo.toml")];
    for dir in PACKAGE_DIRS {
        let dir = sh::root().join(dir);
        let entries = std::fs::read_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        manifests.extend(entries.filter_map(|e| Some(e.ok()?.path().join("Cargo.toml"))));
    }
    manifests.sort();
    for manifest in manifests.iter().filter(|m| m.exists()) {
        let package = manifest.parent().unwrap_or(manifest);
        let name = package.strip_prefix(sh::root()).unwrap_or(package).display().to_string();
        if !read(manifest)?.contains("[lints]\nworkspace = true") {
            complaints.push(format!("{name}/Cargo.toml: no `[lints] workspace = true`"));
        }
        let last = name.rsplit('/').next().unwrap_or(&name);
        if !map.is_empty() && !has_word(&map, last) {
            complaints.push(format!("ARCHITECTURE.md does not name {name}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints_of(name: &str, text: &str) -> Vec<String> {
        let mut complaints = Vec::new();
        check_file(name, text, &mut complaints);
        complaints
    }

    #[test]
    fn a_long_function_is_found_and_a_long_test_is_not() {
        let body = "    let x = \"}\";\n".repeat(70);
        let function = format!("pub fn long(\n) {{\n{body}}}\n\nfn short() {{}}\n");
        assert_eq!(complaints_of("crates/a/src/lib.rs", &function).len(), 1);
        let test = format!("fn short() {{}}\n#[cfg(test)]\nmod tests {{\n{function}}}\n");
        assert_eq!(complaints_of("crates/a/src/lib.rs", &test).len(), 0);
        assert_eq!(complaints_of("crates/a/tests/x.rs", &function).len(), 0);
    }

    #[test]
    fn unsafe_code_is_found_where_it_is_not_allowed_and_nowhere_else() {
        let code = "#![forbid(unsafe_code)]\n// unsafe\nlet s = \"unsafe\";\nunsafe { f() }\n";
        let complaints = complaints_of("crates/block/src/lib.rs", code);
        assert_eq!(complaints.len(), 1);
        assert!(complaints[0].starts_with("crates/block/src/lib.rs:4"), "{complaints:?}");
        assert_eq!(complaints_of("crates/guest-mem/src/lib.rs", code).len(), 0);
    }

    #[test]
    fn unfinished_work_and_long_files_are_found() {
        let code = format!("// {}: later\nfn f() {{ {}!() }}\n", concat!("FIX", "ME"), "todo");
        assert_eq!(complaints_of("crates/a/src/lib.rs", &code).len(), 2);
        assert_eq!(complaints_of("crates/a/src/lib.rs", &"//\n".repeat(801)).len(), 1);
    }
}
