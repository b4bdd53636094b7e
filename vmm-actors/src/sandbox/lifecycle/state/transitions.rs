//! What follows from each event in each state.

use super::{Cause, Effect, Event, Refused, State, Step};

impl State {
    /// What follows from an event.
    ///
    /// # Errors
    /// [`Refused`] for a Start that cannot be honoured; every other event is either meant or harmless.
    pub fn on(self, event: Event) -> Result<Step, Refused> {
        follow(self, event)
    }
}

fn follow(state: State, event: Event) -> Result<Step, Refused> {
    match state {
        State::Preparing => on_coming_up(state, event, ComingUp::Preparing),
        State::Booting => on_coming_up(state, event, ComingUp::Booting),
        State::Ready => on_coming_up(state, event, ComingUp::Ready),
        State::Starting => on_coming_up(state, event, ComingUp::Starting),
        State::Committing => on_coming_up(state, event, ComingUp::Committing),
        State::Running => on_running(event),
        State::Failed(cause) => Ok(on_failed(cause, event)),
        State::Undoing(cause) => Ok(on_undoing(cause, event)),
        State::Stopping(cause) => on_stopping(cause, event),
        State::Removing(cause) => on_removing(cause, event),
        State::Stopped(cause) => on_stopped(cause, event),
        State::Stuck(cause) => on_stuck(cause, event),
        State::Forgetting(cause) => on_forgetting(cause, event),
        State::Gone(cause) => on_gone(cause, event),
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
            let effects =
                vec![Effect::FailStart(cause.clone()), Effect::AnswerWaits(cause.clone()), Effect::FailStops];
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
