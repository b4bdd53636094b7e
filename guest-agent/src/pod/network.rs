//! The pod's network in the guest, by rtnetlink(7): the same as CNI made on the host.

use std::net::IpAddr;

use bulkhead_protocol::agent::{Interface, Neighbour, Route, SetupRequest, Sysctl};
use bulkhead_protocol::error::chain;
use futures::TryStreamExt;
use rtnetlink::packet_core::Parseable;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMetric, RouteScope, RouteType};
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};

use crate::kernel::modules;
use crate::kernel::sysctl;

/// The loopback device is the first of every network namespace.
const LOOPBACK: u32 = 1;

/// Why the network could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("{value:?} is no MAC address")]
    BadMac { value: String },
    #[error("{value:?} is no address")]
    BadAddress { value: String },
    #[error("{value:?} is no network in CIDR notation")]
    BadCidr { value: String },
    #[error("route to {destination} mixes address families, or names none")]
    BadFamily { destination: String },
    #[error("the guest has no device {device:?}; it has {seen:?}")]
    NoDevice { device: String, seen: Vec<String> },
    #[error("{value:?} is no policy rule")]
    BadRule { value: Vec<u8> },
    #[error("open a netlink socket")]
    OpenNetlink(#[source] std::io::Error),
    #[error("list the guest's network devices")]
    ListLinks(#[source] rtnetlink::Error),
    #[error("bring up {device}")]
    SetLink { device: String, source: rtnetlink::Error },
    #[error("add address {address} to {device}")]
    AddAddress { address: String, device: String, source: rtnetlink::Error },
    #[error("add route {route} on {device}")]
    AddRoute { route: String, device: String, source: rtnetlink::Error },
    #[error("add a policy rule")]
    AddRule(#[source] rtnetlink::Error),
    #[error("add neighbour {address} on {device}")]
    AddNeighbour { address: String, device: String, source: rtnetlink::Error },
}

impl NetworkError {
    /// Whether the request is wrong for any guest.
    pub(crate) fn is_invalid_request(&self) -> bool {
        match self {
            NetworkError::BadMac { .. }
            | NetworkError::BadAddress { .. }
            | NetworkError::BadCidr { .. }
            | NetworkError::BadFamily { .. }
            | NetworkError::BadRule { .. } => true,
            NetworkError::NoDevice { .. }
            | NetworkError::OpenNetlink(_)
            | NetworkError::ListLinks(_)
            | NetworkError::SetLink { .. }
            | NetworkError::AddAddress { .. }
            | NetworkError::AddRoute { .. }
            | NetworkError::AddNeighbour { .. }
            | NetworkError::AddRule(_) => false,
        }
    }
}

/// A network device of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Device {
    index: u32,
    name: String,
    mac: Vec<u8>,
}

/// Sets up loopback, then devices, sysctls, addresses, routes, neighbours and rules as Setup says.
pub(crate) async fn apply(request: &SetupRequest) -> Result<(), NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::OpenNetlink)?;
    let connection = tokio::spawn(connection);
    let result = apply_with(&handle, request).await;
    connection.abort();
    result
}

async fn apply_with(handle: &Handle, request: &SetupRequest) -> Result<(), NetworkError> {
    let up = LinkUnspec::new_with_index(LOOPBACK).up().build();
    set_link(handle, "lo", up).await?;
    let found = devices(handle).await?;
    let mut named = Vec::new();
    for interface in &request.interfaces {
        named.push(find_by_mac(&found, interface)?);
    }
    for (device, name) in conflicting(&found, &named) {
        let message = LinkUnspec::new_with_index(device.index).down().name(name).build();
        set_link(handle, &device.name, message).await?;
    }
    for (device, interface) in named.iter().zip(&request.interfaces) {
        configure(handle, device, interface).await?;
    }
    apply_sysctls(&request.network_sysctls);
    for (device, interface) in named.iter().zip(&request.interfaces) {
        bring_up(handle, device, interface).await?;
    }
    let loopback = Device { index: LOOPBACK, name: "lo".to_owned(), mac: Vec::new() };
    for address in &request.loopback_addresses {
        add_address(handle, &loopback, address).await?;
    }
    named.push(loopback);
    for route in gateways_last(&request.routes) {
        add_route(handle, &named, route).await?;
    }
    for neighbour in &request.neighbours {
        add_neighbour(handle, &named, neighbour).await?;
    }
    for rule in &request.rules {
        add_rule(handle, rule).await?;
    }
    Ok(())
}

