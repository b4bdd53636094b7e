//! The three things the actor does, each on its own so that a successor can do them without one.

use std::path::Path;

use rtnetlink::packet_route::link::LinkMessage;

use super::describe::{self, CniLink, PodNetwork};
use super::record::{LinkRecord, NetworkRecord, tap_name};
use super::session::Session;
use super::sysctls;
use super::tc::Device;
use super::{LinkStats, NetworkError, Prepared, PreparedLink};
use crate::host::netns::Netns;
use crate::host::tap::Tap;

/// Puts a tap beside every link of the namespace and leads traffic both ways. What an earlier attempt left is
/// replaced.
///
/// # Errors
/// [`NetworkError`]; taps and redirects are gone again then.
pub async fn prepare(netns: &Path) -> Result<Prepared, NetworkError> {
    let namespace = Netns::open(netns).map_err(NetworkError::Netns)?;
    let session = Session::open(&namespace).await?;
    let result = prepare_in(&namespace, &session).await;
    if let Err(error) = &result
        && let Err(second) = release_in(&session).await
    {
        tracing::warn!(%error, undo = %second, netns = %netns.display(), "cannot undo a failed network set-up");
    }
    session.close().await;
    result
}

/// Removes taps and redirects of ours from the namespace, made by whomever. A namespace that is gone is released.
///
/// # Errors
/// [`NetworkError`] for the first thing that could not be removed; the others were tried.
pub async fn release(record: &NetworkRecord) -> Result<(), NetworkError> {
    let namespace = match Netns::open(&record.netns) {
        Ok(namespace) => namespace,
        Err(error) if error.is_gone() => return Ok(()),
        Err(error) => return Err(NetworkError::Netns(error)),
    };
    let session = Session::open(&namespace).await?;
    let result = release_in(&session).await;
    session.close().await;
    result
}

/// Reads the counters of the pod's links.
///
/// # Errors
/// [`NetworkError`] when the namespace is gone or cannot be asked.
pub async fn stats(record: &NetworkRecord) -> Result<Vec<LinkStats>, NetworkError> {
    let namespace = Netns::open(&record.netns).map_err(NetworkError::Netns)?;
    let session = Session::open(&namespace).await?;
    let links = session.links().await;
    session.close().await;
    Ok(describe::link_stats(&links?))
}

async fn prepare_in(namespace: &Netns, session: &Session) -> Result<Prepared, NetworkError> {
    let listed = session.links().await?;
    for (index, tap) in describe::own_taps(&listed) {
        tracing::info!(tap, netns = %namespace.path().display(), "removing a tap that was left behind");
        session.remove(index, tap).await?;
    }
    let links = describe::cni_links(&listed);
    if links.is_empty() {
        tracing::warn!(netns = %namespace.path().display(), "no link in the pod's namespace is up");
    }
    let description = read(namespace, session, &links).await?;
    let names = links.iter().map(|link| tap_name(link.index)).collect();
    let taps = Tap::create(namespace, names).await.map_err(NetworkError::CreateTap)?;
    let record = record(namespace.path(), &links);
    let mut prepared = Vec::with_capacity(links.len());
    for (link, tap) in links.into_iter().zip(taps) {
        join(session, &link, &tap).await?;
        let CniLink { name: guest_name, found_by: mac, mtu, .. } = link;
        prepared.push(PreparedLink { tap: tap.into_fd(), mac, mtu, guest_name });
    }
    Ok(Prepared { links: prepared, description, record })
}

async fn read(namespace: &Netns, session: &Session, links: &[CniLink]) -> Result<PodNetwork, NetworkError> {
    let addresses = session.addresses().await?;
    let interfaces = links.iter().map(|link| describe::interface(link, &addresses)).collect();
    let routes = describe::routes(links, &session.routes().await?);
    let neighbours = describe::neighbours(links, &session.neighbours().await?);
    Ok(PodNetwork {
        interfaces,
        routes,
        neighbours,
        loopback_addresses: describe::loopback_addresses(&addresses),
        rules: describe::rules(session.rules().await?),
        sysctls: sysctls::changed(namespace, links).await?,
    })
}

fn record(netns: &Path, links: &[CniLink]) -> NetworkRecord {
    let names = links.iter().map(|link| LinkRecord { name: link.name.clone(), tap: tap_name(link.index) });
    NetworkRecord { netns: netns.to_owned(), links: names.collect() }
}

/// The tap is set up before anything is sent to it, and what arrives waits in its queue for the VM.
async fn join(session: &Session, link: &CniLink, tap: &Tap) -> Result<(), NetworkError> {
    let inner = Device { index: tap.index(), name: tap.name() };
    let outer = Device { index: link.index, name: &link.name };
    session.set_up(tap, link.mtu).await?;
    session.redirect(inner, outer).await?;
    session.redirect(outer, inner).await
}

async fn release_in(session: &Session) -> Result<(), NetworkError> {
    let listed = session.links().await?;
    let mut first = Ok(());
    for link in listed.iter().filter(|link| !is_loopback(link)) {
        let name = describe::link_name(link).unwrap_or_default();
        let outcome = if super::record::is_tap_name(name) {
            session.remove(link.header.index, name).await
        } else {
            session.remove_redirect(Device { index: link.header.index, name }).await
        };
        first = first.and(outcome);
    }
    first
}

fn is_loopback(link: &LinkMessage) -> bool {
    link.header.link_layer_type == rtnetlink::packet_route::link::LinkLayerType::Loopback
}
