//! Made-up hosts: one where all is well, and what each thing that is not makes of it.
#![allow(clippy::disallowed_methods, reason = "tests make their own files")]

mod odd;
mod output;
mod rows;
mod stacks;
mod tree;

use super::finding::{Id, Status};
use rows::ROWS;
use tree::Made;

#[test]
fn of_a_host_where_all_is_well_nothing_is_said_but_that() {
    let made = Made::fine();
    let findings = made.findings();
    let other: Vec<_> = findings.iter().filter(|finding| finding.status != Status::Ok).collect();
    assert!(other.is_empty(), "{other:#?}");
    assert!(findings.len() > 40, "{}", findings.len());
    assert!(findings.iter().all(|finding| finding.fix.is_none()));
}

#[test]
fn each_thing_is_judged_as_it_should_be() {
    for (name, id, status, change) in ROWS {
        let mut made = Made::fine();
        change(&mut made);
        let findings = made.findings();
        let of_it: Vec<_> = findings.iter().filter(|finding| finding.id == *id).collect();
        let seen: Vec<Status> = of_it.iter().map(|finding| finding.status).collect();
        // Of several devices or paths, the worst is meant; it comes first.
        assert_eq!(seen.first(), Some(status), "{name}: {of_it:#?}");
        for finding in &findings {
            let text = format!("{name}: {finding:#?}");
            assert!(!finding.what.is_empty() && !finding.means.is_empty(), "{text}");
            let is_bad = matches!(finding.status, Status::Problem | Status::Warning);
            assert!(!is_bad || finding.fix.is_some(), "there is something to do: {text}");
            assert!(finding.status != Status::Ok || finding.fix.is_none(), "nothing to do: {text}");
        }
    }
}

#[test]
fn each_finding_is_tested_both_ways() {
    let fine = Made::fine().findings();
    for id in Id::ALL {
        let in_rows = |ok: bool| {
            ROWS.iter().any(|(_, own, status, _)| own == id && ok == (*status == Status::Ok))
        };
        // Of these it is well that there is nothing to say.
        let is_only_bad = matches!(id, Id::DeviceEncryption | Id::DeviceLoop);
        let is_well = fine.iter().any(|finding| finding.id == *id) || in_rows(true);
        assert!(is_well || is_only_bad, "{id:?}");
        assert!(in_rows(false), "{id:?}");
    }
}

/// The rows of tables in the documentation that begin with a name in backquotes.
fn documented() -> Vec<String> {
    let text = include_str!("../../../../docs/doctor.md");
    let (_, text) = text.split_once("\n## Findings\n").unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    rows.map(|(id, _)| id.to_owned()).collect()
}

#[test]
fn the_documentation_lists_all_findings_and_no_others() {
    let names: Vec<String> = Id::ALL.iter().map(|id| id.as_str().to_owned()).collect();
    assert_eq!(documented(), names);
}

#[test]
fn names_are_kebab_case_and_different() {
    let mut names: Vec<&str> = Id::ALL.iter().map(|id| id.as_str()).collect();
    for name in &names {
        let kebab = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(
            name.chars().all(kebab) && !name.starts_with('-') && !name.ends_with('-'),
            "{name}"
        );
    }
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all);
}
