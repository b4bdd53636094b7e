//! One service with several Controller sockets.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use bulkhead_config::{ProfileName, Scope, Settings};
use vmm_actors::PodSpec;
use vmm_actors::id::{ContainerdNamespace, SandboxId};
use vmm_actors::sandbox::CreateSandbox;
use vmm_actors::sandbox::record::{Nanos, Phase, Record, Store};
use vmm_actors::sandbox::state::{Cause, Class};

use super::*;

const PROFILES: &str = "[profile.big]\nlisten = \"$DIR/r/big.sock\"\n[profile.big.vm]\nmemory_mib = 1024\n\
                        [profile.far]\nlisten = \"$DIR/far.sock\"\n";

impl Service {
    async fn client_of(&self, socket: &str) -> ControllerClient<Channel> {
        let path = self.dir.path().join(socket);
        let deadline = Instant::now() + LONG;
        while UnixStream::connect(&path).is_err() {
            assert!(Instant::now() < deadline, "nobody listens on {socket}: {}", self.log());
            tokio::task::yield_now().await;
        }
        let endpoint = Endpoint::from_shared(format!("unix://{}", path.display())).unwrap();
        ControllerClient::new(endpoint.connect().await.unwrap())
    }
}

#[tokio::test]
async fn every_profile_has_a_socket_that_only_root_can_open_and_that_serves_all_calls() {
    let service = Service::start_with(PROFILES);
    for socket in ["r/s.sock", "r/big.sock", "far.sock"] {
        let mut client = service.client_of(socket).await;
        let mode = service.dir.path().join(socket).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{socket}");
        let sandbox_id = || "unknown".to_owned();
        let stop = ControllerStopRequest { sandbox_id: sandbox_id(), ..Default::default() };
        client.stop(stop).await.unwrap();
        let status = ControllerStatusRequest { sandbox_id: sandbox_id(), ..Default::default() };
        assert_eq!(refused(client.status(status).await).code(), Code::NotFound, "{socket}");
        let status = refused(client.create(create("p", plain_pod(), "/run/netns/nowhere")).await);
        assert!(status.message().contains("there is no network namespace"), "{socket}: {status}");
    }
}

/// Records a stopped sandbox of the profile "big" in this directory of a service.
fn record_of_big(dir: &std::path::Path) {
    let profiles = PROFILES.replace("$DIR", &dir.display().to_string());
    let settings = Settings::parse(&(support::fulfilled(dir) + &profiles), Scope::Values).unwrap();
    let request = CreateSandbox {
        id: SandboxId::new("old").unwrap(),
        containerd_namespace: ContainerdNamespace::default(),
        profile: ProfileName::new("big").unwrap(),
        netns: "/run/netns/none".into(),
        pod: PodSpec::default(),
    };
    let mut record = Record::intend(request, &settings).unwrap();
    let cause = Cause { class: Class::Asked, reason: "it was stopped".to_owned() };
    record.phase = Phase::Stopped { cause, at: Nanos::now() };
    Store::open(&settings.sandboxer.state_dir).unwrap().save(&record).unwrap();
}

#[tokio::test]
async fn containerd_finds_sandboxes_of_a_profile_that_is_gone_where_they_were_and_makes_none_there() {
    let dir = tempfile::Builder::new().prefix("bh").tempdir_in("/tmp").unwrap();
    record_of_big(dir.path());
    let service = Service::start_in(dir, "");
    assert!(!service.dir.path().join("far.sock").exists(), "of a profile without sandboxes nothing is left");
    let mut client = service.client_of("r/big.sock").await;
    let sandbox_id = || "old".to_owned();
    let status = ControllerStatusRequest { sandbox_id: sandbox_id(), verbose: true, ..Default::default() };
    let status = client.status(status).await.unwrap().into_inner();
    assert!(status.info["info"].contains("\"profile\":\"big\""), "{:?}", status.info);

    let status = refused(client.create(create("p", plain_pod(), "/proc/self/ns/net")).await);
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("there is no profile big in the settings any more"), "{status}");
    client
        .shutdown(ControllerShutdownRequest { sandbox_id: sandbox_id(), ..Default::default() })
        .await
        .unwrap();
}

#[test]
fn sigterm_ends_the_serving_of_all_sockets_at_once() {
    let mut service = Service::start_with(PROFILES);
    let begun = Instant::now();
    service.signal(Signal::SIGTERM);
    assert_eq!(service.process.wait().unwrap().code(), Some(0), "{}", service.log());
    assert!(begun.elapsed() < LONG / 4, "{}", service.log());
}

#[test]
fn a_profiles_socket_that_somebody_else_serves_is_named() {
    let dir = tempfile::Builder::new().prefix("bh").tempdir_in("/tmp").unwrap();
    support::write(dir.path(), "more.toml", PROFILES);
    let _other = UnixListener::bind(dir.path().join("far.sock")).unwrap();
    let mut process = spawn(&dir);
    assert_eq!(process.wait().unwrap().code(), Some(1));
    let said = std::fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(said.contains("somebody else listens on") && said.contains("far.sock"), "{said}");
}
