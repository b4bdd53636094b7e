//! The tree that a pod's file server exports: root file systems and volumes of its containers.
//!
//! - **Owns** `shared/` of the pod's directory and everything mounted in it, and `shared.rw` and `shared.ids` beside it.
//! - **Hears** [`Open`], [`Prepare`], [`Release`], [`Close`].
//! - **Tells** nobody; each request carries its reply.
//! - **Ends when** its address is dropped. What is mounted belongs to the record: only Release and Close undo it.
//! - **Queue**: actix's default of 16. One parent speaks to it, about as many containers as a pod has.
//!
//! `shared/` is a read-only view of `shared.rw`, shared with mount namespaces made later. The file server gets that
//! view: its guest can change what is mounted there, but neither make, move nor link anything beside it, so a path
//! that the host mounts at means what it says. Mount points are made in `shared.rw`, where nothing is ever mounted.
//!
//! One kind of volume is not mounted in the view but in the file server's own mount namespace: one that has mounts
//! below it and gets no news of them. Here it would keep the host from removing a directory that it has unmounted.
//!
//! A unix socket is no volume at all: it is described for the shim proxy, which connects to it for the guest. A volume in
//! memory is described for the guest, which makes it.
//!
//! Every name follows from ids: `<container>/rootfs` and `<container>/mounts/<number>`, which is a link where several
//! containers may have the same volume. What a crash leaves is found in the kernel's own list.

mod actor;
mod error;
mod memory;
mod messages;
mod options;
mod request;
mod share;
mod sockets;
mod tree;
mod volumes;

pub use actor::Mounts;
pub use error::{MountsError, SocketKind};
pub use memory::{MemoryVolume, Ownership};
pub use messages::{Close, FileServer, Open, Prepare, PreparedMounts, Release, Volumes};
pub use options::OptionError;
pub use request::{BindMount, RootfsMount};
pub use sockets::HostSocket;
pub use tree::{close, open, prepare, prepare_for, release};

#[cfg(test)]
mod tests;
