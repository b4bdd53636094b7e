//! The kubelet's side of CRI.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{self as api};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use crate::logs::Log;
use crate::node::cgroups;
use crate::{image, wait};

/// How long one CRI call may take; a VM without KVM on a busy machine is slow.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// A client of one node's containerd.
#[derive(Debug)]
pub struct Cri {
    channel: Channel,
    pods: PathBuf,
    handler: String,
    cgroup_parent: String,
    counter: AtomicU32,
}

/// A pod that was asked for.
#[derive(Debug, Clone)]
pub struct Pod {
    /// containerd's sandbox id.
    pub id: String,
    /// What it was asked for with.
    pub config: api::PodSandboxConfig,
    /// The pod's cgroup made the way kubelet does; `None` when the pod names no parent.
    pub cgroup: Option<String>,
}

/// A container that was asked for.
#[derive(Debug, Clone)]
pub struct Container {
    /// containerd's container id.
    pub id: String,
    /// Its log file.
    pub log: PathBuf,
}

impl Container {
    /// What it has written so far.
    #[must_use]
    pub fn log(&self) -> Log {
        Log::read(&self.log)
    }
}

/// A volume of a container: a directory or file of the node, writable, without what is mounted later.
#[must_use]
pub fn mount(host: &Path, container: &str) -> api::Mount {
    api::Mount {
        host_path: host.display().to_string(),
        container_path: container.into(),
        ..Default::default()
    }
}

/// A unix socket as gRPC channel, connected on first use and again after a loss.
#[must_use]
pub fn channel(socket: &Path) -> Channel {
    let socket = socket.to_path_buf();
    Endpoint::from_static("http://node").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    }))
}

/// A request with the usual deadline.
pub(crate) fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(wait::patiently(DEADLINE));
    request
}

impl Cri {
    pub(crate) fn new(dir: &Path, handler: &str, cgroup_parent: &str) -> Self {
        Self {
            channel: channel(&dir.join("c.sock")),
            pods: dir.join("pods"),
            handler: handler.to_owned(),
            cgroup_parent: cgroup_parent.to_owned(),
            counter: AtomicU32::new(0),
        }
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The plain client, for calls not wrapped here.
    #[must_use]
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
    }

