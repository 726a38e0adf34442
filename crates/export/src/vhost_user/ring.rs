//! One ring as a session knows it: what the front end has said about it so far.
//!
//! ```text
//!          SET_VRING_NUM, ADDR, BASE                 SET_VRING_ENABLE: any time
//!                  |                                         |
//!   stopped -------+---- SET_VRING_KICK ----> started (enabled or disabled)
//!      ^                                            |
//!      `-- GET_VRING_BASE, reset, memory taken away-'
//! ```

use super::error::Error;
use super::feature;
use super::message::RingAddrs;
use guest_mem::{GuestMemory, MemHandle};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use virtqueue::{QueueConfig, Virtqueue};

/// What the front end has said about a ring.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    /// Entries; 0 until it is set.
    pub size: u16,
    /// Where the areas lie, in the front end's addresses.
    pub addrs: Option<RingAddrs>,
    /// Where to start, or where the device has stopped.
    pub next_avail: u16,
    /// The device may take chains once the ring is started.
    pub enabled: bool,
    /// Kept here too, since a front end may set it once and start the ring several times.
    pub call: Option<OwnedFd>,
    /// As `call`.
    pub err: Option<OwnedFd>,
    /// What the ring was started with; `None` if it is stopped.
    pub started: Option<QueueConfig>,
}

impl Ring {
    /// Finds the ring in `memory`, and checks that a queue can be there.
    pub fn place(&self, memory: &Arc<GuestMemory>, features: u64) -> Result<QueueConfig, Error> {
        if self.size == 0 {
            return Err(Error::refused("the ring has no size yet"));
        }
        let addrs = self.addrs.ok_or_else(|| Error::refused("the ring has no addresses yet"))?;
        let config = QueueConfig {
            event_idx: features & feature::RING_EVENT_IDX != 0,
            indirect: features & feature::RING_INDIRECT != 0,
            ..locate(self.size, &addrs, memory)?
        };
        // The rules are the queue's own, so it is asked; the device sets up another one on the thread that will use it.
        Virtqueue::new(&MemHandle::new(Arc::clone(memory)), &config, self.next_avail)
            .map_err(|bad| Error::refused(bad.to_string()))?;
        Ok(config)
    }
}

/// The guest addresses of a ring's areas, without regard to their length.
pub(crate) fn locate(
    size: u16,
    addrs: &RingAddrs,
    memory: &GuestMemory,
) -> Result<QueueConfig, Error> {
    let at = |what: &str, user_addr: u64| {
        memory.user_to_guest(user_addr).ok_or_else(|| {
            Error::refused(format!("the {what} at {user_addr:#x} is not in a memory region"))
        })
    };
    Ok(QueueConfig {
        size,
        desc: at("descriptor table", addrs.desc)?,
        avail: at("avail ring", addrs.avail)?,
        used: at("used ring", addrs.used)?,
        event_idx: false,
        indirect: false,
    })
}
