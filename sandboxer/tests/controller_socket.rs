//! The running service, spoken to as containerd does, where no VM is needed: what it refuses, and how it ends.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says so by panicking")]

#[path = "controller_socket/profiles.rs"]
mod profiles;
mod support;
#[path = "controller_socket/traces.rs"]
mod traces;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use containerd_client::services::v1::sandbox::controller_client::ControllerClient;
use containerd_client::services::v1::sandbox::*;
use k8s_cri::v1::{
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prost::Message;
use prost_types::Any;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

const LONG: Duration = Duration::from_secs(20);

struct Service {
    process: Child,
    dir: tempfile::TempDir,
}

impl Service {
    fn start() -> Self {
        Self::start_with("")
    }

    /// With more settings; $DIR stands for the service's directory.
    fn start_with(more: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("bh").tempdir_in("/tmp").unwrap();
        Self::start_in(dir, more)
    }

    /// In a directory that may have something in it.
    fn start_in(dir: tempfile::TempDir, more: &str) -> Self {
        support::write(dir.path(), "more.toml", more);
        let process = spawn(&dir);
        let service = Self { process, dir };
        let deadline = Instant::now() + LONG;
        while UnixStream::connect(service.socket()).is_err() {
            assert!(Instant::now() < deadline, "{}", service.log());
            std::thread::yield_now();
        }
        service
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("r/s.sock")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    async fn client(&self) -> ControllerClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket().display())).unwrap();
        ControllerClient::new(endpoint.connect().await.unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.process.kill().unwrap_or_default();
        self.process.wait().map(|_| ()).unwrap_or_default();
    }
}

fn spawn(dir: &tempfile::TempDir) -> Child {
    let more = std::fs::read_to_string(dir.path().join("more.toml")).unwrap();
    let more = more.replace("$DIR", &dir.path().display().to_string());
    let settings = support::fulfilled(dir.path()) + &more;
    let file = support::write(dir.path(), "bulkhead.toml", &settings);
    let log = std::fs::File::options().create(true).append(true).open(dir.path().join("log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-sandboxer"));
    command.arg("--config").arg(file).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

fn pod(security: NamespaceOption) -> Option<Any> {
    let metadata = PodSandboxMetadata { name: "web".to_owned(), ..Default::default() };
    let security_context =
        Some(LinuxSandboxSecurityContext { namespace_options: Some(security), ..Default::default() });
    let linux = Some(LinuxPodSandboxConfig { security_context, ..Default::default() });
    let config = PodSandboxConfig { metadata: Some(metadata), linux, ..Default::default() };
    Some(Any { type_url: "runtime.v1.PodSandboxConfig".to_owned(), value: config.encode_to_vec() })
}

fn plain_pod() -> Option<Any> {
    pod(NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() })
}

fn create(id: &str, options: Option<Any>, netns_path: &str) -> ControllerCreateRequest {
    ControllerCreateRequest {
        sandbox_id: id.to_owned(),
        options,
        netns_path: netns_path.to_owned(),
        ..Default::default()
    }
}

fn refused<T>(answer: Result<T, Status>) -> Status {
    match answer {
        Err(status) => status,
        Ok(_) => panic!("it was taken"),
    }
}

