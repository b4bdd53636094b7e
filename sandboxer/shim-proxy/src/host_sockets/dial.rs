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

use crate::runtime::backoff::Backoff;

/// How long a server with a full backlog may take to accept.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses before it is dialled again.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(200));
/// Stack of the thread that becomes the client, in bytes: enough for a few system calls.
const STACK: usize = 64 * 1024;

/// Why there is no connection. The guest gets this text, so it holds no path of the host.
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

/// User and group of a client in the guest, as the guest reports them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Connects as the client: the server sees its user and group (SO_PEERCRED of unix(7)). The path is resolved anew each
/// time, because a server that is restarted makes another socket there; a link anywhere in the path is not followed.
///
/// # Errors
/// [`DialError`]; at once, unless a server is slow to accept.
pub(super) async fn dial(path: &Path, client: Client) -> Result<UnixStream, DialError> {
    let until = Instant::now() + TIMEOUT;
    let mut pauses = PAUSES;
    let mut pause = pauses.pause();
    loop {
        match once(path, client).await {
            Err(DialError::Connect(error))
                if error.kind() == io::ErrorKind::WouldBlock && Instant::now() + pause < until =>
            {
                sleep(pause).await;
                pause = pauses.pause();
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
    // Credentials belong to a thread. This one ends with them.
    let thread = std::thread::Builder::new().name("client".into()).stack_size(STACK).spawn(move || {
        let opened = client.assume().map_err(failed).and_then(|()| open(&path));
        drop(reply.send(opened));
    });
    thread.map_err(failed)?;
    answer.await.unwrap_or_else(|_panicked| Err(failed(io::Error::other("the thread for it ended"))))
}

impl Client {
    /// Gives the calling thread the client's credentials, for good. Whether the client may connect was decided in the
    /// guest, where the socket has the same owner and mode, and where the client's other groups are known; here it
    /// always may.
    fn assume(self) -> io::Result<()> {
        // To the kernel these mean "unchanged".
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
    // Connects to the file that was checked, whose path may be longer than an address can be.
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", place.as_raw_fd())).map_err(failed)?;
    connect(&socket, &address).map_err(failed)?;
    Ok(socket)
}
