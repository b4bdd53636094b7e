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

use serde::{Deserialize, Serialize};

/// Why a sandbox came to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Whose doing it was.
    pub class: Class,
    /// For a person: what ended, and its last words.
    pub reason: String,
}

/// Whose doing the end of a sandbox was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Somebody asked for it.
    Asked,
    /// The request or the settings named something that cannot be used.
    Invalid,
    /// The host lacks something.
    Exhausted,
    /// Something did not answer in time.
    TimedOut,
    /// The VM, or something it cannot live without, is gone or broken.
    Lost,
}

impl Cause {
    /// Somebody asked for the end.
    #[must_use]
    pub fn asked(reason: &str) -> Self {
        Self { class: Class::Asked, reason: reason.to_owned() }
    }

    /// The VM, or something it cannot live without, is gone.
    #[must_use]
    pub fn lost(reason: impl Into<String>) -> Self {
        Self { class: Class::Lost, reason: reason.into() }
    }

    /// What Wait answers: 0 when somebody asked for the end, else 137 as for a process that was killed.
    #[must_use]
    pub fn exit_status(&self) -> u32 {
        match self.class {
            Class::Asked => 0,
            Class::Invalid | Class::Exhausted | Class::TimedOut | Class::Lost => 137,
        }
    }
}

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

    /// What follows from an event.
    ///
    /// # Errors
    /// [`Refused`] for a Start that cannot be honoured; every other event is either meant or harmless.
    pub fn on(self, event: Event) -> Result<Step, Refused> {
        match self {
            Self::Preparing => on_coming_up(self, event, ComingUp::Preparing),
            Self::Booting => on_coming_up(self, event, ComingUp::Booting),
            Self::Ready => on_coming_up(self, event, ComingUp::Ready),
            Self::Starting => on_coming_up(self, event, ComingUp::Starting),
            Self::Committing => on_coming_up(self, event, ComingUp::Committing),
            Self::Running => on_running(event),
            Self::Failed(cause) => Ok(on_failed(cause, event)),
            Self::Undoing(cause) => Ok(on_undoing(cause, event)),
            Self::Stopping(cause) => on_stopping(cause, event),
            Self::Removing(cause) => on_removing(cause, event),
            Self::Stopped(cause) => on_stopped(cause, event),
            Self::Stuck(cause) => on_stuck(cause, event),
            Self::Forgetting(cause) => on_forgetting(cause, event),
            Self::Gone(cause) => on_gone(cause, event),
        }
    }
}

/// The states before Running share every way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ComingUp {
    Preparing,
    Booting,
    Ready,
    Starting,
    Committing,
}

fn undo(cause: Cause) -> Result<Step, Refused> {
    Ok((State::Undoing(cause), vec![Effect::Release]))
}

fn stay(state: State) -> Result<Step, Refused> {
    Ok((state, Vec::new()))
}

fn on_coming_up(state: State, event: Event, at: ComingUp) -> Result<Step, Refused> {
    match event {
        Event::HostReady => match at {
            ComingUp::Preparing => Ok((State::Booting, vec![Effect::AnswerCreate])),
            ComingUp::Booting | ComingUp::Ready | ComingUp::Starting | ComingUp::Committing => stay(state),
        },
        Event::BroughtUp => match at {
            // The host was ready first, so Create has been answered; a message cannot overtake.
            ComingUp::Preparing => Ok((State::Ready, vec![Effect::AnswerCreate])),
            ComingUp::Booting => stay(State::Ready),
            ComingUp::Starting => Ok((State::Committing, vec![Effect::Commit])),
            ComingUp::Ready | ComingUp::Committing => stay(state),
        },
        Event::StartAsked => match at {
            ComingUp::Booting => stay(State::Starting),
            ComingUp::Ready => Ok((State::Committing, vec![Effect::Commit])),
            // A repeat joins the Start under way.
            ComingUp::Starting | ComingUp::Committing => stay(state),
            ComingUp::Preparing => Err(Refused { state: state.name() }),
        },
        Event::Committed => match at {
            ComingUp::Committing => Ok((State::Running, vec![Effect::KeepAndAnswerStart])),
            ComingUp::Preparing | ComingUp::Booting | ComingUp::Ready | ComingUp::Starting => stay(state),
        },
        Event::BringUpFailed(cause) | Event::Died(cause) => match at {
            // Nobody waits: release at once, but keep the cause for the Start that will ask.
            ComingUp::Booting | ComingUp::Ready => Ok((State::Failed(cause), vec![Effect::Release])),
            ComingUp::Preparing | ComingUp::Starting | ComingUp::Committing => undo(cause),
        },
        Event::CommitFailed(cause) => undo(cause),
        Event::StartOverdue => match at {
            ComingUp::Booting | ComingUp::Ready => undo(Cause::asked("nobody started the sandbox in time")),
            ComingUp::Preparing | ComingUp::Starting | ComingUp::Committing => stay(state),
        },
        Event::Abandoned => undo(Cause::asked("the caller went away")),
        Event::StopAsked | Event::ShutdownAsked => undo(Cause::asked("it was stopped while it started")),
        Event::Orphaned | Event::Released | Event::ReleaseFailed | Event::Forgotten => stay(state),
    }
}

