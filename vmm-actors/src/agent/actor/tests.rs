use bulkhead_protocol::agent::SetupRequest;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::*;
use crate::ask::{AskError, ask};
use crate::host::process::{OwnedProcess, Spawn};
use crate::id::VmId;
use crate::testing::{FakeGuest, Fault};

struct Parent(UnboundedSender<AgentSilent>);

impl Actor for Parent {
    type Context = Context<Self>;
}

impl Handler<AgentSilent> for Parent {
    type Result = ();
    fn handle(&mut self, silent: AgentSilent, _: &mut Self::Context) {
        self.0.send(silent).unwrap();
    }
}

struct Bench {
    dir: VmDir,
    vmm: OwnedProcess,
    parent: actix::Addr<Parent>,
    silences: UnboundedReceiver<AgentSilent>,
    _root: tempfile::TempDir,
}

impl Bench {
    fn new() -> (Self, actix::Addr<Agent>) {
        let root = tempfile::tempdir().unwrap();
        let dir = VmDir::new(root.path(), &VmId::new("0123456789ab").unwrap());
        std::fs::create_dir_all(dir.path()).unwrap();
        let start = Spawn {
            program: "/bin/sleep".into(),
            args: vec!["3600".into()],
            output: dir.vmm_output(),
            fds: Vec::new(),
            cgroup: None,
            env: Vec::new(),
        };
        let (sender, silences) = unbounded_channel();
        let vmm = OwnedProcess::spawn(start).unwrap();
        let bench = Self { dir, vmm, parent: Parent(sender).start(), silences, _root: root };
        let agent =
            Agent::new(bench.dir.clone(), Duration::from_millis(300), bench.parent.clone().recipient());
        (bench, agent.start())
    }

    fn guest(&self, fault: Fault) -> FakeGuest {
        FakeGuest::start(self.dir.clone(), self.vmm.identity().clone(), fault, Duration::from_millis(5))
            .unwrap()
    }
}

async fn up(
    bench: &Bench,
    agent: &actix::Addr<Agent>,
    fault: Fault,
) -> Result<FakeGuest, AskError<AgentError>> {
    ask(agent, Listen).await.unwrap();
    let guest = bench.guest(fault);
    ask(agent, AwaitGuest).await.map(|_| guest)
}

#[actix::test]
async fn a_guest_announces_itself_becomes_a_pod_and_powers_off() {
    let (bench, agent) = Bench::new();
    let guest = up(&bench, &agent, Fault::None).await.unwrap();
    assert!(!AnnounceSocket::path(&bench.dir.vsock()).exists(), "one announcement is all there is");
    let request = || Box::new(SetupRequest { sandbox_id: "p".into(), ..SetupRequest::default() });
    ask(&agent, Setup { request: request() }).await.unwrap();
    ask(&agent, Ping).await.unwrap();
    let view = ask(&agent, Observe).await.unwrap();
    assert_eq!((view.state, view.guest.unwrap().booted_in), ("up", Some(Duration::from_millis(5))));
    ask(&agent, Shutdown { grace: Duration::ZERO }).await.unwrap();
    bench.vmm.wait().await;
    assert_eq!(guest.calls(), ["Hello", "Setup p", "Ping", "Shutdown"]);
}

#[actix::test]
async fn a_guest_that_never_announces_itself_is_given_up_with_its_console() {
    let (bench, agent) = Bench::new();
    std::fs::write(bench.dir.console(), "Kernel panic - not syncing\n").unwrap();
    let error = up(&bench, &agent, Fault::NeverAnnounces).await.unwrap_err();
    let AskError::Failed(error) = error else { panic!("{error}") };
    assert!(error.is_timeout() && error.to_string().contains("Kernel panic"), "{error}");
    assert!(!AnnounceSocket::path(&bench.dir.vsock()).exists());
}

