//! What happens when a guest-memory file shrinks under its mapping.
//!
//! A VMM hands us a file and keeps it. If it truncates the file, our next access to the lost pages raises SIGBUS, which would
//! end the whole server, with all the disks of other guests. So a handler looks whether the address lies in a watched mapping;
//! if so it puts zero pages where the file ended, marks the mapping broken, and lets the access run again. The export sees the
//! mark and ends that client's connection. A SIGBUS anywhere else is fatal, as before.
//!
//! The handler touches only atomics and calls `mmap`, both allowed in a signal handler. (The kernel's own copies do not come here:
//! they end in `EFAULT`.)

use std::io;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Mappings that can be watched at once, over all clients of the process.
pub const WATCHES_MAX: usize = 4096;

struct Slot {
    /// 0 when the slot is free, 1 while it is being filled, else the first address.
    start: AtomicUsize,
    bytes: AtomicUsize,
    broken: AtomicBool,
}

static SLOTS: [Slot; WATCHES_MAX] = [const {
    Slot { start: AtomicUsize::new(0), bytes: AtomicUsize::new(0), broken: AtomicBool::new(false) }
}; WATCHES_MAX];
static INSTALL: Once = Once::new();

/// A mapping under watch.
#[derive(Debug)]
pub(crate) struct Watch {
    slot: usize,
}

impl Watch {
    /// Watches `bytes` bytes at `start`, and installs the handler the first time.
    pub(crate) fn new(start: usize, bytes: usize) -> io::Result<Watch> {
        INSTALL.call_once(install);
        for (index, slot) in SLOTS.iter().enumerate() {
            if slot.start.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                slot.bytes.store(bytes, Ordering::Relaxed);
                slot.broken.store(false, Ordering::Relaxed);
                slot.start.store(start, Ordering::Release);
                return Ok(Watch { slot: index });
            }
        }
        Err(io::Error::other(format!("more than {WATCHES_MAX} memory regions are mapped")))
    }

    /// Whether pages of the mapping were lost.
    pub(crate) fn is_broken(&self) -> bool {
        SLOTS[self.slot].broken.load(Ordering::Relaxed)
    }

    /// Stops watching; the mapping is about to go.
    pub(crate) fn end(&self) {
        SLOTS[self.slot].start.store(0, Ordering::Release);
    }
}

fn install() {
    // SAFETY: an all-zero `sigaction` is a valid value of that C structure.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: `action` is fully initialised and its handler has the signature SA_SIGINFO asks for.
    let done = unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) };
    assert_eq!(done, 0, "SIGBUS is a signal that can be handled");
}

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` to an SA_SIGINFO handler.
    let info = unsafe { &*info };
    // SAFETY: for SIGBUS the address field is the one that is set.
    let addr = unsafe { info.si_addr() } as usize;
    for slot in &SLOTS {
        let start = slot.start.load(Ordering::Acquire);
        let bytes = slot.bytes.load(Ordering::Relaxed);
        if start > 1 && addr >= start && addr - start < bytes {
            // Everything from the fault on: the file ended before it, so the rest is gone as well. Aligned down to 2 MiB
            // where the mapping allows it, for files of huge pages.
            let page = (addr & !0xfff).max(start);
            let length = start + bytes - page;
            if map_zeroes(page, length) || map_zeroes((addr & !0x1f_ffff).max(start), 1 << 21) {
                slot.broken.store(true, Ordering::Relaxed);
                return;
            }
        }
    }
    // Not ours: with the default action back, the same access faults again and ends the process as it would have.
    // SAFETY: resets the disposition of one signal.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

fn map_zeroes(at: usize, bytes: usize) -> bool {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let at = std::ptr::without_provenance_mut(at);
    // SAFETY: replaces pages within one watched mapping of guest memory, to which no Rust reference ever exists; whoever reads
    // them next reads zeroes, as from any guest memory whose content we do not trust.
    let mapped = unsafe { libc::mmap(at, bytes, prot, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}
