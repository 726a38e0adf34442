//! Damage, as the checkers of all formats list it.

use std::fmt::{self, Debug};

/// Damages listed; the rest are only counted.
const LISTED_MAX: usize = 64;

/// Something wrong with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage<P, K> {
    /// Where.
    pub place: P,
    /// What stands there.
    pub value: u64,
    /// What is wrong.
    pub kind: K,
}

impl<P: Debug, K: Debug> fmt::Display for Damage<P, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damage { place, value, kind } = self;
        write!(f, "{place:x?} is {value:#x}: {kind:?}")
    }
}

impl<P: Debug, K: Debug> Damage<P, K> {
    /// Adds it to a list, unless that is long.
    pub(crate) fn list(self, list: &mut Vec<Self>) {
        if list.len() < LISTED_MAX {
            list.push(self);
        }
    }

    /// A list in words, to follow others.
    pub(crate) fn words(list: &[Self]) -> String {
        list.iter().map(|damage| format!("; {damage}")).collect()
    }
}
