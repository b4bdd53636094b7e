//! How a sandbox actor begins: with a Create, or with what a previous process left.

use std::fmt;

use actix::{Message, Recipient};
use tokio::sync::oneshot;

use crate::ask::Reply;
use crate::id::SandboxId;
use crate::sandbox::error::SandboxError;
use crate::sandbox::lifecycle::state::{Cause, State};
use crate::sandbox::lifecycle::verdict::Verdict;
use crate::sandbox::record::{Nanos, Phase, Record};

/// Where a sandbox actor comes from.
#[derive(Debug)]
pub enum Origin {
    /// A Create that waits for its answer.
    New {
        /// The intent.
        record: Box<Record>,
        /// Create's answer.
        reply: Reply<(), SandboxError>,
    },
    /// A record that a previous process, or a previous life of the actor, left.
    Recovered {
        /// The record.
        record: Box<Record>,
        /// What becomes of it.
        verdict: Verdict,
    },
}

/// The actor's place below the registry.
pub(crate) struct Place {
    pub(crate) registry: Recipient<Left>,
    /// Tells this life from an earlier one of the same sandbox.
    pub(crate) generation: u64,
    /// Dropped without a word, it tells the registry that the actor panicked.
    pub(crate) left_in_order: Option<oneshot::Sender<()>>,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place(generation {})", self.generation)
    }
}

/// A sandbox has released everything and forgets itself: its id is free.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Left {
    pub(crate) id: SandboxId,
    pub(crate) generation: u64,
}

/// What the actor does first.
#[derive(Debug, Clone)]
pub(super) enum StartMode {
    BringUp,
    Adopt,
    Undo(Cause),
    Lost(Cause),
    KeepStopped(Cause),
}

impl StartMode {
    pub(super) fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Adopt => Self::Adopt,
            Verdict::Undo(cause) => Self::Undo(cause),
            Verdict::Lost(cause) => Self::Lost(cause),
            Verdict::KeepStopped(cause) => Self::KeepStopped(cause),
        }
    }

    /// The state it begins in, and when it ended, where it did.
    pub(super) fn state(&self, record: &Record) -> (State, Option<Nanos>) {
        match self {
            Self::BringUp | Self::Undo(_) => (State::Preparing, None),
            Self::Adopt | Self::Lost(_) => (State::Running, None),
            Self::KeepStopped(cause) => {
                let at = match record.phase {
                    Phase::Stopped { at, .. } => Some(at),
                    Phase::Starting | Phase::Running => None,
                };
                (State::Stopped(cause.clone()), at)
            }
        }
    }
}
