//! From what the kernel lists to what the guest is told. Pure.

#![allow(clippy::wildcard_enum_match_arm, reason = "netlink attributes are an open set; we pick from it")]

use std::net::IpAddr;

use bulkhead_protocol::agent::{Interface, Neighbour, Route, Sysctl};
use rtnetlink::packet_core::Emitable;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteType, RouteVia,
};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleFlags, RuleMessage};

use super::record::is_tap_name;
use super::stats::LinkStats;

/// The loopback device is the first of every network namespace.
const LOOPBACK: u32 = 1;

/// What the agent sets up in the guest.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PodNetwork {
    /// One for each link.
    pub interfaces: Vec<Interface>,
    /// On-link routes first: the others may need them.
    pub routes: Vec<Route>,
    /// Permanent entries only; the guest finds the others by itself.
    pub neighbours: Vec<Neighbour>,
    /// In CIDR notation, but for those that the kernel gives.
    pub loopback_addresses: Vec<String>,
    /// Policy rules but for the kernel's own, as netlink has them.
    pub rules: Vec<Vec<u8>>,
    /// What CNI has changed, in the order in which it must be set.
    pub sysctls: Vec<Sysctl>,
}

impl PodNetwork {
    /// Every address of the pod, without its prefix length.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let all = self.interfaces.iter().flat_map(|interface| &interface.addresses);
        all.filter_map(|cidr| cidr.split('/').next()?.parse().ok()).collect()
    }
}

/// A link that CNI left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CniLink {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: [u8; 6],
    /// The address of the guest's device until the guest gives it the link's: links may share one, as ipvlan's do, and
    /// the guest tells its devices by theirs.
    pub(super) found_by: [u8; 6],
    pub(super) mtu: u32,
}

/// The links that the pod shall have: Ethernet, up, not part of another one, not ours. The kernel puts tunnel
/// devices into every namespace; those are no Ethernet or down.
pub(super) fn cni_links(links: &[LinkMessage]) -> Vec<CniLink> {
    let mut found: Vec<CniLink> = links.iter().filter_map(cni_link).collect();
    found.sort_by_key(|link| link.index);
    tell_apart(&mut found);
    found
}

/// Gives every link after the first with one MAC address another to be found by, locally administered (IEEE 802).
pub(super) fn tell_apart(links: &mut [CniLink]) {
    let mut taken: Vec<[u8; 6]> = links.iter().map(|link| link.mac).collect();
    let mut seen: Vec<[u8; 6]> = Vec::new();
    for link in links {
        if seen.contains(&link.mac) {
            let free = (link.index..=u32::MAX).map(own_mac).find(|mac| !taken.contains(mac));
            link.found_by = free.unwrap_or(link.mac);
            taken.push(link.found_by);
        }
        seen.push(link.mac);
    }
}

fn own_mac(number: u32) -> [u8; 6] {
    let [_, a, b, c] = number.to_be_bytes();
    [0x02, b'b', b'h', a, b, c]
}

fn cni_link(link: &LinkMessage) -> Option<CniLink> {
    let header = &link.header;
    let enslaved = link.attributes.iter().any(|a| matches!(a, LinkAttribute::Controller(_)));
    if header.link_layer_type != LinkLayerType::Ether || !header.flags.contains(LinkFlags::Up) || enslaved {
        return None;
    }
    let name = link_name(link).filter(|name| !is_tap_name(name))?;
    let mac = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
        _ => None,
    })?;
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })?;
    Some(CniLink { index: header.index, name: name.to_owned(), mac, found_by: mac, mtu })
}

/// Our taps that are there: index and name.
pub(super) fn own_taps(links: &[LinkMessage]) -> Vec<(u32, &str)> {
    let named = links.iter().filter_map(|link| Some((link.header.index, link_name(link)?)));
    named.filter(|(_, name)| is_tap_name(name)).collect()
}

pub(super) fn link_name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

pub(super) fn link_stats(links: &[LinkMessage]) -> Vec<LinkStats> {
    let chosen = cni_links(links);
    let counted = chosen.into_iter().filter_map(|chosen| {
        let link = links.iter().find(|link| link.header.index == chosen.index)?;
        link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Stats64(s) => Some(LinkStats {
                name: chosen.name.clone(),
                rx_bytes: s.rx_bytes,
                rx_packets: s.rx_packets,
                rx_errors: s.rx_errors,
                rx_dropped: s.rx_dropped,
                tx_bytes: s.tx_bytes,
                tx_packets: s.tx_packets,
                tx_errors: s.tx_errors,
                tx_dropped: s.tx_dropped,
            }),
            _ => None,
        })
    });
    counted.collect()
}

pub(super) fn interface(link: &CniLink, addresses: &[AddressMessage]) -> Interface {
    let own = addresses.iter().filter(|address| address.header.index == link.index);
    Interface {
        mac: mac_text(&link.found_by),
        new_mac: if link.found_by == link.mac { String::new() } else { mac_text(&link.mac) },
        name: link.name.clone(),
        mtu: link.mtu,
        addresses: own.filter_map(cidr).collect(),
        ..Interface::default()
    }
}

