//! Where a report is written: places that cannot be written are found before anything is measured.

use crate::text::escape;
use ffsb::report::{Report, csv, html, json, number};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// A form of a report.
type Form = fn(&mut dyn Write, &Report) -> io::Result<()>;

/// Files that are there already, but empty if they are new. What is new goes again if no report is written.
#[derive(Debug)]
pub struct Outputs {
    files: Vec<Output>,
    /// A directory that was made for them.
    made: Option<PathBuf>,
    kept: bool,
}

#[derive(Debug)]
struct Output {
    path: PathBuf,
    file: File,
    is_new: bool,
    write: Form,
}

impl Outputs {
    /// Files of its own for each form that has a path; for all three in `dir`.
    pub fn prepare(
        dir: Option<&Path>,
        [html, json, csv]: [Option<&Path>; 3],
    ) -> Result<Outputs, String> {
        let mut outputs = Outputs { files: Vec::new(), made: None, kept: false };
        if let Some(dir) = dir {
            outputs.make_dir(dir)?;
        }
        let forms: [(&str, Option<&Path>, Form); 3] = [
            ("report.html", html, html::write),
            ("report.json", json, json::write),
            ("report.csv", csv, csv::write),
        ];
        for (name, own, form) in forms {
            for path in own.map(Path::to_owned).into_iter().chain(dir.map(|dir| dir.join(name))) {
                outputs.add(path, form)?;
            }
        }
        Ok(outputs)
    }

    fn make_dir(&mut self, dir: &Path) -> Result<(), String> {
        match fs::create_dir(dir) {
            Ok(()) => self.made = Some(dir.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            Err(error) => return Err(format!("making {}: {error}", shown(dir))),
        }
        Ok(())
    }

    #[expect(clippy::disallowed_methods, reason = "a report is no file of the stack")]
    fn add(&mut self, path: PathBuf, write: Form) -> Result<(), String> {
        let is_new = !path.exists();
        let opened = File::options().write(true).create(true).truncate(false).open(&path);
        let file = opened.map_err(|error| format!("writing {}: {error}", shown(&path)))?;
        self.files.push(Output { path, file, is_new, write });
        Ok(())
    }

    /// Writes the report into all of them, and gives their names.
    pub fn write(mut self, report: &Report) -> Result<Vec<String>, String> {
        for output in &self.files {
            let write = || {
                output.file.set_len(0)?;
                let mut out = BufWriter::new(&output.file);
                (output.write)(&mut out, report)?;
                out.flush()
            };
            write()
                .map_err(|error: io::Error| format!("writing {}: {error}", shown(&output.path)))?;
        }
        self.kept = true;
        Ok(self.files.iter().map(|output| shown(&output.path)).collect())
    }
}

impl Drop for Outputs {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for output in self.files.iter().filter(|output| output.is_new) {
            let _ = fs::remove_file(&output.path);
        }
        if let Some(dir) = &self.made {
            let _ = fs::remove_dir(dir);
        }
    }
}

fn shown(path: &Path) -> String {
    escape(&path.to_string_lossy())
}

/// `./ferroblk-bench-20261130-214500`, in UTC.
pub fn default_dir(unix: u64) -> PathBuf {
    let digits: String = number::date(unix).chars().filter(char::is_ascii_digit).collect();
    let (day, minute) = digits.split_at(8.min(digits.len()));
    PathBuf::from(format!("ferroblk-bench-{day}-{minute}{:02}", unix % 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_named_after_the_time() {
        assert_eq!(default_dir(1_796_075_123), Path::new("ferroblk-bench-20261130-214523"));
    }
}
