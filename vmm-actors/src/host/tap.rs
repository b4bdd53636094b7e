//! Tap devices that live as long as somebody holds their descriptor.

#![allow(unsafe_code, reason = "TUNSETIFF is an ioctl with a C structure")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;

use super::netns::{Netns, NetnsError};

const DEVICE: &str = "/dev/net/tun";

/// A tap device. It is not persistent: the kernel removes it with the last copy of its descriptor, so dropping this
/// removes it unless a VMM has got one.
#[derive(Debug)]
pub struct Tap {
    name: String,
    index: u32,
    fd: OwnedFd,
}

/// What can go wrong with a tap device.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(NetnsError),
    /// The kernel's tap driver is not there.
    #[error("cannot open {DEVICE} for {name}; is the kernel module \"tun\" loaded?")]
    OpenDriver {
        /// The device to be made.
        name: String,
        /// What open(2) said.
        source: io::Error,
    },
    /// The device could not be made.
    #[error("cannot create tap device {name}")]
    Create {
        /// The device to be made.
        name: String,
        /// What the kernel said: EBUSY when a device of this name is there.
        source: io::Error,
    },
}

impl Tap {
    /// Creates taps of these names in a network namespace, all or none. They are down.
    ///
    /// # Errors
    /// [`TapError`], naming the device; none of the taps is left then.
    pub async fn create(netns: &Netns, names: Vec<String>) -> Result<Vec<Self>, TapError> {
        netns
            .run(|| names.into_iter().map(create_here).collect::<Result<Vec<_>, _>>())
            .await
            .map_err(TapError::Netns)?
    }

    /// Its name in its namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its interface index in its namespace.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The one queue, as a VMM wants it: frames behind a `virtio_net_hdr`, without other headers.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

/// Creates a tap in the namespace of this thread.
fn create_here(name: String) -> Result<Tap, TapError> {
    let file = match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(file) => file,
        Err(source) => return Err(TapError::OpenDriver { name, source }),
    };
    let made = set_interface(&file, &name).and_then(|()| {
        let index = nix::net::if_::if_nametoindex(name.as_str())?;
        silence(&name)?;
        Ok(index)
    });
    match made {
        Ok(index) => Ok(Tap { name, index, fd: file.into() }),
        Err(source) => Err(TapError::Create { name, source }),
    }
}

fn set_interface(file: &File, name: &str) -> io::Result<()> {
    // SAFETY: a plain C structure of integers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero: the name ends there.
    let space = request.ifr_name.len() - 1;
    if name.is_empty() || name.len() > space {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    let flags = u16::try_from(flags).map_err(io::Error::other)?;
    request.ifr_ifru.ifru_flags = flags.cast_signed();
    // SAFETY: the descriptor is open and the structure outlives the call; the kernel reads and writes only in it.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The guest speaks on this wire, not the host: without this the kernel would announce an IPv6 address of its own.
fn silence(name: &str) -> io::Result<()> {
    match fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1") {
        // A kernel without IPv6 has nothing to say. A read-only /proc/sys is no reason to have no network.
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(tap = name, %error, "cannot switch IPv6 off on a tap");
            Ok(())
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
