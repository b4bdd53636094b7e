//! A netlink socket in the pod's namespace.

use std::net::{Ipv4Addr, Ipv6Addr};

use futures::{Stream, TryStreamExt};
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::{Handle, IpVersion, LinkUnspec, RouteMessageBuilder};
use tokio::task::JoinHandle;

use super::NetworkError;
use crate::host::netns::Netns;
use crate::host::tap::Tap;

/// One conversation with the kernel. [`close`](Self::close) it: the socket keeps the namespace alive.
pub(super) struct Session {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Session {
    pub(super) async fn open(netns: &Netns) -> Result<Self, NetworkError> {
        let opened = netns.run(rtnetlink::new_connection).await.map_err(NetworkError::Netns)?;
        let (connection, handle, _) =
            opened.map_err(|source| NetworkError::OpenNetlink { netns: netns.path().to_owned(), source })?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// Ends the conversation; the socket is closed when this returns.
    pub(super) async fn close(self) {
        let Self { handle, connection } = self;
        drop(handle);
        connection.abort();
        if let Err(error) = connection.await
            && error.is_panic()
        {
            tracing::warn!(%error, "the netlink connection panicked");
        }
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(super) async fn links(&self) -> Result<Vec<LinkMessage>, NetworkError> {
        collect("links", self.handle.link().get().execute()).await
    }

    pub(super) async fn addresses(&self) -> Result<Vec<AddressMessage>, NetworkError> {
        collect("addresses", self.handle.address().get().execute()).await
    }

    pub(super) async fn routes(&self) -> Result<Vec<RouteMessage>, NetworkError> {
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut routes = collect("routes", self.handle.route().get(v4).execute()).await?;
        routes.extend(collect("routes", self.handle.route().get(v6).execute()).await?);
        Ok(routes)
    }

    /// None where the kernel knows no policy rules, or no IPv6.
    pub(super) async fn rules(&self) -> Result<Vec<RuleMessage>, NetworkError> {
        let mut rules = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            match self.handle.rule().get(version).execute().try_collect::<Vec<_>>().await {
                Ok(found) => rules.extend(found),
                Err(error)
                    if matches!(errno(&error), Some(nix::libc::EAFNOSUPPORT | nix::libc::EOPNOTSUPP)) => {}
                Err(source) => return Err(NetworkError::List { what: "rules", source }),
            }
        }
        Ok(rules)
    }

    pub(super) async fn neighbours(&self) -> Result<Vec<NeighbourMessage>, NetworkError> {
        collect("neighbours", self.handle.neighbours().get().execute()).await
    }

    pub(super) async fn set_up(&self, tap: &Tap, mtu: u32) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(tap.index()).mtu(mtu).up().build();
        self.handle.link().set(message).execute().await.map_err(|source| NetworkError::SetUpTap {
            tap: tap.name().to_owned(),
            mtu,
            source,
        })
    }

    /// Removes a tap, whoever holds its descriptor.
    pub(super) async fn remove(&self, index: u32, tap: &str) -> Result<(), NetworkError> {
        match self.handle.link().del(index).execute().await {
            Err(error) if errno(&error) == Some(nix::libc::ENODEV) => Ok(()),
            result => result.map_err(|source| NetworkError::RemoveTap { tap: tap.to_owned(), source }),
        }
    }
}

async fn collect<T>(
    what: &'static str,
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, NetworkError> {
    stream.try_collect().await.map_err(|source| NetworkError::List { what, source })
}

/// The kernel's own answer, positive.
pub(super) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    if let rtnetlink::Error::NetlinkError(message) = error {
        return Some(message.raw_code().abs());
    }
    None
}
