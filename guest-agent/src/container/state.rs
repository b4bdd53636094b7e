//! The life of one process, an init or an exec: pure and total.
//!
//! | state | Made | Started | Exited |
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

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// An exec that nobody has started.
    Added,
    /// An init process that waits for its start.
    Created {
        /// Its pid.
        pid: u32,
    },
    /// It runs what it was made for.
    Running {
        /// Its pid.
        pid: u32,
    },
    /// It is gone.
    Ended(Ended),
}

/// What happens to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// libcontainer made an init process.
    Made {
        /// Its pid.
        pid: u32,
    },
    /// The process was let run.
    Started {
        /// Its pid.
        pid: u32,
    },
    /// It was reaped.
    Exited(Ended),
}

/// An event that a state does not admit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} is not possible in {state:?}")]
pub(crate) struct Refused {
    state: State,
    event: Event,
}

impl State {
    /// The state after an event.
    pub(crate) fn on(self, event: Event) -> Result<State, Refused> {
        match (self, event) {
            (State::Added, Event::Made { pid }) => Ok(State::Created { pid }),
            (State::Added, Event::Started { pid }) => Ok(State::Running { pid }),
            (State::Created { pid }, Event::Started { pid: started }) if pid == started => {
                Ok(State::Running { pid })
            }
            (State::Created { .. } | State::Running { .. }, Event::Exited(ended)) => Ok(State::Ended(ended)),
            (State::Added, Event::Exited(_))
            | (State::Created { .. } | State::Running { .. } | State::Ended(_), Event::Made { .. })
            | (State::Created { .. } | State::Running { .. } | State::Ended(_), Event::Started { .. })
            | (State::Ended(_), Event::Exited(_)) => Err(Refused { state: self, event }),
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
    const EVENTS: [Event; 3] = [Event::Made { pid: 7 }, Event::Started { pid: 7 }, Event::Exited(END)];

    #[test]
    fn every_pair_is_as_the_table_says() {
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
    fn another_process_is_not_started_in_its_place() {
        assert!(State::Created { pid: 7 }.on(Event::Started { pid: 8 }).is_err());
    }

    #[test]
    fn only_what_lives_has_a_pid() {
        assert_eq!(STATES.map(State::pid), [None, Some(7), Some(7), None]);
    }
}
