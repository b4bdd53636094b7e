//! What a process of a container goes through, from containerd's point of view: a pure, total function from state
//! and event to the next state and what to do about it.
//!
//! One machine serves init processes and execs. They differ in one thing: an exec has no process before Start, so
//! its pid is 0 until then, and there is nothing to watch.
//!
//! | state | State says | leaves it by |
//! |---|---|---|
//! | Creating | CREATED, pid 0 | Created, CreateFailed, DeleteAsked, GivenUp |
//! | Doomed | not found | Deleted (undone), CreateFailed |
//! | Created | CREATED | StartAsked, Ended, DeleteAsked, GivenUp |
//! | Starting | CREATED | Started, StartFailed, Ended |
//! | Running | RUNNING | Paused, Ended |
//! | Paused | PAUSED | Resumed, Ended |
//! | Stopped | STOPPED | DeleteAsked, GivenUp |
//! | Deleting | STOPPED | Deleted, DeleteFailed |
//! | Gone | not found | – |

mod step;

pub(crate) use step::step;

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// As a shell says it: 0–255, 128+n when ended by signal n.
    pub(crate) status: u32,
    /// Nanoseconds since the epoch, never 0: containerd takes 0 for "has not ended".
    pub(crate) at_nanos: i64,
}

/// Where a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Create (or Exec) is under way.
    Creating,
    /// Create is under way, and nobody wants its result any more.
    Doomed,
    /// It exists and waits for Start.
    Created {
        /// 0 for an exec.
        pid: u32,
    },
    /// Start is under way.
    Starting {
        /// 0 for an exec.
        pid: u32,
    },
    /// It runs.
    Running {
        /// In the guest's first pid namespace.
        pid: u32,
    },
    /// It is frozen.
    Paused {
        /// In the guest's first pid namespace.
        pid: u32,
    },
    /// It has ended and waits for Delete.
    Stopped {
        /// 0 for an exec whose start was never answered.
        pid: u32,
        /// How it ended.
        exit: Exit,
    },
    /// Delete is under way.
    Deleting {
        /// 0 for an exec that never started.
        pid: u32,
        /// How it ended; none if it never started.
        exit: Option<Exit>,
    },
    /// Nothing of it is left.
    Gone {
        /// How it ended; none if its creation failed.
        exit: Option<Exit>,
    },
}

/// What happens to a process: requests (…Asked) and what came of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The guest has created it.
    Created {
        /// 0 for an exec.
        pid: u32,
    },
    /// Creation failed and is undone.
    CreateFailed,
    /// containerd calls Start.
    StartAsked,
    /// The guest has started it.
    Started {
        /// Never 0.
        pid: u32,
    },
    /// The guest could not start it.
    StartFailed,
    /// The process, or the whole VM, has ended.
    Ended(Exit),
    /// containerd calls Pause.
    PauseAsked,
    /// The guest has frozen it.
    Paused,
    /// containerd calls Resume.
    ResumeAsked,
    /// The guest has thawed it.
    Resumed,
    /// containerd calls Kill.
    SignalAsked,
    /// containerd wants an exec beside it.
    ExecAsked,
    /// containerd calls Update or ResizePty.
    AdjustAsked,
    /// containerd calls Delete.
    DeleteAsked,
    /// Guest and host have let go of it.
    Deleted {
        /// Nanoseconds since the epoch: the end of a process that never started.
        at_nanos: i64,
    },
    /// Guest or host could not let go of it.
    DeleteFailed,
    /// containerd has removed the bundle without calling Delete.
    GivenUp,
}

/// What to do after a transition, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Ask the guest to start it.
    CallStart,
    /// Let guest and host release it.
    CallDelete,
    /// SIGKILL everything of it.
    CallKill,
    /// Take back a creation that succeeded too late.
    CallUndo,
    /// Ask the guest to say when it ends.
    WatchEnd,
    /// See whether anybody is left to start it.
    AwaitStart,
    /// Tell containerd's event subscribers.
    Announce(Notice),
    /// No more output is to come than what is under way.
    EndStreams,
    /// Drop it from memory, with its streams.
    Forget,
}

/// What subscribers are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notice {
    /// `/tasks/create` or `/tasks/exec-added`.
    Created,
    /// `/tasks/start` or `/tasks/exec-started`.
    Started,
    /// `/tasks/paused`.
    Paused,
    /// `/tasks/resumed`.
    Resumed,
    /// `/tasks/exit`.
    Ended,
    /// `/tasks/delete`.
    Deleted,
}

/// Why a request makes no sense now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Nothing of it is left, or will be.
    #[error("it does not exist (any more)")]
    Missing,
    /// It is not there yet.
    #[error("it is still being created")]
    BeingCreated,
    /// The request needs a running process.
    #[error("it is not running")]
    NotRunning,
    /// Start of something that has been started.
    #[error("it has already been started")]
    AlreadyStarted,
    /// The request needs an ended process.
    #[error("it is still running")]
    StillRunning,
    /// A signal, new resources or a new size for a process that has ended.
    #[error("it has already ended")]
    AlreadyEnded,
    /// Pause of a paused, or Resume of a running process.
    #[error("it is already in that state")]
    NothingToDo,
}

/// The outcome of a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// The new state.
    pub(crate) next: State,
    /// What to do.
    pub(crate) effects: &'static [Effect],
}

impl State {
    /// The pid that containerd is told; 0 when there is none.
    pub(crate) fn pid(self) -> u32 {
        match self {
            Self::Creating | Self::Doomed | Self::Gone { .. } => 0,
            Self::Created { pid }
            | Self::Starting { pid }
            | Self::Running { pid }
            | Self::Paused { pid }
            | Self::Stopped { pid, .. }
            | Self::Deleting { pid, .. } => pid,
        }
    }

    /// How it ended, once it has.
    pub(crate) fn exit(self) -> Option<Exit> {
        match self {
            Self::Creating
            | Self::Doomed
            | Self::Created { .. }
            | Self::Starting { .. }
            | Self::Running { .. }
            | Self::Paused { .. } => None,
            Self::Stopped { exit, .. } => Some(exit),
            Self::Deleting { exit, .. } | Self::Gone { exit } => exit,
        }
    }

    /// Whether containerd is told that there is no such process.
    pub(crate) fn is_missing(self) -> bool {
        match self {
            Self::Doomed | Self::Gone { .. } => true,
            Self::Creating
            | Self::Created { .. }
            | Self::Starting { .. }
            | Self::Running { .. }
            | Self::Paused { .. }
            | Self::Stopped { .. }
            | Self::Deleting { .. } => false,
        }
    }

    /// The name used in logs and in the sandboxer's view.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Doomed => "doomed",
            Self::Created { .. } => "created",
            Self::Starting { .. } => "starting",
            Self::Running { .. } => "running",
            Self::Paused { .. } => "paused",
            Self::Stopped { .. } => "stopped",
            Self::Deleting { .. } => "deleting",
            Self::Gone { .. } => "gone",
        }
    }
}

#[cfg(test)]
mod tests;
