//! What a guest may expect to find on its disk after a power cut.
//!
//! ```text
//!   guest:     write #1   write #2, acknowledged   flush sent ... acknowledged   write #3   power cut
//!   sector 9:  initial | #1 -> #1 | #2 --------------------------> #2 ---------> #2 | #3
//! ```
//!
//! [`History`] notes what the guest sent and what was acknowledged, and where in the disk's write log that was. [`History::promise_at`]
//! gives, for a cut, the values that each sector may hold; [`Promise::judge`] compares. The invariants, by the names they have
//! in the messages:
//!
//! - I4: a sector that was flushed holds exactly what was flushed;
//! - I5: one written since holds that or any value written since;
//! - I6: one discarded since may be zero too (a write zeroes is a write of zeroes, and must be once flushed);
//! - I7: no sector holds anything else: another sector's content, bytes of the host, a mixture.
//!
//! A flush covers the requests that were acknowledged before it was *sent*. Two requests that were in flight at the same time may
//! have been done in either order. A failed request may have been done or not.
//!
//! Every sector that the guest writes is stamped with its number and the request's, so that any two differ.

use std::collections::BTreeMap;
use std::fmt;

#[cfg(test)]
mod tests;

/// What is all old or all new after a crash.
pub const SECTOR: u64 = 512;
const SECTOR_LEN: usize = 512;
const STAMP_MAGIC: [u8; 8] = *b"sector#\n";
const STAMP_LEN: usize = 32;
/// Violations listed; the rest are only counted.
const LISTED_MAX: usize = 8;

/// The bytes of a sector as a request wrote them: the stamp, all over it.
pub fn stamp(sector: u64, request: u64) -> [u8; SECTOR_LEN] {
    let mut stamp = [0; STAMP_LEN];
    let check = sector.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ request.rotate_left(32);
    stamp[..8].copy_from_slice(&STAMP_MAGIC);
    stamp[8..16].copy_from_slice(&sector.to_le_bytes());
    stamp[16..24].copy_from_slice(&request.to_le_bytes());
    stamp[24..].copy_from_slice(&check.to_le_bytes());
    let mut bytes = [0; SECTOR_LEN];
    bytes.as_chunks_mut().0.fill(stamp);
    bytes
}

/// The sector and the request that these bytes are stamped with, if they are whole.
pub fn stamp_of(bytes: &[u8]) -> Option<(u64, u64)> {
    let field = |at: usize| bytes.get(at..)?.first_chunk().map(|raw| u64::from_le_bytes(*raw));
    let (sector, request) = (field(8)?, field(16)?);
    (bytes == stamp(sector, request)).then_some((sector, request))
}

/// A disk's worth of sectors stamped with request 0: what a disk or its backing file had from the start.
pub fn stamped_disk(sectors: u64) -> Vec<u8> {
    (0..sectors).flat_map(|sector| stamp(sector, 0)).collect()
}

/// A guest's request, by its number; the first is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Write,
    Discard,
    WriteZeroes,
    Flush,
}

#[derive(Clone, Debug)]
struct Request {
    kind: Kind,
    first: u64,
    sectors: u64,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Sent(RequestId),
    Ended { request: RequestId, is_ok: bool },
}

/// What a guest sent and what it was answered.
///
/// Every call takes the position in the disk's write log at that time: how many events it had. Positions never go down.
#[derive(Clone, Debug)]
pub struct History {
    initial: Vec<u8>,
    write_through: bool,
    requests: Vec<Request>,
    events: Vec<(usize, Event)>,
}

impl History {
    /// Nothing sent yet, to a disk with these bytes. With `write_through`, a request's answer promises that it is durable.
    pub fn new(initial: Vec<u8>, write_through: bool) -> History {
        History { initial, write_through, requests: Vec::new(), events: Vec::new() }
    }

    /// The disk's size in sectors.
    pub fn sectors(&self) -> u64 {
        self.initial.len() as u64 / SECTOR
    }

    /// The guest sends a write of whole sectors; gives the bytes it must write.
    pub fn write(&mut self, position: usize, offset: u64, len: u64) -> (RequestId, Vec<u8>) {
        let request = self.send(position, Kind::Write, offset, len);
        let sectors = offset / SECTOR..(offset + len) / SECTOR;
        (request, sectors.flat_map(|sector| stamp(sector, request.0)).collect())
    }

    /// The guest sends a discard of whole sectors.
    pub fn discard(&mut self, position: usize, offset: u64, len: u64) -> RequestId {
        self.send(position, Kind::Discard, offset, len)
    }

    /// The guest sends a write zeroes of whole sectors.
    pub fn write_zeroes(&mut self, position: usize, offset: u64, len: u64) -> RequestId {
        self.send(position, Kind::WriteZeroes, offset, len)
    }

    /// The guest sends a flush.
    pub fn flush(&mut self, position: usize) -> RequestId {
        self.send(position, Kind::Flush, 0, 0)
    }

