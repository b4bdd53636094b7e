//! What can go wrong with a pod's mounts.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::options::OptionError;
use crate::host::dir::DirError;
use crate::host::mount::{MountError, is_no_such_file};
use crate::host::process::ProcessError;
use crate::id::ContainerId;

/// What can go wrong with a pod's mounts.
#[derive(Debug, thiserror::Error)]
pub enum MountsError {
    /// The kernel's list of mounts could not be read.
    #[error("cannot read the list of mounts")]
    ListMounts {
        /// Why not.
        source: io::Error,
    },
    /// `shared/` or what is beside it could not be made or removed.
    #[error(transparent)]
    Directory(DirError),
    /// Something could not be mounted or unmounted. Both ends are in the text.
    #[error(transparent)]
    Mount(MountError),
    /// The container's mounts are there already. Release them first.
    #[error("the mounts of container {container} are there already")]
    AlreadyPrepared {
        /// The container.
        container: ContainerId,
    },
    /// The file server's mount namespace could not be found.
    #[error("cannot look at the pod's file server")]
    FindServer {
        /// Why not.
        source: ProcessError,
    },
    /// There is no share to mount into.
    #[error("{} is not open for mounts", share.display())]
    NotOpen {
        /// The share.
        share: PathBuf,
    },
    /// A container without a root file system was asked for.
    #[error("container {container} has no rootfs mount")]
    NoRootfs {
        /// The container.
        container: ContainerId,
    },
    /// A mount has options that make no sense here.
    #[error("cannot mount {} with these options", source_path.display())]
    Options {
        /// What should be mounted.
        source_path: PathBuf,
        /// Which one, and why not.
        source: OptionError,
    },
    /// The source of a volume is not there.
    #[error("cannot find {} for volume {number} of container {container}", source_path.display())]
    FindSource {
        /// What should be mounted.
        source_path: PathBuf,
        /// Number of the volume.
        number: u32,
        /// The container.
        container: ContainerId,
        /// What stat(2) said.
        source: io::Error,
    },
    /// A mount point could not be made.
    #[error("cannot make mount point {}", path.display())]
    MakeMountPoint {
        /// The mount point.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The directories in which volumes are kept could not be read.
    #[error("cannot read volumes in {}", path.display())]
    ReadVolumes {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The place of a volume that nobody uses any more could not be removed.
    #[error("cannot remove mount point {}", path.display())]
    RemoveMountPoint {
        /// The mount point.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A unix socket of the host that carries no stream of bytes, which is all that can be led out of a guest.
    #[error(
        "{} is a {kind} unix socket of the host, and only stream sockets can be reached from a VM; take the volume \
         out of container {container}",
        path.display()
    )]
    HostSocket {
        /// The socket.
        path: PathBuf,
        /// What it is instead.
        kind: SocketKind,
        /// The container.
        container: ContainerId,
    },
    /// A mount inside the root file system names a path that is not there or leads out of it.
    #[error("cannot reach {} inside the rootfs of container {container}", target.display())]
    ResolveTarget {
        /// As containerd names it.
        target: PathBuf,
        /// The container.
        container: ContainerId,
        /// What openat2(2) said.
        source: io::Error,
    },
    /// The work was cut off by a panic or the end of the runtime.
    #[error("the work on the mounts was cut off")]
    CutOff,
}

impl MountsError {
    /// The request is at fault: what it asks for is not there, or cannot be, on any host. A repeat cannot help.
    #[must_use]
    pub fn is_callers(&self) -> bool {
        match self {
            Self::NoRootfs { .. } | Self::Options { .. } | Self::HostSocket { .. } => true,
            Self::Mount(error) => error.is_callers(),
            Self::FindSource { source, .. } => is_no_such_file(source),
            // EXDEV: it leads out of the image.
            Self::ResolveTarget { source, .. } => {
                is_no_such_file(source) || source.kind() == io::ErrorKind::CrossesDevices
            }
            Self::ListMounts { .. }
            | Self::Directory(_)
            | Self::AlreadyPrepared { .. }
            | Self::FindServer { .. }
            | Self::NotOpen { .. }
            | Self::MakeMountPoint { .. }
            | Self::ReadVolumes { .. }
            | Self::RemoveMountPoint { .. }
            | Self::CutOff => false,
        }
    }
}

/// A kind of socket that does not carry a stream of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketKind {
    /// `SOCK_DGRAM`.
    Datagram,
    /// `SOCK_SEQPACKET`.
    SequencedPacket,
}

impl fmt::Display for SocketKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Datagram => "datagram",
            Self::SequencedPacket => "seqpacket",
        })
    }
}