/// What `lo` has beside the addresses that every kernel gives it.
pub(super) fn loopback_addresses(addresses: &[AddressMessage]) -> Vec<String> {
    let own = addresses.iter().filter(|address| address.header.index == LOOPBACK);
    own.filter_map(cidr).filter(|cidr| cidr != "127.0.0.1/8" && cidr != "::1/128").collect()
}

/// IPv6 link-local addresses are left out: the guest makes the same one from the same MAC address.
fn cidr(message: &AddressMessage) -> Option<String> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        // On a link without a peer this is the same; IPv6 has only this.
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    if let IpAddr::V6(v6) = address
        && v6.is_unicast_link_local()
    {
        return None;
    }
    Some(format!("{address}/{}", message.header.prefix_len))
}

/// The routes of every table over these links, over `lo` and to nowhere. Those that the kernel makes by itself for every
/// address are left out: the guest's kernel does the same.
pub(super) fn routes(links: &[CniLink], messages: &[RouteMessage]) -> Vec<Route> {
    let mut routes: Vec<Route> = messages.iter().filter_map(|message| route(links, message)).collect();
    routes.sort_by_key(|route| !route.gateway.is_empty());
    routes
}

fn route(links: &[CniLink], message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let leads_nowhere = match header.kind {
        RouteType::Unicast | RouteType::Local => false,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw => true,
        _ => return None,
    };
    if header.protocol == RouteProtocol::Kernel || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let family = match header.address_family {
        AddressFamily::Inet => 4,
        AddressFamily::Inet6 => 6,
        _ => return None,
    };
    let mut route = Route {
        scope: u32::from(u8::from(header.scope)),
        family,
        onlink: header.flags.contains(RouteFlags::Onlink),
        table: table(message),
        kind: u32::from(u8::from(header.kind)),
        ..Route::default()
    };
    let mut device = None;
    for attribute in &message.attributes {
        apply(&mut route, &mut device, attribute, header.destination_prefix_length);
    }
    if leads_nowhere {
        return Some(route);
    }
    let link = links.iter().find(|link| Some(link.index) == device).map(|link| link.name.as_str());
    let Some(link) = link.or((device == Some(LOOPBACK)).then_some("lo")) else {
        tracing::warn!(destination = route.destination, "route over no single link of the pod left out");
        return None;
    };
    link.clone_into(&mut route.device);
    Some(route)
}

fn table(message: &RouteMessage) -> u32 {
    let attribute = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or_else(|| u32::from(message.header.table))
}

fn apply(route: &mut Route, device: &mut Option<u32>, attribute: &RouteAttribute, prefix: u8) {
    match attribute {
        RouteAttribute::Destination(destination) => {
            route.destination = ip(destination).map(|ip| format!("{ip}/{prefix}")).unwrap_or_default();
        }
        RouteAttribute::Gateway(gateway) => {
            route.gateway = ip(gateway).map(|ip| ip.to_string()).unwrap_or_default()
        }
        RouteAttribute::Via(RouteVia::Inet(via)) => route.gateway = via.to_string(),
        RouteAttribute::Via(RouteVia::Inet6(via)) => route.gateway = via.to_string(),
        RouteAttribute::PrefSource(source) => {
            route.source = ip(source).map(|ip| ip.to_string()).unwrap_or_default()
        }
        RouteAttribute::Priority(metric) => route.metric = *metric,
        RouteAttribute::Oif(index) => *device = Some(*index),
        RouteAttribute::Metrics(metrics) => {
            let mtu = metrics.iter().find_map(|metric| match metric {
                RouteMetric::Mtu(mtu) => Some(*mtu),
                _ => None,
            });
            route.mtu = mtu.unwrap_or_default();
        }
        _ => {}
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

/// The policy rules that somebody added. Flags but that for "not" are the kernel's findings.
pub(super) fn rules(messages: Vec<RuleMessage>) -> Vec<Vec<u8>> {
    let added = messages.into_iter().filter(|rule| {
        !rule.attributes.iter().any(|one| matches!(one, RuleAttribute::Protocol(RouteProtocol::Kernel)))
    });
    let raw = added.map(|mut rule| {
        rule.header.flags &= RuleFlags::Invert;
        let mut bytes = vec![0; rule.buffer_len()];
        rule.emit(&mut bytes);
        bytes
    });
    raw.collect()
}

pub(super) fn neighbours(links: &[CniLink], messages: &[NeighbourMessage]) -> Vec<Neighbour> {
    let permanent = messages.iter().filter(|message| message.header.state == NeighbourState::Permanent);
    permanent.filter_map(|message| neighbour(links, message)).collect()
}

fn neighbour(links: &[CniLink], message: &NeighbourMessage) -> Option<Neighbour> {
    let link = links.iter().find(|link| link.index == message.header.ifindex)?;
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })?;
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
        _ => None,
    })?;
    Some(Neighbour {
        address: address.to_string(),
        mac: mac_text(&mac),
        device: link.name.clone(),
        ..Neighbour::default()
    })
}

fn mac_text(mac: &[u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