    fn send(&mut self, position: usize, kind: Kind, offset: u64, len: u64) -> RequestId {
        let is_whole = offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR);
        assert!(is_whole, "the guest writes whole sectors: {offset:#x}, {len:#x}");
        self.requests.push(Request { kind, first: offset / SECTOR, sectors: len / SECTOR });
        let request = RequestId(self.requests.len() as u64);
        self.note(position, Event::Sent(request));
        request
    }

    /// A request was answered: done, or failed.
    pub fn ended(&mut self, position: usize, request: RequestId, is_ok: bool) {
        self.note(position, Event::Ended { request, is_ok });
    }

    fn note(&mut self, position: usize, event: Event) {
        let last = self.events.last().map_or(0, |(last, _)| *last);
        assert!(last <= position, "the log has become shorter: {position} after {last}");
        self.events.push((position, event));
    }

    fn request(&self, request: RequestId) -> &Request {
        let index = usize::try_from(request.0 - 1).expect("an index");
        &self.requests[index]
    }

    /// A name for what had been promised at a position: for `enumerate::Options::promise`.
    pub fn promises_by(&self, position: usize) -> u64 {
        let ended = self.until(position).filter(|(_, event)| match event {
            Event::Ended { request, is_ok: true } => {
                self.write_through || self.request(*request).kind == Kind::Flush
            }
            _ => false,
        });
        ended.count() as u64
    }

    fn until(&self, position: usize) -> impl Iterator<Item = (u64, &Event)> {
        let count = self.events.partition_point(|(at, _)| *at <= position);
        (1..).zip(self.events[..count].iter().map(|(_, event)| event))
    }

    /// What the guest may rely on if the power is cut after `log[..position]`: all that it had sent and heard by then.
    pub fn promise_at(&self, position: usize) -> Promise<'_> {
        let mut sectors: BTreeMap<u64, Sector> = BTreeMap::new();
        let mut sent_at: BTreeMap<RequestId, u64> = BTreeMap::new();
        for (now, event) in self.until(position) {
            match *event {
                Event::Sent(id) => {
                    sent_at.insert(id, now);
                    let request = self.request(id);
                    for sector in request.first..request.first + request.sectors {
                        let effect = Effect::new(id, request.kind, now);
                        sectors.entry(sector).or_default().since.push(effect);
                    }
                }
                Event::Ended { request: id, is_ok } => {
                    let request = self.request(id);
                    let range = request.first..request.first + request.sectors;
                    for (_, sector) in sectors.range_mut(range) {
                        sector.end(id, now, is_ok);
                        if is_ok && self.write_through {
                            sector.cover(|effect| effect.request == id);
                        }
                    }
                    if is_ok && request.kind == Kind::Flush {
                        let sent = sent_at.get(&id).copied().unwrap_or(0);
                        for sector in sectors.values_mut() {
                            sector.cover(|effect| effect.ended < sent);
                        }
                    }
                }
            }
        }
        Promise { history: self, sectors }
    }
}

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// What it had from the start.
    Initial,
    /// Zeroes.
    Zero,
    /// What this request wrote.
    Written(RequestId),
}

/// What a request does to a sector.
#[derive(Clone, Debug)]
struct Effect {
    request: RequestId,
    value: Value,
    sent: u64,
    /// `u64::MAX` if it has not.
    ended: u64,
    /// Whether nothing older can be there once this is durable. Not so of a discard, nor of what failed.
    replaces: bool,
    is_discard: bool,
}

impl Effect {
    fn new(request: RequestId, kind: Kind, sent: u64) -> Effect {
        let value = if kind == Kind::Write { Value::Written(request) } else { Value::Zero };
        let is_discard = kind == Kind::Discard;
        Effect { request, value, sent, ended: u64::MAX, replaces: !is_discard, is_discard }
    }
}

/// What may be found in a sector.
#[derive(Clone, Debug)]
struct Sector {
    /// The values that the last promise leaves, and when the requests that made them ended.
    promised: Vec<(Value, u64)>,
    /// What was sent since and is not promised.
    since: Vec<Effect>,
    was_discarded: bool,
}

impl Default for Sector {
    fn default() -> Sector {
        Sector { promised: vec![(Value::Initial, 0)], since: Vec::new(), was_discarded: false }
    }
}

impl Sector {
    fn end(&mut self, request: RequestId, now: u64, is_ok: bool) {
        for effect in self.since.iter_mut().filter(|effect| effect.request == request) {
            effect.ended = now;
            effect.replaces &= is_ok;
        }
    }

    /// Some effects are durable now. What ended before one of them was sent is gone.
    fn cover(&mut self, is_covered: impl Fn(&Effect) -> bool) {
        let (covered, since): (Vec<Effect>, Vec<Effect>) =
            std::mem::take(&mut self.since).into_iter().partition(is_covered);
        self.since = since;
        let replaced_at = covered.iter().filter(|e| e.replaces).map(|e| e.sent).max().unwrap_or(0);
        self.promised.extend(covered.iter().map(|effect| (effect.value, effect.ended)));
        self.promised.retain(|(_, ended)| *ended >= replaced_at);
        self.since.retain(|effect| effect.ended >= replaced_at);
        self.was_discarded |= covered.iter().any(|effect| effect.is_discard);
    }

