//! `check`: whether an image is consistent, and mending it.

use crate::info::print_json;
use crate::open::shown;
use crate::{Code, Failure, ImageArgs, Output, Progress, ProgressKind, Session, escape};
use block::qed::check::Level;
use block::{Format, HostNode, Result, qcow2, qed};
use serde::Serialize;
use std::io::Write;
use std::rc::Rc;

/// The format has nothing that could be checked.
const NOT_SUPPORTED: Code = 63;
/// There are errors.
const CORRUPT: Code = 2;
/// There are leaked clusters, and no errors.
const LEAKS: Code = 3;

/// Problems that are told of, one by one.
pub const NOTES_MAX: usize = 1000;

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
    #[serde(skip_serializing_if = "is_zero")]
    image_end_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    compressed_clusters: u64,
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

/// Checks, and mends what is asked for. What is wrong is told to `notes`, a line for each problem: with [`NOTES_MAX`] of them it is told enough.
pub fn run(
    options: &CheckOptions,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> std::result::Result<Code, Failure> {
    if options.image.format()? == Format::Raw {
        let path = options.image.path.display();
        let what = format!("checking {path}: an image in the format raw has nothing to check");
        return Err(Failure::new(what).with_code(NOT_SUPPORTED));
    }
    let is_repair = options.repair.is_some() && !options.plan;
    let image = options.image.open_alone(!is_repair)?;
    let session = Session::new()?;
    let host = Rc::new(session.attach_file(&image)?);
    let format = image.format();
    let mut found = find(&session, &host, format, options.progress)?;
    // Nobody is there to be told if that fails.
    let _ = found.problems.iter().try_for_each(|problem| writeln!(notes, "{problem}"));
    if options.plan {
        return print_plan(&session, &host, format, options, &found, out);
    }
    let mut fixed = (0, 0);
    // With errors, what is in use is not known for certain, so leaks are not mended alone.
    let level = options.repair.filter(|level| *level == Level::All || found.errors == 0);
    if let Some(level) = level.filter(|_| !found.is_clean) {
        let before = (found.errors, found.leaks);
        found = repair(&session, &host, format, level)?;
        image.sync()?;
        fixed = (before.0.saturating_sub(found.errors), before.1.saturating_sub(found.leaks));
    }
    let info = CheckInfo {
        image_end_offset: found.image_end,
        compressed_clusters: found.compressed_clusters,
        total_clusters: found.total_clusters,
        corruptions: found.errors,
        corruptions_fixed: fixed.0,
        check_errors: 0,
        leaks: found.leaks,
        leaks_fixed: fixed.1,
        allocated_clusters: found.allocated_clusters,
        filename: shown(&options.image.path),
        format: format.to_string(),
        fragmented_clusters: found.fragmented_clusters,
    };
    match (options.output, options.is_quiet) {
        (Output::Json, _) => print_json(&info, out)?,
        (Output::Human, true) => {}
        (Output::Human, false) => print(&info, out)?,
    }
    Ok(code_of(&found))
}

/// What a check has found, whatever the format.
#[derive(Debug)]
struct Found {
    /// Nothing is wrong, nothing wasted, nothing to be done.
    is_clean: bool,
    errors: u64,
    leaks: u64,
    total_clusters: u64,
    allocated_clusters: u64,
    fragmented_clusters: u64,
    compressed_clusters: u64,
    /// 0: the format has no such number.
    image_end: u64,
    /// The first of what is wrong, in words.
    problems: Vec<String>,
}

impl From<qed::check::CheckReport> for Found {
    fn from(report: qed::check::CheckReport) -> Found {
        Found {
            is_clean: report.is_clean(),
            errors: report.errors(),
            leaks: report.leaked_clusters,
            total_clusters: report.total_clusters,
            allocated_clusters: report.allocated_clusters,
            fragmented_clusters: report.fragmented_clusters,
            compressed_clusters: 0,
            image_end: 0,
            // As QEMU: of QED the numbers only.
            problems: Vec::new(),
        }
    }
}

impl From<&qcow2::check::CheckReport> for Found {
    fn from(report: &qcow2::check::CheckReport) -> Found {
        Found {
            is_clean: report.is_clean(),
            errors: report.errors(),
            leaks: report.leaked_clusters,
            total_clusters: report.total_clusters,
            allocated_clusters: report.allocated_clusters,
            fragmented_clusters: report.fragmented_clusters,
            compressed_clusters: report.compressed_clusters,
            image_end: report.image_end,
            problems: report
                .problems
                .iter()
                .take(NOTES_MAX)
                .map(|problem| {
                    let kind = if problem.kind.is_error() { "ERROR" } else { "LEAK" };
                    format!("{kind} {problem}")
                })
                .collect(),
        }
    }
}

fn code_of(found: &Found) -> Code {
    match (found.errors, found.leaks) {
        (0, 0) => 0,
        (0, _) => LEAKS,
        _ => CORRUPT,
    }
}

fn find(
    session: &Session,
    host: &Rc<HostNode>,
    format: Format,
    kind: ProgressKind,
) -> Result<Found> {
    let progress = Rc::new(Progress::new(kind, 0));
    let (host, context, told) = (host.clone(), session.context().clone(), progress.clone());
    let found = session.run(async move {
        let tell = |done, of| {
            told.scale(of);
            told.set(done, context.now_ns());
        };
        match format {
            Format::Qcow2 => qcow2::check::check(&host, tell).await.map(|found| (&found).into()),
            _ => qed::check::check(&host, tell).await.map(Found::from),
        }
    });
    progress.end(found.is_ok());
    found
}

/// Mends, and says what is wrong then.
fn repair(session: &Session, host: &Rc<HostNode>, format: Format, level: Level) -> Result<Found> {
    let host = host.clone();
    session.run(async move {
        match format {
            Format::Qcow2 => {
                let outcome = qcow2::check::repair(&host, level, |_| ()).await?;
                Ok(Found::from(&*outcome.after))
            }
            _ => qed::check::repair(&host, level, |_| ()).await.map(Found::from),
        }
    })
}

/// What a repair would change, and whether that is all.
fn plan(
    session: &Session,
    host: &Rc<HostNode>,
    format: Format,
    level: Level,
) -> Result<(Vec<String>, bool)> {
    let host = host.clone();
    session.run(async move {
        match format {
            Format::Qcow2 => {
                let plan = qcow2::check::plan(&host, level).await?;
                Ok((plan.fixes.iter().map(ToString::to_string).collect(), plan.is_complete))
            }
            _ => {
                let plan = qed::check::plan(&host, level).await?;
                Ok((plan.fixes.iter().map(ToString::to_string).collect(), plan.is_complete))
            }
        }
    })
}

/// What a repair would do, a line for each change.
fn print_plan(
    session: &Session,
    host: &Rc<HostNode>,
    format: Format,
    options: &CheckOptions,
    found: &Found,
    out: &mut dyn Write,
) -> std::result::Result<Code, Failure> {
    let level = options.repair.unwrap_or(Level::All);
    let (fixes, is_complete) = plan(session, host, format, level)?;
    match options.output {
        Output::Json => print_json(
            &serde_json::json!({
                "filename": shown(&options.image.path),
                "changes": fixes,
                "complete": is_complete,
            }),
            out,
        )?,
        Output::Human => {
            writeln!(out, "A repair of {} would change:", escape(&shown(&options.image.path)))?;
            for fix in &fixes {
                writeln!(out, "    {fix}")?;
            }
            match (fixes.is_empty(), is_complete) {
                (true, true) => writeln!(out, "    nothing")?,
                (_, true) => {}
                (_, false) => writeln!(out, "    ... and then what is found when that is done")?,
            }
        }
    }
    Ok(code_of(found))
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
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            info.allocated_clusters,
            info.total_clusters,
            percent(info.allocated_clusters, info.total_clusters),
            percent(info.fragmented_clusters, info.allocated_clusters),
            percent(info.compressed_clusters, info.allocated_clusters),
        )?;
    }
    if info.image_end_offset > 0 {
        writeln!(out, "Image end offset: {}", info.image_end_offset)?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole as f64
}
