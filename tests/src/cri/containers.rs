//! Containers: create, start, look into, stop, remove.

use std::path::Path;

use k8s_cri::v1::{self as api};
use tonic::Status;

use super::{Container, Cri, DEADLINE, Pod, within};
use crate::{image, wait};

impl Cri {
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
