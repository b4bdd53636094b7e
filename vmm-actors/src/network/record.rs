//! What the durable record holds of a pod's network.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Enough to release a pod's network, be it half made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// The pod's network namespace.
    pub netns: PathBuf,
    /// The links as they were made; for people. Release finds whatever is there by name.
    #[serde(default)]
    pub links: Vec<LinkRecord>,
}

/// One link of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRecord {
    /// What CNI made, and what the guest calls its device.
    pub name: String,
    /// The tap beside it.
    pub tap: String,
}

/// The record to be written before [`Prepare`](super::Prepare): names follow from the namespace's own content.
#[must_use]
pub fn plan(netns: &Path) -> NetworkRecord {
    NetworkRecord { netns: netns.to_owned(), links: Vec::new() }
}

/// Name of the tap beside the link with this interface index.
pub(super) fn tap_name(index: u32) -> String {
    format!("tap{index}_bh")
}

/// Tells our taps from CNI's links.
pub(super) fn is_tap_name(name: &str) -> bool {
    let digits = name.strip_prefix("tap").and_then(|rest| rest.strip_suffix("_bh"));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_names_are_known_again_and_fit() {
        assert!(is_tap_name(&tap_name(2)));
        assert!(is_tap_name(&tap_name(u32::MAX)));
        // IFNAMSIZ (16) counts the zero at the end.
        assert!(tap_name(99_999_999).len() < 16);
        for other in ["eth0", "tap0", "tap_bh", "tapx_bh", "xtap1_bh", "tap1_bhx"] {
            assert!(!is_tap_name(other), "{other}");
        }
    }

    #[test]
    fn a_planned_record_reads_back() {
        let record = plan(Path::new("/run/netns/a"));
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<NetworkRecord>(&text).unwrap(), record);
    }
}
