//! What containerd asks for.

use std::path::PathBuf;

use bulkhead_config::ProfileName;

use crate::id::{ContainerdNamespace, SandboxId};
use crate::pod_spec::PodSpec;

/// A pod that needs a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateSandbox {
    /// Its id.
    pub id: SandboxId,
    /// containerd's namespace that it belongs to.
    pub containerd_namespace: ContainerdNamespace,
    /// The profile on whose socket the request came.
    pub profile: ProfileName,
    /// Its network namespace, as CNI left it.
    pub netns: PathBuf,
    /// What it asks for.
    pub pod: PodSpec,
}
