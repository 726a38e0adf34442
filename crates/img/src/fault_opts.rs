//! The rules of a fault filter: as options of it, or in a file.
//!
//! ```text
//!   inject-error.0.event=write_aio,inject-error.0.errno=28        [inject-error]
//!   set-state.0.event=l2_update,set-state.0.new_state=2           event = "write_aio"
//!                                                                 errno = "28"
//! ```
//!
//! Names and meaning are those of QEMU's `blkdebug` (`qapi/block-core.json`, `docs/devel/testing/blkdebug.rst`).

use crate::Failure;
use crate::image_opts::Options;
use block::filters::{Action, IoKind, Rule};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The two kinds of rules by name.
const KINDS: [&str; 2] = ["inject-error", "set-state"];

/// Bytes of a file with rules at most.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a failed I/O says if the rule does not.
const EIO: u64 = 5;
/// The largest error number of the system.
const ERRNO_MAX: u64 = 4095;

/// The rules among the options that begin with `prefix`.
pub(crate) fn from_options(options: &mut Options, prefix: &str) -> Result<Vec<Rule>, Failure> {
    let mut rules = Vec::new();
    for kind in KINDS {
        let mut index = 0;
        while options.has(&format!("{prefix}{kind}.{index}.")) {
            rules.push(rule(options, kind, &format!("{prefix}{kind}.{index}."))?);
            index += 1;
        }
    }
    Ok(rules)
}

/// The rules in a file.
pub(crate) fn from_file(path: &Path) -> Result<Vec<Rule>, Failure> {
    let doing = format!("reading the rules in {}", path.display());
    let failed = |error: std::io::Error| block::Error::io(&*doing, error);
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let mut text = String::new();
    let file = File::from(file.map_err(|error| failed(error.into()))?);
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(Failure::new(format!("{doing}: it is larger than 1 MiB")));
    }
    parse(&text).map_err(|failure| Failure::new(format!("{doing}: {failure}")))
}

/// The rules that a file's text is.
fn parse(text: &str) -> Result<Vec<Rule>, Failure> {
    let mut rules = Vec::new();
    let mut section: Option<(&str, Vec<(String, String)>)> = None;
    let end = |section: Option<(&str, Vec<(String, String)>)>| match section {
        None => Ok(None),
        Some((kind, pairs)) => {
            let mut options = Options::new("a rule", pairs);
            let rule = rule(&mut options, kind, "")?;
            options.end().map(|()| Some(rule))
        }
    };
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let refuse = |what: &str| Err(Failure::new(format!("line {number}: {what}")));
        if let Some(header) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            // What follows the kind is a name that nothing needs.
            let name = header.split(' ').next().unwrap_or(header);
            let Some(kind) = KINDS.into_iter().find(|kind| *kind == name) else {
                return refuse("a section is [inject-error] or [set-state]");
            };
            rules.extend(end(section.replace((kind, Vec::new())))?);
            continue;
        }
        let pair = line.split_once('=').and_then(|(name, value)| {
            let value = value.trim().strip_prefix('"')?.strip_suffix('"')?;
            Some((name.trim().to_owned(), value.to_owned()))
        });
        match (pair, &mut section) {
            (Some((name, _)), Some((_, pairs)))
                if pairs.iter().any(|(other, _)| *other == name) =>
            {
                return refuse("the option is given twice");
            }
            (Some(pair), Some((_, pairs))) => pairs.push(pair),
            (Some(_), None) => return refuse("an option stands before the first section"),
            (None, _) => return refuse("an option is of the form name = \"value\""),
        }
    }
    rules.extend(end(section)?);
    Ok(rules)
}

