//! Pods: run, look at, stop, remove.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use k8s_cri::v1::{self as api};
use tonic::{Request, Status};

use super::{Cri, DEADLINE, Pod, within};
use crate::node::cgroups;
use crate::wait;

/// Of the next pod. Tests share nodes, one after the other, and a pod's logs outlive it.
static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Cri {
    /// A pod's configuration as kubelet would write it, with a name of its own.
    #[must_use]
    pub fn pod_config(&self, name: &str) -> api::PodSandboxConfig {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
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

    /// As [`Cri::pod_config`], and names no cgroup parent, so that nobody but the sandboxer makes cgroups: kubelet could
    /// not remove the cgroup of a pod that nobody has cleaned up yet.
    #[must_use]
    pub fn pod_config_without_cgroup(&self, name: &str) -> api::PodSandboxConfig {
        let mut config = self.pod_config(name);
        config.linux.get_or_insert_default().cgroup_parent.clear();
        config
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