#[tokio::test]
async fn bad_pods_are_refused_by_name_and_leave_nothing() {
    let service = Service::start();
    let mut client = service.client().await;
    let here = "/proc/self/ns/net";
    let other = Some(Any { type_url: "runtime.v1.ContainerConfig".to_owned(), value: Vec::new() });
    let node = NamespaceMode::Node.into();
    let cases = [
        (create("p", None, here), "Create carries no options"),
        (create("p", other, here), "\"runtime.v1.ContainerConfig\""),
        (
            create("p", plain_pod(), "/run/netns/nowhere"),
            "there is no network namespace \"/run/netns/nowhere\"",
        ),
        (create("p", plain_pod(), ""), "hostNetwork pods cannot run in a VM"),
        (create("p", pod(NamespaceOption { network: node, ..Default::default() }), ""), "hostNetwork"),
        (create("p", pod(NamespaceOption { pid: node, ..Default::default() }), here), "hostPID"),
        (create("a/b", plain_pod(), here), "\"a/b\""),
        (create("..", plain_pod(), here), "\"..\""),
    ];
    for (request, says) in cases {
        let id = request.sandbox_id.clone();
        let status = refused(client.create(request).await);
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(says), "{says:?} is not in {}", status.message());
        if id == "p" {
            let request = ControllerStatusRequest { sandbox_id: id, ..Default::default() };
            assert_eq!(refused(client.status(request).await).code(), Code::NotFound);
        }
    }
    let mut elsewhere = tonic::Request::new(create("p", plain_pod(), here));
    elsewhere.metadata_mut().insert("containerd-namespace", "a/b".parse().unwrap());
    let status = refused(client.create(elsewhere).await);
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("containerd's namespace: \"a/b\""), "{status}");
    let records = std::fs::read_dir(service.dir.path().join("state/sandboxes")).unwrap().count();
    assert_eq!(records, 0, "a refused pod has no record");
}

#[tokio::test]
async fn an_unknown_sandbox_is_stopped_and_forgotten_but_not_started() {
    let service = Service::start();
    let mut client = service.client().await;
    let sandbox_id = "unknown".to_owned();
    let id = || sandbox_id.clone();
    client.stop(ControllerStopRequest { sandbox_id: id(), ..Default::default() }).await.unwrap();
    client.shutdown(ControllerShutdownRequest { sandbox_id: id(), ..Default::default() }).await.unwrap();
    let platform =
        client.platform(ControllerPlatformRequest { sandbox_id: id(), ..Default::default() }).await;
    assert_eq!(platform.unwrap().into_inner().platform.unwrap().os, "linux");
    let start = client.start(ControllerStartRequest { sandbox_id: id(), ..Default::default() }).await;
    let wait = client.wait(ControllerWaitRequest { sandbox_id: id(), ..Default::default() }).await;
    let status = client.status(ControllerStatusRequest { sandbox_id: id(), ..Default::default() }).await;
    let metrics = client.metrics(ControllerMetricsRequest { sandbox_id: id(), ..Default::default() }).await;
    for status in [refused(start), refused(wait), refused(status), refused(metrics)] {
        assert_eq!(status.code(), Code::NotFound, "{status}");
        assert!(status.message().contains("unknown"), "{status}");
    }
    let update = client.update(ControllerUpdateRequest { sandbox_id: id(), ..Default::default() }).await;
    assert_eq!(refused(update).code(), Code::Unimplemented);
}

#[tokio::test]
async fn one_instance_serves_a_state_directory() {
    let service = Service::start();
    let mut second = spawn(&service.dir);
    assert_eq!(second.wait().unwrap().code(), Some(1));
    assert!(
        service.log().contains("another bulkhead-sandboxer is running on state_dir"),
        "{}",
        service.log()
    );
    assert!(
        service
            .client()
            .await
            .stop(ControllerStopRequest { sandbox_id: "x".into(), ..Default::default() })
            .await
            .is_ok()
    );
}

#[test]
fn sigterm_ends_it_well_and_it_starts_again() {
    let mut service = Service::start();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL] {
        let begun = Instant::now();
        service.signal(signal);
        let code = service.process.wait().unwrap().code();
        let expected = if signal == Signal::SIGKILL { None } else { Some(0) };
        assert_eq!(code, expected, "{signal}: {}", service.log());
        assert!(begun.elapsed() < LONG / 4, "{signal}");
        service.process = spawn(&service.dir);
        let deadline = Instant::now() + LONG;
        while UnixStream::connect(service.socket()).is_err() {
            assert!(Instant::now() < deadline, "{}", service.log());
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_state_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::Builder::new().prefix("bh").tempdir_in("/tmp").unwrap();
    support::write(dir.path(), "in-the-way", "");
    let settings = support::fulfilled(dir.path()).replace("/state\"", "/in-the-way/state\"");
    let file = support::write(dir.path(), "bulkhead.toml", &settings);
    let output =
        Command::new(env!("CARGO_BIN_EXE_bulkhead-sandboxer")).arg("--config").arg(file).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cannot make directory") && said.contains("in-the-way/state"), "{said}");
}
