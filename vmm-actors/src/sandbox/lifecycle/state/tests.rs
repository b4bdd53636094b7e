use proptest::prelude::*;

use super::*;

fn cause() -> Cause {
    Cause::lost("test")
}

fn states() -> Vec<State> {
    vec![
        State::Preparing,
        State::Booting,
        State::Ready,
        State::Starting,
        State::Committing,
        State::Running,
        State::Failed(cause()),
        State::Undoing(cause()),
        State::Stopping(cause()),
        State::Removing(cause()),
        State::Stopped(cause()),
        State::Stuck(cause()),
        State::Forgetting(cause()),
        State::Gone(cause()),
    ]
}

#[test]
fn every_state_has_its_name_in_the_list() {
    let names: std::collections::BTreeSet<_> =
        states().iter().filter(|state| !matches!(state, State::Gone(_))).map(State::name).collect();
    assert_eq!(names, NAMES.into_iter().collect());
}

fn events() -> Vec<Event> {
    vec![
        Event::HostReady,
        Event::BroughtUp,
        Event::BringUpFailed(cause()),
        Event::StartAsked,
        Event::Committed,
        Event::CommitFailed(cause()),
        Event::StartOverdue,
        Event::Abandoned,
        Event::Died(cause()),
        Event::StopAsked,
        Event::ShutdownAsked,
        Event::Orphaned,
        Event::Released,
        Event::ReleaseFailed,
        Event::Forgotten,
    ]
}

/// One letter a state; the column order is that of `events()`. `!` refused.
/// P B R S C U(running) F X(undoing) T(stopping) V(removing) D(stopped) K(stuck) G(forgetting) Z(gone)
const TABLE: [(char, &str); 14] = [
    //    host up fail start comm commF over aband died stop shut orph rel relF forg
    ('P', "BRX!PXPXXXXPPPP"),
    ('B', "BRFSBXXXFXXBBBB"),
    ('R', "RRFCRXXXFXXRRRR"),
    ('S', "SCXSSXSXXXXSSSS"),
    ('C', "CCXCUXCXXXXCCCC"),
    ('U', "UUU!UUUUTTVVUUU"),
    ('F', "FFFXFFXXFXXXFFF"),
    ('X', "XXXXXXXXXXXXGKX"),
    ('T', "TTT!TTTTTTVVDKT"),
    ('V', "VVV!VVVVVVVVGKV"),
    ('D', "DDD!DDDDDDVVDDD"),
    ('K', "KKK!KKKKKTVVKKK"),
    ('G', "GGGGGGGGGGGGGGZ"),
    ('Z', "ZZZ!ZZZZZZZZZZZ"),
];

fn letter(state: &State) -> char {
    match state {
        State::Preparing => 'P',
        State::Booting => 'B',
        State::Ready => 'R',
        State::Starting => 'S',
        State::Committing => 'C',
        State::Running => 'U',
        State::Failed(_) => 'F',
        State::Undoing(_) => 'X',
        State::Stopping(_) => 'T',
        State::Removing(_) => 'V',
        State::Stopped(_) => 'D',
        State::Stuck(_) => 'K',
        State::Forgetting(_) => 'G',
        State::Gone(_) => 'Z',
    }
}

#[test]
fn every_pair_goes_where_the_table_says() {
    for (state, (name, row)) in states().into_iter().zip(TABLE) {
        assert_eq!(letter(&state), name);
        assert_eq!(row.len(), events().len());
        for (event, expected) in events().into_iter().zip(row.chars()) {
            let got = match state.clone().on(event.clone()) {
                Ok((next, _)) => letter(&next),
                Err(_) => '!',
            };
            assert_eq!(got, expected, "{state:?} on {event:?}");
        }
    }
}

