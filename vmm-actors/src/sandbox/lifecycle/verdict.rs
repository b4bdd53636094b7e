//! What a recorded sandbox is to a service that has just started: a pure decision.

use super::state::Cause;
use crate::sandbox::record::{Phase, Record};

/// What is true now of what a record speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reality {
    /// The record is of this boot of the machine.
    pub same_boot: bool,
    /// The VMM lives.
    pub vmm: bool,
    /// Its vsock helper lives, or it has none.
    pub vsock_helper: bool,
    /// The file server lives.
    pub virtiofsd: bool,
    /// The shim proxy lives.
    pub shim: bool,
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It runs: take it over, touch nothing.
    Adopt,
    /// Start was never answered, containerd does not remember it: release it and forget it.
    Undo(Cause),
    /// It ran and is lost: release what is left of it, keep answering for it.
    Lost(Cause),
    /// It was stopped before; keep answering for it.
    KeepStopped(Cause),
}

/// Decides from record and reality alone.
#[must_use]
pub fn judge(record: &Record, reality: Reality) -> Verdict {
    match &record.phase {
        Phase::Stopped { cause, .. } => Verdict::KeepStopped(cause.clone()),
        Phase::Starting => {
            Verdict::Undo(Cause::lost("the service was restarted before the sandbox had started"))
        }
        Phase::Running => match missing(reality) {
            None => Verdict::Adopt,
            Some(why) => Verdict::Lost(Cause::lost(why)),
        },
    }
}

fn missing(reality: Reality) -> Option<&'static str> {
    if !reality.same_boot {
        return Some("the node was rebooted");
    }
    let parts = [
        (reality.vmm, "the VMM ended while the service was down; its exit status is unknown"),
        (reality.vsock_helper, "the VM's vsock helper ended while the service was down"),
        (reality.virtiofsd, "virtiofsd ended while the service was down"),
        (reality.shim, "the shim proxy ended while the service was down"),
    ];
    parts.into_iter().find(|(alive, _)| !alive).map(|(_, why)| why)
}

#[cfg(test)]
mod tests;
