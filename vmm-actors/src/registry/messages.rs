//! What the registry hears.

use actix::{Addr, Message};

use crate::ask::Reply;
use crate::id::SandboxId;
use crate::sandbox::{CreateSandbox, Sandbox, SandboxError};

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
