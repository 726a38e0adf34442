//! The talk's tables for a terminal: one set for each scenario, a row for each subject, a group of columns for each
//! number of threads. What does not fit side by side is put one below the other.

use super::figures::{Figures, Measure};
use super::findings::Findings;
use super::number::{SPACE, figure, micros, percent, printable, threads};
use super::{Report, Subject};
use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement, Table, Width};
use comfy_table::{LineStyle, TableStyle};
use std::io::{self, Write};

/// Columns below which the names of subjects are not squeezed.
const NAME_MIN: usize = 16;
/// Columns that the names of subjects have at most.
const NAME_MAX: usize = 40;
/// Space before a group, and before any other column.
const GROUP_GAP: u16 = 3;
const GAP: u16 = 2;

/// Nothing but a line below the heads.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('-'));

/// A column of a group.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    Figure(Measure),
    /// IOPS and half the range of the repetitions.
    Iops,
    /// IOPS against the baseline.
    Ratio,
}

impl Column {
    fn label(self) -> &'static str {
        match self {
            Column::Figure(Measure::CpuPerMb) => "%/MB/s",
            Column::Figure(Measure::ServerCpuPerTransaction) => "µs/op",
            Column::Figure(Measure::Vcpu0) => "vCPU0",
            Column::Figure(Measure::Vcpu1) => "vCPU1",
            Column::Figure(measure) => measure.label(),
            Column::Iops => "IOPS",
            Column::Ratio => "base",
        }
    }
}

/// What one table shows.
struct Block {
    title: &'static str,
    columns: Vec<Column>,
}

fn blocks(with_guest: bool) -> Vec<Block> {
    use Column::Figure;
    let mut cpu = vec![
        Figure(Measure::CpuTotal),
        Figure(Measure::CpuPerMb),
        Figure(Measure::ServerCpuPerTransaction),
    ];
    if with_guest {
        cpu.extend([Figure(Measure::Vcpu0), Figure(Measure::Vcpu1)]);
    }
    let rate = vec![Column::Iops, Column::Ratio, Figure(Measure::MbPerSecond)];
    let latency =
        [Measure::LatencyP50, Measure::LatencyP95, Measure::LatencyP99, Measure::LatencyP999];
    vec![
        Block { title: "throughput", columns: rate },
        Block { title: "CPU", columns: cpu },
        Block { title: "latency of a block", columns: latency.map(Figure).into() },
    ]
}

/// Writes it for a terminal of `width` columns.
pub fn write(out: &mut dyn Write, report: &Report, width: usize) -> io::Result<()> {
    report.checked()?;
    let figures = Figures::new(report);
    head(out, report)?;
    let blocks = blocks(figures.has_guest());
    for scenario in 0..report.scenarios.len() {
        write_scenario(out, &figures, scenario, &blocks, width)?;
    }
    writeln!(out, "In words:")?;
    for sentence in Findings::of(&figures).sentences(report) {
        paragraph(out, "- ", &sentence, width)?;
    }
    writeln!(out)?;
    let base = &report.subjects[report.baseline].name;
    let legend = format!(
        "Medians over the repetitions; ± is half their range in % of the median. base: IOPS in % of {base}. \
         CPU: 100 % is one CPU. CPU %: workload and server together; %/MB/s: that for each MB/s; µs/op: CPU time of the \
         server for each transaction. MB: 10^6 bytes. IOPS: transactions/s as FFSB counts them."
    );
    paragraph(out, "", &legend, width)
}

fn head(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let date = super::number::date(report.started_unix);
    writeln!(out, "ferroblk {} bench, {date}", printable(&report.ferroblk))?;
    for (what, value) in report.machine.iter().chain(&report.settings) {
        writeln!(out, "  {}: {}", printable(what), printable(value))?;
    }
    for remark in &report.remarks {
        writeln!(out, "NOTE: {}", printable(remark))?;
    }
    writeln!(out)
}

