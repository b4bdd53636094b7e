use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::*;
use crate::ask::{AskError, ask, tell};
use crate::id::{ContainerdNamespace, SandboxId};
use crate::testing::{serve_as_shim_when_told_to, write_program};

#[tokio::test]
async fn be_a_shim_proxy_when_told_to() {
    serve_as_shim_when_told_to().await.unwrap();
}

fn fake_shim(dir: &std::path::Path) -> std::io::Result<PathBuf> {
    crate::testing::fake_shim(dir, "shim::actor::tests::be_a_shim_proxy_when_told_to", &["c1"])
}

struct Parent(UnboundedSender<ShimExited>);

impl Actor for Parent {
    type Context = Context<Self>;
}

impl Handler<ShimExited> for Parent {
    type Result = ();
    fn handle(&mut self, exited: ShimExited, _: &mut Self::Context) {
        self.0.send(exited).unwrap();
    }
}

struct Bench {
    spec: ShimSpec,
    parent: actix::Addr<Parent>,
    exits: UnboundedReceiver<ShimExited>,
    _root: tempfile::TempDir,
}

impl Bench {
    fn new(program: impl FnOnce(&std::path::Path) -> std::io::Result<PathBuf>) -> (Self, actix::Addr<Shim>) {
        let root = tempfile::tempdir().unwrap();
        let id = SandboxId::new("p").unwrap();
        let dir = PodDir::new(root.path(), &id);
        std::fs::create_dir_all(dir.path()).unwrap();
        let mut settings = bulkhead_config::Settings::default();
        settings.shim.binary = program(root.path()).unwrap();
        let (sender, exits) = unbounded_channel();
        let spec = ShimSpec::new(id, ContainerdNamespace::default(), dir, &settings);
        let bench = Self { spec, parent: Parent(sender).start(), exits, _root: root };
        let shim = Shim::new(bench.spec.clone(), bench.parent.clone().recipient()).start();
        (bench, shim)
    }

    fn printed(&self) -> String {
        std::fs::read_to_string(self.spec.dir.shim_output()).unwrap_or_default()
    }
}

#[test]
fn the_command_line_is_the_one_that_the_proxy_expects() {
    let id = SandboxId::new("p").unwrap();
    let dir = PodDir::new(std::path::Path::new("/run/b"), &id);
    let namespace = ContainerdNamespace::new("other").unwrap();
    let spec = ShimSpec::new(id, namespace, dir, &bulkhead_config::Settings::default());
    let line = args(&spec).iter().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    assert_eq!(
        line,
        "serve --id p --dir /run/b/s/p --control /run/bulkhead/control.sock \
         --containerd-events /run/containerd/containerd.sock.ttrpc --namespace other"
    );
}

#[actix::test]
async fn a_proxy_is_reachable_at_once_called_and_ended_gracefully() {
    let (mut bench, shim) = Bench::new(fake_shim);
    let record = ask(&shim, Spawn { cgroup: None }).await.unwrap();
    std::os::unix::net::UnixStream::connect(bench.spec.dir.task_sock()).unwrap();
    ask(
        &shim,
        Attach {
            vmm: record.process.clone(),
            vsock: "/run/b/vm/0123456789ab/vsock.sock".into(),
            netns: "/run/netns/none".into(),
        },
    )
    .await
    .unwrap();
    let view = ask(&shim, Observe).await.unwrap();
    assert_eq!((view.containers[0].id.as_str(), view.open_connections), ("c1", 1));
    let gone = VmGone { exit_status: 137, exited_at_nanos: 1, reason: "a test".into() };
    ask(&shim, gone).await.unwrap();
    let exit = ask(&shim, Shutdown).await.unwrap();
    assert_eq!(exit, Exit::Code(0), "{}", bench.printed());
    assert_eq!(bench.exits.recv().await.unwrap().cause, EndCause::Asked);
    assert!(bench.printed().contains("vm gone (137): a test"), "{}", bench.printed());
}

#[actix::test]
async fn a_proxy_that_dies_is_told_with_its_last_words() {
    let (mut bench, shim) = Bench::new(|dir| write_program(dir, "shim", "echo oh no; exit 4"));
    ask(&shim, Spawn { cgroup: None }).await.unwrap();
    let exited = bench.exits.recv().await.unwrap();
    assert_eq!(
        (exited.exit, exited.cause, exited.last_words.as_str()),
        (Exit::Code(4), EndCause::Crashed, "oh no")
    );
    let late = ask(&shim, Observe).await.unwrap_err();
    assert!(matches!(late, AskError::Failed(ShimError::Refused { state: "gone", .. })), "{late}");
    assert_eq!(ask(&shim, Shutdown).await.unwrap(), Exit::Code(4));
}

#[actix::test]
async fn a_missing_program_is_the_settings_fault_and_named() {
    let (_bench, shim) = Bench::new(|dir| Ok(dir.join("missing")));
    let error = ask(&shim, Spawn { cgroup: None }).await.unwrap_err();
    let AskError::Failed(error) = error else { panic!("{error}") };
    assert!(error.is_misconfigured() && error.to_string().contains("[shim] binary"), "{error}");
    assert_eq!(ask(&shim, Shutdown).await.unwrap(), Exit::Unknown);
}

#[actix::test]
async fn a_kept_proxy_is_taken_over() {
    let (mut bench, shim) = Bench::new(fake_shim);
    let record = ask(&shim, Spawn { cgroup: None }).await.unwrap();
    tell(&shim, Keep).unwrap();
    ask(&shim, Observe).await.unwrap();
    drop(shim);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let adopted = Shim::adopt(&record, bench.parent.clone().recipient()).unwrap();
    let shim = adopted.expect("it lives").start();
    ask(&shim, Observe).await.unwrap();
    ask(&shim, Shutdown).await.unwrap();
    assert_eq!(bench.exits.recv().await.unwrap().cause, EndCause::Asked);
    assert!(Shim::adopt(&record, bench.parent.clone().recipient()).unwrap().is_none());
}
