//! The state machine over every pair of state and event, and over sequences.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const EXIT: Exit = Exit { status: 3, at_nanos: 77 };

fn states() -> Vec<State> {
    let mut states = vec![State::Creating, State::Doomed, State::Gone { exit: None }];
    states.push(State::Gone { exit: Some(EXIT) });
    for pid in [0, 9] {
        states.extend([
            State::Created { pid },
            State::Starting { pid },
            State::Stopped { pid, exit: EXIT },
            State::Deleting { pid, exit: None },
            State::Deleting { pid, exit: Some(EXIT) },
        ]);
    }
    states.extend([State::Running { pid: 9 }, State::Paused { pid: 9 }]);
    states
}

fn events() -> Vec<Event> {
    vec![
        Event::Created { pid: 0 },
        Event::Created { pid: 9 },
        Event::CreateFailed,
        Event::StartAsked,
        Event::Started { pid: 11 },
        Event::StartFailed,
        Event::Ended(Exit { status: 5, at_nanos: 88 }),
        Event::PauseAsked,
        Event::Paused,
        Event::ResumeAsked,
        Event::Resumed,
        Event::SignalAsked,
        Event::ExecAsked,
        Event::AdjustAsked,
        Event::DeleteAsked,
        Event::Deleted { at_nanos: 99 },
        Event::DeleteFailed,
        Event::GivenUp,
    ]
}

fn is_request(event: Event) -> bool {
    match event {
        Event::StartAsked
        | Event::PauseAsked
        | Event::ResumeAsked
        | Event::SignalAsked
        | Event::ExecAsked
        | Event::AdjustAsked
        | Event::DeleteAsked => true,
        Event::Created { .. }
        | Event::CreateFailed
        | Event::Started { .. }
        | Event::StartFailed
        | Event::Ended(_)
        | Event::Paused
        | Event::Resumed
        | Event::Deleted { .. }
        | Event::DeleteFailed
        | Event::GivenUp => false,
    }
}

/// The result of each event in a state, in one word: the name of the next state, or the refusal.
fn row(state: State) -> Vec<String> {
    let word = |event| match step(state, event) {
        Ok(step) if step.next == state && step.effects.is_empty() => "·".to_owned(),
        Ok(step) => step.next.name().to_owned(),
        Err(refusal) => format!("!{refusal:?}"),
    };
    events().into_iter().map(word).collect()
}

/// Columns as in events(): Created0, Created9, CreateFailed, StartAsked, Started, StartFailed, Ended, PauseAsked,
/// Paused, ResumeAsked, Resumed, SignalAsked, ExecAsked, AdjustAsked, DeleteAsked, Deleted, DeleteFailed, GivenUp.
const TABLE: [(State, &str); 16] = [
    (
        State::Creating,
        "created created gone !BeingCreated · · · !BeingCreated · !BeingCreated · !BeingCreated \
         !BeingCreated !BeingCreated doomed · · doomed",
    ),
    (
        State::Doomed,
        "doomed doomed gone !Missing · · · !Missing · !Missing · !Missing !Missing !Missing · gone gone ·",
    ),
    (
        State::Created { pid: 0 },
        "· · · starting · · stopped !NotRunning · !NotRunning · !NotRunning !NotRunning · deleting · · deleting",
    ),
    (
        State::Created { pid: 9 },
        "· · · starting · · stopped !NotRunning · !NotRunning · · !NotRunning · deleting · · deleting",
    ),
    (
        State::Starting { pid: 0 },
        "· · · · running created stopped !NotRunning · !NotRunning · !NotRunning !NotRunning · !StillRunning · · \
         starting",
    ),
    (
        State::Starting { pid: 9 },
        "· · · · running created stopped !NotRunning · !NotRunning · · !NotRunning · !StillRunning · · starting",
    ),
    (
        State::Running { pid: 9 },
        "· · · !AlreadyStarted · · stopped · paused !NothingToDo · · · · !StillRunning · · running",
    ),
    (
        State::Paused { pid: 9 },
        "· · · !AlreadyStarted · · stopped !NothingToDo · · running · !NotRunning · !StillRunning · · paused",
    ),
    (
        State::Stopped { pid: 0, exit: EXIT },
        "· · · !NotRunning stopped · · !NotRunning · !NotRunning · !AlreadyEnded !NotRunning !AlreadyEnded \
         deleting · · deleting",
    ),
    (
        State::Stopped { pid: 9, exit: EXIT },
        "· · · !NotRunning · · · !NotRunning · !NotRunning · !AlreadyEnded !NotRunning !AlreadyEnded deleting · · \
         deleting",
    ),
    (
        State::Deleting { pid: 0, exit: None },
        "· · · !NotRunning · · deleting !NotRunning · !NotRunning · !AlreadyEnded !NotRunning !AlreadyEnded · gone \
         created ·",
    ),
    (
        State::Deleting { pid: 9, exit: None },
        "· · · !NotRunning · · deleting !NotRunning · !NotRunning · !AlreadyEnded !NotRunning !AlreadyEnded · gone \
         created ·",
    ),
    (
        State::Deleting { pid: 0, exit: Some(EXIT) },
        "· · · !NotRunning · · · !NotRunning · !NotRunning · !AlreadyEnded !NotRunning !AlreadyEnded · gone stopped ·",
    ),
    (
        State::Deleting { pid: 9, exit: Some(EXIT) },
        "· · · !NotRunning · · · !NotRunning · !NotRunning · !AlreadyEnded !NotRunning !AlreadyEnded · gone stopped ·",
    ),
    (
        State::Gone { exit: None },
        "· · · !Missing · · · !Missing · !Missing · !Missing !Missing !Missing !Missing · · ·",
    ),
    (
        State::Gone { exit: Some(EXIT) },
        "· · · !Missing · · · !Missing · !Missing · !Missing !Missing !Missing !Missing · · ·",
    ),
];

