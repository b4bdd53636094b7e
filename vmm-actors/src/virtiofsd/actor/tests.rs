use super::*;
use crate::ask::{AskError, ask, tell};

#[test]
fn only_an_end_with_its_vmm_is_no_crash() {
    for (exit, words, expected) in [
        (Exit::Code(0), "", EndCause::VmmDisconnected),
        (Exit::Code(1), "", EndCause::Crashed),
        (Exit::Signal(9), "Client disconnected, shutting down", EndCause::Crashed),
        (Exit::Unknown, "[INFO] Client disconnected, shutting down", EndCause::VmmDisconnected),
        (Exit::Unknown, "", EndCause::Crashed),
    ] {
        assert_eq!(cause(exit, EndedBy::Main, words), expected, "{exit:?} {words:?}");
        assert_eq!(cause(exit, EndedBy::Request, words), EndCause::Asked);
    }
}

struct Parent(tokio::sync::mpsc::UnboundedSender<VirtiofsdExited>);

impl Actor for Parent {
    type Context = Context<Self>;
}

impl Handler<VirtiofsdExited> for Parent {
    type Result = ();
    fn handle(&mut self, exited: VirtiofsdExited, _: &mut Self::Context) {
        self.0.send(exited).unwrap();
    }
}

#[actix::test]
async fn a_daemon_is_started_once_taken_over_and_ended() {
    let root = tempfile::tempdir().unwrap();
    let dir = crate::runtime_dir::VmDir::new(root.path(), &crate::id::VmId::new("0123456789ab").unwrap());
    std::fs::create_dir_all(dir.path()).unwrap();
    let settings =
        Settings { path: crate::testing::fake_virtiofsd(root.path()).unwrap(), ..Settings::default() };
    let (sender, mut exits) = tokio::sync::mpsc::unbounded_channel();
    let parent = Parent(sender).start();
    let daemon = Virtiofsd::new(dir, settings, parent.clone().recipient()).start();

    let record = ask(&daemon, Spawn { cgroup: None }).await.unwrap();
    let view = ask(&daemon, Observe).await.unwrap();
    assert_eq!((view.state, view.pid), ("up", Some(record.process.pid)));
    let again = ask(&daemon, Spawn { cgroup: None }).await.unwrap_err();
    assert!(matches!(again, AskError::Failed(VirtiofsdError::Refused { state: "up" })), "{again}");
    tell(&daemon, Keep).unwrap();
    ask(&daemon, Observe).await.unwrap();
    drop(daemon);

    let daemon = Virtiofsd::adopt(&record, parent.recipient()).unwrap().expect("it lives").start();
    let again = ask(&daemon, Spawn { cgroup: None }).await.unwrap_err();
    assert!(matches!(again, AskError::Failed(VirtiofsdError::Refused { state: "up" })), "{again}");
    let exit = ask(&daemon, Kill).await.unwrap();
    let exited = exits.recv().await.unwrap();
    assert_eq!((exited.exit, exited.cause), (exit, EndCause::Asked));
    let view = ask(&daemon, Observe).await.unwrap();
    assert_eq!((view.state, view.exited), ("gone", Some(exited)));
}
