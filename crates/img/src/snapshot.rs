//! `snapshot`: the internal snapshots of a qcow2 image listed, made, gone back to, deleted.

use crate::{Code, Failure, ImageArgs, Session, escape, human_size};
use block::qcow2::{NewSnapshot, Snapshot, snapshots_in};
use block::{BlockNode, Error, ErrorKind, Format, Image, Result};
use serde::Serialize;
use std::io::Write;
use std::rc::Rc;

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Action {
    /// They are listed.
    List,
    /// One is made.
    Create {
        /// Its name.
        name: String,
        /// The time: seconds since 1970.
        seconds: u32,
        /// And nanoseconds.
        nanos: u32,
    },
    /// The disk becomes what it was at that one: an id, or a name.
    Apply(String),
    /// The one of this name is deleted.
    Delete(String),
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct SnapshotOptions {
    /// Of which image.
    pub image: ImageArgs,
    /// What.
    pub action: Action,
}

/// Does it.
pub fn run(options: &SnapshotOptions, out: &mut dyn Write) -> std::result::Result<Code, Failure> {
    let session = Session::new()?;
    if let Action::List = options.action {
        let image = options.image.open_alone(true)?;
        let snapshots = read(&session, &image)?;
        print_list(&snapshots, out)?;
        return Ok(0);
    }
    let image = options.image.open_to_write()?;
    if image.format() != Format::Qcow2 {
        let (path, format) = (image.path().display(), image.format());
        let what = format!("{path}: an image in the format {format} has no snapshots");
        return Err(Failure::new(what));
    }
    let node = session.attach(&image)?;
    let done = act(&session, &node, options.action.clone());
    // Whatever became of it, the image is left as one that is whole.
    let closed = session.close(&node);
    done?;
    closed?;
    image.sync()?;
    Ok(0)
}

fn act(session: &Session, node: &Rc<BlockNode>, action: Action) -> Result<()> {
    let node = node.clone();
    session.run(async move {
        let Some(qcow2) = node.qcow2() else { return Ok(()) };
        match action {
            Action::List => Ok(()),
            Action::Create { name, seconds, nanos } => {
                let new = NewSnapshot { name: name.as_bytes(), seconds, nanos, vm_clock_ns: 0 };
                qcow2.create_snapshot(&new).await.map(drop)
            }
            Action::Apply(name) => qcow2.apply_snapshot(name.as_bytes()).await,
            // As QEMU: not by its id, which a mistyped name may be.
            Action::Delete(name) => {
                let all = qcow2.snapshots().await?;
                let Some(found) = all.iter().find(|one| one.name == name.as_bytes()) else {
                    let path = node.host().path();
                    let what = format!("deleting a snapshot of {path}: none has the name '{name}'");
                    return Err(Error::new(ErrorKind::BadRequest, what));
                };
                qcow2.delete_snapshot(&found.id).await
            }
        }
    })
}

/// The snapshots of an image, of whatever format.
pub(crate) fn read(session: &Session, image: &Image) -> Result<Vec<Snapshot>> {
    if image.format() != Format::Qcow2 {
        return Ok(Vec::new());
    }
    let host = session.attach_file(image)?;
    let path = image.path().display().to_string();
    session.run(async move {
        let named = |error: Error| Error::new(error.kind(), format!("opening {path}: {error}"));
        snapshots_in(&host).await.map_err(|error| match error.kind() {
            ErrorKind::Io => error,
            _ => named(error),
        })
    })
}

/// A list for people; nothing if there is none. Times are those of UTC.
pub(crate) fn print_list(
    snapshots: &[Snapshot],
    out: &mut dyn Write,
) -> std::result::Result<(), Failure> {
    if snapshots.is_empty() {
        return Ok(());
    }
    writeln!(out, "Snapshot list:")?;
    writeln!(
        out,
        "{:<7} {:<16} {:>8} {:>19} {:>15} {:>10}",
        "ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"
    )?;
    for snapshot in snapshots {
        let text = |bytes: &[u8]| escape(&String::from_utf8_lossy(bytes));
        writeln!(
            out,
            "{:<7} {:<16} {:>8} {:>19} {:>15} {:>10}",
            text(&snapshot.id),
            text(&snapshot.name),
            human_size(snapshot.vm_state_bytes),
            date(snapshot.seconds),
            clock(snapshot.vm_clock_ns),
            snapshot.icount.map_or(String::new(), |count| count.to_string()),
        )?;
    }
    Ok(())
}

/// A snapshot, with QEMU's names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct SnapshotInfo {
    #[serde(skip_serializing_if = "Option::is_none")]
    icount: Option<u64>,
    vm_clock_nsec: u64,
    name: String,
    date_sec: u32,
    date_nsec: u32,
    vm_clock_sec: u64,
    id: String,
    vm_state_size: u64,
}

impl From<&Snapshot> for SnapshotInfo {
    fn from(snapshot: &Snapshot) -> SnapshotInfo {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        SnapshotInfo {
            icount: snapshot.icount,
            vm_clock_nsec: snapshot.vm_clock_ns % NS_PER_S,
            name: text(&snapshot.name),
            date_sec: snapshot.seconds,
            date_nsec: snapshot.nanos,
            vm_clock_sec: snapshot.vm_clock_ns / NS_PER_S,
            id: text(&snapshot.id),
            vm_state_size: snapshot.vm_state_bytes,
        }
    }
}

const NS_PER_S: u64 = 1_000_000_000;

/// Seconds since 1970 as a date of the Gregorian calendar and a time of day.
fn date(seconds: u32) -> String {
    let (mut days, second) = (seconds / 86400, seconds % 86400);
    let mut year = 1970;
    let is_leap = |year: u32| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let days_of = |year| 365 + u32::from(is_leap(year));
    while days >= days_of(year) {
        days -= days_of(year);
        year += 1;
    }
    let mut month = 1;
    for of_month in [31, 28 + u32::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < of_month {
            break;
        }
        days -= of_month;
        month += 1;
    }
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{:02} {hour:02}:{minute:02}:{:02}", days + 1, second % 60)
}

/// How long a guest had run: hours, minutes, seconds, thousandths.
fn clock(ns: u64) -> String {
    let (ms, s) = (ns / 1_000_000 % 1000, ns / NS_PER_S);
    format!("{:04}:{:02}:{:02}.{ms:03}", s / 3600, s / 60 % 60, s % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_709_251_199, "2024-02-29 23:59:59"),
            (1_735_689_599, "2024-12-31 23:59:59"),
            (1_795_393_877, "2026-11-23 00:31:17"),
            (u32::MAX, "2106-02-07 06:28:15"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }

    #[test]
    fn clocks_count_hours() {
        assert_eq!(clock(0), "0000:00:00.000");
        assert_eq!(clock(3_723_004_999_999), "0001:02:03.004");
        assert_eq!(clock(u64::MAX), "5124095:34:33.709");
    }
}
