//! Port-forward: containerd enters the pod's network namespace and dials localhost there, but the pod's processes
//! listen in the guest. So every TCP connection to the namespace's loopback, whatever its port, is redirected to a
//! socket of this process, and forwarded to the same port of the guest's loopback.
//!
//! A [`PortForward`] owns the sockets, the BPF link that redirects to them, and the open connections. All of it ends
//! with [`PortForward::close`], or with this process. Nothing else in the namespace changes.

mod lookup;
mod relay;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};

use bulkhead_protocol::accept::accept;
use bulkhead_protocol::error::chain;
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tracing::{debug, warn};

use crate::sys::bpf;

/// Most open connections; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;

/// Why ports of the pod cannot be forwarded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    /// The namespace could not be opened.
    #[error("cannot open network namespace {}", path.display())]
    OpenNetns {
        /// As the sandboxer named it.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The namespace could not be entered, or no socket be opened in it.
    #[error("cannot listen on {address} in network namespace {}", path.display())]
    Listen {
        /// Where.
        address: SocketAddr,
        /// As the sandboxer named it.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The kernel refuses the program: it needs CONFIG_BPF_SYSCALL, and we need CAP_BPF and CAP_NET_ADMIN.
    #[error("cannot {act} (bpf(2))")]
    Bpf {
        /// Which step.
        act: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A socket could not be registered with the event loop.
    #[error("cannot serve the sockets in the network namespace")]
    Serve(#[source] io::Error),
}

/// The port-forward of one network namespace.
#[derive(Debug)]
pub(crate) struct PortForward {
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl PortForward {
    /// Forwards connections to the loopback of `netns` into the guest behind `vsock`.
    ///
    /// # Errors
    /// [`ForwardError`]; then nothing is left behind in the namespace.
    pub(crate) fn open(netns: &Path, vsock: &Path) -> Result<Self, ForwardError> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let namespace = rustix::fs::open(netns, flags, Mode::empty())
            .map_err(|source| ForwardError::OpenNetns { path: netns.into(), source: source.into() })?;
        let listeners = listen(&namespace, netns)?;
        let link = redirect(&namespace, &listeners)?;
        let listeners = listeners.into_iter().map(|(_, listener)| TcpListener::from_std(listener));
        let listeners = listeners.collect::<Result<_, _>>().map_err(ForwardError::Serve)?;
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(serve(link, listeners, vsock.into(), stopped));
        Ok(Self { stop, served })
    }

    /// Ends it. When this returns, nothing of ours is open in the namespace.
    pub(crate) async fn close(self) {
        drop(self.stop);
        if let Err(error) = self.served.await {
            warn!(%error, "forwarding ended early");
        }
    }
}

/// Listens in the namespace, on ports that the kernel picks: nobody dials them. Only on IPv4 if the namespace has no
/// IPv6.
fn listen(namespace: &OwnedFd, path: &Path) -> Result<Vec<(u32, StdListener)>, ForwardError> {
    let ipv4 = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let ipv6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    let failed = |address| move |source| ForwardError::Listen { address, path: path.into(), source };
    // A namespace is entered by a thread. This one ends there, and no other thread is affected.
    let bound = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok::<_, io::Error>((StdListener::bind(ipv4), StdListener::bind(ipv6)))
        })?;
        thread.join().unwrap_or_else(|_panic| Err(io::Error::other("the thread in it panicked")))
    });
    let (bound4, bound6) = bound.map_err(failed(ipv4))?;
    let mut listeners = vec![(lookup::IPV4, bound4.map_err(failed(ipv4))?)];
    match bound6 {
        Ok(listener) => listeners.push((lookup::IPV6, listener)),
        Err(error) => debug!(%error, "no IPv6 in the pod's network namespace"),
    }
    for (_, listener) in &listeners {
        listener.set_nonblocking(true).map_err(ForwardError::Serve)?;
    }
    Ok(listeners)
}

/// Redirects the namespace's loopback connections to the listeners, until the answer is dropped.
fn redirect(namespace: &OwnedFd, listeners: &[(u32, StdListener)]) -> Result<OwnedFd, ForwardError> {
    let failed = |act| move |source| ForwardError::Bpf { act, source };
    let map = bpf::socket_map(lookup::IPV6 + 1).map_err(failed("make a map of sockets"))?;
    for (key, listener) in listeners {
        bpf::put(&map, *key, listener).map_err(failed("put a socket into the map"))?;
    }
    let program = bpf::load(&lookup::program(map.as_raw_fd())).map_err(failed("load the program"))?;
    bpf::attach(&program, namespace.as_fd()).map_err(failed("attach the program to the network namespace"))
}

async fn serve(
    link: OwnedFd,
    listeners: Vec<TcpListener>,
    vsock: Arc<Path>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut relays = JoinSet::new();
    loop {
        tokio::select! {
            _closed = &mut stopped => break,
            client = accept_any(&listeners), if relays.len() < MAX_CONNECTIONS => {
                relays.spawn(relay::relay(client, vsock.clone()));
            }
            Some(_ended) = relays.join_next() => {}
        }
    }
    // First no new connection can come, then the open ones end.
    drop(link);
    drop(listeners);
    relays.shutdown().await;
}

/// The next connection on any of them.
async fn accept_any(listeners: &[TcpListener]) -> TcpStream {
    let poll = |context: &mut Context<'_>| {
        let accepted = listeners.iter().find_map(|listener| match listener.poll_accept(context) {
            Poll::Ready(accepted) => Some(accepted.map(|(client, _peer)| client)),
            Poll::Pending => None,
        });
        accepted.map_or(Poll::Pending, Poll::Ready)
    };
    accept(poll, |error| warn!(%error, "cannot accept a forwarded connection, trying again")).await
}

/// Opens a port-forward, or logs why ports of this pod cannot be forwarded: the pod runs all the same. None without a
/// namespace.
pub(crate) fn open_or_log(netns: &str, vsock: &Path) -> Option<PortForward> {
    if netns.is_empty() {
        return None;
    }
    match PortForward::open(Path::new(netns), vsock) {
        Ok(forward) => Some(forward),
        Err(error) => {
            warn!(error = chain(&error), "ports of this pod cannot be forwarded");
            None
        }
    }
}

#[cfg(test)]
mod tests;
