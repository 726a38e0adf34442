//! The answer that is owed for a request. Forgetting it is a panic here, not a hung guest.

use guest_mem::{SegStorage, StatusByte};

/// Status byte values, VIRTIO 1.3 section 5.2.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// `VIRTIO_BLK_S_OK`
    Ok = 0,
    /// `VIRTIO_BLK_S_IOERR`
    IoErr = 1,
    /// `VIRTIO_BLK_S_UNSUPP`
    Unsupp = 2,
}

/// What goes to the used ring for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "push it, or the guest waits for ever"]
pub struct UsedElem {
    /// Head of the descriptor chain.
    pub head: u16,
    /// Bytes the device wrote into the chain, status byte included.
    pub written: u32,
}

/// A request the device owes the guest an answer to.
///
/// # Panics
///
/// Dropping one without [`Pending::finish`] panics.
#[must_use = "finish() it, or the guest waits for ever"]
#[derive(Debug)]
pub struct Pending {
    head: u16,
    status: StatusByte,
    data_in_bytes: u32,
    spare: SegStorage,
    bomb: Bomb,
}

impl Pending {
    /// Takes responsibility for the chain at `head`, whose data the device fills with `data_in_bytes` bytes if all goes well.
    pub(crate) fn start(
        head: u16,
        status: StatusByte,
        data_in_bytes: u32,
        spare: SegStorage,
    ) -> Pending {
        Pending { head, status, data_in_bytes, spare, bomb: Bomb }
    }

    /// Head of the descriptor chain.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The storage that the request does not need, for `Virtqueue::recycle`. Empty the second time.
    #[inline]
    pub fn take_spare(&mut self) -> SegStorage {
        std::mem::take(&mut self.spare)
    }

    /// Ends the request: writes the status byte. All the data must be in guest memory by now.
    ///
    /// On an error the data counts as not written, wherever the host stopped: a driver that copies `written` bytes out of a bounce
    /// buffer must not be given bytes that nobody wrote.
    #[inline]
    pub fn finish(self, status: Status) -> UsedElem {
        let Pending { head, status: place, data_in_bytes, spare: _, bomb } = self;
        std::mem::forget(bomb);
        place.write(status as u8);
        let data = if status == Status::Ok { data_in_bytes } else { 0 };
        UsedElem { head, written: data.saturating_add(1) }
    }
}

#[derive(Debug)]
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("a virtio-blk request was dropped without an answer");
        }
    }
}
