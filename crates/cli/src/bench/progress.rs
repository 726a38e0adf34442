//! How far a grid is: a bar on a terminal, otherwise a line now and then.

use ffsb::grid::Status;
use indicatif::{ProgressBar, ProgressStyle};
use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows it on stderr.
#[derive(Debug)]
pub enum Meter {
    /// Nothing is shown.
    Quiet,
    /// On a terminal.
    Bar(ProgressBar),
    /// When the last line was written.
    Lines(Cell<Option<Instant>>),
}

impl Meter {
    /// For `total` measurements.
    pub fn new(total: usize, quiet: bool) -> Meter {
        if quiet {
            return Meter::Quiet;
        }
        if !std::io::stderr().is_terminal() {
            return Meter::Lines(Cell::new(None));
        }
        let bar = ProgressBar::new(total as u64);
        let style =
            ProgressStyle::with_template("{bar:24} {pos}/{len} {prefix:>9} left  {wide_msg}");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        Meter::Bar(bar)
    }

    /// Shows where the grid is.
    pub fn tell(&self, status: &Status) {
        let left = status.seconds_left.map_or("?".to_owned(), time);
        match self {
            Meter::Quiet => {}
            Meter::Bar(bar) => {
                bar.set_position(status.done as u64);
                bar.set_prefix(left);
                bar.set_message(status.doing.clone());
            }
            Meter::Lines(last) => {
                if last.get().is_some_and(|last| last.elapsed() < LINE_EVERY) {
                    return;
                }
                last.set(Some(now()));
                let (done, total, doing) = (status.done, status.total, &status.doing);
                let line = format!("{done} of {total}, {left} left: {doing}");
                // Not `eprintln!`: it panics where stderr cannot be written.
                let _ = writeln!(std::io::stderr(), "{}", crate::text::escape(&line));
            }
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Meter::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// Seconds as people say them.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn time(seconds: f64) -> String {
    let seconds = seconds.ceil() as u64;
    match seconds {
        0..100 => format!("{seconds} s"),
        100..6000 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{} h", seconds.div_ceil(3600)),
    }
}

#[expect(clippy::disallowed_methods, reason = "people are told in their own time")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn time_left_is_rounded_up() {
        assert_eq!([0.2, 99.0, 100.5, 7000.0].map(time), ["1 s", "99 s", "2 min", "2 h"]);
    }
}
