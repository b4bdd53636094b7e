//! What CRI's UpdatePodSandboxResources (containerd 2.3 and later) sends through Update. Pure.

use std::collections::BTreeMap;

use containerd_sandbox::Any;
use serde::Deserialize;
use vmm_actors::Resources;

/// Name of the extension (containerd, `internal/cri/server/sandbox_update_resources.go`).
pub(crate) const EXTENSION: &str = "updated-resources";

/// The update cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpdateError {
    /// Nothing in it that we know.
    #[error("Update without the extension {EXTENSION:?} is not supported")]
    NothingKnown,
    /// Not the JSON it should be.
    #[error("the extension {EXTENSION:?} is not JSON of the pod's resources")]
    Decode {
        /// Where it stops making sense.
        source: serde_json::Error,
    },
}

/// The pod's new bounds, whole sets both.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PodResources {
    /// Sum of what the pod's containers may use.
    pub resources: Resources,
    /// What the sandbox may use beside them.
    pub overhead: Resources,
}

/// Go's encoding of the extension: `null` for what is not set.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Extension {
    overhead: Option<GoResources>,
    resources: Option<GoResources>,
}

/// Go's `encoding/json` of `runtime.v1.LinuxContainerResources`: zero values are left out.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GoResources {
    cpu_period: i64,
    cpu_quota: i64,
    cpu_shares: i64,
    memory_limit_in_bytes: i64,
    memory_swap_limit_in_bytes: i64,
    cpuset_cpus: String,
    cpuset_mems: String,
    hugepage_limits: Vec<GoHugepageLimit>,
    unified: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GoHugepageLimit {
    page_size: String,
    limit: u64,
}

/// Reads the extensions of an Update.
///
/// # Errors
/// [`UpdateError`].
pub(crate) fn pod_resources(extensions: &BTreeMap<String, Any>) -> Result<PodResources, UpdateError> {
    let extension = extensions.get(EXTENSION).ok_or(UpdateError::NothingKnown)?;
    let extension: Extension =
        serde_json::from_slice(&extension.value).map_err(|source| UpdateError::Decode { source })?;
    Ok(PodResources {
        resources: extension.resources.map(Resources::from).unwrap_or_default(),
        overhead: extension.overhead.map(Resources::from).unwrap_or_default(),
    })
}

impl From<GoResources> for Resources {
    fn from(go: GoResources) -> Self {
        Self {
            cpu_period: go.cpu_period,
            cpu_quota: go.cpu_quota,
            cpu_shares: go.cpu_shares,
            memory_limit_bytes: go.memory_limit_in_bytes,
            memory_swap_limit_bytes: go.memory_swap_limit_in_bytes,
            cpuset_cpus: go.cpuset_cpus,
            cpuset_mems: go.cpuset_mems,
            hugepage_limits: go
                .hugepage_limits
                .into_iter()
                .map(|page| (page.page_size, page.limit))
                .collect(),
            unified: go.unified,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extensions(json: &str) -> BTreeMap<String, Any> {
        let type_url = "io.containerd.cri.v1/UpdatedResources".to_owned();
        [(EXTENSION.to_owned(), Any { type_url, value: json.as_bytes().to_vec() })].into()
    }

    #[test]
    fn what_containerd_sends_is_read() {
        let json = r#"{"Overhead":null,"Resources":{"cpu_period":100000,"cpu_quota":200000,"cpu_shares":2048,
            "memory_limit_in_bytes":536870912,"hugepage_limits":[{"page_size":"2MB","limit":2097152}]}}"#;
        let read = pod_resources(&extensions(json)).unwrap();
        assert_eq!((read.resources.cpu_quota, read.resources.memory_limit_bytes), (200_000, 536_870_912));
        assert_eq!(read.resources.hugepage_limits["2MB"], 2_097_152);
        assert_eq!(read.overhead, Resources::default());
    }

    #[test]
    fn what_is_not_that_is_refused() {
        assert!(matches!(pod_resources(&BTreeMap::new()), Err(UpdateError::NothingKnown)));
        for json in ["", "[1]", r#"{"Resources":{"cpu_quota":"much"}}"#] {
            assert!(matches!(pod_resources(&extensions(json)), Err(UpdateError::Decode { .. })), "{json}");
        }
    }
}