#[test]
fn every_pair_of_state_and_event_does_what_the_table_says() {
    let told: BTreeSet<String> = TABLE.iter().map(|(state, _)| format!("{state:?}")).collect();
    let all: BTreeSet<String> = states().iter().map(|state| format!("{state:?}")).collect();
    assert_eq!(told, all, "the table names every state");
    for (state, expected) in TABLE {
        let expected: Vec<_> = expected.split_whitespace().collect();
        assert_eq!(row(state), expected, "{state:?}");
    }
}

#[test]
fn only_requests_are_refused_and_nothing_leaves_gone() {
    for state in states() {
        for event in events() {
            let outcome = step(state, event);
            assert!(outcome.is_ok() || is_request(event), "{state:?} refuses {event:?}");
            if let (State::Gone { .. }, Ok(step)) = (state, outcome) {
                assert_eq!((step.next, step.effects), (state, &[][..]), "{event:?}");
            }
        }
    }
}

#[test]
fn an_exit_once_known_never_changes() {
    for state in states().into_iter().filter(|state| state.exit().is_some()) {
        for event in events() {
            if let Ok(step) = step(state, event) {
                assert_eq!(step.next.exit(), state.exit(), "{state:?} {event:?}");
            }
        }
    }
}

#[test]
fn an_end_during_start_is_announced_after_the_start() {
    let step = step(State::Starting { pid: 9 }, Event::Ended(EXIT)).unwrap();
    let told = [Effect::Announce(Notice::Started), Effect::Announce(Notice::Ended), Effect::EndStreams];
    assert_eq!(step.effects, told);
}

/// The effects of a sequence of events from the beginning.
#[derive(Debug, Default)]
struct History {
    effects: Vec<Effect>,
}

impl History {
    fn count(&self, wanted: Effect) -> usize {
        self.effects.iter().filter(|effect| **effect == wanted).count()
    }
}

fn run(events: &[Event]) -> (State, History) {
    let mut state = State::Creating;
    let mut history = History::default();
    for event in events {
        if let Ok(step) = step(state, *event) {
            state = step.next;
            history.effects.extend(step.effects);
        }
    }
    (state, history)
}

/// Adds the event that brings a process closer to its end: the result of the call under way, or giving up.
fn finish(state: State, events: &mut Vec<Event>) {
    match state {
        State::Creating => events.push(Event::CreateFailed),
        State::Doomed | State::Deleting { .. } => events.push(Event::Deleted { at_nanos: 99 }),
        State::Created { .. } | State::Stopped { .. } => events.push(Event::GivenUp),
        State::Starting { .. } | State::Running { .. } | State::Paused { .. } => {
            events.push(Event::Ended(EXIT));
        }
        State::Gone { .. } => {}
    }
}

proptest! {
    #[test]
    fn every_sequence_of_events_ends_in_gone_and_announces_each_change_once(picks in prop::collection::vec(0..18usize, 0..60)) {
        let all = events();
        let mut sequence: Vec<Event> = picks.into_iter().map(|pick| all[pick]).collect();
        for _ in 0..6 {
            let (state, _) = run(&sequence);
            finish(state, &mut sequence);
        }
        let (state, history) = run(&sequence);
        prop_assert!(matches!(state, State::Gone { .. }), "{state:?} after {sequence:?}");
        prop_assert_eq!(history.count(Effect::Forget), 1);
        prop_assert!(history.count(Effect::Announce(Notice::Ended)) <= 1);
        prop_assert!(history.count(Effect::Announce(Notice::Created)) <= 1);
        prop_assert!(history.count(Effect::Announce(Notice::Deleted)) <= 1);
        prop_assert!(history.count(Effect::WatchEnd) <= 1, "watched twice in {sequence:?}");
        // An end or a deletion is announced only after the creation.
        let created = history.count(Effect::Announce(Notice::Created));
        prop_assert!(history.count(Effect::Announce(Notice::Ended)) <= created);
        prop_assert!(history.count(Effect::Announce(Notice::Deleted)) <= created);
        // What the guest holds is released: by Delete, or by undoing the creation.
        let last = history.effects.last();
        prop_assert_eq!(last, Some(&Effect::Forget));
    }
}
