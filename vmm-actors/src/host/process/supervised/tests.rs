use std::fs;

use tempfile::TempDir;

use super::*;
use crate::host::process::Spawn;
use crate::testing::Frozen;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

fn start(dir: &TempDir, script: &str) -> OwnedProcess {
    OwnedProcess::spawn(Spawn {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        output: dir.path().join("out"),
        fds: Vec::new(),
        cgroup: None,
        env: Vec::new(),
    })
    .unwrap()
}

/// Waits until a script has said so.
async fn ready(dir: &TempDir) {
    while !fs::read_to_string(dir.path().join("out")).is_ok_and(|text| text.contains("ready")) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Runs its program when this returns.
fn idle(dir: &TempDir) -> OwnedProcess {
    OwnedProcess::spawn(Spawn {
        program: "/bin/sleep".into(),
        args: vec!["60".into()],
        output: dir.path().join("out"),
        fds: Vec::new(),
        cgroup: None,
        env: Vec::new(),
    })
    .unwrap()
}

async fn until_gone(identity: &ProcessIdentity) {
    while lives(identity) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn lives(identity: &ProcessIdentity) -> bool {
    OwnedProcess::adopt(identity).unwrap().is_some_and(|process| {
        process.keep();
        true
    })
}

/// The main process and its helper, idle both.
fn pair(dir: &TempDir) -> (Supervised<()>, ProcessIdentity, ProcessIdentity) {
    let (main, helper) = (idle(dir), idle(dir));
    let (main_is, helper_is) = (main.identity().clone(), helper.identity().clone());
    (Supervised::up(Processes::new(main, Some(helper))), main_is, helper_is)
}

fn kill(identity: &ProcessIdentity) {
    let process = OwnedProcess::adopt(identity).unwrap().unwrap();
    process.signal(super::super::Signal::KILL).unwrap();
    process.keep();
}

/// Waits for something that waits for time to go by: a second of it takes an instant.
async fn in_time<T>(task: tokio::task::JoinHandle<T>) -> T {
    for _ in 0..60 {
        if task.is_finished() {
            break;
        }
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::time::resume();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(task.is_finished(), "it waits longer than it may");
    task.await.unwrap()
}

fn freeze(identity: &ProcessIdentity, dir: &TempDir) -> Option<Frozen> {
    Frozen::new(identity.pid, dir.path())
        .inspect_err(|error| println!("skipped: no process can be made to ignore SIGKILL here: {error}"))
        .ok()
}

#[tokio::test]
async fn what_never_ran_is_ended_at_once_and_how_is_unknown() {
    for process in [Supervised::<()>::cold(), Supervised::failed()] {
        assert_eq!(process.end(Grace::NONE).await, Ok(Exit::Unknown));
        assert!(process.watch().is_none() && process.pid().is_none() && !process.is_up());
    }
    assert_eq!(Supervised::<()>::cold().name(), "cold");
    assert_eq!(Supervised::<()>::failed().name(), "failed");
}

#[tokio::test]
async fn a_process_has_time_to_end_by_itself_then_by_sigterm_then_it_is_killed() {
    for (script, by_itself, by_sigterm, exit) in [
        ("echo ready; sleep 0.05; exit 7", LONG, LONG, Exit::Code(7)),
        (
            "trap 'exit 8' TERM; echo ready; while :; do sleep 0.01; done",
            Duration::from_millis(1),
            LONG,
            Exit::Code(8),
        ),
        (
            "trap '' TERM; echo ready; while :; do sleep 0.01; done",
            Duration::ZERO,
            Duration::from_millis(30),
            Exit::Signal(9),
        ),
        (
            "trap 'exit 8' TERM; echo ready; while :; do sleep 0.01; done",
            Duration::ZERO,
            Duration::ZERO,
            Exit::Signal(9),
        ),
    ] {
        let dir = TempDir::new().unwrap();
        let process = Supervised::<()>::up(Processes::new(start(&dir, script), None));
        ready(&dir).await;
        assert_eq!(process.end(Grace { by_itself, by_sigterm }).await, Ok(exit), "{script}");
    }
}

#[tokio::test]
async fn a_process_goes_through_its_states_and_keeps_what_was_told() {
    let dir = TempDir::new().unwrap();
    let process = idle(&dir);
    let pid = process.identity().pid;
    let mut process = Supervised::up(Processes::new(process, None));
    let watching = process.watch().unwrap();
    assert_eq!((process.name(), process.is_up(), process.pid()), ("up", true, Some(pid)));
    let ending = process.end(Grace::NONE);
    assert_eq!((process.name(), process.is_up(), process.pid()), ("ending", false, Some(pid)));
    assert_eq!(ending.await, Ok(Exit::Signal(9)));
    let ended = watching.await;
    assert_eq!(ended, Ended { exit: Exit::Signal(9), by: EndedBy::Request });
    process.gone(ended.exit, "told");
    assert_eq!((process.name(), process.pid(), process.told()), ("gone", None, Some(&"told")));
    assert_eq!(process.end(Grace::NONE).await, Ok(Exit::Signal(9)), "how it ended is not forgotten");
}

#[tokio::test]
async fn a_repeat_joins_and_cuts_the_grace_of_the_first_short() {
    let dir = TempDir::new().unwrap();
    let process = Supervised::<()>::up(Processes::new(idle(&dir), None));
    let patient = process.end(Grace { by_itself: LONG, by_sigterm: LONG });
    let (patient, killed) = tokio::join!(patient, process.end(Grace::NONE));
    assert_eq!((patient, killed), (Ok(Exit::Signal(9)), Ok(Exit::Signal(9))));
}

#[tokio::test]
async fn an_end_that_nobody_asked_for_is_that_of_both_and_says_whose_it_was() {
    let dir = TempDir::new().unwrap();
    let (process, main, helper) = pair(&dir);
    let watching = process.watch().unwrap();
    kill(&main);
    assert_eq!(watching.await, Ended { exit: Exit::Signal(9), by: EndedBy::Main });
    assert!(!lives(&helper));

    let (process, main, helper) = pair(&dir);
    let watching = process.watch().unwrap();
    kill(&helper);
    let ended = watching.await;
    assert_eq!(ended, Ended { exit: Exit::Signal(9), by: EndedBy::Helper(Exit::Signal(9)) });
    assert!(!lives(&main));
}

#[tokio::test]
async fn both_go_with_their_guard_unless_they_are_kept_and_then_they_are_taken_over() {
    let dir = TempDir::new().unwrap();
    let (process, main, helper) = pair(&dir);
    drop(process);
    assert!(!lives(&main) && !lives(&helper));

    let (process, main, helper) = pair(&dir);
    process.keep();
    drop(process);
    assert!(lives(&main) && lives(&helper));
    drop(Processes::adopt(&main, Some(&helper)).unwrap().expect("both live"));
    assert!(lives(&main) && lives(&helper), "what was taken over is kept");
    let adopted = Supervised::<()>::up(Processes::adopt(&main, Some(&helper)).unwrap().unwrap());
    adopted.end(Grace::NONE).await.unwrap();
    assert!(!lives(&main) && !lives(&helper));
}

#[tokio::test]
async fn a_pair_of_which_one_is_gone_is_not_taken_over_and_the_other_ended() {
    let dir = TempDir::new().unwrap();
    for main_goes in [true, false] {
        let (process, main, helper) = pair(&dir);
        process.keep();
        drop(process);
        let (goes, stays) = if main_goes { (&main, &helper) } else { (&helper, &main) };
        kill(goes);
        until_gone(goes).await;
        assert!(lives(stays));
        assert!(Processes::adopt(&main, Some(&helper)).unwrap().is_none());
        assert!(!lives(stays));
    }
}

#[tokio::test]
async fn a_process_that_sigkill_does_not_end_is_named_and_its_later_end_noticed() {
    let dir = TempDir::new().unwrap();
    let process = idle(&dir);
    let identity = process.identity().clone();
    let mut process = Supervised::up(Processes::new(process, None));
    let watching = tokio::spawn(process.watch().unwrap());
    let Some(frozen) = freeze(&identity, &dir) else { return };
    for _ in 0..2 {
        let ending = tokio::spawn(process.end(Grace { by_sigterm: Duration::from_secs(1), ..Grace::NONE }));
        let left = in_time(ending).await.unwrap_err();
        assert_eq!((left.pid, left.name.as_str()), (identity.pid, "sleep"));
        assert_eq!((process.name(), process.pid()), ("ending", Some(identity.pid)));
    }
    assert!(!watching.is_finished());
    drop(frozen);
    let ended = watching.await.unwrap();
    assert_eq!(ended.by, EndedBy::Request);
    process.gone(ended.exit, ());
    assert_eq!(process.end(Grace::NONE).await, Ok(ended.exit));
}

#[tokio::test]
async fn a_process_that_sigkill_does_not_end_neither_keeps_its_helper_nor_the_news() {
    let dir = TempDir::new().unwrap();
    let (mut process, main, helper) = pair(&dir);
    let watching = tokio::spawn(process.watch().unwrap());
    let Some(frozen) = freeze(&main, &dir) else { return };
    kill(&helper);
    until_gone(&helper).await;
    let ended = in_time(watching).await;
    assert_eq!(ended, Ended { exit: Exit::Unknown, by: EndedBy::Helper(Exit::Signal(9)) });
    process.gone(ended.exit, ());
    assert_eq!((process.name(), process.pid()), ("ending", Some(main.pid)), "it is told, and not over");
    let ending = tokio::spawn(process.end(Grace::NONE));
    assert_eq!(in_time(ending).await.unwrap_err().pid, main.pid);
    drop(frozen);
    assert_eq!(process.end(Grace::NONE).await, Ok(Exit::Signal(9)));
    assert_eq!((process.name(), process.pid()), ("gone", None));
}

#[tokio::test]
async fn a_helper_that_sigkill_does_not_end_is_named_too() {
    let dir = TempDir::new().unwrap();
    let (process, main, helper) = pair(&dir);
    let Some(frozen) = freeze(&helper, &dir) else { return };
    let ending = tokio::spawn(process.end(Grace::NONE));
    until_gone(&main).await;
    assert_eq!(in_time(ending).await.unwrap_err().pid, helper.pid);
    drop(frozen);
    process.end(Grace::NONE).await.unwrap();
    assert!(!lives(&helper));
}