/// The rule whose options begin with `prefix`.
fn rule(options: &mut Options, kind: &str, prefix: &str) -> Result<Rule, Failure> {
    let of = |name: &str| format!("{prefix}{name}");
    let Some(event) = options.take(&of("event")) else {
        return options.refuse(format!("{kind}: the option '{}' is missing", of("event")));
    };
    let Ok(event) = event.parse() else {
        return options.refuse(format!("there is no event '{event}'"));
    };
    let state = options.number(&of("state"))?.unwrap_or(0);
    let action = if kind == KINDS[0] {
        inject(options, &of)?
    } else {
        Action::SetState(options.number(&of("new_state"))?.unwrap_or(0))
    };
    Ok(Rule { event, state, action })
}

fn inject(options: &mut Options, of: &dyn Fn(&str) -> String) -> Result<Action, Failure> {
    let errno = options.number(&of("errno"))?.unwrap_or(EIO);
    let Some(errno) = i32::try_from(errno).ok().filter(|_| errno <= ERRNO_MAX) else {
        return options.refuse(format!("{}: there is no error {errno}", of("errno")));
    };
    let kind = match options.take(&of("iotype")) {
        None => None,
        Some(name) => match IoKind::NAMES.iter().find(|(known, _)| *known == name) {
            Some((_, kind)) => Some(*kind),
            None => return options.refuse(format!("there is no iotype '{name}'")),
        },
    };
    let sector = match options.take(&of("sector")) {
        // Any, as in QEMU.
        Some(text) if text == "-1" => None,
        None => None,
        Some(text) => match text.parse() {
            Ok(sector) => Some(sector),
            Err(_) => return options.refuse(format!("{} is a number, not '{text}'", of("sector"))),
        },
    };
    let once = options.flag(&of("once"))?.unwrap_or(false);
    // Whether the error comes before anything else is done, or a moment later: nobody here can tell.
    options.flag(&of("immediately"))?;
    Ok(Action::Inject { errno, kind, sector, once })
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::filters::Event;

    #[test]
    fn a_file_of_rules() {
        let text = "# rules\n\n[inject-error \"a\"]\nevent = \"write_aio\"\nerrno = \"28\"\nsector = \"16\"\nonce=\"on\"\n\
            state = \"2\"\niotype = \"write\"\nimmediately = \"off\"\n\n[set-state]\n event = \"l2_update\"\n new_state = \"0x2\"\n";
        let action =
            Action::Inject { errno: 28, kind: Some(IoKind::Write), sector: Some(16), once: true };
        let expected = [
            Rule { event: Event::WriteAio, state: 2, action },
            Rule { event: Event::L2Update, state: 0, action: Action::SetState(2) },
        ];
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn what_is_no_rule_is_named() {
        for (text, word) in [
            ("[inject-errors]", "line 1"),
            ("event = \"write_aio\"", "line 1"),
            ("[set-state]\nevent = write_aio", "line 2"),
            ("[set-state]\nevent = \"write_aio\"\nevent = \"read_aio\"", "line 3"),
            ("[inject-error]\nevent = \"write_bio\"", "'write_bio'"),
            ("[inject-error]\nerrno = \"5\"", "'event'"),
            ("[inject-error]\nevent = \"none\"\nerrno = \"5000\"", "errno"),
            ("[inject-error]\nevent = \"none\"\nerrno = \"EIO\"", "errno"),
            ("[inject-error]\nevent = \"none\"\nsector = \"x\"", "sector"),
            ("[inject-error]\nevent = \"none\"\nonce = \"x\"", "once"),
            ("[inject-error]\nevent = \"none\"\niotype = \"x\"", "'x'"),
            ("[inject-error]\nevent = \"none\"\nnew_state = \"2\"", "'new_state'"),
            ("[set-state]\nevent = \"none\"\nnew_state = \"-1\"", "new_state"),
            ("[set-state]\nevent = \"none\"\nnew_state = \"2\"\nerrno = \"5\"", "'errno'"),
        ] {
            let refused = parse(text).unwrap_err().to_string();
            assert!(refused.contains(word), "{text}: {refused}");
        }
    }
}
