//! Version ranges of a link, and how the two sides agree on a version.

use crate::{agent, pod};

/// Oldest protocol version that this build still speaks.
pub const MIN_VERSION: u32 = 1;
/// Newest protocol version that this build speaks.
pub const MAX_VERSION: u32 = 1;

/// The two ranges have no version in common.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the peer speaks protocol {peer_min} to {peer_max}, this build {MIN_VERSION} to {MAX_VERSION}")]
pub struct NoCommonVersion {
    /// Oldest version of the peer.
    pub peer_min: u32,
    /// Newest version of the peer.
    pub peer_max: u32,
}

/// The newest version both sides speak.
///
/// # Errors
/// [`NoCommonVersion`] when the ranges do not meet.
pub fn negotiate(peer_min: u32, peer_max: u32) -> Result<u32, NoCommonVersion> {
    let newest = peer_max.min(MAX_VERSION);
    if newest >= peer_min.max(MIN_VERSION) { Ok(newest) } else { Err(NoCommonVersion { peer_min, peer_max }) }
}

/// What this build sends first on a link to the agent; `peer` says who is calling.
#[must_use]
pub fn agent_hello(peer: &str) -> agent::HelloRequest {
    agent::HelloRequest {
        min_version: MIN_VERSION,
        max_version: MAX_VERSION,
        peer: peer.to_owned(),
        ..Default::default()
    }
}

/// What this build sends first on a link between sandboxer and shim proxy.
#[must_use]
pub fn pod_hello() -> pod::Version {
    pod::Version {
        min_version: MIN_VERSION,
        max_version: MAX_VERSION,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_taken() {
        assert_eq!(negotiate(MIN_VERSION, MAX_VERSION), Ok(MAX_VERSION));
        assert_eq!(negotiate(0, MAX_VERSION + 7), Ok(MAX_VERSION));
    }

    #[test]
    fn ranges_without_a_common_version_are_refused_and_both_named() {
        let error = negotiate(MAX_VERSION + 1, MAX_VERSION + 2).unwrap_err();
        assert!(error.to_string().contains(&(MAX_VERSION + 1).to_string()), "{error}");
    }
}