    fn allowed(&self) -> impl Iterator<Item = Value> {
        let promised = self.promised.iter().map(|(value, _)| *value);
        promised.chain(self.since.iter().map(|effect| effect.value))
    }
}

/// What was found in a sector instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// What it had from the start: all writes are lost.
    Initial,
    /// Zeroes.
    Zero,
    /// What a request wrote here, but not the right one.
    Stale(RequestId),
    /// What a request wrote, or should have, at another sector.
    Misplaced(RequestId, u64),
    /// One byte all over: as unwritten space of the host may look.
    Filled(u8),
    /// Something else.
    Unknown,
}

/// A sector that holds what it must not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant: 4 to 7.
    pub invariant: u32,
    /// Its number.
    pub sector: u64,
    /// What it holds.
    pub found: Found,
    /// What it might have held.
    pub allowed: Vec<Value>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { invariant, sector, found, allowed } = self;
        write!(f, "I{invariant}: sector {sector} holds {found:?}, may hold {allowed:?}")
    }
}

/// What each sector of the disk may hold.
#[derive(Clone, Debug)]
pub struct Promise<'a> {
    history: &'a History,
    /// Of those not here, the initial content.
    sectors: BTreeMap<u64, Sector>,
}

impl Promise<'_> {
    /// The values that a sector may hold.
    pub fn allowed(&self, sector: u64) -> Vec<Value> {
        match self.sectors.get(&sector) {
            Some(sector) => sector.allowed().collect(),
            None => vec![Value::Initial],
        }
    }

    fn initial(&self, sector: u64) -> &[u8] {
        let at = usize::try_from(sector * SECTOR).expect("the disk is in memory");
        &self.history.initial[at..at + SECTOR_LEN]
    }

    fn holds(&self, sector: u64, value: Value, bytes: &[u8]) -> bool {
        match value {
            Value::Initial => bytes == self.initial(sector),
            Value::Zero => bytes == [0; SECTOR_LEN],
            Value::Written(request) => bytes == stamp(sector, request.0),
        }
    }

    /// Reads the whole disk with `read`, which fills a buffer with the bytes at a disk offset, and gives the sectors that are wrong:
    /// the first few, and how many.
    pub fn violations(
        &self,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), String>,
    ) -> Result<(Vec<Violation>, u64), String> {
        let (mut listed, mut count) = (Vec::new(), 0);
        let mut buffer = vec![0; 16 * 1024];
        for (start, initial) in
            (0..).step_by(buffer.len()).zip(self.history.initial.chunks(buffer.len()))
        {
            let here = &mut buffer[..initial.len()];
            read(start, here)?;
            let range = start / SECTOR..(start + here.len() as u64) / SECTOR;
            // Most of a disk is not written to in a test, and this is done a million times.
            if here == initial && self.sectors.range(range).next().is_none() {
                continue;
            }
            for (sector, bytes) in (start / SECTOR..).zip(here.chunks(SECTOR_LEN)) {
                let is_fine = match self.sectors.get(&sector) {
                    None => bytes == self.initial(sector),
                    Some(values) => values.allowed().any(|value| self.holds(sector, value, bytes)),
                };
                if !is_fine {
                    count += 1;
                    if listed.len() < LISTED_MAX {
                        listed.push(self.violation(sector, bytes));
                    }
                }
            }
        }
        Ok((listed, count))
    }

    /// As [`Promise::violations`], with all of them in one message.
    pub fn judge(
        &self,
        read: impl FnMut(u64, &mut [u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        let (listed, count) = self.violations(read)?;
        if count == 0 {
            return Ok(());
        }
        let listed: Vec<String> = listed.iter().map(Violation::to_string).collect();
        Err(format!("{count} sectors are wrong: {}", listed.join("; ")))
    }

    fn violation(&self, sector: u64, bytes: &[u8]) -> Violation {
        let found = match stamp_of(bytes) {
            _ if bytes == self.initial(sector) => Found::Initial,
            Some((at, request)) if at == sector => Found::Stale(RequestId(request)),
            Some((at, request)) => Found::Misplaced(RequestId(request), at),
            None if bytes.iter().all(|byte| *byte == bytes[0]) => match bytes[0] {
                0 => Found::Zero,
                byte => Found::Filled(byte),
            },
            None => Found::Unknown,
        };
        let values = self.sectors.get(&sector);
        let was_written = values.is_some_and(|values| !values.since.is_empty());
        let was_discarded = values.is_some_and(|values| {
            values.was_discarded || values.since.iter().any(|effect| effect.is_discard)
        });
        let invariant = match found {
            Found::Misplaced(..) | Found::Filled(_) | Found::Unknown => 7,
            _ if was_discarded => 6,
            _ if was_written => 5,
            _ => 4,
        };
        Violation { invariant, sector, found, allowed: self.allowed(sector) }
    }
}
