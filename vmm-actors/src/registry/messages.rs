//! What the registry hears.

use std::path::PathBuf;

use actix::{Addr, Message};

use crate::ask::Reply;
use crate::id::{ContainerdNamespace, SandboxId};
use crate::pod_spec::PodSpec;
use crate::sandbox::{Sandbox, SandboxError};

/// A pod that needs a sandbox.
#[derive(Debug, Clone)]
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

/// Make a sandbox; answered when the host's side of it is there and its VM is being launched.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Create {
    /// What.
    pub request: Box<CreateSandbox>,
    /// The answer.
    pub reply: Reply<(), SandboxError>,
}

/// Find a sandbox.
#[derive(Debug, Message)]
#[rtype(result = "Option<Addr<Sandbox>>")]
pub struct Lookup(pub SandboxId);

/// Every sandbox.
#[derive(Debug, Message)]
#[rtype(result = "Vec<Addr<Sandbox>>")]
pub struct List;

/// A sandbox has released everything and forgets itself: its id is free.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Left {
    pub(crate) id: SandboxId,
    pub(crate) generation: u64,
}
