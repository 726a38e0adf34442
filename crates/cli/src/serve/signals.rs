//! Signals: how a running server is told to end, or to look for a new size of its image.

use block::Image;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
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
    wake: UnixStream,
}

impl Signals {
    /// From now on SIGTERM and SIGINT ask for a stop, and SIGHUP for a look at the image's size.
    pub fn catch() -> io::Result<Signals> {
        let (wake, ring) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let (stop, resize) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        for (signal, asked) in [(SIGTERM, &stop), (SIGINT, &stop), (SIGHUP, &resize)] {
            // The flag before the wake-up: who wakes must find it set.
            flag::register(signal, asked.clone())?;
            pipe::register(signal, ring.try_clone()?)?;
        }
        Ok(Signals { stop, resize, wake })
    }

    /// Readable when there was a signal.
    pub fn wake_fd(&self) -> io::Result<OwnedFd> {
        Ok(self.wake.try_clone()?.into())
    }
}

/// The signals as the server asks for them.
#[derive(Debug)]
pub struct Control<'a> {
    signals: &'a Signals,
    image: Image,
}

impl Control<'_> {
    /// `image` is the one whose size is looked at.
    pub fn new(signals: &Signals, image: Image) -> Control<'_> {
        Control { signals, image }
    }
}

impl export::server::Control for Control<'_> {
    fn stop_requested(&mut self) -> bool {
        self.signals.stop.load(Ordering::Relaxed)
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
