//! The server of one disk: a listening socket, one client at a time, and a way to be told things.
//!
//! ```text
//!             no client --accept--> session --its end, whatever the reason--> no client ...
//!                 |                    |
//!                 `-- stop requested --'--> run() returns, no ring is started
//! ```
//!
//! One thread, one `poll` over the listening socket, the client and the wake fd; nothing a client does can block it for longer
//! than the connection's time limit. While the device drains (it stops a ring, changes memory, is reset) nothing else is
//! looked at: a second client waits in the socket's backlog for that long, and so does a stop request.
//!
//! A second client is accepted and closed as soon as nothing more is to be read from the first, since one that stays in the
//! backlog hangs without a word. The first client's
//! crash, nonsense or silence in the middle of a message ends its session, stops its rings, costs a line in the log, and the
//! next one is served.

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::vhost_user::{Connection, Device, Error, ErrorKind, Session, TIME_LIMIT, now, wait_for};
use rustix::event::{PollFd, PollFlags};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::fs::{remove_file, symlink_metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest path of a Unix socket in bytes: `sun_path` less its terminating 0.
pub const PATH_MAX: usize = 107;

/// How long accepting rests when the process has run out of file descriptors or the like.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Second clients of one session that are mentioned in the log.
const TURNED_AWAY_LOGGED_MAX: u32 = 16;

/// A listening socket. If it has made the socket's file, it removes it when dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    file: Option<SocketFile>,
}

impl Listener {
    /// Listens at `path`. A socket that nobody listens at any more, left by a server that died, is replaced.
    ///
    /// Two servers that start at the same moment at the same path may still replace each other's socket. What protects the
    /// disk from that is the lock of its image.
    ///
    /// # Errors
    ///
    /// `BadPath` if the path is longer than [`PATH_MAX`], a server is listening there, or something else than a socket is
    /// there, which is left alone.
    pub fn bind(path: &Path) -> Result<Listener, Error> {
        let len = path.as_os_str().as_bytes().len();
        if len == 0 || len > PATH_MAX {
            return Err(Error::new(
                ErrorKind::BadPath,
                format!(
                    "socket path {} has {len} bytes, a Unix socket's path 1 to {PATH_MAX}",
                    path.display()
                ),
            ));
        }
        remove_stale(path)?;
        let doing = |e| Error::io(format!("listening at {}", path.display()), e);
        let socket = UnixListener::bind(path).map_err(doing)?;
        let file = Some(SocketFile::of(path).map_err(doing)?);
        socket.set_nonblocking(true).map_err(doing)?;
        Ok(Listener { socket, file })
    }

    /// Takes over a socket that listens already, as a service manager or a VMM hands it down. Its file is left alone.
    ///
    /// # Errors
    ///
    /// `BadPath` if `fd` is not a listening Unix stream socket.
    pub fn from_fd(fd: OwnedFd) -> Result<Listener, Error> {
        let listening = socket_domain(&fd) == Ok(AddressFamily::UNIX)
            && socket_type(&fd) == Ok(SocketType::STREAM)
            && socket_acceptconn(&fd) == Ok(true);
        if !listening {
            let doing = "the file descriptor given is not a listening Unix stream socket";
            return Err(Error::new(ErrorKind::BadPath, doing));
        }
        let doing = |e| Error::io("preparing the listening socket given", e);
        fcntl_setfd(&fd, FdFlags::CLOEXEC).map_err(|e| doing(e.into()))?;
        let socket = UnixListener::from(fd);
        socket.set_nonblocking(true).map_err(doing)?;
        Ok(Listener { socket, file: None })
    }

    /// Where it listens, if [`Listener::bind`] was told.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.path.as_path())
    }
}

/// A socket's file that is ours.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<SocketFile> {
        let meta = symlink_metadata(path)?;
        Ok(SocketFile { path: path.to_owned(), device: meta.dev(), inode: meta.ino() })
    }

    /// Removes the file, unless another one has taken its place.
    fn remove(&self) -> io::Result<()> {
        match SocketFile::of(&self.path) {
            Ok(now) if (now.device, now.inode) == (self.device, self.inode) => {
                remove_file(&self.path)
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // A file that stays is stale, and replaced by the next server.
        let _ = self.file.as_ref().map(SocketFile::remove);
    }
}

/// Makes way for a new socket at `path`, if nobody uses what is there.
fn remove_stale(path: &Path) -> Result<(), Error> {
    let shown = path.display();
    let bad = |what: &str| Err(Error::new(ErrorKind::BadPath, format!("{shown} {what}")));
    let found = match symlink_metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(format!("looking at {shown}"), e)),
    };
    if !found.file_type().is_socket() {
        return bad("exists and is not a socket");
    }
    match try_connect(path) {
        Ok(()) | Err(Errno::AGAIN) => bad("is in use by a running server"),
        Err(Errno::PROTOTYPE) => bad("is a socket of another kind"),
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::CONNREFUSED) => {
            tracing::info!("{shown} was left by a server that is gone, replacing it");
            let stale =
                SocketFile { path: path.to_owned(), device: found.dev(), inode: found.ino() };
            stale.remove().map_err(|e| Error::io(format!("removing the stale socket {shown}"), e))
        }
        Err(e) => Err(Error::io(format!("trying whether {shown} is in use"), e)),
    }
}

/// Connects without waiting: a server whose backlog is full is a running server.
fn try_connect(path: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&probe, &SocketAddrUnix::new(path)?)
}

/// What others want of a running server. Asked after each event; to be heard at once, make the wake fd readable.
pub trait Control {
    /// The server is to stop its session, if there is one, and return.
    fn stop_requested(&mut self) -> bool;