async fn devices(handle: &Handle) -> Result<Vec<Device>, NetworkError> {
    let links =
        handle.link().get().execute().try_collect::<Vec<_>>().await.map_err(NetworkError::ListLinks)?;
    Ok(links.iter().map(device).collect())
}

fn device(link: &LinkMessage) -> Device {
    let mut device = Device { index: link.header.index, name: String::new(), mac: Vec::new() };
    for attribute in &link.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            device.name.clone_from(name);
        } else if let LinkAttribute::Address(mac) = attribute {
            device.mac.clone_from(mac);
        }
    }
    device
}

/// The device of an interface, under the name that it will have.
fn find_by_mac(found: &[Device], interface: &Interface) -> Result<Device, NetworkError> {
    let mac = mac(&interface.mac)?;
    let device = found.iter().find(|device| device.mac == mac);
    let device = device.ok_or_else(|| NetworkError::NoDevice {
        device: interface.mac.clone(),
        seen: found.iter().map(|device| device.name.clone()).collect(),
    })?;
    Ok(Device { name: interface.name.clone(), ..device.clone() })
}

/// Devices whose name another device is to get, each with a free name. Once they are renamed, all devices can get their
/// names in any order.
fn conflicting<'a>(found: &'a [Device], named: &[Device]) -> Vec<(&'a Device, String)> {
    let blocks =
        |device: &&Device| named.iter().any(|other| other.name == device.name && other.index != device.index);
    let blocking = found.iter().filter(blocks);
    blocking.map(|device| (device, format!("bulkhead{}", device.index))).collect()
}

fn find_by_name<'a>(named: &'a [Device], name: &str) -> Result<&'a Device, NetworkError> {
    named.iter().find(|device| device.name == name).ok_or_else(|| NetworkError::NoDevice {
        device: name.to_owned(),
        seen: named.iter().map(|device| device.name.clone()).collect(),
    })
}

async fn set_link(handle: &Handle, device: &str, message: LinkMessage) -> Result<(), NetworkError> {
    let fail = |source| NetworkError::SetLink { device: device.to_owned(), source };
    handle.link().set(message).execute().await.map_err(fail)
}

/// Sets name, MTU and MAC address, which the kernel changes only while a device is down.
async fn configure(handle: &Handle, device: &Device, interface: &Interface) -> Result<(), NetworkError> {
    let mut message: LinkMessageBuilder<LinkUnspec> =
        LinkUnspec::new_with_index(device.index).name(interface.name.clone());
    if interface.mtu != 0 {
        message = message.mtu(interface.mtu);
    }
    if !interface.new_mac.is_empty() {
        message = message.address(mac(&interface.new_mac)?);
    }
    set_link(handle, &interface.name, message.build()).await
}

/// Sets the sysctls of the pod's network namespace on the host. The guest's kernel may be of another version: a sysctl
/// that it does not have is logged and left out.
fn apply_sysctls(sysctls: &[Sysctl]) {
    if sysctls.iter().any(|sysctl| sysctl.name.starts_with("net/netfilter/"))
        && let Err(error) = modules::ensure_loaded("nf_conntrack")
    {
        tracing::warn!(error = %chain(&error), "no connection tracking");
    }
    for Sysctl { name, value, .. } in sysctls {
        if let Err(error) = sysctl::set(name, value) {
            tracing::warn!(error = %chain(&error), "a sysctl of the pod's network namespace is left out");
        }
    }
}

async fn bring_up(handle: &Handle, device: &Device, interface: &Interface) -> Result<(), NetworkError> {
    let up = LinkUnspec::new_with_index(device.index).up().build();
    set_link(handle, &interface.name, up).await?;
    for address in &interface.addresses {
        add_address(handle, device, address).await?;
    }
    Ok(())
}

async fn add_address(handle: &Handle, device: &Device, address: &str) -> Result<(), NetworkError> {
    let (ip, prefix) = cidr(address)?;
    let mut request = handle.address().add(device.index, ip, prefix).replace();
    if ip.is_ipv6() {
        // CNI has done duplicate address detection on the host; doing it again would take a second.
        request.message_mut().header.flags.insert(AddressHeaderFlags::Nodad);
    }
    let fail = |source| NetworkError::AddAddress {
        address: address.to_owned(),
        device: device.name.clone(),
        source,
    };
    request.execute().await.map_err(fail)
}

