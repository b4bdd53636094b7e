//! Containers' mounts in a pod's share.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use bulkhead_protocol::error::chain;
use serde_json::json;
use vmm_actors::containers::{ContainerError, ContainerRequest, PreparedContainer};
use vmm_actors::id::ContainerId;
use vmm_actors::mounts::RootfsMount;
use vmm_actors::sandbox::SandboxError;
use vmm_actors::sandbox::record::Phase;
use vmm_actors::testing::FakeDriver;

use crate::node::{Node, Service, sandbox};

pub(crate) fn container(id: &str) -> ContainerId {
    ContainerId::new(id).unwrap()
}

/// A container as containerd leaves it: a bundle with its spec, an image unpacked somewhere, a volume.
pub(crate) fn bundle(node: &Node, id: &str) -> ContainerRequest {
    let (bundle, image) =
        (node.root.path().join("bundles").join(id), node.root.path().join("images").join(id));
    let volume = node.root.path().join("volumes").join(id);
    for directory in [&bundle, &image, &volume] {
        std::fs::create_dir_all(directory).unwrap();
    }
    std::fs::write(image.join("from-image"), id).unwrap();
    std::fs::write(volume.join("from-volume"), id).unwrap();
    let spec = json!({
        "ociVersion": "1.1.0",
        "process": { "user": { "uid": 0, "gid": 0 }, "args": ["/bin/true"], "cwd": "/" },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/data", "type": "bind", "source": volume, "options": ["rbind", "rprivate", "rw"] },
        ],
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "uts" }, { "type": "mount" }] },
    });
    std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    let rootfs = RootfsMount {
        kind: "bind".to_owned(),
        source: image.to_str().unwrap().to_owned(),
        target: String::new(),
        options: vec!["rbind".to_owned(), "rw".to_owned()],
    };
    ContainerRequest { id: container(id), bundle, rootfs: vec![rootfs], stdio: [const { String::new() }; 3] }
}

impl Service {
    pub(crate) async fn prepare(
        &self,
        request: &ContainerRequest,
    ) -> Result<PreparedContainer, SandboxError> {
        self.sandboxes.prepare_container(&sandbox("p"), request.clone()).await
    }

    pub(crate) async fn release(&self, id: &str) -> Result<(), SandboxError> {
        self.sandboxes.release_container(&sandbox("p"), container(id)).await
    }
}

/// What the guest sees of a container.
fn in_share(node: &Node, id: &str, path: &str) -> PathBuf {
    node.vm_dir("p").shared().join(id).join(path)
}

pub(crate) fn recorded(node: &Node) -> Vec<String> {
    node.record("p").unwrap().containers.by_id.keys().map(ToString::to_string).collect()
}

pub(crate) async fn running(node: &Node) -> Service {
    let service = node.serve(FakeDriver::default());
    service.run("p").await.unwrap();
    service
}

#[actix::test]
async fn a_container_is_prepared_recorded_and_released() {
    let Some(node) = Node::new() else { return };
    let service = running(&node).await;
    let empty = node.mounts().len();
    let prepared = service.prepare(&bundle(&node, "c1")).await.unwrap();
    assert_eq!(prepared.rootfs, "/run/bulkhead/share/c1/rootfs");
    assert!(String::from_utf8(prepared.spec).unwrap().contains("/run/bulkhead/share/c1/mounts/"));
    assert_eq!(std::fs::read_to_string(in_share(&node, "c1", "rootfs/from-image")).unwrap(), "c1");
    assert_eq!(node.mounts().len(), empty + 2, "{:?}", node.mounts());
    assert_eq!(recorded(&node), ["c1"]);

    service.sandboxes.container_started(&sandbox("p"), container("c1"), 42).await.unwrap();
    assert_eq!(service.status("p").await.unwrap().containers, ["c1"]);

    service.release("c1").await.unwrap();
    assert_eq!(node.mounts().len(), empty);
    service.release("c1").await.unwrap();
    service.release("never-seen").await.unwrap();
    service.shutdown("p").await;
    node.assert_nothing_left();
    assert!(node.root.path().join("images/c1/from-image").exists(), "the image is not ours to remove");
    assert!(node.root.path().join("volumes/c1/from-volume").exists());
}

#[actix::test]
async fn repeated_calls_join() {
    let Some(node) = Node::new() else { return };
    let service = running(&node).await;
    let request = bundle(&node, "c1");
    let (first, second) = tokio::join!(service.prepare(&request), service.prepare(&request));
    let first = first.unwrap();
    assert_eq!(first, second.unwrap());
    assert_eq!(service.prepare(&request).await.unwrap(), first);
    let (first, second) = tokio::join!(service.release("c1"), service.release("c1"));
    first.and(second).unwrap();
    service.prepare(&request).await.unwrap();
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_release_overtakes_no_prepare() {
    let Some(node) = Node::new() else { return };
    let service = running(&node).await;
    let empty = node.mounts().len();
    let request = bundle(&node, "c1");
    let (prepared, released) = tokio::join!(biased; service.prepare(&request), service.release("c1"));
    prepared.unwrap();
    released.unwrap();
    assert_eq!(node.mounts().len(), empty);
    service.shutdown("p").await;
    node.assert_nothing_left();
}

/// A container's spec that can be read only once it is written: whoever reads it waits.
struct LateSpec {
    request: ContainerRequest,
    file: std::fs::File,
    spec: Vec<u8>,
}

impl LateSpec {
    fn of(node: &Node, id: &str) -> Self {
        let request = bundle(node, id);
        let config = request.bundle.join("config.json");
        let spec = std::fs::read(&config).unwrap();
        std::fs::remove_file(&config).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&config).status().unwrap().success());
        // Opened for both, so that nobody's open waits, and readers see its end when this goes.
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&config).unwrap();
        Self { request, file, spec }
    }

    fn write(mut self) {
        self.file.write_all(&self.spec).unwrap();
    }
}

