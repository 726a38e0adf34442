//! `check`: whether an image is consistent, and mending it.

use crate::info::print_json;
use crate::open::shown;
use crate::{Code, Failure, ImageArgs, Output, Progress, ProgressKind, Session, escape};
use block::qed::check::{self, CheckReport, Fix, Level};
use block::{Format, HostNode, Result};
use serde::Serialize;
use std::io::Write;
use std::rc::Rc;

/// The format has nothing that could be checked.
const NOT_SUPPORTED: Code = 63;
/// There are errors.
const CORRUPT: Code = 2;
/// There are leaked clusters, and no errors.
const LEAKS: Code = 3;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// Of which image.
    pub image: ImageArgs,
    /// For whom.
    pub output: Output,
    /// What is mended.
    pub repair: Option<Level>,
    /// Prints what a repair would do, and does nothing.
    pub plan: bool,
    /// Prints nothing.
    pub is_quiet: bool,
    /// How it is shown how far it is.
    pub progress: ProgressKind,
}

/// What was found, with QEMU's names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct CheckInfo {
    total_clusters: u64,
    #[serde(skip_serializing_if = "is_zero")]
    corruptions: u64,
    #[serde(skip_serializing_if = "is_zero")]
    corruptions_fixed: u64,
    check_errors: u64,
    #[serde(skip_serializing_if = "is_zero")]
    leaks: u64,
    #[serde(skip_serializing_if = "is_zero")]
    leaks_fixed: u64,
    #[serde(skip_serializing_if = "is_zero")]
    allocated_clusters: u64,
    filename: String,
    format: String,
    #[serde(skip_serializing_if = "is_zero")]
    fragmented_clusters: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Checks, and mends what is asked for.
pub fn run(options: &CheckOptions, out: &mut dyn Write) -> std::result::Result<Code, Failure> {
    if options.image.format()? == Format::Raw {
        let path = options.image.path.display();
        let what = format!("checking {path}: an image in the format raw has nothing to check");
        return Err(Failure::new(what).with_code(NOT_SUPPORTED));
    }
    let is_repair = options.repair.is_some() && !options.plan;
    let image = options.image.open_alone(!is_repair)?;
    let session = Session::new()?;
    let host = Rc::new(session.attach_file(&image)?);
    let mut report = find(&session, &host, options.progress)?;
    if options.plan {
        return print_plan(&session, &host, options, &report, out);
    }
    let mut fixed = (0, 0);
    // With errors, what is in use is not known for certain, so leaks are not mended alone.
    let level = options.repair.filter(|level| *level == Level::All || report.errors() == 0);
    if let Some(level) = level.filter(|_| !report.is_clean()) {
        let before = (report.errors(), report.leaked_clusters);
        let of_task = host.clone();
        report = session.run(async move { check::repair(&of_task, level, |_| ()).await })?;
        image.sync()?;
        fixed = (
            before.0.saturating_sub(report.errors()),
            before.1.saturating_sub(report.leaked_clusters),
        );
    }
    let info = CheckInfo {
        total_clusters: report.total_clusters,
        corruptions: report.errors(),
        corruptions_fixed: fixed.0,
        check_errors: 0,
        leaks: report.leaked_clusters,
        leaks_fixed: fixed.1,
        allocated_clusters: report.allocated_clusters,
        filename: shown(&options.image.path),
        format: image.format().to_string(),
        fragmented_clusters: report.fragmented_clusters,
    };
    match (options.output, options.is_quiet) {
        (Output::Json, _) => print_json(&info, out)?,
        (Output::Human, true) => {}
        (Output::Human, false) => print(&info, out)?,
    }
    Ok(code_of(&report))
}

fn code_of(report: &CheckReport) -> Code {
    match (report.errors(), report.leaked_clusters) {
        (0, 0) => 0,
        (0, _) => LEAKS,
        _ => CORRUPT,
    }
}

fn find(session: &Session, host: &Rc<HostNode>, kind: ProgressKind) -> Result<CheckReport> {
    let progress = Rc::new(Progress::new(kind, 0));
    let (host, context, told) = (host.clone(), session.context().clone(), progress.clone());
    let report = session.run(async move {
        let tell = |done, of| {
            told.scale(of);
            told.set(done, context.now_ns());
        };
        check::check(&host, tell).await
    });
    progress.end(report.is_ok());
    report
}

/// What a repair would do, a line for each change.
fn print_plan(
    session: &Session,
    host: &Rc<HostNode>,
    options: &CheckOptions,
    report: &CheckReport,
    out: &mut dyn Write,
) -> std::result::Result<Code, Failure> {
    let level = options.repair.unwrap_or(Level::All);
    let of_task = host.clone();
    let plan = session.run(async move { check::plan(&of_task, level).await })?;
    match options.output {
        Output::Json => print_json(
            &serde_json::json!({
                "filename": shown(&options.image.path),
                "changes": plan.fixes.iter().map(Fix::to_string).collect::<Vec<_>>(),
                "complete": plan.is_complete,
            }),
            out,
        )?,
        Output::Human => {
            writeln!(out, "A repair of {} would change:", escape(&shown(&options.image.path)))?;
            for fix in &plan.fixes {
                writeln!(out, "    {fix}")?;
            }
            match (plan.fixes.is_empty(), plan.is_complete) {
                (true, true) => writeln!(out, "    nothing")?,
                (_, true) => {}
                (_, false) => writeln!(out, "    ... and then what is found when that is done")?,
            }
        }
    }
    Ok(code_of(report))
}

fn print(info: &CheckInfo, out: &mut dyn Write) -> std::result::Result<(), Failure> {
    if info.corruptions_fixed + info.leaks_fixed > 0 {
        write!(
            out,
            "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    \
             {} corruptions\n\nDouble checking the fixed image now...\n",
            info.leaks_fixed, info.corruptions_fixed
        )?;
    }
    if info.corruptions + info.leaks == 0 {
        writeln!(out, "No errors were found on the image.")?;
    }
    if info.corruptions > 0 {
        write!(
            out,
            "\n{} errors were found on the image.\nData may be corrupted, or further writes to \
             the image may corrupt it.\n",
            info.corruptions
        )?;
    }
    if info.leaks > 0 {
        write!(
            out,
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but \
             no harm to data.\n",
            info.leaks
        )?;
    }
    if info.total_clusters > 0 && info.allocated_clusters > 0 {
        writeln!(
            out,
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, 0.00% compressed clusters",
            info.allocated_clusters,
            info.total_clusters,
            percent(info.allocated_clusters, info.total_clusters),
            percent(info.fragmented_clusters, info.allocated_clusters),
        )?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole as f64
}