/// Routes without a gateway first: the gateways of the others are reached through them.
fn gateways_last(routes: &[Route]) -> Vec<&Route> {
    let mut ordered: Vec<&Route> = routes.iter().collect();
    ordered.sort_by_key(|route| !route.gateway.is_empty());
    ordered
}

async fn add_route(handle: &Handle, named: &[Device], route: &Route) -> Result<(), NetworkError> {
    let device = match route.device.as_str() {
        "" => None,
        name => Some(find_by_name(named, name)?.index),
    };
    let message = route_message(device, route)?;
    let fail = |source| NetworkError::AddRoute {
        route: format!("{} via {:?}", destination_name(route), route.gateway),
        device: route.device.clone(),
        source,
    };
    handle.route().add(message.build()).replace().execute().await.map_err(fail)
}

fn route_message(device: Option<u32>, route: &Route) -> Result<RouteMessageBuilder<IpAddr>, NetworkError> {
    let mixed = || NetworkError::BadFamily { destination: destination_name(route) };
    let (ip, prefix) = destination(route)?;
    let mut message = RouteMessageBuilder::<IpAddr>::new()
        .scope(RouteScope::from(u8::try_from(route.scope).unwrap_or(0)))
        .destination_prefix(ip, prefix)
        .ok()
        .ok_or_else(mixed)?;
    if let Some(index) = device {
        message = message.output_interface(index);
    }
    if route.table != 0 {
        message = message.table_id(route.table);
    }
    if let Some(kind) = u8::try_from(route.kind).ok().filter(|kind| *kind != 0) {
        message = message.kind(RouteType::from(kind));
    }
    if !route.gateway.is_empty() {
        message = message.gateway(address(&route.gateway)?).ok().ok_or_else(mixed)?;
    }
    if !route.source.is_empty() {
        message = message.pref_source(address(&route.source)?).ok().ok_or_else(mixed)?;
    }
    if route.metric != 0 {
        message = message.priority(route.metric);
    }
    if route.onlink {
        message = message.onlink();
    }
    if route.mtu != 0 {
        message.get_mut().attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(route.mtu)]));
    }
    Ok(message)
}

/// A route's network, with the default route of its family written out.
fn destination(route: &Route) -> Result<(IpAddr, u8), NetworkError> {
    match (route.destination.as_str(), route.family) {
        ("", 4) => Ok((IpAddr::from([0u8; 4]), 0)),
        ("", 6) => Ok((IpAddr::from([0u8; 16]), 0)),
        ("", _) => Err(NetworkError::BadFamily { destination: destination_name(route) }),
        (network, _) => cidr(network),
    }
}

fn destination_name(route: &Route) -> String {
    if route.destination.is_empty() { "default".to_owned() } else { route.destination.clone() }
}

async fn add_rule(handle: &Handle, rule: &[u8]) -> Result<(), NetworkError> {
    let mut request = handle.rule().add();
    *request.message_mut() = rule_message(rule)?;
    match request.execute().await {
        // Setup was repeated.
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => Ok(()),
        result => result.map_err(NetworkError::AddRule),
    }
}

fn rule_message(rule: &[u8]) -> Result<RuleMessage, NetworkError> {
    // struct fib_rule_hdr has 12 bytes, and the parser does not check for them.
    let parsed = rule.get(..12).and_then(|_| RuleMessage::parse(rule).ok());
    parsed.ok_or_else(|| NetworkError::BadRule { value: rule.to_owned() })
}

async fn add_neighbour(handle: &Handle, named: &[Device], neighbour: &Neighbour) -> Result<(), NetworkError> {
    let device = find_by_name(named, &neighbour.device)?;
    let request = handle
        .neighbours()
        .add(device.index, address(&neighbour.address)?)
        .link_layer_address(&mac(&neighbour.mac)?)
        .replace();
    let fail = |source| NetworkError::AddNeighbour {
        address: neighbour.address.clone(),
        device: neighbour.device.clone(),
        source,
    };
    request.execute().await.map_err(fail)
}

fn address(value: &str) -> Result<IpAddr, NetworkError> {
    value.parse().ok().ok_or_else(|| NetworkError::BadAddress { value: value.to_owned() })
}

fn cidr(value: &str) -> Result<(IpAddr, u8), NetworkError> {
    let bad = || NetworkError::BadCidr { value: value.to_owned() };
    let (ip, prefix) = value.split_once('/').ok_or_else(bad)?;
    let ip: IpAddr = ip.parse().ok().ok_or_else(bad)?;
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    let prefix: u8 = prefix.parse().ok().filter(|prefix| *prefix <= longest).ok_or_else(bad)?;
    Ok((ip, prefix))
}

