//! The life cycle of a process as containerd sees it: a pure, total function from state and event to the next state and
//! the effects.
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
    /// As a shell reports it: 0–255, 128+n after signal n.
    pub(crate) status: u32,
    /// Nanoseconds since the epoch, never 0: containerd takes 0 for "has not ended".
    pub(crate) at_nanos: i64,
}

/// The state of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Create (or Exec) is under way.
    Creating,
    /// Create is under way, and it will be undone: nobody wants its result any more.
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

/// An event in the life of a process: a request (…Asked) or a result.
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
    /// containerd calls Exec on its container.
    ExecAsked,
    /// containerd calls Update or ResizePty.
    AdjustAsked,
    /// containerd calls Delete.
    DeleteAsked,
    /// Guest and host have released it.
    Deleted {
        /// Nanoseconds since the epoch: the end of a process that never started.
        at_nanos: i64,
    },
    /// Guest or host could not release it.
    DeleteFailed,
    /// containerd has given it up without calling Delete.
    GivenUp,
}

/// An effect of a transition; they are carried out in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Ask the guest to start it.
    CallStart,
    /// Have guest and host release it.
    CallDelete,
    /// Send SIGKILL to every process of it.
    CallKill,
    /// Undo a creation that succeeded too late.
    CallUndo,
    /// Ask the guest to report its end.
    WatchEnd,
    /// Check whether anybody is left to start it.
    AwaitStart,
    /// Publish an event of containerd.
    Announce(Notice),
    /// The process writes no more: copy the output that is under way, and end the streams.
    EndStreams,
    /// Drop it from memory, with its streams.
    Forget,
}

/// The events of containerd that are published.
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

/// Why a request is not possible now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It is gone, or will be.
    #[error("it does not exist (any more)")]
    Missing,
    /// It is still being created.
    #[error("it is still being created")]
    BeingCreated,
    /// The request needs a running process.
    #[error("it is not running")]
    NotRunning,
    /// Start was called before.
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
    /// The effects, in order.
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

    /// The name in logs and in the sandboxer's view.
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
