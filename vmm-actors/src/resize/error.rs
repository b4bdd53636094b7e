//! Why a pod keeps its limits.

use crate::agent::AgentError;
use crate::ask::AskError;
use crate::cgroup::CgroupError;
use crate::vm::{Size, VmError};

/// Why new limits did not come about.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// Only a pod that runs is given others.
    #[error("it is {state}")]
    NotRunning {
        /// Name of its sandbox's state.
        state: &'static str,
    },
    /// Its VM would have to be larger, and cannot be.
    #[error(
        "its VM would have to grow, {}; nothing was changed, a new pod would have it",
        from.growth(*to)
    )]
    CannotGrow {
        /// The VM's size.
        from: Size,
        /// What it would have to be.
        to: Size,
        /// Why not.
        source: GrowthError,
    },
    /// The host does not take the limits.
    #[error(transparent)]
    Limits(AskError<CgroupError>),
    /// Its VM could become larger, and has not, or the guest does not use it.
    #[error("its VM was to grow, {}; {}", from.growth(*to), left(*from, *has))]
    NotGrown {
        /// The VM's size before.
        from: Size,
        /// What it was to be.
        to: Size,
        /// What it has now.
        has: Size,
        /// Why not.
        source: GrowthError,
    },
}

impl ResizeError {
    /// What the VM has afterwards, where it was asked to become larger.
    pub(crate) fn has(&self) -> Option<Size> {
        match self {
            Self::NotGrown { has, .. } => Some(*has),
            Self::NotRunning { .. } | Self::CannotGrow { .. } | Self::Limits(_) => None,
        }
    }
}

/// Who has no more to give, or does not take it.
#[derive(Debug, thiserror::Error)]
pub enum GrowthError {
    /// The VMM.
    #[error(transparent)]
    Vm(AskError<VmError>),
    /// The guest.
    #[error(transparent)]
    Guest(AskError<AgentError>),
}

fn left(from: Size, has: Size) -> String {
    if has == from {
        "it has what it had".to_owned()
    } else {
        format!("not all of it could be taken back, it has {has}")
    }
}
