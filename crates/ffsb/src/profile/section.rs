//! A profile's text as a tree of sections with keys that belong there; what the values mean is not looked at.
//!
//! ```text
//!  key = value            one value; the last one counts
//!  key first second       lists: size_weight, msec_range
//!  [filesystem0]          a number behind the name means nothing
//!      ...
//!  [end0]
//! ```

use super::error::{ProfileError, Warning};
use super::keys::{self, Form};
use super::value::shown;

/// Texts are not longer: a bound on what a hostile one costs.
const MAX_BYTES: usize = 1 << 20;
/// Sections of one kind side by side.
const MAX_SECTIONS: usize = 256;
/// Entries of the list keys in one section.
const MAX_LIST: usize = 4096;

/// Where keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Global,
    FileSystem,
    ThreadGroup,
    Stats,
    /// Of the 4.0 form, beginning.
    OldGlobal,
    /// Of the 4.0 form; has no end of its own.
    OldConfig,
}

impl Kind {
    pub fn title(self) -> &'static str {
        match self {
            Kind::Global | Kind::OldGlobal => "the global part",
            Kind::FileSystem => "[filesystem]",
            Kind::ThreadGroup => "[threadgroup]",
            Kind::Stats => "[stats]",
            Kind::OldConfig => "[config]",
        }
    }

    fn may_hold(self, inner: Kind) -> bool {
        match self {
            Kind::Global => matches!(inner, Kind::FileSystem | Kind::ThreadGroup),
            Kind::FileSystem => matches!(inner, Kind::ThreadGroup | Kind::Stats),
            Kind::ThreadGroup => inner == Kind::Stats,
            Kind::OldGlobal => inner == Kind::OldConfig,
            Kind::Stats | Kind::OldConfig => false,
        }
    }
}

/// A key with its value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    /// The name it has in FFSB 6, if it is another that means the same.
    pub key: &'static str,
    pub value: &'a str,
    pub line: usize,
    /// The name that the text has.
    pub written: &'a str,
}

/// A section, or the whole.
#[derive(Clone, Debug)]
pub(super) struct Section<'a> {
    pub kind: Kind,
    /// Where it begins.
    pub line: usize,
    pub entries: Vec<Entry<'a>>,
    pub children: Vec<Section<'a>>,
}

impl<'a> Section<'a> {
    pub fn new(kind: Kind, line: usize) -> Section<'a> {
        Section { kind, line, entries: Vec::new(), children: Vec::new() }
    }

    /// The entry of a key that has one.
    pub fn entry(&self, key: &str) -> Option<&Entry<'a>> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// The entries of a list key.
    pub fn list(&self, key: &str) -> impl Iterator<Item = &Entry<'a>> {
        self.entries.iter().filter(move |entry| entry.key == key)
    }

    /// The value of a key, if it is there.
    pub fn get<T>(
        &self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ProfileError> {
        let Some(entry) = self.entry(key) else { return Ok(None) };
        let bad = |why| ProfileError::new(entry.line, format!("{}: {why}", entry.written));
        parse(entry.value).map(Some).map_err(bad)
    }

    /// Takes from another section what is missing here, except the keys in `keep_out`. Returns the keys.
    pub fn fill(
        &mut self,
        from: &Section<'a>,
        keep_out: impl Fn(&str) -> bool,
    ) -> Vec<&'static str> {
        let mut taken = Vec::new();
        let own = self.entries.len();
        for entry in &from.entries {
            let here = self.entries[..own].iter().any(|there| there.key == entry.key);
            if !here && !keep_out(entry.key) {
                self.entries.push(*entry);
                if !taken.contains(&entry.key) {
                    taken.push(entry.key);
                }
            }
        }
        if self.kind == Kind::FileSystem && self.children.is_empty() {
            self.children = from.children.clone();
        }
        taken
    }
}

/// The whole text.
pub(super) fn parse<'a>(
    text: &'a str,
    warnings: &mut Vec<Warning>,
) -> Result<Section<'a>, ProfileError> {
    if text.len() > MAX_BYTES {
        let line = 1 + text.as_bytes()[..MAX_BYTES].iter().filter(|byte| **byte == b'\n').count();
        return Err(ProfileError::new(line, "a profile has at most 1 MiB"));
    }
    let mut open: Vec<Section<'a>> = Vec::new();
    for (index, raw) in text.lines().enumerate() {
        let line = index + 1;
        let raw = raw.trim();
        if raw.is_empty() || raw.starts_with('#') {
            continue;
        }
        if open.is_empty() {
            let old = raw.split(['=', ' ', '\t']).next() == Some("numconfigs");
            open.push(Section::new(if old { Kind::OldGlobal } else { Kind::Global }, 1));
        }
        match raw.strip_prefix('[') {
            Some(header) => begin_or_end(&mut open, header, line)?,
            None => {
                let section = open.last_mut().expect("the global part stays open");
                add_entry(section, raw, line, warnings)?;
            }
        }
    }
    if open.last().is_some_and(|last| last.kind == Kind::OldConfig) {
        close(&mut open);
    }
    match open.len() {
        0 => Err(ProfileError::new(1, "the profile is empty")),
        1 => Ok(open.remove(0)),
        _ => {
            let last = open.last().expect("more than one");
            let why = format!("the {} that begins here has no [end]", last.kind.title());
            Err(ProfileError::new(last.line, why))
        }
    }
}

