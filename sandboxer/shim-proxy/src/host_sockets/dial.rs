//! Connecting to a socket of the host for a client in the guest.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Gid, Uid, getegid, geteuid};
use rustix::thread::{
    CapabilitySet, capabilities, set_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

/// How long a server with a full backlog may take to accept.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause before it is tried again, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));
/// Enough for a few system calls, in bytes.
const STACK: usize = 64 * 1024;

/// Why there is no connection. The guest is told: no path is in it.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("cannot find the socket")]
    Find(#[source] io::Error),
    #[error("there is no socket any more")]
    NoSocket,
    #[error("cannot connect as user {uid}, group {gid}")]
    Become { uid: u32, gid: u32, source: io::Error },
    #[error("cannot connect")]
    Connect(#[source] io::Error),
}

/// Who a client is in the guest, as the guest says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Connects as the client: what the server sees of it (SO_PEERCRED of unix(7)) are its user and group. The path is
/// looked at anew each time, because a server that is started again has made another socket there; a link is not
/// followed, wherever in the path it is.
///
/// # Errors
/// [`DialError`], at once but where a server is slow to accept.
pub(super) async fn dial(path: &Path, client: Client) -> Result<UnixStream, DialError> {
    let until = Instant::now() + PATIENCE;
    let mut pause = PAUSES.0;
    loop {
        match once(path, client).await {
            Err(DialError::Connect(error))
                if error.kind() == io::ErrorKind::WouldBlock && Instant::now() + pause < until =>
            {
                sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
            dialled => {
                let stream = StdStream::from(dialled?);
                return UnixStream::from_std(stream).map_err(DialError::Connect);
            }
        }
    }
}

async fn once(path: &Path, client: Client) -> Result<OwnedFd, DialError> {
    if client.uid == geteuid().as_raw() && client.gid == getegid().as_raw() {
        return open(path);
    }
    let failed = move |source| DialError::Become { uid: client.uid, gid: client.gid, source };
    let (reply, answer) = oneshot::channel();
    let path = path.to_owned();
    // Credentials are a thread's own; this one ends with them.
    let thread = std::thread::Builder::new().name("client".into()).stack_size(STACK).spawn(move || {
        let opened = client.assume().map_err(failed).and_then(|()| open(&path));
        drop(reply.send(opened));
    });
    thread.map_err(failed)?;
    answer.await.unwrap_or_else(|_panicked| Err(failed(io::Error::other("the thread for it ended"))))
}

impl Client {
    /// Makes the calling thread the client's, for good. Whether it may connect was decided in the guest, where the
    /// socket has the same owner and mode, and where its further groups are known: here it always may.
    fn assume(self) -> io::Result<()> {
        // To the kernel these mean "as it is".
        if self.uid == u32::MAX || self.gid == u32::MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        set_thread_groups(&[gid])?;
        set_thread_res_gid(None, gid, None)?;
        set_thread_res_uid(None, uid, None)?;
        let mut sets = capabilities(None)?;
        sets.effective |= sets.permitted & CapabilitySet::DAC_OVERRIDE;
        set_capabilities(None, sets)?;
        Ok(())
    }
}

fn open(path: &Path) -> Result<OwnedFd, DialError> {
    let find = |errno: rustix::io::Errno| DialError::Find(errno.into());
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).map_err(find)?;
    let found = fstat(&place).map_err(find)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
        return Err(DialError::NoSocket);
    }
    let failed = |errno: rustix::io::Errno| DialError::Connect(errno.into());
    let kind = (AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
    let socket = socket_with(kind.0, kind.1, kind.2, None).map_err(failed)?;
    // What was looked at is what is connected to, and its path may be longer than an address can be.
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", place.as_raw_fd())).map_err(failed)?;
    connect(&socket, &address).map_err(failed)?;
    Ok(socket)
}