    /// The device's configuration changed since the last call.
    fn take_config_change(&mut self) -> bool;

    /// For what is none of the server's business, and asked for by the wake fd as well.
    fn tend(&mut self) {}
}

/// A server of one disk.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    wake: OwnedFd,
    time_limit: Duration,
    /// No client is accepted before this.
    accept_after: Option<Instant>,
}

/// What a wait has found.
struct Ready {
    listener: bool,
    session: bool,
}

/// Why serving a client ended.
enum End {
    Stopped,
    Client(Error),
}

impl Server {
    /// A server that does not accept anybody before [`Server::run`]. `wake` is an eventfd that the server reads.
    pub fn new(listener: Listener, wake: OwnedFd) -> Server {
        Server { listener, wake, time_limit: TIME_LIMIT, accept_after: None }
    }

    /// The same with another limit than [`TIME_LIMIT`] on what a client may delay.
    pub fn with_time_limit(self, time_limit: Duration) -> Server {
        Server { time_limit, ..self }
    }

    /// Serves one client after the other until `control` wants a stop.
    ///
    /// # Errors
    ///
    /// The listening socket or the wake fd fails. Whatever clients do is no error of the server.
    pub fn run<D: Device, C: Control>(
        &mut self,
        device: &mut D,
        control: &mut C,
    ) -> Result<(), Error> {
        while let Some(client) = self.next_client(control)? {
            tracing::info!("vhost-user: client connected");
            let connection = Connection::new(client).with_time_limit(self.time_limit);
            // By the time the line is written, the session is gone and its rings are stopped.
            match self.serve(Session::new(connection, device), control)? {
                End::Stopped => {
                    tracing::info!("vhost-user: session ended, the server was told to stop");
                    return Ok(());
                }
                End::Client(e) if e.kind() == ErrorKind::Disconnected => {
                    tracing::info!("vhost-user: client disconnected: {}", e.line());
                }
                End::Client(e) => tracing::warn!("vhost-user: client dropped: {}", e.line()),
            }
        }
        Ok(())
    }

    /// Waits for a client; `None` if the server is to stop instead.
    fn next_client(&mut self, control: &mut impl Control) -> Result<Option<UnixStream>, Error> {
        loop {
            if control.stop_requested() {
                return Ok(None);
            }
            control.tend();
            // Nobody is there who could have read the old configuration.
            let _ = control.take_config_change();
            if let Some(client) = self.accept()? {
                return Ok(Some(client));
            }
            self.wait(None, None)?;
        }
    }

    fn serve<D: Device>(
        &mut self,
        mut session: Session<'_, D>,
        control: &mut impl Control,
    ) -> Result<End, Error> {
        let mut turned_away = 0u32;
        loop {
            if control.stop_requested() {
                return Ok(End::Stopped);
            }
            control.tend();
            if control.take_config_change() {
                session.config_changed();
            }
            let ready = self.wait(Some(session.as_fd()), session.time_left())?;
            if let Err(e) = session.turn() {
                return Ok(End::Client(e));
            }
            // Only when nothing has come from the first client, not even its end: one that reconnects is no second client.
            if ready.listener && !ready.session && self.accept()?.is_some() {
                turned_away = turned_away.saturating_add(1);
                if turned_away <= TURNED_AWAY_LOGGED_MAX {
                    tracing::warn!("vhost-user: a second client was turned away");
                }
            }
        }
    }

    /// Accepts a client if one is there. Never waits.
    fn accept(&mut self) -> Result<Option<UnixStream>, Error> {
        if self.accept_pause().is_some() {
            return Ok(None);
        }
        let failed = match self.listener.socket.accept() {
            Ok((client, _)) => {
                self.accept_after = None;
                return Ok(Some(client));
            }
            Err(e) => e,
        };
        match Errno::from_io_error(&failed) {
            Some(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            // The client stays in the backlog, so the socket stays readable: without a pause we would spin.
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                if self.accept_after.is_none() {
                    tracing::warn!("vhost-user: cannot accept a client for now: {failed}");
                }
                self.accept_after = now().checked_add(ACCEPT_PAUSE);
                Ok(None)
            }
            _ => Err(Error::io("accepting a client", failed)),
        }
    }

    /// How much longer no client is accepted.
    fn accept_pause(&self) -> Option<Duration> {
        let left = self.accept_after?.saturating_duration_since(now());
        (!left.is_zero()).then_some(left)
    }

    /// Waits for any event, at most `timeout`, and takes a wake-up.
    fn wait(
        &mut self,
        session: Option<BorrowedFd<'_>>,
        timeout: Option<Duration>,
    ) -> Result<Ready, Error> {
        let pause = self.accept_pause();
        let listener_events = if pause.is_none() { PollFlags::IN } else { PollFlags::empty() };
        // The kernel looks at them in this order. The session comes last: if a client is seen waiting that connected after the
        // first one had closed, then that end is seen, too.
        let mut fds = vec![
            PollFd::new(&self.wake, PollFlags::IN),
            PollFd::new(&self.listener.socket, listener_events),
        ];
        fds.extend(session.as_ref().map(|session| PollFd::new(session, PollFlags::IN)));
        wait_for(&mut fds, timeout.into_iter().chain(pause).min())?;
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = || ready.next().unwrap_or(false);
        let (woken, listener, session) = (next(), next(), next());
        if woken && matches!(rustix::io::read(&self.wake, &mut [0; 8]), Ok(0)) {
            return Err(Error::new(ErrorKind::Io, "the wake fd was closed at its other end"));
        }
        Ok(Ready { listener, session })
    }
}