/// A line that begins with a bracket, which is gone.
fn begin_or_end(
    open: &mut Vec<Section<'_>>,
    header: &str,
    line: usize,
) -> Result<(), ProfileError> {
    let err = |why: String| Err(ProfileError::new(line, why));
    let Some((name, rest)) = header.split_once(']') else {
        return err(format!("{} has no closing bracket", shown(&format!("[{header}"))));
    };
    if !rest.trim_start().is_empty() && !rest.trim_start().starts_with('#') {
        return err(format!("{} behind a section's name", shown(rest.trim())));
    }
    let kind = match name.trim().trim_end_matches(|c: char| c.is_ascii_digit()) {
        "filesystem" => Kind::FileSystem,
        "threadgroup" => Kind::ThreadGroup,
        "stats" => Kind::Stats,
        "config" => Kind::OldConfig,
        "end" if open.len() > 1 && open[0].kind == Kind::Global => {
            close(open);
            return Ok(());
        }
        "end" => return err("[end] without a section that it could end".into()),
        _ => return err(format!("unknown section {}", shown(&format!("[{name}]")))),
    };
    if kind == Kind::OldConfig && open.last().is_some_and(|last| last.kind == kind) {
        close(open);
    }
    let outer = open.last().expect("the global part stays open");
    if kind == Kind::OldConfig && outer.kind != Kind::OldGlobal {
        return err("[config] is of FFSB 4.0, whose profiles begin with `numconfigs`".into());
    }
    if !outer.kind.may_hold(kind) {
        let (inner, outer) = (kind.title(), outer.kind.title());
        return err(format!("{inner} cannot be in {outer}; is an [end] missing before it?"));
    }
    if outer.children.iter().filter(|child| child.kind == kind).count() >= MAX_SECTIONS {
        return err(format!("more than {MAX_SECTIONS} sections {}", kind.title()));
    }
    if outer.kind != Kind::Global
        && outer.kind != Kind::OldGlobal
        && outer.children.iter().any(|child| child.kind == kind)
    {
        return err(format!("a second {} in one {}", kind.title(), outer.kind.title()));
    }
    open.push(Section::new(kind, line));
    Ok(())
}

fn close(open: &mut Vec<Section<'_>>) {
    let closed = open.pop().expect("the caller has seen that one is open");
    open.last_mut().expect("the global part stays open").children.push(closed);
}

/// A line with a key.
fn add_entry<'a>(
    section: &mut Section<'a>,
    raw: &'a str,
    line: usize,
    warnings: &mut Vec<Warning>,
) -> Result<(), ProfileError> {
    let err = |why: String| Err(ProfileError::new(line, why));
    let split = raw.find(|c: char| c == '=' || c == '#' || c.is_whitespace());
    let (name, rest) = raw.split_at(split.unwrap_or(raw.len()));
    let Some(key) = keys::find(section.kind, name) else {
        return err(keys::unknown(section.kind, name));
    };
    let rest = rest.trim_start();
    let (equals, rest) = match rest.strip_prefix('=') {
        Some(rest) => (true, rest.trim_start()),
        None => (false, rest),
    };
    let value =
        cut_comment(rest).map_err(|why| ProfileError::new(line, format!("{name}: {why}")))?;
    match key.form {
        Form::One if !equals => return err(format!("`{name} = VALUE` is needed")),
        Form::One if value.is_empty() => return err(format!("{name} has no value")),
        Form::Two if section.list(key.name).count() >= MAX_LIST => {
            return err(format!("more than {MAX_LIST} times {name}"));
        }
        Form::One => {
            if let Some(at) = section.entries.iter().position(|entry| entry.key == key.name) {
                let before = section.entries.remove(at).line;
                let what = format!("{name} was given in line {before} already; this one counts");
                warnings.push(Warning::new(line, what));
            }
        }
        Form::Two | Form::Each => {}
    }
    let first = !section.entries.iter().any(|entry| entry.written == name);
    if key.name != name && key.warn && first {
        warnings.push(Warning::new(line, format!("{name} is called {} today", key.name)));
    }
    section.entries.push(Entry { key: key.name, value, line, written: name });
    Ok(())
}

/// The value without the comment behind it. A `#` in quotation marks is not one.
fn cut_comment(rest: &str) -> Result<&str, String> {
    let Some(inner) = rest.strip_prefix('"') else {
        return Ok(rest.split('#').next().unwrap_or_default().trim_end());
    };
    let mut escaped = false;
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => {
                let behind = inner[at + 1..].trim_start();
                if !behind.is_empty() && !behind.starts_with('#') {
                    return Err(format!("{} behind the quotation mark", shown(behind)));
                }
                return Ok(&rest[..at + 2]);
            }
            _ => {}
        }
    }
    Err("the quotation mark is not closed".into())
}