fn on_running(event: Event) -> Result<Step, Refused> {
    match event {
        Event::Died(cause) => Ok((State::Stopping(cause), vec![Effect::Release])),
        Event::StopAsked => Ok((State::Stopping(Cause::asked("stopped")), vec![Effect::Release])),
        Event::ShutdownAsked => Ok((State::Removing(Cause::asked("removed")), vec![Effect::Release])),
        Event::Orphaned => Ok((
            State::Removing(Cause::asked("containerd no longer knows the sandbox")),
            vec![Effect::Release],
        )),
        Event::StartAsked => Err(Refused { state: State::Running.name() }),
        Event::HostReady
        | Event::BroughtUp
        | Event::BringUpFailed(_)
        | Event::Committed
        | Event::CommitFailed(_)
        | Event::StartOverdue
        | Event::Abandoned
        | Event::Released
        | Event::ReleaseFailed
        | Event::Forgotten => stay(State::Running),
    }
}

/// Release is under way or done; either way it ends with the Start that hears the cause.
fn on_failed(cause: Cause, event: Event) -> Step {
    match event {
        Event::StartAsked
        | Event::StopAsked
        | Event::ShutdownAsked
        | Event::StartOverdue
        | Event::Abandoned
        | Event::Orphaned => (State::Undoing(cause), vec![Effect::Release]),
        Event::HostReady
        | Event::BroughtUp
        | Event::BringUpFailed(_)
        | Event::Committed
        | Event::CommitFailed(_)
        | Event::Died(_)
        | Event::Released
        | Event::ReleaseFailed
        | Event::Forgotten => (State::Failed(cause), Vec::new()),
    }
}

fn on_undoing(cause: Cause, event: Event) -> Step {
    match event {
        Event::Released => (State::Forgetting(cause), vec![Effect::Forget]),
        Event::ReleaseFailed => {
            let effects = vec![Effect::FailStart(cause.clone()), Effect::FailStops];
            (State::Stuck(cause), effects)
        }
        // A Start that comes now waits for the end and hears the cause; so do Stop and Shutdown.
        Event::StartAsked
        | Event::StopAsked
        | Event::ShutdownAsked
        | Event::HostReady
        | Event::BroughtUp
        | Event::BringUpFailed(_)
        | Event::Committed
        | Event::CommitFailed(_)
        | Event::StartOverdue
        | Event::Abandoned
        | Event::Died(_)
        | Event::Orphaned
        | Event::Forgotten => (State::Undoing(cause), Vec::new()),
    }
}

fn on_stopping(cause: Cause, event: Event) -> Result<Step, Refused> {
    match event {
        Event::Released => {
            let effects = vec![
                Effect::SaveStopped(cause.clone()),
                Effect::AnswerWaits(cause.clone()),
                Effect::AnswerStops,
            ];
            Ok((State::Stopped(cause), effects))
        }
        Event::ReleaseFailed => {
            let effects = vec![
                Effect::SaveStopped(cause.clone()),
                Effect::AnswerWaits(cause.clone()),
                Effect::FailStops,
            ];
            Ok((State::Stuck(cause), effects))
        }
        Event::ShutdownAsked | Event::Orphaned => stay(State::Removing(cause)),
        Event::StartAsked => Err(Refused { state: State::Stopping(cause).name() }),
        Event::StopAsked
        | Event::HostReady
        | Event::BroughtUp
        | Event::BringUpFailed(_)
        | Event::Committed
        | Event::CommitFailed(_)
        | Event::StartOverdue
        | Event::Abandoned
        | Event::Died(_)
        | Event::Forgotten => stay(State::Stopping(cause)),
    }
}

