//! What CNI has changed of a namespace's sysctls, as its plugin `tuning` does.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::OnceLock;

use bulkhead_protocol::agent::Sysctl;
use nix::sched::{CloneFlags, unshare};

use super::NetworkError;
use super::describe::CniLink;
use crate::host::netns::Netns;

/// A thread sees its own network namespace below here.
const ROOT: &str = "/proc/sys";

/// Names below [`ROOT`], with slashes, and values.
type Sysctls = BTreeMap<String, String>;

/// What a namespace has in which nothing was set. Read once: making a namespace for every pod would cost more than it
/// tells, and one sysctl too many does no harm.
static FRESH: OnceLock<Sysctls> = OnceLock::new();

/// The sysctls of the namespace and of its links that are not as in a new one, in the order in which they must be set.
///
/// # Errors
/// [`NetworkError::Netns`] when the namespace cannot be entered.
pub(super) async fn changed(namespace: &Netns, links: &[CniLink]) -> Result<Vec<Sysctl>, NetworkError> {
    let (pod, fresh) = namespace.run(|| (read(), fresh())).await.map_err(NetworkError::Netns)?;
    let links: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
    Ok(compare(&pod, fresh, &links))
}

/// To be called by a thread that ends with the call to [`Netns::run`].
fn fresh() -> &'static Sysctls {
    FRESH.get_or_init(|| match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => read(),
        Err(error) => {
            tracing::warn!(%error, "cannot make a network namespace: sysctls that CNI sets are not carried to any pod");
            Sysctls::new()
        }
    })
}

fn compare(pod: &Sysctls, fresh: &Sysctls, links: &[&str]) -> Vec<Sysctl> {
    let differs = |(name, value): &(&String, &String)| {
        let was = fresh.get(&in_a_new_one(name, links)?)?;
        (was != *value).then(|| Sysctl {
            name: (*name).clone(),
            value: (*value).clone(),
            ..Sysctl::default()
        })
    };
    let mut changed: Vec<Sysctl> = pod.iter().filter_map(|one| differs(&one)).collect();
    changed.sort_by_key(|sysctl| order(&sysctl.name));
    changed
}

/// Where a new namespace has the value that this one began with: links begin as the default link. None for what is of no
/// link of the pod, and for IPv6's MTU, which follows the link's.
fn in_a_new_one(name: &str, links: &[&str]) -> Option<String> {
    let Some((above, device, key)) = of_a_link(name) else { return Some(name.to_owned()) };
    match device {
        _ if key == "mtu" => None,
        "all" | "default" | "lo" => Some(name.to_owned()),
        link if links.contains(&link) => Some(format!("{above}/default/{key}")),
        _ => None,
    }
}

/// Setting one for all links sets it for each, and forwarding as such that of all.
fn order(name: &str) -> u8 {
    match of_a_link(name) {
        None => 0,
        Some((_, "all", _)) => 1,
        Some((_, "default", _)) => 2,
        Some(_) => 3,
    }
}

/// `net/ipv4/conf/eth0/rp_filter` is the key of a link; a name may have dots, but no slash.
fn of_a_link(name: &str) -> Option<(&str, &str, &str)> {
    let (rest, key) = name.rsplit_once('/')?;
    let (above, device) = rest.rsplit_once('/')?;
    (above.ends_with("/conf") || above.ends_with("/neigh")).then_some((above, device, key))
}

/// All sysctls of the calling thread's network namespace that can be read and written.
fn read() -> Sysctls {
    let mut found = Sysctls::new();
    let mut folders = vec!["net".to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(Path::new(ROOT).join(&folder)).into_iter().flatten().flatten() {
            let Some(name) = entry.file_name().to_str().map(|name| format!("{folder}/{name}")) else {
                continue;
            };
            match entry.metadata() {
                Ok(what) if what.is_dir() => folders.push(name),
                Ok(what) if is_setting(&what) => {
                    // Some have no value until one is set, and some say so by an error.
                    if let Ok(value) = std::fs::read_to_string(entry.path()) {
                        found.insert(name, value.trim_end().to_owned());
                    }
                }
                Ok(_) | Err(_) => {}
            }
        }
    }
    found
}

fn is_setting(what: &Metadata) -> bool {
    what.permissions().mode() & 0o600 == 0o600
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysctls(all: &[(&str, &str)]) -> Sysctls {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_differs_from_a_new_namespace_is_told_in_the_order_of_setting() {
        let fresh = sysctls(&[
            ("net/core/somaxconn", "4096"),
            ("net/ipv4/conf/all/forwarding", "0"),
            ("net/ipv4/conf/default/forwarding", "0"),
            ("net/ipv4/conf/lo/forwarding", "0"),
            ("net/ipv4/ip_forward", "0"),
            ("net/ipv6/conf/default/mtu", "1280"),
            ("net/ipv6/neigh/default/gc_stale_time", "60"),
        ]);
        let pod = sysctls(&[
            ("net/core/somaxconn", "4096"),
            ("net/core/unknown", "1"),
            ("net/ipv4/conf/all/forwarding", "1"),
            ("net/ipv4/conf/default/forwarding", "1"),
            ("net/ipv4/conf/eth0.5/forwarding", "1"),
            ("net/ipv4/conf/lo/forwarding", "0"),
            ("net/ipv4/conf/other/forwarding", "1"),
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/eth0.5/mtu", "1450"),
            ("net/ipv6/neigh/eth0.5/gc_stale_time", "61"),
        ]);
        let told = compare(&pod, &fresh, &["eth0.5"]);
        let names: Vec<&str> = told.iter().map(|sysctl| sysctl.name.as_str()).collect();
        let expected = [
            "net/ipv4/ip_forward",
            "net/ipv4/conf/all/forwarding",
            "net/ipv4/conf/default/forwarding",
            "net/ipv4/conf/eth0.5/forwarding",
            "net/ipv6/neigh/eth0.5/gc_stale_time",
        ];
        assert_eq!(names, expected);
        assert_eq!(told.last().unwrap().value, "61");
    }
}