/// Breaks `text` between words; the lines after the first begin below its first word.
pub(super) fn paragraph(
    out: &mut dyn Write,
    mark: &str,
    text: &str,
    width: usize,
) -> io::Result<()> {
    let room = width.saturating_sub(mark.len()).max(20);
    let mut line = String::new();
    let mut mark = mark.to_owned();
    for word in printable(text).split(' ') {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room {
            writeln!(out, "{mark}{line}")?;
            mark = " ".repeat(mark.len());
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    writeln!(out, "{mark}{line}")
}

fn write_scenario(
    out: &mut dyn Write,
    figures: &Figures,
    scenario: usize,
    blocks: &[Block],
    width: usize,
) -> io::Result<()> {
    let counts = figures.threads_in(scenario);
    if counts.is_empty() {
        return Ok(());
    }
    let report = figures.report();
    let name = printable(&report.scenarios[scenario]);
    writeln!(out, "{name}\n{}", "=".repeat(name.chars().count()))?;
    for block in blocks {
        let sheet = Sheet::new(figures, scenario, block, &counts);
        let mut rest = sheet.groups.as_slice();
        while !rest.is_empty() {
            let fitting = sheet.fitting(rest, width);
            if fitting == 0 {
                sheet.write_lines(out, &rest[0], width)?;
            } else {
                sheet.write_table(out, &rest[..fitting], width)?;
            }
            rest = &rest[fitting.max(1)..];
        }
    }
    let failures = report.cells.iter().filter(|c| c.scenario == scenario);
    for cell in failures {
        if let Some(why) = &cell.failure {
            let subject = &report.subjects[cell.subject].name;
            let text = format!("FAILED: {subject}, {}: {why}", threads(cell.threads));
            paragraph(out, "", &text, width)?;
        }
    }
    writeln!(out)
}

/// The columns of one number of threads: a head, and a text for each subject.
struct Group {
    threads: u32,
    columns: Vec<(&'static str, Vec<String>)>,
}

impl Group {
    /// Columns of the terminal, the space before it included.
    fn width(&self) -> usize {
        let title = threads(self.threads).len();
        let widest = |(n, c): (usize, &(&str, Vec<String>))| {
            let cells = c.1.iter().map(|t| t.chars().count()).max().unwrap_or(0);
            let head = c.0.chars().count().max(if n == 0 { title } else { 0 });
            cells.max(head) + usize::from(if n == 0 { GROUP_GAP } else { GAP })
        };
        self.columns.iter().enumerate().map(widest).sum()
    }
}

/// A block of a scenario, as texts.
struct Sheet {
    title: &'static str,
    names: Vec<String>,
    groups: Vec<Group>,
}

impl Sheet {
    fn new(figures: &Figures, scenario: usize, block: &Block, counts: &[u32]) -> Sheet {
        let subjects = &figures.report().subjects;
        let column = |threads: u32, column: Column| {
            let all = 0..subjects.len();
            let texts = all.map(|s| text(figures, scenario, s, threads, column)).collect();
            (column.label(), texts)
        };
        let group = |threads: &u32| Group {
            threads: *threads,
            columns: block.columns.iter().map(|c| column(*threads, *c)).collect(),
        };
        let name = |s: &Subject| printable(&s.name);
        Sheet {
            title: block.title,
            names: subjects.iter().map(name).collect(),
            groups: counts.iter().map(group).collect(),
        }
    }

    /// How many of these groups fit beside the names.
    fn fitting(&self, groups: &[Group], width: usize) -> usize {
        let longest = self.names.iter().map(|n| n.chars().count()).max().unwrap_or(0);
        // Side by side with names on two lines is easier to read than one below the other.
        let mut used = longest.min(NAME_MIN);
        let fits = |group: &&Group| {
            used += group.width();
            used <= width
        };
        groups.iter().take_while(fits).count()
    }

    fn write_table(&self, out: &mut dyn Write, groups: &[Group], width: usize) -> io::Result<()> {
        let mut table = Table::new();
        table.load_style(STYLE);
        let room = width.saturating_sub(groups.iter().map(Group::width).sum());
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
        let mut head = vec![Cell::new(format!("{}\n ", self.title))];
        for group in groups {
            for (n, (label, _)) in group.columns.iter().enumerate() {
                let above = if n == 0 { threads(group.threads) } else { " ".into() };
                let head_cell = Cell::new(format!("{above}\n{label}"));
                head.push(head_cell.set_alignment(CellAlignment::Right));
            }
        }
        table.set_header(head);
        for (subject, name) in self.names.iter().enumerate() {
            let mut row = vec![Cell::new(name)];
            for (_, texts) in groups.iter().flat_map(|g| &g.columns) {
                row.push(Cell::new(&texts[subject]).set_alignment(CellAlignment::Right));
            }
            table.add_row(row);
        }
        self.set_widths(&mut table, groups, room);
        for line in table.lines() {
            writeln!(out, "{}", line.trim_end())?;
        }
        writeln!(out)
    }

    /// Figures keep their width; names take what is left, over several lines if need be.
    fn set_widths(&self, table: &mut Table, groups: &[Group], room: usize) {
        let longest = self.names.iter().map(|n| n.chars().count()).max().unwrap_or(0);
        let name = longest.min(NAME_MAX).min(room).max(self.title.len().min(room));
        let starts: Vec<bool> =
            groups.iter().flat_map(|g| (0..g.columns.len()).map(|n| n == 0)).collect();
        for (n, column) in table.column_iter_mut().enumerate() {
            match n.checked_sub(1).map(|n| starts[n]) {
                None => {
                    column.set_padding((0, 0));
                    let width = u16::try_from(name).unwrap_or(u16::MAX);
                    column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width)));
                }
                Some(is_first) => {
                    column.set_padding((if is_first { GROUP_GAP } else { GAP }, 0));
                    column.set_constraint(ColumnConstraint::ContentWidth);
                }
            }
        }
    }

    /// For a very narrow terminal: a name on its own line, its figures below.
    fn write_lines(&self, out: &mut dyn Write, group: &Group, width: usize) -> io::Result<()> {
        writeln!(out, "{}, {}", self.title, threads(group.threads))?;
        for (subject, name) in self.names.iter().enumerate() {
            paragraph(out, "", name, width)?;
            let pairs = group.columns.iter().map(|(l, t)| format!("{l} {}", t[subject]));
            paragraph(out, "  ", &pairs.collect::<Vec<_>>().join(", "), width)?;
        }
        writeln!(out)
    }
}

fn text(
    figures: &Figures,
    scenario: usize,
    subject: usize,
    threads: u32,
    column: Column,
) -> String {
    let spread = |m| figures.spread(scenario, subject, threads, m);
    let missing = || {
        let cell = figures.cell(scenario, subject, threads);
        let failed = cell.is_some_and(|c| c.failure.is_some());
        if failed { "failed" } else { "-" }.to_owned()
    };
    match column {
        Column::Iops => {
            let Some(spread) = spread(Measure::Iops) else { return missing() };
            let noise = spread.half_range().map(|r| format!(" ±{:.0}%", r * 100.0));
            figure(spread.median) + &noise.unwrap_or_default()
        }
        Column::Ratio => {
            let ratio = figures.ratio(scenario, subject, threads);
            ratio.map_or_else(|| "-".into(), |r| percent(r.median).replace(SPACE, ""))
        }
        Column::Figure(m) if m.is_latency() => {
            spread(m).map_or_else(|| "-".into(), |s| micros(s.median).replace(SPACE, ""))
        }
        Column::Figure(m) => spread(m).map_or_else(|| "-".into(), |s| figure(s.median)),
    }
}