#[test]
fn every_change_has_the_effect_that_makes_it_true() {
    for state in states() {
        for event in events() {
            let Ok((next, effects)) = state.clone().on(event.clone()) else { continue };
            let releasing = |s: &State| {
                matches!(s, State::Failed(_) | State::Undoing(_) | State::Stopping(_) | State::Removing(_))
            };
            if releasing(&next) && !releasing(&state) {
                assert!(effects.contains(&Effect::Release), "{state:?} on {event:?} releases nothing");
            }
            if next == State::Running && state != State::Running {
                assert_eq!(effects, [Effect::KeepAndAnswerStart], "{state:?} on {event:?}");
            }
            let gone = |s: &State| matches!(s, State::Gone(_));
            if gone(&next) && !gone(&state) {
                assert_eq!(effects.first(), Some(&Effect::Leave), "{state:?} on {event:?}");
            }
            let waiting_stops = effects.iter().any(|e| matches!(e, Effect::AnswerStops | Effect::FailStops));
            let settled = matches!(next, State::Stopped(_) | State::Stuck(_) | State::Gone(_));
            if settled && letter(&next) != letter(&state) {
                assert!(waiting_stops, "{state:?} on {event:?} leaves Stop waiting");
                let waits = effects.iter().any(|e| matches!(e, Effect::AnswerWaits(_)));
                assert!(waits, "{state:?} on {event:?} leaves Wait waiting");
            }
        }
    }
}

/// The world answers the effects; commands come in any order. What must never happen is checked on the way.
#[derive(Default)]
struct World {
    committed: bool,
    create_answered: bool,
    start_waits: bool,
    stop_waits: bool,
    wait_waits: bool,
    pending: Vec<Event>,
    releasing: bool,
}

impl World {
    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::AnswerCreate => self.create_answered = true,
                Effect::Commit => {
                    self.committed = true;
                    self.pending.push(Event::Committed);
                }
                Effect::KeepAndAnswerStart => {
                    assert!(self.committed, "Start was answered before the record said Running");
                    self.start_waits = false;
                    self.wait_waits = true;
                }
                Effect::Release => {
                    if !std::mem::replace(&mut self.releasing, true) {
                        self.pending.push(Event::Released);
                    }
                }
                Effect::FailStart(_) => self.start_waits = false,
                Effect::Forget => self.pending.push(Event::Forgotten),
                Effect::AnswerStops | Effect::FailStops => self.stop_waits = false,
                Effect::AnswerWaits(_) => self.wait_waits = false,
                Effect::SaveStopped(_) | Effect::Leave => {}
            }
        }
    }

    fn feed(&mut self, state: State, event: Event) -> State {
        if matches!(event, Event::Released | Event::ReleaseFailed) {
            self.releasing = false;
        }
        let command = event.clone();
        match state.clone().on(event) {
            Ok((next, effects)) => {
                self.start_waits |= command == Event::StartAsked;
                self.stop_waits |= matches!(command, Event::StopAsked | Event::ShutdownAsked);
                self.perform(effects);
                next
            }
            Err(_) => state,
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_shutdown_ends_it_and_leaves_nobody_waiting(
        picks in proptest::collection::vec((0..events().len(), any::<bool>()), 0..40),
    ) {
        let mut world = World::default();
        let mut state = State::Preparing;
        for (pick, deliver) in picks {
            if deliver && !world.pending.is_empty() {
                let event = world.pending.remove(0);
                state = world.feed(state, event);
            }
            let event = events()[pick].clone();
            // What the world answers comes only from the world.
            let answer = matches!(event, Event::Released | Event::Committed | Event::Forgotten | Event::ReleaseFailed);
            if !answer {
                state = world.feed(state, event);
            }
        }
        state = world.feed(state, Event::ShutdownAsked);
        for _ in 0..8 {
            if world.pending.is_empty() { break; }
            let event = world.pending.remove(0);
            state = world.feed(state, event);
        }
        prop_assert!(matches!(state, State::Gone(_)), "ended as {state:?}");
        prop_assert!(!world.start_waits && !world.stop_waits && !world.wait_waits);
    }
}
