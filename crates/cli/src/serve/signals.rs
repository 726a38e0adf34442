//! Signals: how a running server is told to end, to look for a new size of its image, or to say what it has done.

use block::Image;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::{flag, low_level::pipe};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What signals have asked for.
#[derive(Debug)]
pub struct Signals {
    stop: Arc<AtomicBool>,
    resize: Arc<AtomicBool>,
    tell: Arc<AtomicBool>,
    wake: UnixStream,
}

impl Signals {
    /// From now on SIGTERM and SIGINT ask for a stop, SIGHUP for a look at the image's size, and SIGUSR1 for statistics.
    pub fn catch() -> io::Result<Signals> {
        let (wake, ring) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let [stop, resize, tell]: [Arc<AtomicBool>; 3] = Default::default();
        let all = [(SIGTERM, &stop), (SIGINT, &stop), (SIGHUP, &resize), (SIGUSR1, &tell)];
        for (signal, asked) in all {
            // The flag before the wake-up: who wakes must find it set.
            flag::register(signal, asked.clone())?;
            pipe::register(signal, ring.try_clone()?)?;
        }
        Ok(Signals { stop, resize, tell, wake })
    }

    /// Readable when there was a signal.
    pub fn wake_fd(&self) -> io::Result<OwnedFd> {
        Ok(self.wake.try_clone()?.into())
    }
}

/// The signals as the server asks for them.
pub struct Control<'a> {
    signals: &'a Signals,
    image: Image,
    tell: &'a dyn Fn(),
}

impl<'a> Control<'a> {
    /// `image` is the one whose size is looked at; `tell` prints statistics.
    pub fn new(signals: &'a Signals, image: Image, tell: &'a dyn Fn()) -> Control<'a> {
        Control { signals, image, tell }
    }
}

impl export::server::Control for Control<'_> {
    fn stop_requested(&mut self) -> bool {
        self.signals.stop.load(Ordering::Relaxed)
    }

    fn tend(&mut self) {
        if self.signals.tell.swap(false, Ordering::Relaxed) {
            (self.tell)();
        }
    }

    fn take_config_change(&mut self) -> bool {
        if !self.signals.resize.swap(false, Ordering::Relaxed) {
            return false;
        }
        match self.image.update_size() {
            Ok(Some(bytes)) => {
                tracing::info!("the disk has {bytes} bytes now");
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!("{error}: the guest keeps the old size");
                false
            }
        }
    }
}
