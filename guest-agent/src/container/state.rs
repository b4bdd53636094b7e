//! The life cycle of one process, init or exec: a pure, total function of state and event.
//!
//! | state | Created | Started | Exited |
//! |---|---|---|---|
//! | Added | Created | Running | refused |
//! | Created | refused | Running | Ended |
//! | Running | refused | refused | Ended |
//! | Ended | refused | refused | refused |

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    /// As a shell says it: 0–255, 128 + n when ended by signal n.
    pub(crate) status: u32,
    /// CLOCK_REALTIME, nanoseconds since the epoch.
    pub(crate) at_nanos: i64,
    /// The kernel's OOM killer hit the container while the process lived.
    pub(crate) oom_killed: bool,
}

/// State of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// An exec that was added and not started.
    Added,
    /// An init process that waits for its start.
    Created {
        /// Its pid.
        pid: u32,
    },
    /// It has been started.
    Running {
        /// Its pid.
        pid: u32,
    },
    /// It has ended.
    Ended(Ended),
}

/// What happens to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// libcontainer has created an init process.
    Created {
        /// Its pid.
        pid: u32,
    },
    /// The process was started.
    Started {
        /// Its pid.
        pid: u32,
    },
    /// It was reaped.
    Exited(Ended),
}

/// An event that is not possible in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} is not possible in {state:?}")]
pub(crate) struct InvalidTransition {
    state: State,
    event: Event,
}

impl State {
    /// The state after an event.
    pub(crate) fn on(self, event: Event) -> Result<State, InvalidTransition> {
        match (self, event) {
            (State::Added, Event::Created { pid }) => Ok(State::Created { pid }),
            (State::Added, Event::Started { pid }) => Ok(State::Running { pid }),
            (State::Created { pid }, Event::Started { pid: started }) if pid == started => {
                Ok(State::Running { pid })
            }
            (State::Created { .. } | State::Running { .. }, Event::Exited(ended)) => Ok(State::Ended(ended)),
            (State::Added, Event::Exited(_))
            | (State::Created { .. } | State::Running { .. } | State::Ended(_), Event::Created { .. })
            | (State::Created { .. } | State::Running { .. } | State::Ended(_), Event::Started { .. })
            | (State::Ended(_), Event::Exited(_)) => Err(InvalidTransition { state: self, event }),
        }
    }

    /// The pid of a process that is alive.
    pub(crate) fn pid(self) -> Option<u32> {
        match self {
            State::Created { pid } | State::Running { pid } => Some(pid),
            State::Added | State::Ended(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: Ended = Ended { status: 3, at_nanos: 1, oom_killed: false };
    const STATES: [State; 4] =
        [State::Added, State::Created { pid: 7 }, State::Running { pid: 7 }, State::Ended(END)];
    const EVENTS: [Event; 3] = [Event::Created { pid: 7 }, Event::Started { pid: 7 }, Event::Exited(END)];

    #[test]
    fn every_pair_of_state_and_event_follows_the_table() {
        let expected = [
            [Some(State::Created { pid: 7 }), Some(State::Running { pid: 7 }), None],
            [None, Some(State::Running { pid: 7 }), Some(State::Ended(END))],
            [None, None, Some(State::Ended(END))],
            [None, None, None],
        ];
        for (state, row) in STATES.into_iter().zip(expected) {
            for (event, next) in EVENTS.into_iter().zip(row) {
                assert_eq!(state.on(event).ok(), next, "{state:?} on {event:?}");
            }
        }
    }

    #[test]
    fn a_start_with_another_pid_is_refused() {
        assert!(State::Created { pid: 7 }.on(Event::Started { pid: 8 }).is_err());
    }

    #[test]
    fn only_a_live_process_has_a_pid() {
        assert_eq!(STATES.map(State::pid), [None, Some(7), Some(7), None]);
    }
}
