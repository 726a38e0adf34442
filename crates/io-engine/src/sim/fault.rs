//! What is to go wrong on a simulated disk.

use crate::rng::Rng;
use crate::sys::SysKind;
use std::ops::Range;

/// Something to go wrong at a chosen call.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Only calls of this kind; `None` for all.
    pub kind: Option<SysKind>,
    /// Only calls that touch this byte range; `None` for all. (Flush and truncate touch everything.)
    pub range: Option<Range<u64>>,
    /// The first of the calls chosen so far to fail, counted from 1 and from when the fault was installed.
    pub nth: u64,
    /// Whether all later ones fail as well.
    pub sticky: bool,
    /// What happens.
    pub action: FaultAction,
}

/// What a [`Fault`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultAction {
    /// The call fails with this errno and changes nothing.
    Errno(i32),
    /// The transfer moves at most this many bytes.
    Short(u64),
    /// A write fails with this errno after this many bytes have reached the cache.
    Torn(i32, u64),
    /// A flush fails with this errno, and what it should have made durable is forgotten: no later flush covers it.
    FlushLost(i32),
}

/// How often, in a thousand calls, the seed makes something go wrong that nobody above may notice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// `EINTR`, without effect.
    pub eintr: u32,
    /// `EAGAIN`, without effect.
    pub eagain: u32,
    /// Transfers that move only a part.
    pub short: u32,
}

/// The faults of one disk, and how far they have counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    installed: Vec<(Fault, u64)>,
    pub(super) rates: Rates,
}

impl Faults {
    pub(super) fn install(&mut self, fault: Fault) {
        self.installed.push((fault, 0));
    }

    pub(super) fn clear(&mut self) {
        self.installed.clear();
        self.rates = Rates::default();
    }

    /// What goes wrong with this call. An installed fault goes before the seed's own.
    pub(super) fn choose(
        &mut self,
        kind: SysKind,
        range: Option<Range<u64>>,
        rng: &mut Rng,
    ) -> Option<FaultAction> {
        let mut chosen = None;
        for (fault, seen) in &mut self.installed {
            let overlaps = match (&fault.range, &range) {
                (Some(a), Some(b)) => a.start < b.end && b.start < a.end,
                _ => true,
            };
            if fault.kind.is_none_or(|wanted| wanted == kind) && overlaps {
                *seen += 1;
                if *seen == fault.nth || fault.sticky && *seen > fault.nth {
                    chosen = chosen.or(Some(fault.action));
                }
            }
        }
        let transfer = matches!(kind, SysKind::Preadv | SysKind::Pwritev | SysKind::PwritevDsync);
        // All three are drawn each time, so that one rate does not change what the others do.
        let (eintr, eagain, short) = (
            rng.chance(self.rates.eintr),
            rng.chance(self.rates.eagain),
            rng.chance(self.rates.short),
        );
        let bytes = range.map_or(0, |range| range.end - range.start);
        let short_len = 1 + rng.below(bytes.saturating_sub(1));
        chosen
            .or(eintr.then_some(FaultAction::Errno(libc::EINTR)))
            .or(eagain.then_some(FaultAction::Errno(libc::EAGAIN)))
            .or((short && transfer).then_some(FaultAction::Short(short_len)))
    }
}