impl Service {
    /// Begins to prepare a container; it is known when this returns.
    async fn begin_to_prepare(
        &self,
        request: &ContainerRequest,
    ) -> tokio::task::JoinHandle<Result<PreparedContainer, SandboxError>> {
        let (sandboxes, request) = (self.sandboxes.clone(), request.clone());
        let id = request.id.to_string();
        let preparing =
            tokio::spawn(async move { sandboxes.prepare_container(&sandbox("p"), request).await });
        while !self.status("p").await.unwrap().containers.contains(&id) {
            tokio::task::yield_now().await;
        }
        preparing
    }
}

#[actix::test]
async fn containers_prepared_at_once_are_all_recorded() {
    let Some(node) = Node::new() else { return };
    let service = running(&node).await;
    let late = LateSpec::of(&node, "late");
    let preparing = service.begin_to_prepare(&late.request).await;
    for id in ["c1", "c2", "c3"] {
        service.prepare(&bundle(&node, id)).await.unwrap();
    }
    late.write();
    preparing.await.unwrap().unwrap();
    assert_eq!(recorded(&node), ["c1", "c2", "c3", "late"]);
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_container_that_comes_too_late_does_not_bring_the_pod_back() {
    let Some(node) = Node::new() else { return };
    let service = running(&node).await;
    let late = LateSpec::of(&node, "late");
    let preparing = service.begin_to_prepare(&late.request).await;
    service.stop("p").await;
    let error = preparing.await.unwrap().unwrap_err();
    assert!(matches!(error, SandboxError::Gone(_)), "{error}");
    while node.record("p").unwrap().phase == Phase::Running {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    late.write();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let phase = node.record("p").unwrap().phase;
    assert!(matches!(phase, Phase::Stopped { .. }), "{phase:?}");
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_bundle_without_a_spec_is_named_and_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    let service = running(&node).await;
    let request = bundle(&node, "c1");
    let config = request.bundle.join("config.json");
    std::fs::remove_file(&config).unwrap();
    let error = service.prepare(&request).await.unwrap_err();
    assert!(
        matches!(&error, SandboxError::Container(ContainerError::ReadBundle { path, .. }) if *path == config),
        "{error}"
    );
    std::fs::write(&config, "no json").unwrap();
    let error = service.prepare(&request).await.unwrap_err();
    assert!(matches!(error, SandboxError::Container(ContainerError::Spec { .. })), "{error}");
    assert!(service.status("p").await.unwrap().containers.is_empty());
    service.prepare(&bundle(&node, "c1")).await.unwrap();
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn a_mount_that_fails_takes_the_others_with_it() {
    let Some(node) = Node::new() else { return };
    let service = running(&node).await;
    let before = node.mounts();
    let mut request = bundle(&node, "c1");
    let image = request.rootfs[0].source.clone();
    request.rootfs[0].source = "/nonexistent/image".to_owned();
    let error = chain(&service.prepare(&request).await.unwrap_err());
    assert!(error.contains("c1") && error.contains("/nonexistent/image"), "{error}");

    request.rootfs[0].source = image;
    std::fs::remove_dir_all(node.root.path().join("volumes/c1")).unwrap();
    let error = chain(&service.prepare(&request).await.unwrap_err());
    assert!(error.contains("volumes/c1"), "{error}");
    assert_eq!(node.mounts(), before);

    service.prepare(&bundle(&node, "c1")).await.unwrap();
    service.shutdown("p").await;
    node.assert_nothing_left();
}

#[actix::test]
async fn only_a_running_pod_takes_containers() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    let request = bundle(&node, "c1");
    assert!(matches!(service.prepare(&request).await, Err(SandboxError::NotFound(_))));
    service.create("p").await.unwrap();
    assert!(matches!(
        service.prepare(&request).await,
        Err(SandboxError::Container(ContainerError::NotRunning { .. }))
    ));
    service.start("p").await.unwrap();
    service.stop("p").await;
    assert!(matches!(
        service.prepare(&request).await,
        Err(SandboxError::Container(ContainerError::NotRunning { .. }))
    ));
    service.release("c1").await.unwrap();
    service.shutdown("p").await;
    service.release("c1").await.unwrap();
    node.assert_nothing_left();
}

#[actix::test]
async fn stop_unmounts_what_containers_still_have() {
    let Some(node) = Node::new() else { return };
    let service = running(&node).await;
    for id in ["c1", "c2"] {
        service.prepare(&bundle(&node, id)).await.unwrap();
    }
    service.stop("p").await;
    assert!(node.mounts().is_empty(), "{:?}", node.mounts());
    service.release("c1").await.unwrap();
    service.shutdown("p").await;
    node.assert_nothing_left();
    assert!(node.root.path().join("images/c2/from-image").exists());
}

#[actix::test]
async fn a_prepare_under_way_is_told_of_the_stop() {
    let Some(node) = Node::new() else { return };
    let service = running(&node).await;
    let request = bundle(&node, "c1");
    let (prepared, ()) = tokio::join!(biased; service.prepare(&request), service.stop("p"));
    if let Err(error) = prepared {
        assert!(
            matches!(error, SandboxError::Gone(_) | SandboxError::Container(ContainerError::Mount { .. })),
            "{error}"
        );
    }
    assert!(node.mounts().is_empty(), "{:?}", node.mounts());
    service.shutdown("p").await;
    node.assert_nothing_left();
}
