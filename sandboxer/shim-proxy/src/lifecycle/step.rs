//! The transitions, state by state. No arm is a wildcard, so that every new event has to be considered in each state.

use bulkhead_protocol::KILLED_STATUS;

use super::{Effect, Event, Exit, Notice, Refusal, State, Step};

type Outcome = Result<Step, Refusal>;

fn go(next: State, effects: &'static [Effect]) -> Outcome {
    Ok(Step { next, effects })
}

/// The transition function.
///
/// # Errors
/// [`Refusal`] when a request is not possible in this state. Results that come too late are not refused: they are
/// no-ops.
pub(crate) fn step(state: State, event: Event) -> Outcome {
    match state {
        State::Creating => creating(event),
        State::Doomed => doomed(event),
        State::Created { pid } => created(pid, event),
        State::Starting { pid } => starting(pid, event),
        State::Running { pid } => running(pid, event),
        State::Paused { pid } => paused(pid, event),
        State::Stopped { pid, exit } => stopped(pid, exit, event),
        State::Deleting { pid, exit } => deleting(pid, exit, event),
        State::Gone { exit } => gone(exit, event),
    }
}

const WATCHED_CREATION: &[Effect] = &[Effect::Announce(Notice::Created), Effect::WatchEnd];
const PLAIN_CREATION: &[Effect] = &[Effect::Announce(Notice::Created), Effect::AwaitStart];
const WATCHED_START: &[Effect] = &[Effect::Announce(Notice::Started), Effect::WatchEnd];
const PLAIN_START: &[Effect] = &[Effect::Announce(Notice::Started)];
const END: &[Effect] = &[Effect::Announce(Notice::Ended), Effect::EndStreams];
const START_AND_END: &[Effect] =
    &[Effect::Announce(Notice::Started), Effect::Announce(Notice::Ended), Effect::EndStreams];
const DELETION: &[Effect] = &[Effect::Announce(Notice::Deleted), Effect::Forget];

fn creating(event: Event) -> Outcome {
    match event {
        Event::Created { pid } if pid > 0 => go(State::Created { pid }, WATCHED_CREATION),
        Event::Created { pid } => go(State::Created { pid }, PLAIN_CREATION),
        Event::CreateFailed => go(State::Gone { exit: None }, &[Effect::Forget]),
        Event::DeleteAsked | Event::GivenUp => go(State::Doomed, &[]),
        Event::StartAsked
        | Event::PauseAsked
        | Event::ResumeAsked
        | Event::SignalAsked
        | Event::ExecAsked
        | Event::AdjustAsked => Err(Refusal::BeingCreated),
        Event::Started { .. }
        | Event::StartFailed
        | Event::Ended(_)
        | Event::Paused
        | Event::Resumed
        | Event::Deleted { .. }
        | Event::DeleteFailed => go(State::Creating, &[]),
    }
}

fn doomed(event: Event) -> Outcome {
    match event {
        Event::Created { .. } => go(State::Doomed, &[Effect::CallUndo]),
        Event::CreateFailed | Event::Deleted { .. } | Event::DeleteFailed => {
            go(State::Gone { exit: None }, &[Effect::Forget])
        }
        Event::StartAsked
        | Event::PauseAsked
        | Event::ResumeAsked
        | Event::SignalAsked
        | Event::ExecAsked
        | Event::AdjustAsked => Err(Refusal::Missing),
        Event::Started { .. }
        | Event::StartFailed
        | Event::Ended(_)
        | Event::Paused
        | Event::Resumed
        | Event::DeleteAsked
        | Event::GivenUp => go(State::Doomed, &[]),
    }
}

fn created(pid: u32, event: Event) -> Outcome {
    match event {
        Event::StartAsked => go(State::Starting { pid }, &[Effect::CallStart]),
        Event::DeleteAsked | Event::GivenUp => go(State::Deleting { pid, exit: None }, &[Effect::CallDelete]),
        Event::Ended(exit) => go(State::Stopped { pid, exit }, END),
        Event::SignalAsked if pid == 0 => Err(Refusal::NotRunning),
        Event::PauseAsked | Event::ResumeAsked | Event::ExecAsked => Err(Refusal::NotRunning),
        Event::SignalAsked
        | Event::AdjustAsked
        | Event::Created { .. }
        | Event::CreateFailed
        | Event::Started { .. }
        | Event::StartFailed
        | Event::Paused
        | Event::Resumed
        | Event::Deleted { .. }
        | Event::DeleteFailed => go(State::Created { pid }, &[]),
    }
}

fn starting(pid: u32, event: Event) -> Outcome {
    match event {
        Event::Started { pid: told } if pid == 0 => go(State::Running { pid: told }, WATCHED_START),
        Event::Started { .. } => go(State::Running { pid }, PLAIN_START),
        Event::StartFailed => go(State::Created { pid }, &[]),
        Event::Ended(exit) if pid == 0 => go(State::Stopped { pid, exit }, END),
        Event::Ended(exit) => go(State::Stopped { pid, exit }, START_AND_END),
        Event::GivenUp => go(State::Starting { pid }, &[Effect::CallKill]),
        Event::SignalAsked if pid == 0 => Err(Refusal::NotRunning),
        Event::PauseAsked | Event::ResumeAsked | Event::ExecAsked => Err(Refusal::NotRunning),
        Event::DeleteAsked => Err(Refusal::StillRunning),
        Event::StartAsked
        | Event::SignalAsked
        | Event::AdjustAsked
        | Event::Created { .. }
        | Event::CreateFailed
        | Event::Paused
        | Event::Resumed
        | Event::Deleted { .. }
        | Event::DeleteFailed => go(State::Starting { pid }, &[]),
    }
}

