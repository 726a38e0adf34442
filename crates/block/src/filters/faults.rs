//! Rules that say which I/O fails: QEMU's `blkdebug`.
//!
//! ```text
//!   event ----> rules of that event, in the present state ----> injecting rules become the active ones
//!   (driver)                                               `--> set-state rules change the state, after all of them
//!
//!   I/O ------> the first active rule for its kind and sectors ----> fails; the rule is gone if it was for once
//!   (host file)
//! ```
//!
//! The rules that an event makes active replace those that were; an event that makes none active changes nothing about them. So a rule without
//! `once` and `sector` lets everything fail from its event on, as with QEMU. Specification: QEMU `qapi/block-core.json`, `BlockdevOptionsBlkdebug`.

use super::Event;
use crate::SECTOR;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The state that a filter begins in.
const FIRST_STATE: u64 = 1;

/// What the host is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoKind {
    /// A read.
    Read,
    /// A write.
    Write,
    /// Zeroes written without data.
    WriteZeroes,
    /// Space given back.
    Discard,
    /// A sync.
    Flush,
    /// Where data is. Known by its name only: it is no I/O here, and never fails.
    BlockStatus,
}

impl IoKind {
    /// The kinds by QEMU's names.
    pub const NAMES: &[(&str, IoKind)] = &[
        ("read", IoKind::Read),
        ("write", IoKind::Write),
        ("write-zeroes", IoKind::WriteZeroes),
        ("discard", IoKind::Discard),
        ("flush", IoKind::Flush),
        ("block-status", IoKind::BlockStatus),
    ];
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// I/O fails.
    Inject {
        /// With this error. 0: it does not fail, and no later rule is asked.
        errno: i32,
        /// I/O of this kind only; `None`: any.
        kind: Option<IoKind>,
        /// I/O that touches this sector of the file only; `None`: any.
        sector: Option<u64>,
        /// One only.
        once: bool,
    },
    /// The filter's state becomes this.
    SetState(u64),
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What makes it count.
    pub event: Event,
    /// In this state only; 0: in any.
    pub state: u64,
    /// What it does.
    pub action: Action,
}

/// The rules of one file, and what they have come to. All I/O threads of an image share them.
#[derive(Debug)]
pub struct Faults {
    rules: Vec<Rule>,
    now: Mutex<Now>,
}

#[derive(Debug)]
struct Now {
    state: u64,
    /// Indices of the rules that I/O is compared with.
    active: Vec<usize>,
    /// Rules that have failed the one I/O they were for.
    spent: Vec<bool>,
}

impl Faults {
    /// A filter with these rules.
    pub fn new(rules: Vec<Rule>) -> Faults {
        let spent = vec![false; rules.len()];
        let now = Mutex::new(Now { state: FIRST_STATE, active: Vec::new(), spent });
        let faults = Faults { rules, now };
        faults.event(Event::None);
        faults
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        // Nothing panics while it is held; and were it so, the rules would still be as good as before.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver has come to `event`.
    pub fn event(&self, event: Event) {
        let mut now = self.now();
        let state = now.state;
        let counts = |rule: &Rule| rule.event == event && (rule.state == 0 || rule.state == state);
        let mut active = Vec::new();
        let mut next = state;
        for (index, rule) in self.rules.iter().enumerate().filter(|(_, rule)| counts(rule)) {
            match rule.action {
                Action::Inject { .. } if now.spent[index] => {}
                Action::Inject { .. } => active.push(index),
                // Of several the first counts: QEMU goes through them from the last to the first.
                Action::SetState(_) if next != state => {}
                Action::SetState(new) => next = new,
            }
        }
        if !active.is_empty() {
            now.active = active;
        }
        now.state = next;
    }

    /// The host is to be asked for this, about `len` bytes of the file at `at`.
    ///
    /// # Errors
    ///
    /// A rule's.
    pub fn check(&self, kind: IoKind, at: u64, len: u64) -> io::Result<()> {
        let mut now = self.now();
        let hits = |index: &usize| match self.rules[*index].action {
            Action::Inject { kind: wanted, sector, .. } => {
                let place = sector.map(|sector| sector.saturating_mul(SECTOR));
                let touches = place.is_none_or(|place| place >= at && place - at < len);
                touches && wanted.is_none_or(|wanted| wanted == kind)
            }
            Action::SetState(_) => false,
        };
        let Some(index) = now.active.iter().copied().find(hits) else { return Ok(()) };
        let Action::Inject { errno, once, .. } = self.rules[index].action else { return Ok(()) };
        if errno == 0 {
            return Ok(());
        }
        if once {
            now.active.retain(|active| *active != index);
            now.spent[index] = true;
        }
        Err(io::Error::from_raw_os_error(errno))
    }
}
