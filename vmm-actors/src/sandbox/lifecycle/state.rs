//! The life of a sandbox as a pure, total function: (state, event) → state and effects.
//!
//! | state | what is true | Status says |
//! |---|---|---|
//! | `Preparing` | Create waits; the intent is on disk; network, cgroup, share and helpers are being made | not ready |
//! | `Booting` | Create was answered; VMM and guest come up | not ready |
//! | `Ready` | guest is set up; nobody has called Start | not ready |
//! | `Starting` | Start waits; VMM and guest come up | not ready |
//! | `Committing` | guest is set up; the record that says so is being written | not ready |
//! | `Running` | Start was answered; the record owns every resource | ready |
//! | `Failed` | came up never, is released; the cause is kept for the Start that will ask | not ready |
//! | `Undoing` | never ran, or nobody knows it any more; being released, then forgotten | not ready |
//! | `Stopping` | being released, then kept as `Stopped` | not ready |
//! | `Removing` | being released, then forgotten | not ready |
//! | `Stopped` | everything is released; the exit is kept until containerd removes the sandbox | not ready |
//! | `Stuck` | something could not be released; the next Stop or Shutdown tries again | not ready |
//! | `Forgetting` | the record is being deleted | not ready |
//! | `Gone` | nothing is left; the actor ends | not found |
//!
//! Before `Running`, containerd calls nothing after a failed or cancelled Create or Start, so every way out of those
//! states ends in `Gone` by itself. From `Running` on it remembers the sandbox until it calls Shutdown.

mod transitions;

pub use crate::cause::{Cause, Class};

/// Where in its life a sandbox is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table above says what each state means")]
pub enum State {
    Preparing,
    Booting,
    Ready,
    Starting,
    Committing,
    Running,
    Failed(Cause),
    Undoing(Cause),
    Stopping(Cause),
    Removing(Cause),
    Stopped(Cause),
    Stuck(Cause),
    Forgetting(Cause),
    Gone(Cause),
}

/// What happens to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Network, cgroup, share and helpers are there; the VMM is being launched.
    HostReady,
    /// The guest is set up and the shim proxy attached.
    BroughtUp,
    /// Bringing it up failed.
    BringUpFailed(Cause),
    /// Start was called.
    StartAsked,
    /// The record that says Running is on disk.
    Committed,
    /// That record could not be written.
    CommitFailed(Cause),
    /// Nobody called Start in time.
    StartOverdue,
    /// Whoever waited for Create or Start has gone.
    Abandoned,
    /// VMM, virtiofsd, vsock helper or shim proxy ended, or the agent fell silent.
    Died(Cause),
    /// Stop was called.
    StopAsked,
    /// Shutdown was called.
    ShutdownAsked,
    /// containerd's store does not know this sandbox.
    Orphaned,
    /// Everything is released.
    Released,
    /// Something could not be released.
    ReleaseFailed,
    /// The record is deleted, or could not be (which is logged).
    Forgotten,
}

/// What the actor does about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Answer Create: it worked.
    AnswerCreate,
    /// Write the record that says Running.
    Commit,
    /// Disarm every guard: from now on the record owns the resources. Then answer Start.
    KeepAndAnswerStart,
    /// End bringing up, if under way, and release everything.
    Release,
    /// Answer the Create and Start that wait with the cause.
    FailStart(Cause),
    /// Write the record that says Stopped.
    SaveStopped(Cause),
    /// Delete record and directory.
    Forget,
    /// Answer every Wait.
    AnswerWaits(Cause),
    /// Answer every Stop and Shutdown that waits.
    AnswerStops,
    /// Answer every Stop and Shutdown that waits with what could not be released.
    FailStops,
    /// Leave the registry's map, so that the id is free before anybody hears of the end; then end the actor.
    Leave,
}

/// The event makes no sense in this state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the sandbox is {state}; it cannot be started now")]
pub struct Refused {
    /// Name of the state.
    pub state: &'static str,
}

/// State and effects that follow.
pub type Step = (State, Vec<Effect>);

/// What [`State::name`] can answer of a sandbox that is still known.
pub const NAMES: [&str; 10] = [
    "being created",
    "starting",
    "created",
    "running",
    "failed",
    "being undone",
    "stopping",
    "being removed",
    "stopped",
    "stopped, with something left to release",
];

impl State {
    /// Name for Status, logs and refusals.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Preparing => "being created",
            Self::Booting | Self::Starting | Self::Committing => "starting",
            Self::Ready => "created",
            Self::Running => "running",
            Self::Failed(_) => "failed",
            Self::Undoing(_) => "being undone",
            Self::Stopping(_) => "stopping",
            Self::Removing(_) | Self::Forgetting(_) => "being removed",
            Self::Stopped(_) => "stopped",
            Self::Stuck(_) => "stopped, with something left to release",
            Self::Gone(_) => "removed",
        }
    }

    /// Why it ended, where it did.
    #[must_use]
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Self::Preparing
            | Self::Booting
            | Self::Ready
            | Self::Starting
            | Self::Committing
            | Self::Running => None,
            Self::Failed(cause)
            | Self::Undoing(cause)
            | Self::Stopping(cause)
            | Self::Removing(cause)
            | Self::Stopped(cause)
            | Self::Stuck(cause)
            | Self::Forgetting(cause)
            | Self::Gone(cause) => Some(cause),
        }
    }
}

#[cfg(test)]
mod tests;