#[actix::test]
async fn an_agent_of_another_protocol_is_refused_before_it_is_asked_anything() {
    let (bench, agent) = Bench::new();
    let error = up(&bench, &agent, Fault::ForeignAgent).await.unwrap_err();
    assert!(matches!(error, AskError::Failed(AgentError::Version { .. })), "{error}");
}

#[actix::test]
async fn a_setup_that_fails_says_what_the_guest_said() {
    let (bench, agent) = Bench::new();
    let _guest = up(&bench, &agent, Fault::SetupFails).await.unwrap();
    let error = ask(&agent, Setup { request: Box::default() }).await.unwrap_err();
    let AskError::Failed(AgentError::Call { call: "Setup", source }) = error else { panic!("{error}") };
    assert!(source.to_string().contains("told to fail"), "{source}");
}

#[actix::test]
async fn commands_without_a_session_are_refused() {
    let (_bench, agent) = Bench::new();
    let error = ask(&agent, Ping).await.unwrap_err();
    assert!(matches!(error, AskError::Failed(AgentError::Refused { state: "cold", .. })), "{error}");
    let error = ask(&agent, AwaitGuest).await.unwrap_err();
    assert!(matches!(error, AskError::Failed(AgentError::Refused { .. })), "{error}");
}

#[actix::test]
async fn a_running_guest_is_taken_over_and_its_silence_told_once() {
    let (mut bench, _) = Bench::new();
    let guest = bench.guest(Fault::IgnoresPings);
    let agent = Agent::adopt(bench.dir.clone(), bench.parent.clone().recipient()).start();
    assert_eq!(ask(&agent, AwaitGuest).await.unwrap().agent_build, "fake");
    tokio::time::pause();
    let silent = bench.silences.recv().await.unwrap();
    assert_eq!(silent.missed, SILENT_AFTER);
    assert_eq!(ask(&agent, Observe).await.unwrap().state, "silent");
    tokio::time::sleep(BEAT_EVERY * 10).await;
    assert!(bench.silences.try_recv().is_err(), "told twice");
    drop(guest);
}

#[actix::test]
async fn a_lost_connection_is_dialled_again() {
    let (bench, agent) = Bench::new();
    let first = up(&bench, &agent, Fault::None).await.unwrap();
    drop(first);
    let second = bench.guest(Fault::None);
    tokio::time::pause();
    // Lost at one heartbeat, dialled at the next; the paused clock waits for no socket.
    for _ in 0..1000 {
        if second.calls().contains(&"Hello".to_owned()) {
            break;
        }
        tokio::time::sleep(BEAT_EVERY).await;
    }
    tokio::time::resume();
    ask(&agent, Ping).await.unwrap();
    assert!(second.calls().contains(&"Hello".to_owned()), "{:?}", second.calls());
}

#[actix::test]
async fn a_guest_that_was_just_taken_over_hears_of_its_end() {
    let (bench, _) = Bench::new();
    let guest = bench.guest(Fault::NeverAnnounces);
    let agent = Agent::adopt(bench.dir.clone(), bench.parent.clone().recipient()).start();
    ask(&agent, Shutdown { grace: Duration::ZERO }).await.unwrap();
    bench.vmm.wait().await;
    assert!(guest.calls().contains(&"Shutdown".to_owned()), "{:?}", guest.calls());
}

#[actix::test]
async fn nobody_listens_for_a_guest_that_was_told_to_end() {
    let (mut bench, _) = Bench::new();
    let agent = Agent::adopt(bench.dir.clone(), bench.parent.clone().recipient()).start();
    ask(&agent, Shutdown { grace: Duration::ZERO }).await.unwrap_err();
    tokio::time::pause();
    tokio::time::sleep(BEAT_EVERY * 10).await;
    assert!(bench.silences.try_recv().is_err(), "the silence of an ended guest was told");
    let view = ask(&agent, Observe).await.unwrap();
    assert_eq!((view.state, view.missed), ("ended", 0));
}
