//! How far a long verb has come, told to who waits for it.

use crate::stop;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::cell::{Cell, RefCell};
use std::io::Write;

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ProgressKind {
    /// Not at all.
    #[default]
    Off,
    /// As QEMU's tools print it, on stdout.
    Percent,
    /// A bar on stderr, for a terminal, if it takes longer than a second.
    Bar,
}

/// When the bar appears, in nanoseconds after the start.
const BAR_AFTER_NS: u64 = 1_000_000_000;

/// What is told, by a verb that does `total` bytes' worth of work.
#[derive(Debug)]
pub struct Progress {
    kind: ProgressKind,
    total: Cell<u64>,
    done: Cell<u64>,
    /// The clock, when the first news came.
    start_ns: Cell<Option<u64>>,
    /// Hundredths of a percent, as printed last.
    printed: Cell<Option<u64>>,
    bar: RefCell<Option<ProgressBar>>,
}

impl Progress {
    /// Nothing is done yet.
    pub fn new(kind: ProgressKind, total: u64) -> Progress {
        let progress = Progress {
            kind,
            total: Cell::new(total),
            done: Cell::new(0),
            start_ns: Cell::new(None),
            printed: Cell::new(None),
            bar: RefCell::new(None),
        };
        progress.print(0);
        progress
    }

    /// So much work it is in all, as is known now.
    pub fn scale(&self, total: u64) {
        self.total.set(total);
    }

    /// So many bytes more are done.
    pub fn add(&self, bytes: u64, now_ns: u64) {
        self.set(self.done.get().saturating_add(bytes), now_ns);
    }

    /// So many bytes are done in all.
    pub fn set(&self, done: u64, now_ns: u64) {
        let done = done.min(self.total.get());
        self.done.set(done);
        self.tell_if_asked();
        match self.kind {
            ProgressKind::Off => {}
            ProgressKind::Percent => {
                let share = self.share(done);
                // Not more often than each percent.
                if self.printed.get().is_none_or(|printed| share >= printed + 100) {
                    self.print(share);
                }
            }
            ProgressKind::Bar => self.draw(done, now_ns),
        }
    }

    /// Says on stderr how far it is, if somebody wants to know.
    pub(crate) fn tell_if_asked(&self) {
        if stop::is_asked_how_far() {
            let share = self.share(self.done.get());
            let _ = writeln!(std::io::stderr(), "    ({}.{:02}/100%)", share / 100, share % 100);
        }
    }

    /// It is over: done if `all`.
    pub fn end(&self, all: bool) {
        if self.kind == ProgressKind::Percent {
            if all {
                self.print(10_000);
            }
            let _ = writeln!(std::io::stdout());
        }
        self.clear_bar();
    }

    /// Makes room for what is printed.
    pub fn clear_bar(&self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Hundredths of a percent.
    fn share(&self, done: u64) -> u64 {
        let share = u128::from(done) * 10_000 / u128::from(self.total.get().max(1));
        u64::try_from(share).unwrap_or(10_000)
    }

    fn print(&self, share: u64) {
        if self.kind == ProgressKind::Percent {
            self.printed.set(Some(share));
            let mut out = std::io::stdout().lock();
            // Who does not listen loses nothing but this.
            let _ = write!(out, "    ({}.{:02}/100%)\r", share / 100, share % 100);
            let _ = out.flush();
        }
    }

    fn draw(&self, done: u64, now_ns: u64) {
        let start_ns = self.start_ns.get().unwrap_or(now_ns);
        self.start_ns.set(Some(start_ns));
        let mut bar = self.bar.borrow_mut();
        if bar.is_none() && now_ns - start_ns >= BAR_AFTER_NS {
            let look =
                "{bar:40} {percent:>3}%  {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left";
            let style = ProgressStyle::with_template(look).expect("a fixed text");
            let new =
                ProgressBar::with_draw_target(Some(self.total.get()), ProgressDrawTarget::stderr());
            *bar = Some(new.with_style(style).with_position(done));
        }
        if let Some(bar) = &*bar {
            bar.set_position(done);
        }
    }
}