    pub(crate) async fn network_ready(&self) -> bool {
        let Ok(status) = self.runtime().status(within(api::StatusRequest { verbose: false })).await else {
            return false;
        };
        let conditions = status.into_inner().status.map(|status| status.conditions).unwrap_or_default();
        !conditions.is_empty()
            && conditions
                .iter()
                .filter(|one| one.r#type != "ContainerdHasNoDeprecationWarnings")
                .all(|one| one.status)
    }

    pub(crate) async fn has_image(&self, name: &str) -> bool {
        let spec = api::ImageSpec { image: name.to_owned(), ..Default::default() };
        let request = within(api::ImageStatusRequest { image: Some(spec), verbose: false });
        let answer = ImageServiceClient::new(self.channel.clone()).image_status(request).await;
        answer.is_ok_and(|answer| answer.into_inner().image.is_some())
    }

    /// A pod's configuration as kubelet would write it, with a name of its own.
    #[must_use]
    pub fn pod_config(&self, name: &str) -> api::PodSandboxConfig {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let uid = format!("00000000-0000-4000-8000-{number:012}");
        let log_directory = self.pods.join(format!("{name}-{number}"));
        std::fs::create_dir_all(&log_directory).expect("make the pod's log directory");
        api::PodSandboxConfig {
            metadata: Some(api::PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.clone(),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: log_directory.display().to_string(),
            dns_config: Some(api::DnsConfig {
                servers: vec!["10.96.0.10".into()],
                searches: vec!["default.svc.cluster.local".into(), "cluster.local".into()],
                options: vec!["ndots:5".into()],
            }),
            labels: HashMap::from([("app".into(), name.into())]),
            annotations: HashMap::from([("bulkhead.test/note".into(), "kept".into())]),
            linux: Some(api::LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/pod{uid}", self.cgroup_parent),
                security_context: Some(api::LinuxSandboxSecurityContext {
                    namespace_options: Some(api::NamespaceOption {
                        network: api::NamespaceMode::Pod.into(),
                        pid: api::NamespaceMode::Container.into(),
                        ipc: api::NamespaceMode::Pod.into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Runs a pod; panics when that fails.
    pub async fn run_pod(&self, name: &str) -> Pod {
        let config = self.pod_config(name);
        self.try_run_pod(config).await.unwrap_or_else(|status| panic!("RunPodSandbox {name}: {status:?}"))
    }

    /// Runs a pod, its cgroup made first as kubelet does.
    pub async fn try_run_pod(&self, config: api::PodSandboxConfig) -> Result<Pod, Status> {
        self.try_run_pod_with(config, &self.handler, wait::patiently(DEADLINE)).await
    }

    /// Runs a pod with another handler or deadline.
    pub async fn try_run_pod_with(
        &self,
        config: api::PodSandboxConfig,
        handler: &str,
        deadline: Duration,
    ) -> Result<Pod, Status> {
        let parent = config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
        let cgroup = (!parent.is_empty()).then_some(parent);
        if let Some(group) = &cgroup {
            cgroups::create(group);
        }
        let mut request = Request::new(api::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        });
        request.set_timeout(deadline);
        match self.runtime().run_pod_sandbox(request).await {
            Ok(answer) => Ok(Pod { id: answer.into_inner().pod_sandbox_id, config, cgroup }),
            Err(status) => {
                if let Some(group) = &cgroup {
                    remove_pod_cgroup(group).await;
                }
                Err(status)
            }
        }
    }

    /// Stops a pod; panics when that fails.
    pub async fn stop_pod(&self, pod: &Pod) {
        self.try_stop_pod(&pod.id).await.unwrap_or_else(|status| panic!("StopPodSandbox: {status:?}"));
    }

    /// Stops a pod by id.
    pub async fn try_stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = within(api::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() });
        self.runtime().stop_pod_sandbox(request).await.map(drop)
    }

    /// Removes a pod and, as kubelet does, its cgroup, which must be empty by then.
    pub async fn remove_pod(&self, pod: &Pod) {
        self.try_remove_pod(&pod.id).await.unwrap_or_else(|status| panic!("RemovePodSandbox: {status:?}"));
        if let Some(group) = &pod.cgroup {
            remove_pod_cgroup(group).await;
        }
    }

    /// Removes a pod by id; its cgroup stays.
    pub async fn try_remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = within(api::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() });
        self.runtime().remove_pod_sandbox(request).await.map(drop)
    }

    /// Stop and remove.
    pub async fn end_pod(&self, pod: &Pod) {
        self.stop_pod(pod).await;
        self.remove_pod(pod).await;
    }

    /// PodSandboxStatus, verbose.
    pub async fn pod_status(&self, id: &str) -> Result<api::PodSandboxStatusResponse, Status> {
        let request = within(api::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true });
        self.runtime().pod_sandbox_status(request).await.map(tonic::Response::into_inner)
    }

    /// Whether containerd and the sandboxer both call the pod ready.
    pub async fn pod_ready(&self, id: &str) -> bool {
        let ready = api::PodSandboxState::SandboxReady;
        let status =
            self.pod_status(id).await.unwrap_or_else(|status| panic!("PodSandboxStatus: {status:?}"));
        let inspected = status.status.expect("a status").state() == ready;
        let listed = self.list_pods().await.iter().any(|pod| pod.id == id && pod.state() == ready);
        inspected && listed
    }

    /// Waits until both containerd and the sandboxer call the pod not ready.
    pub async fn expect_not_ready(&self, id: &str) {
        let not_ready = api::PodSandboxState::SandboxNotready;
        wait::expect("the pod is NotReady in status and list", Duration::from_secs(60), async || {
            let status = self.pod_status(id).await.ok()?.status?;
            let listed = self.list_pods().await.iter().any(|pod| pod.id == id && pod.state() == not_ready);
            (status.state() == not_ready && listed).then_some(())
        })
        .await;
    }

    /// Every pod containerd knows.
    pub async fn list_pods(&self) -> Vec<api::PodSandbox> {
        let answer =
            self.runtime().list_pod_sandbox(within(api::ListPodSandboxRequest { filter: None })).await;
        answer.unwrap_or_else(|status| panic!("ListPodSandbox: {status:?}")).into_inner().items
    }

    /// The pod's addresses, IPv4 first.
    pub async fn pod_ips(&self, pod: &Pod) -> Vec<std::net::IpAddr> {
        let status =
            self.pod_status(&pod.id).await.unwrap_or_else(|status| panic!("PodSandboxStatus: {status:?}"));
        let network = status.status.expect("a status").network.expect("a network status");
        let mut ips = vec![network.ip];
        ips.extend(network.additional_ips.into_iter().map(|more| more.ip));
        ips.iter().map(|ip| ip.parse().unwrap_or_else(|error| panic!("pod IP {ip:?}: {error}"))).collect()
    }

    /// A container's configuration that runs `script` in a shell.
    #[must_use]
    pub fn shell(name: &str, script: &str) -> api::ContainerConfig {
        api::ContainerConfig {
            metadata: Some(api::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(api::ImageSpec { image: image::BUSYBOX.into(), ..Default::default() }),
            command: vec!["/bin/sh".into(), "-c".into(), script.to_owned()],
            working_dir: "/".into(),
            log_path: format!("{name}.log"),
            linux: Some(api::LinuxContainerConfig {
                security_context: Some(api::LinuxContainerSecurityContext {
                    namespace_options: Some(api::NamespaceOption {
                        network: api::NamespaceMode::Pod.into(),
                        pid: api::NamespaceMode::Container.into(),
                        ipc: api::NamespaceMode::Pod.into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Creates a container.
    pub async fn try_create(&self, pod: &Pod, config: api::ContainerConfig) -> Result<Container, Status> {
        let log = Path::new(&pod.config.log_directory).join(&config.log_path);
        let request = within(api::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        });
        let answer = self.runtime().create_container(request).await?;
        Ok(Container { id: answer.into_inner().container_id, log })
    }

    /// Creates a container; panics when that fails.
    pub async fn create(&self, pod: &Pod, config: api::ContainerConfig) -> Container {
        self.try_create(pod, config).await.unwrap_or_else(|status| panic!("CreateContainer: {status:?}"))
    }

    /// Starts a created container.
    pub async fn try_start(&self, id: &str) -> Result<(), Status> {
        let request = within(api::StartContainerRequest { container_id: id.to_owned() });
        self.runtime().start_container(request).await.map(drop)
    }

    /// Creates and starts a container; panics when that fails.
    pub async fn start(&self, pod: &Pod, config: api::ContainerConfig) -> Container {
        let container = self.create(pod, config).await;
        self.try_start(&container.id).await.unwrap_or_else(|status| panic!("StartContainer: {status:?}"));
        container
    }

    /// Stops a container with `grace` seconds between SIGTERM and SIGKILL.
    pub async fn stop(&self, id: &str, grace: i64) {
        let request = within(api::StopContainerRequest { container_id: id.to_owned(), timeout: grace });
        self.runtime()
            .stop_container(request)
            .await
            .unwrap_or_else(|status| panic!("StopContainer: {status:?}"));
    }

    /// Removes a container.
    pub async fn remove(&self, id: &str) {
        let request = within(api::RemoveContainerRequest { container_id: id.to_owned() });
        self.runtime()
            .remove_container(request)
            .await
            .unwrap_or_else(|status| panic!("RemoveContainer: {status:?}"));
    }

    /// ContainerStatus.
    pub async fn container_status(&self, id: &str) -> api::ContainerStatus {
        let request = within(api::ContainerStatusRequest { container_id: id.to_owned(), verbose: false });
        let answer = self.runtime().container_status(request).await;
        let answer = answer.unwrap_or_else(|status| panic!("ContainerStatus: {status:?}"));
        answer.into_inner().status.expect("a status")
    }

    /// Waits for the container's end and returns its status.
    pub async fn wait_exit(&self, id: &str) -> api::ContainerStatus {
        wait::expect("the container has exited", DEADLINE, async || {
            let status = self.container_status(id).await;
            (status.state() == api::ContainerState::ContainerExited).then_some(status)
        })
        .await
    }

    /// Runs a command in a container: (exit code, stdout, stderr).
    pub async fn try_exec(&self, id: &str, command: &[&str]) -> Result<(i32, String, String), Status> {
        let request = within(api::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|&part| part.to_owned()).collect(),
            timeout: 60 * i64::from(wait::patience()),
        });
        let answer = self.runtime().exec_sync(request).await?.into_inner();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((answer.exit_code, text(&answer.stdout), text(&answer.stderr)))
    }

    /// Runs a shell script in a container, which must succeed; its stdout.
    pub async fn exec(&self, id: &str, script: &str) -> String {
        let (code, stdout, stderr) = self
            .try_exec(id, &["/bin/sh", "-c", script])
            .await
            .unwrap_or_else(|status| panic!("ExecSync {script:?}: {status:?}"));
        assert_eq!(code, 0, "{script:?} in the container\nstdout: {stdout}\nstderr: {stderr}");
        stdout
    }
}

/// kubelet removes the pod's cgroup when it believes the pod gone, and tries again for a while.
async fn remove_pod_cgroup(group: &str) {
    let mut last = String::new();
    let gone = wait::until(Duration::from_secs(5), async || match cgroups::remove_empty(group) {
        Ok(()) => Some(()),
        Err(error) => {
            last = error;
            None
        }
    })
    .await;
    assert!(gone.is_some(), "the pod's cgroup cannot be removed: {last}");
}
