//! File descriptors that an engine's sleep is woken by.

use crate::op::Token;
use std::os::fd::OwnedFd;

/// Names a watched descriptor, for [`crate::IoEngine::unwatch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WatchId {
    index: u32,
    generation: u32,
}

/// Generations stay below this, so that the upper two bits of a key are free for engines to mark keys with.
const GENERATIONS: u32 = 1 << 30;

impl WatchId {
    /// The id as one number that travels through the kernel.
    pub(crate) fn key(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }
}

#[derive(Debug, Default)]
struct Slot {
    /// Changes with each use of the slot, so that a late event of a former watch is told from one of the present.
    generation: u32,
    watched: Option<(OwnedFd, Token)>,
}

/// The watched descriptors of one engine.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    slots: Vec<Slot>,
}

impl Watches {
    pub(crate) fn add(&mut self, fd: OwnedFd, token: Token) -> WatchId {
        let free = self.slots.iter().position(|slot| slot.watched.is_none());
        let index = free.unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        slot.generation = (slot.generation + 1) % GENERATIONS;
        slot.watched = Some((fd, token));
        let index = u32::try_from(index).expect("there are fewer descriptors than that");
        WatchId { index, generation: slot.generation }
    }

    pub(crate) fn remove(&mut self, id: WatchId) -> Option<OwnedFd> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        slot.watched.take().map(|(fd, _)| fd)
    }

    /// The watch that a key from the kernel belongs to, if it still exists.
    pub(crate) fn get(&self, key: u64) -> Option<(WatchId, &OwnedFd, Token)> {
        let index = u32::try_from(key & u64::from(u32::MAX)).ok()?;
        let generation = u32::try_from(key >> 32).ok()? % GENERATIONS;
        let slot = self.slots.get(index as usize)?;
        let (fd, token) = slot.watched.as_ref().filter(|_| slot.generation == generation)?;
        Some((WatchId { index, generation }, fd, *token))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.iter().all(|slot| slot.watched.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_event_of_a_former_watch_is_nobodys() {
        let fd = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let mut watches = Watches::default();
        let first = watches.add(fd(), Token(1));
        assert!(watches.remove(first).is_some());
        assert!(watches.remove(first).is_none());
        assert!(watches.is_empty());
        let second = watches.add(fd(), Token(2));
        assert_eq!(second.index, first.index);
        assert!(watches.get(first.key()).is_none());
        assert_eq!(watches.get(second.key()).unwrap().2, Token(2));
    }
}
