//! The back-end channel: requests of ours to the front end.
//!
//! There is one so far, "the configuration changed, read it again", sent without asking for an acknowledgement: whoever
//! waits for one on the control thread hangs with the front end that is itself waiting for us.

use super::error::Error;
use super::eventfd::check_stream_socket;
use super::message::{BACKEND_CONFIG_CHANGE, Header};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use std::os::fd::OwnedFd;

/// Our end of a back-end channel.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

/// What became of a request that was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Yes,
    /// The front end has not read earlier ones; there is no room. Try again.
    NotNow,
    /// The channel is closed or out of step, and of no use any more.
    Gone,
}

impl Channel {
    /// Takes over the socket the front end sent.
    ///
    /// # Errors
    ///
    /// `Refused` if it is not a Unix stream socket.
    pub fn new(socket: OwnedFd) -> Result<Channel, Error> {
        check_stream_socket(&socket)?;
        Ok(Channel { socket })
    }

    /// Tells the front end to read the configuration space again. Never waits.
    pub fn send_config_change(&mut self) -> Sent {
        let header =
            Header { request: BACKEND_CONFIG_CHANGE, reply: false, need_reply: false, size: 0 };
        let bytes = header.encode();
        loop {
            match send(&self.socket, &bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) if sent == bytes.len() => return Sent::Yes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Sent::NotNow,
                // Part of a header: the next one would be read as its rest.
                Ok(_) | Err(_) => return Sent::Gone,
            }
        }
    }
}