fn mac(value: &str) -> Result<Vec<u8>, NetworkError> {
    let byte = |part: &str| {
        // from_str_radix would accept a sign.
        let digits = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
        if digits { u8::from_str_radix(part, 16).ok() } else { None }
    };
    let bytes: Option<Vec<u8>> = value.split(':').map(byte).collect();
    bytes.filter(|bytes| bytes.len() == 6).ok_or_else(|| NetworkError::BadMac { value: value.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_addresses_are_invalid_requests() {
        assert_eq!(cidr("10.88.0.4/16").unwrap(), ("10.88.0.4".parse().unwrap(), 16));
        assert_eq!(cidr("fd00::4/64").unwrap(), ("fd00::4".parse().unwrap(), 64));
        for bad in ["10.88.0.4", "10.88.0.4/33", "fd00::4/129", "/8", "x/8", "10.0.0.0/-1"] {
            assert!(cidr(bad).unwrap_err().is_invalid_request(), "{bad}");
        }
        assert_eq!(mac("aa:bb:cc:dd:ee:0f").unwrap(), [0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0x0f]);
        for bad in [
            "",
            "aa:bb:cc:dd:ee",
            "aa:bb:cc:dd:ee:ff:00",
            "aa:bb:cc:dd:ee:f",
            "aabbccddeeff",
            "+a:bb:cc:dd:ee:ff",
        ] {
            assert!(mac(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_default_route_needs_an_address_family() {
        let route = |family| Route { family, ..Default::default() };
        assert_eq!(destination(&route(4)).unwrap(), ("0.0.0.0".parse().unwrap(), 0));
        assert_eq!(destination(&route(6)).unwrap(), ("::".parse().unwrap(), 0));
        assert!(destination(&route(0)).is_err());
    }

    #[test]
    fn routes_without_a_gateway_are_added_first() {
        let by = |gateway: &str, metric| Route { gateway: gateway.into(), metric, ..Default::default() };
        let routes = [by("10.0.0.1", 1), by("", 2), by("10.0.0.2", 3), by("", 4)];
        let order: Vec<u32> = gateways_last(&routes).iter().map(|route| route.metric).collect();
        assert_eq!(order, [2, 4, 1, 3]);
    }

    #[test]
    fn a_gateway_of_another_family_is_refused() {
        let route = Route { family: 6, gateway: "10.0.0.1".into(), ..Default::default() };
        assert!(route_message(Some(2), &route).unwrap_err().is_invalid_request());
    }

    #[test]
    fn a_rule_shorter_than_its_header_is_refused() {
        let rule = [2, 0, 32, 0, 100, 0, 0, 1, 2, 0, 0, 0];
        assert_eq!(rule_message(&rule).unwrap().header.table, 100);
        for bad in [&rule[..11], &[], &[rule.as_slice(), &[9, 0, 1]].concat()] {
            assert!(rule_message(bad).unwrap_err().is_invalid_request(), "{bad:?}");
        }
    }

    #[test]
    fn devices_with_a_name_that_another_gets_are_renamed_first() {
        let device = |index, name: &str| Device { index, name: name.into(), mac: vec![0; 6] };
        let found = [device(1, "lo"), device(2, "eth0"), device(3, "eth1"), device(4, "eth2")];
        let moved = |named: &[Device]| -> Vec<(u32, String)> {
            conflicting(&found, named).into_iter().map(|(device, name)| (device.index, name)).collect()
        };
        assert_eq!(moved(&[device(2, "eth0"), device(3, "eth1")]), []);
        let swapped = moved(&[device(2, "eth1"), device(3, "eth0")]);
        assert_eq!(swapped, [(2, "bulkhead2".into()), (3, "bulkhead3".into())]);
        assert_eq!(moved(&[device(3, "eth0")]), [(2, "bulkhead2".into())], "one that nobody named");
    }

    #[test]
    fn a_missing_device_is_named_with_the_existing_ones() {
        let found = [Device { index: 1, name: "lo".into(), mac: vec![0; 6] }];
        let wanted = Interface { mac: "aa:bb:cc:dd:ee:ff".into(), name: "eth0".into(), ..Default::default() };
        let error = find_by_mac(&found, &wanted).unwrap_err().to_string();
        assert!(error.contains("aa:bb:cc:dd:ee:ff") && error.contains("lo"), "{error}");
    }
}