fn running(pid: u32, event: Event) -> Outcome {
    match event {
        Event::Paused => go(State::Paused { pid }, &[Effect::Announce(Notice::Paused)]),
        Event::Ended(exit) => go(State::Stopped { pid, exit }, END),
        Event::GivenUp => go(State::Running { pid }, &[Effect::CallKill]),
        Event::StartAsked => Err(Refusal::AlreadyStarted),
        Event::ResumeAsked => Err(Refusal::NothingToDo),
        Event::DeleteAsked => Err(Refusal::StillRunning),
        Event::PauseAsked
        | Event::SignalAsked
        | Event::ExecAsked
        | Event::AdjustAsked
        | Event::Created { .. }
        | Event::CreateFailed
        | Event::Started { .. }
        | Event::StartFailed
        | Event::Resumed
        | Event::Deleted { .. }
        | Event::DeleteFailed => go(State::Running { pid }, &[]),
    }
}

fn paused(pid: u32, event: Event) -> Outcome {
    match event {
        Event::Resumed => go(State::Running { pid }, &[Effect::Announce(Notice::Resumed)]),
        Event::Ended(exit) => go(State::Stopped { pid, exit }, END),
        Event::GivenUp => go(State::Paused { pid }, &[Effect::CallKill]),
        Event::StartAsked => Err(Refusal::AlreadyStarted),
        Event::PauseAsked => Err(Refusal::NothingToDo),
        Event::ExecAsked => Err(Refusal::NotRunning),
        Event::DeleteAsked => Err(Refusal::StillRunning),
        Event::ResumeAsked
        | Event::SignalAsked
        | Event::AdjustAsked
        | Event::Created { .. }
        | Event::CreateFailed
        | Event::Started { .. }
        | Event::StartFailed
        | Event::Paused
        | Event::Deleted { .. }
        | Event::DeleteFailed => go(State::Paused { pid }, &[]),
    }
}

fn stopped(pid: u32, exit: Exit, event: Event) -> Outcome {
    match event {
        Event::DeleteAsked | Event::GivenUp => {
            go(State::Deleting { pid, exit: Some(exit) }, &[Effect::CallDelete])
        }
        Event::Started { pid: told } if pid == 0 => go(State::Stopped { pid: told, exit }, &[]),
        Event::SignalAsked | Event::AdjustAsked => Err(Refusal::AlreadyEnded),
        Event::StartAsked | Event::PauseAsked | Event::ResumeAsked | Event::ExecAsked => {
            Err(Refusal::NotRunning)
        }
        Event::Created { .. }
        | Event::CreateFailed
        | Event::Started { .. }
        | Event::StartFailed
        | Event::Ended(_)
        | Event::Paused
        | Event::Resumed
        | Event::Deleted { .. }
        | Event::DeleteFailed => go(State::Stopped { pid, exit }, &[]),
    }
}

fn deleting(pid: u32, exit: Option<Exit>, event: Event) -> Outcome {
    match (event, exit) {
        (Event::Deleted { at_nanos }, _) => {
            let exit = exit.unwrap_or(Exit { status: KILLED_STATUS, at_nanos });
            go(State::Gone { exit: Some(exit) }, DELETION)
        }
        (Event::DeleteFailed, Some(exit)) => go(State::Stopped { pid, exit }, &[]),
        (Event::DeleteFailed, None) => go(State::Created { pid }, &[]),
        (Event::Ended(exit), None) => go(State::Deleting { pid, exit: Some(exit) }, END),
        (Event::SignalAsked | Event::AdjustAsked, _) => Err(Refusal::AlreadyEnded),
        (Event::StartAsked | Event::PauseAsked | Event::ResumeAsked | Event::ExecAsked, _) => {
            Err(Refusal::NotRunning)
        }
        (
            Event::Created { .. }
            | Event::CreateFailed
            | Event::Started { .. }
            | Event::StartFailed
            | Event::Ended(_)
            | Event::Paused
            | Event::Resumed
            | Event::DeleteAsked
            | Event::GivenUp,
            _,
        ) => go(State::Deleting { pid, exit }, &[]),
    }
}

fn gone(exit: Option<Exit>, event: Event) -> Outcome {
    match event {
        Event::StartAsked
        | Event::PauseAsked
        | Event::ResumeAsked
        | Event::SignalAsked
        | Event::ExecAsked
        | Event::AdjustAsked
        | Event::DeleteAsked => Err(Refusal::Missing),
        Event::Created { .. }
        | Event::CreateFailed
        | Event::Started { .. }
        | Event::StartFailed
        | Event::Ended(_)
        | Event::Paused
        | Event::Resumed
        | Event::Deleted { .. }
        | Event::DeleteFailed
        | Event::GivenUp => go(State::Gone { exit }, &[]),
    }
}
