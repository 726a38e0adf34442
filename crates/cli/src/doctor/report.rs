//! Findings as text for people and as JSON for programs.

use super::Place;
use super::finding::{Finding, Group, Status};
use super::host::{Host, human};
use super::kvm::guest_of;
use super::mount::Mounts;
use super::spot::Kind;
use crate::text::escape;
use serde_json::{Map, Value, json};
use std::io::{IsTerminal, Write};

/// The version of the JSON document. Fields may be added to it; one that goes or changes its meaning raises it.
const VERSION: u32 = 1;
/// Columns where there is no terminal to ask.
const WIDTH: usize = 100;
/// What belongs to a finding stands under it from this column on.
const INDENT: usize = 11;

/// How text is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Columns.
    pub width: usize,
    pub colour: bool,
    /// Says all of what is as it should be, too.
    pub verbose: bool,
}

impl Style {
    /// That of our output: coloured on a terminal, unless NO_COLOR or TERM=dumb ask for none.
    pub fn of_stdout(verbose: bool) -> Style {
        let stdout = std::io::stdout();
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let colour = stdout.is_terminal() && !is_set("NO_COLOR") && !is_dumb;
        let columns =
            rustix::termios::tcgetwinsize(&stdout).map_or(0, |size| usize::from(size.ws_col));
        let width = if columns == 0 { WIDTH } else { columns.clamp(40, 120) };
        Style { width, colour, verbose }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn status(&self, status: Status) -> String {
        let code = match status {
            Status::Problem => "1;31",
            Status::Warning => "33",
            Status::Unknown => "35",
            Status::Note => "36",
            Status::Ok => "32",
        };
        self.paint(code, &format!("{:<8}", status.as_str()))
    }
}

/// Breaks a text into lines of at most `width` columns, the first of which has `taken` columns less. A word that is longer stays whole.
fn wrap(text: &str, width: usize, taken: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut left = width.saturating_sub(taken);
    for word in text.split_whitespace() {
        let len = word.chars().count();
        let line = lines.last_mut().expect("there is one from the start");
        let gap = usize::from(!line.is_empty());
        if len + gap > left && !(line.is_empty() && taken == 0) {
            lines.push(word.to_owned());
            left = width.saturating_sub(len);
            continue;
        }
        if gap == 1 {
            line.push(' ');
        }
        line.push_str(word);
        left = left.saturating_sub(len + gap);
    }
    lines
}

/// The report for people.
pub fn text(host: &Host, places: &[Place], findings: &[Finding], style: &Style) -> String {
    let mut out = String::new();
    for line in wrap(&escape(&format!("Host: {}", machine_line(host))), style.width, 0) {
        out += &format!("{line}\n");
    }
    for place in places {
        let below = match place.stack.shown() {
            shown if shown.is_empty() => "no block device".to_owned(),
            shown => shown,
        };
        for line in
            wrap(&escape(&format!("Disks at {}: {below}", place.spot.shown())), style.width, 0)
        {
            out += &format!("{line}\n");
        }
    }
    for group in Group::ALL {
        let of_group: Vec<&Finding> =
            findings.iter().filter(|finding| finding.id.group() == group).collect();
        if of_group.is_empty() {
            continue;
        }
        out += &format!("\n{}\n", style.paint("1", group.heading()));
        let widest = of_group.iter().map(|finding| finding.id.as_str().len()).max().unwrap_or(0);
        for finding in of_group {
            out += &one(finding, widest, style);
        }
    }
    out + &format!("\n{}\n", summary_line(findings))
}

fn one(finding: &Finding, id_width: usize, style: &Style) -> String {
    let full = finding.status != Status::Ok || style.verbose;
    let subject = finding.subject.as_ref().map_or(String::new(), |subject| format!("{subject}: "));
    let source = if full { format!(" ({})", finding.source) } else { String::new() };
    let what = escape(&format!("{subject}{}{source}", finding.what));
    let width = style.width.saturating_sub(INDENT);
    let mut lines = wrap(&what, width, id_width + 2);
    let first = lines.remove(0);
    let head =
        format!("  {} {:<id_width$}  {first}", style.status(finding.status), finding.id.as_str());
    if full {
        lines.extend(wrap(&escape(&finding.means), width, 0));
        if let Some(fix) = &finding.fix {
            // The name of what follows takes part in the wrapping, the colour does not.
            let fix = wrap(&escape(&format!("do: {fix}")), width, 0);
            lines.extend(fix.into_iter().map(|line| match line.strip_prefix("do: ") {
                Some(rest) => format!("{} {rest}", style.paint("1", "do:")),
                None => line,
            }));
        }
    }
    let rest: String = lines.iter().map(|line| format!("{:INDENT$}{line}\n", "")).collect();
    format!("{}\n{rest}", head.trim_end())
}

fn count(findings: &[Finding], status: Status) -> usize {
    findings.iter().filter(|finding| finding.status == status).count()
}

fn summary_line(findings: &[Finding]) -> String {
    let counted = |status: Status| match (status, count(findings, status)) {
        (Status::Ok | Status::Unknown, n) => format!("{n} {}", status.as_str()),
        (_, 1) => format!("1 {}", status.as_str()),
        (_, n) => format!("{n} {}s", status.as_str()),
    };
    let parts: Vec<String> =
        Status::ALL.into_iter().map(counted).filter(|part| !part.starts_with("0 ")).collect();
    parts.join(", ")
}

fn machine_line(host: &Host) -> String {
    let machine = machine(host);
    let text = |name: &str| machine[name].as_str().map(str::to_owned);
    let parts = [
        text("kernel").map(|kernel| format!("Linux {kernel}")),
        text("cpu"),
        machine["cpus"]
            .as_u64()
            .map(|cpus| format!("{cpus} CPU{}", if cpus == 1 { "" } else { "s" })),
        machine["memory_bytes"].as_u64().map(|bytes| format!("{} of RAM", human(bytes))),
        text("guest_of").map(|under| format!("a guest of {under}")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// What the machine is; what is not known is null.
fn machine(host: &Host) -> Value {
    json!({
        "kernel": host.text("/proc/sys/kernel/osrelease").ok(),
        "cpu": host.cpuinfo("model name"),
        "cpus": host.cpus(),
        "numa_nodes": host.numa_nodes(),
        "memory_bytes": host.meminfo("MemTotal"),
        "guest_of": guest_of(host),
    })
}

/// The report for programs: one document, one line break at its end.
pub fn json(host: &Host, mounts: &Mounts, places: &[Place], findings: &[Finding]) -> String {
    let paths: Vec<Value> = places.iter().map(|place| json_place(mounts, place)).collect();
    let summary: Map<String, Value> = Status::ALL
        .into_iter()
        .map(|status| (status.as_str().to_owned(), json!(count(findings, status))))
        .collect();
    let document = json!({
        "version": VERSION,
        "ferroblk": env!("CARGO_PKG_VERSION"),
        "machine": machine(host),
        "paths": paths,
        "findings": findings.iter().map(Finding::json).collect::<Vec<_>>(),
        "summary": summary,
    });
    format!("{document:#}\n")
}

fn json_place(mounts: &Mounts, place: &Place) -> Value {
    let spot = &place.spot;
    let mount = mounts.holding(spot.mount_id, &spot.shown()).filter(|_| spot.kind != Kind::Device);
    let names = |devices: &[super::Device]| {
        devices.iter().map(|device| device.name.clone()).collect::<Vec<_>>()
    };
    json!({
        "path": spot.shown(),
        "kind": match spot.kind {
            Kind::Directory => "directory",
            Kind::Image => "image",
            Kind::Device => "block-device",
        },
        "mount": mount.map(|mount| json!({
            "point": mount.point,
            "type": mount.kind,
            "source": mount.source,
        })),
        "layers": names(&place.stack.layers),
        "devices": names(&place.stack.lowest),
    })
}

/// Prints a report. The error is one line for the user.
pub fn print(text: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    printed.map_err(|error| format!("printing: {error}"))
}
