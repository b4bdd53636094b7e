//! Profiles: several kinds of VMs on one node, each with a Controller socket of its own.
//!
//! The top level of the file is the default profile. `[profile.NAME]` has `listen` and, in tables below it, what differs
//! from the top level.

use std::collections::BTreeMap;

use toml::{Table, Value};

use crate::finding::{Finding, Findings, quoted};
use crate::profile_name::ProfileName;
use crate::settings::Settings;

/// The table of the profiles.
pub(crate) const PROFILE: &str = "profile";
/// The key of a profile's socket.
pub(crate) const LISTEN: &str = "listen";
/// Tables that cannot differ between profiles, and what to do instead.
const OF_THE_NODE: [(&str, &str); 5] = [
    ("sandboxer", "one service has all profiles; a profile has its own `listen`, the rest is in [sandboxer]"),
    ("shim", "containerd and the service find one shim proxy for all; set it in [shim]"),
    ("cgroup", "how the node's cgroups are laid out holds for all pods; set it in [cgroup]"),
    ("metrics", "the service has one endpoint for all; set it in [metrics]"),
    ("traces", "the service has one collector for all; set it in [traces]"),
];

/// Why a profile cannot have a table, if it cannot.
pub(crate) fn of_the_node(table: &str) -> Option<&'static str> {
    OF_THE_NODE.iter().find(|(known, _)| *known == table).map(|(_, why)| *why)
}

/// The tables of the top level with a profile's own keys in the place of theirs.
pub(crate) fn merged(top: &Table, own: Table) -> Table {
    let mut merged = top.clone();
    for (table, keys) in own {
        match (merged.get_mut(&table), keys) {
            (Some(Value::Table(there)), Value::Table(keys)) => there.extend(keys),
            (_, keys) => drop(merged.insert(table, keys)),
        }
    }
    merged
}

/// How the file spells a profile's `key`; none for what is the node's.
pub(crate) fn key_of(name: &ProfileName, key: &str) -> Option<String> {
    if key == "sandboxer.listen" {
        return Some(format!("{PROFILE}.{name}.{LISTEN}"));
    }
    let (table, _) = key.split_once('.')?;
    of_the_node(table).is_none().then(|| format!("{PROFILE}.{name}.{key}"))
}

/// Sockets that an earlier profile has: by its socket containerd's call says which profile it means.
pub(crate) fn shared_sockets(settings: &Settings) -> Vec<Finding> {
    let mut findings = Findings::default();
    let mut seen = BTreeMap::from([(&settings.sandboxer.listen, "[sandboxer]".to_owned())]);
    for (name, profile) in &settings.profiles {
        let listen = &profile.sandboxer.listen;
        if let Some(other) = seen.get(listen) {
            let key = format!("{PROFILE}.{name}.{LISTEN}");
            let right = "a path of its own, by which containerd says which profile it means";
            findings.add(&key, quoted(listen), format!("also the socket of {other}"), right);
        } else {
            seen.insert(listen, format!("[{PROFILE}.{name}]"));
        }
    }
    findings.0
}

/// What `[profile]` has when the settings are written as a file: every key that is in force.
///
/// # Errors
/// What TOML cannot express.
pub(crate) fn printed(profiles: &BTreeMap<ProfileName, Settings>) -> Result<Table, toml::ser::Error> {
    let mut printed = Table::new();
    for (name, profile) in profiles {
        let mut tables = Table::try_from(profile)?;
        tables.retain(|table, _| of_the_node(table).is_none());
        tables.insert(LISTEN.to_owned(), Value::try_from(&profile.sandboxer.listen)?);
        printed.insert(name.to_string(), Value::Table(tables));
    }
    Ok(printed)
}