fn on_removing(cause: Cause, event: Event) -> Result<Step, Refused> {
    match event {
        Event::Released => Ok((State::Forgetting(cause), vec![Effect::Forget])),
        Event::ReleaseFailed => {
            let effects = vec![
                Effect::SaveStopped(cause.clone()),
                Effect::AnswerWaits(cause.clone()),
                Effect::FailStops,
            ];
            Ok((State::Stuck(cause), effects))
        }
        Event::StartAsked => Err(Refused { state: State::Removing(cause).name() }),
        Event::StopAsked
        | Event::ShutdownAsked
        | Event::HostReady
        | Event::BroughtUp
        | Event::BringUpFailed(_)
        | Event::Committed
        | Event::CommitFailed(_)
        | Event::StartOverdue
        | Event::Abandoned
        | Event::Died(_)
        | Event::Orphaned
        | Event::Forgotten => stay(State::Removing(cause)),
    }
}

fn on_stopped(cause: Cause, event: Event) -> Result<Step, Refused> {
    match event {
        Event::StopAsked => Ok((State::Stopped(cause), vec![Effect::AnswerStops])),
        // A shim proxy that still answered for containers goes now.
        Event::ShutdownAsked | Event::Orphaned => Ok((State::Removing(cause), vec![Effect::Release])),
        Event::StartAsked => Err(Refused { state: State::Stopped(cause).name() }),
        Event::HostReady
        | Event::BroughtUp
        | Event::BringUpFailed(_)
        | Event::Committed
        | Event::CommitFailed(_)
        | Event::StartOverdue
        | Event::Abandoned
        | Event::Died(_)
        | Event::Released
        | Event::ReleaseFailed
        | Event::Forgotten => stay(State::Stopped(cause)),
    }
}

fn on_stuck(cause: Cause, event: Event) -> Result<Step, Refused> {
    match event {
        Event::StopAsked => Ok((State::Stopping(cause), vec![Effect::Release])),
        Event::ShutdownAsked | Event::Orphaned => Ok((State::Removing(cause), vec![Effect::Release])),
        Event::StartAsked => Err(Refused { state: State::Stuck(cause).name() }),
        Event::HostReady
        | Event::BroughtUp
        | Event::BringUpFailed(_)
        | Event::Committed
        | Event::CommitFailed(_)
        | Event::StartOverdue
        | Event::Abandoned
        | Event::Died(_)
        | Event::Released
        | Event::ReleaseFailed
        | Event::Forgotten => stay(State::Stuck(cause)),
    }
}

fn on_forgetting(cause: Cause, event: Event) -> Result<Step, Refused> {
    match event {
        Event::Forgotten => {
            let effects = vec![
                Effect::Leave,
                Effect::FailStart(cause.clone()),
                Effect::AnswerWaits(cause.clone()),
                Effect::AnswerStops,
            ];
            Ok((State::Gone(cause), effects))
        }
        // Hears the cause with the others, when the record is gone.
        Event::StartAsked
        | Event::StopAsked
        | Event::ShutdownAsked
        | Event::HostReady
        | Event::BroughtUp
        | Event::BringUpFailed(_)
        | Event::Committed
        | Event::CommitFailed(_)
        | Event::StartOverdue
        | Event::Abandoned
        | Event::Died(_)
        | Event::Orphaned
        | Event::Released
        | Event::ReleaseFailed => stay(State::Forgetting(cause)),
    }
}

fn on_gone(cause: Cause, event: Event) -> Result<Step, Refused> {
    match event {
        Event::StopAsked | Event::ShutdownAsked => Ok((State::Gone(cause), vec![Effect::AnswerStops])),
        Event::StartAsked => Err(Refused { state: State::Gone(cause).name() }),
        Event::HostReady
        | Event::BroughtUp
        | Event::BringUpFailed(_)
        | Event::Committed
        | Event::CommitFailed(_)
        | Event::StartOverdue
        | Event::Abandoned
        | Event::Died(_)
        | Event::Orphaned
        | Event::Released
        | Event::ReleaseFailed
        | Event::Forgotten => stay(State::Gone(cause)),
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
