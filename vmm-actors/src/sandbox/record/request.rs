//! What containerd asks for.

use std::path::PathBuf;

use crate::id::{ContainerdNamespace, SandboxId};
use crate::pod_spec::PodSpec;

/// A pod that needs a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateSandbox {
    /// Its id.
    pub id: SandboxId,
    /// containerd's namespace that it belongs to.
    pub containerd_namespace: ContainerdNamespace,
    /// Its network namespace, as CNI left it.
    pub netns: PathBuf,
    /// What it asks for.
    pub pod: PodSpec,
}
