//! What is printed of a request: how much, how fast, and its bytes.

use block::{Error, ErrorKind};
use rustix::io::Errno;
use std::error::Error as _;
use std::fmt::Write;
use std::io;

const NS: u64 = 1_000_000_000;

/// A request that has ended well.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report {
    /// `read`, `wrote`, `discard`.
    pub verb: &'static str,
    pub at: u64,
    pub len: u64,
    pub ns: u64,
    /// In one line, for programs.
    pub is_terse: bool,
}

impl Report {
    pub fn text(&self) -> String {
        let Report { verb, at, len, .. } = *self;
        // A clock that stood still is not infinite speed.
        let ns = self.ns.max(1);
        #[expect(clippy::cast_precision_loss, reason = "a rate, of which few digits are shown")]
        let (bytes, seconds) = (len as f64, ns as f64 / NS as f64);
        let (rate, ops) = (bytes / seconds, 1.0 / seconds);
        match self.is_terse {
            true => format!("{len},1,{},{rate:.3},{ops:.3}\n", hours(ns)),
            false => format!(
                "{verb} {len}/{len} bytes at offset {at}\n{}, 1 ops; {} ({}/sec and {ops:.4} ops/sec)\n",
                size(bytes),
                time(ns),
                size(rate),
            ),
        }
    }
}

/// Bytes, in the largest unit of which there is one; three digits after the point unless all are 0.
pub(super) fn size(bytes: f64) -> String {
    let units = [("EiB", 60), ("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let of = |shift: i32| 2f64.powi(shift);
    let (number, unit) = match units.iter().find(|(_, shift)| bytes >= of(*shift)) {
        Some((unit, shift)) => (format!("{:.3}", bytes / of(*shift)), *unit),
        None => (format!("{bytes:.6}"), "bytes"),
    };
    let whole = number.split_once(".000").map_or(number.as_str(), |(whole, _)| whole);
    format!("{whole} {unit}")
}

/// As [`size`], of a whole number.
pub(super) fn size_of(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    size(bytes as f64)
}

fn time(ns: u64) -> String {
    if ns >= NS {
        return hours(ns);
    }
    format!("{} sec", seconds(ns))
}

fn hours(ns: u64) -> String {
    let seconds_in_all = ns / NS;
    let (hours, minutes) = (seconds_in_all / 3600, seconds_in_all / 60 % 60);
    format!("{hours}:{minutes:02}:{}", seconds(ns % (60 * NS)))
}

/// As `%05.2f`.
fn seconds(ns: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let seconds = ns as f64 / NS as f64;
    format!("{seconds:05.2}")
}

/// Bytes as rows of 16, which lie at `at` on the disk: their numbers, and those that are letters or digits.
pub(super) fn dump(bytes: &[u8], at: u64) -> String {
    let mut text = String::with_capacity(bytes.len() * 5);
    for (row, bytes) in (0u64..).zip(bytes.chunks(16)) {
        let _ = write!(text, "{:08x}:  ", at + 16 * row);
        for byte in bytes {
            let _ = write!(text, "{byte:02x} ");
        }
        text.push(' ');
        let shown = |byte: &u8| if byte.is_ascii_alphanumeric() { char::from(*byte) } else { '.' };
        text.extend(bytes.iter().map(shown));
        text.push('\n');
    }
    text
}

/// The words for an error number.
pub(super) fn errno_text(errno: Errno) -> String {
    io_text(&io::Error::from(errno))
}

fn io_text(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// An error in the words of an error number; and the whole story, if no number tells it.
pub(super) fn explain(error: &Error) -> (String, Option<String>) {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    if let Some(cause) = cause.filter(|cause| cause.raw_os_error().is_some()) {
        return (io_text(cause), None);
    }
    let errno = match error.kind() {
        ErrorKind::Unsupported => Errno::NOTSUP,
        ErrorKind::NoSpace => Errno::NOSPC,
        ErrorKind::BadRequest => Errno::INVAL,
        ErrorKind::Locked => Errno::AGAIN,
        _ => Errno::IO,
    };
    let story = match cause {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    (errno_text(errno), Some(story))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_after_the_point_or_none() {
        for (bytes, text) in [
            (0.0, "0 bytes"),
            (1.0, "1 bytes"),
            (1023.0, "1023 bytes"),
            (373.174709, "373.174709 bytes"),
            (1024.0, "1 KiB"),
            (1536.0, "1.500 KiB"),
            (1048575.0, "1023.999 KiB"),
            (1048575.9, "1024 KiB"),
            (2031616.0, "1.938 MiB"),
            (1_099_511_627_776.0, "1 TiB"),
            (9_223_372_036_854_775_808.0, "8 EiB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn a_report_is_for_people_or_programs() {
        let report = |ns, is_terse| Report { verb: "read", at: 7, len: 4096, ns, is_terse }.text();
        assert_eq!(
            report(250_000_000, false),
            "read 4096/4096 bytes at offset 7\n4 KiB, 1 ops; 00.25 sec (16 KiB/sec and 4.0000 ops/sec)\n"
        );
        assert!(report(2_000_000_000, false).contains("; 0:00:02.00 (2 KiB/sec and 0.5000 ops"));
        assert_eq!(report(3_723_500_000_000, true), "4096,1,1:02:03.50,1.100,0.000\n");
        assert!(report(0, false).contains("TiB/sec"));
    }

    #[test]
    fn a_dump_has_rows_of_16() {
        let bytes: Vec<u8> = (0x30..0x42).collect();
        assert_eq!(
            dump(&bytes, 100),
            "00000064:  30 31 32 33 34 35 36 37 38 39 3a 3b 3c 3d 3e 3f  0123456789......\n\
             00000074:  40 41  .A\n"
        );
        assert_eq!(dump(&[], 0), "");
    }

    #[test]
    fn errors_are_told_by_their_number_or_by_their_story() {
        let host = Error::io("reading a at 0x0", Errno::NOSPC.into());
        assert_eq!(explain(&host), ("No space left on device".into(), None));
        let ours = Error::new(ErrorKind::Corrupt, "QED header: wrong magic");
        let told = ("Input/output error".into(), Some("QED header: wrong magic".into()));
        assert_eq!(explain(&ours), told);
    }
}
