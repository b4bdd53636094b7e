//! What the registry hears.

use actix::{Addr, Message};

use crate::ask::Command;
use crate::id::SandboxId;
use crate::sandbox::{CreateSandbox, Sandbox, SandboxError};

/// Make a sandbox; answered when the host's side of it is there and its VM is being launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    /// What.
    pub request: Box<CreateSandbox>,
}

impl Command for Create {
    /// The answer.
    type Answer = ();
    type Error = SandboxError;
}

/// Find a sandbox.
#[derive(Debug, Message)]
#[rtype(result = "Option<Addr<Sandbox>>")]
pub struct Lookup(pub SandboxId);

/// Every sandbox.
#[derive(Debug, Message)]
#[rtype(result = "Vec<Addr<Sandbox>>")]
pub struct List;
