//! Unix sockets of the host among a container's volumes. They are not mounted: what listens there is no process of
//! the guest. The shim proxy connects to them for the guest, which works for streams of bytes and nothing else.

use std::fs::{self, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::error::{MountsError, SocketKind};
use super::request::BindMount;
use crate::id::ContainerId;

/// Permission bits of stat(2)'s mode.
const PERMISSIONS: u32 = 0o7777;

/// A unix socket of the host that a container has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSocket {
    /// [`BindMount::number`].
    pub number: u32,
    /// Absolute, links resolved.
    pub path: PathBuf,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// Describes the socket that a volume's source leads to.
pub(super) fn describe(
    bind: &BindMount,
    metadata: &Metadata,
    container: &ContainerId,
) -> Result<HostSocket, MountsError> {
    let path = fs::canonicalize(&bind.source).map_err(|source| MountsError::FindSource {
        source_path: bind.source.clone(),
        number: bind.number,
        container: container.clone(),
        source,
    })?;
    if let Some(kind) = unfit(&path) {
        return Err(MountsError::HostSocket { path, kind, container: container.clone() });
    }
    let (uid, gid, mode) = (metadata.uid(), metadata.gid(), metadata.mode() & PERMISSIONS);
    Ok(HostSocket { number: bind.number, path, uid, gid, mode })
}

/// The kind of a socket, if it is not a stream's. The kernel says so to whoever connects with another kind, and
/// before anybody is there it is taken for a stream's: a server of streams notices nothing of this.
fn unfit(path: &Path) -> Option<SocketKind> {
    let kinds =
        [(SocketType::DGRAM, SocketKind::Datagram), (SocketType::SEQPACKET, SocketKind::SequencedPacket)];
    kinds.into_iter().find(|(kind, _)| takes(path, *kind)).map(|(_, name)| name)
}

fn takes(path: &Path, kind: SocketType) -> bool {
    match try_to_connect(path, kind) {
        // Its queue is full.
        Ok(()) | Err(Errno::AGAIN) => true,
        // EPROTOTYPE: of another kind. ECONNREFUSED: nobody is there. Whatever else: the first client hears of it.
        Err(_) => false,
    }
}

fn try_to_connect(path: &Path, kind: SocketType) -> rustix::io::Result<()> {
    let place = openat(CWD, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    // The path itself may be longer than an address can be.
    connect(&socket, &SocketAddrUnix::new(format!("/proc/self/fd/{}", place.as_raw_fd()))?)
}
