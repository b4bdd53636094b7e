//! Containers a VM cannot give, and bundles that are broken: refused by name, the pod lives on.

use std::path::PathBuf;

use bulkhead_tests::cri::{Cri, Pod, mount};
use bulkhead_tests::task::{self, Task};
use containerd_shim_protos::ttrpc::{self, Code};
use k8s_cri::v1 as api;

use crate::stage::{Stage, stage};

/// The container is refused with `wanted` in the error, and the pod takes the next one.
async fn refused(stage: &Stage, pod: &Pod, config: api::ContainerConfig, wanted: &[&str]) {
    let cri = stage.cri();
    let name = config.metadata.clone().unwrap().name;
    let status = match cri.try_create(pod, config).await {
        Err(status) => status,
        Ok(container) => {
            let status = cri.try_start(&container.id).await.expect_err(&name);
            cri.remove(&container.id).await;
            status
        }
    };
    for word in wanted {
        assert!(status.message().contains(word), "{name}: {word:?} is not in {status:?}");
    }
    let next = cri.start(pod, Cri::shell(&format!("after-{name}"), "echo fine")).await;
    assert_eq!(cri.wait_exit(&next.id).await.exit_code, 0);
    assert_eq!(next.log().stdout, "fine\n");
    cri.remove(&next.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn host_devices_are_refused_by_name() {
    let stage = stage!(Stage::shared_vm());
    let pod = stage.cri().run_pod("devices").await;
    let node = stage.node.dir().join("no-such-disk");
    stage.node.run(&["mknod", &node.display().to_string(), "b", "240", "200"]).await;
    let mut config = Cri::shell("disk", "true");
    config.devices = vec![api::Device {
        container_path: "/dev/disk0".into(),
        host_path: node.display().to_string(),
        permissions: "rw".into(),
    }];
    refused(&stage, &pod, config, &["/dev/disk0", "device"]).await;
    std::fs::remove_file(node).unwrap();
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn host_namespaces_are_refused_by_name() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let node = i32::from(api::NamespaceMode::Node);
    // Kubernetes names the namespaces of the host for the whole pod.
    for (pid, ipc, name) in [(node, 0, "hostPID"), (0, node, "hostIPC")] {
        let mut config = cri.pod_config("namespaces");
        let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        let options = security.namespace_options.as_mut().unwrap();
        (options.pid, options.ipc) = (pid, ipc);
        let status = cri.try_run_pod(config).await.expect_err(name);
        assert!(status.message().contains(name), "{name}: {status:?}");
    }
    stage.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn propagation_to_the_host_is_refused() {
    let stage = stage!(Stage::shared_vm());
    let pod = stage.cri().run_pod("propagation").await;
    let source = stage.node.dir().join("shared-volume");
    std::fs::create_dir(&source).unwrap();
    let mut config = Cri::shell("bidirectional", "true");
    config.mounts = vec![api::Mount {
        propagation: api::MountPropagation::PropagationBidirectional.into(),
        ..mount(&source, "/data")
    }];
    refused(&stage, &pod, config, &["/data", "Bidirectional"]).await;
    stage.end(&pod).await;
}

/// A directory with a `config.json` that runs `sh -c script`, and the root that goes with it.
struct Bundle {
    path: PathBuf,
    root: PathBuf,
}

impl Bundle {
    fn make(stage: &Stage, name: &str, script: &str) -> Self {
        let path = stage.node.dir().join("bundles").join(name);
        let root = stage.node.dir().join("bundles").join(format!("{name}.root"));
        std::fs::create_dir_all(path.join("rootfs")).unwrap();
        for folder in ["bin", "proc", "dev", "sys"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::copy(&stage.node.base().busybox, root.join("bin/sh")).unwrap();
        let spec = serde_json::json!({
            "ociVersion": "1.1.0",
            "process": { "args": ["/bin/sh", "-c", script], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"] },
            "root": { "path": "rootfs" },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "linux": { "namespaces": [{ "type": "mount" }, { "type": "pid" }] },
        });
        std::fs::write(path.join("config.json"), spec.to_string()).unwrap();
        Self { path, root }
    }

    fn bind(&self) -> Vec<containerd_shim_protos::api::Mount> {
        vec![task::mount("bind", &self.root.display().to_string(), &["rbind", "rw"])]
    }
}

impl Drop for Bundle {
    /// The node is the next test's, too.
    fn drop(&mut self) {
        for folder in [&self.path, &self.root] {
            if let Err(error) = std::fs::remove_dir_all(folder) {
                eprintln!("cannot remove {}: {error}", folder.display());
            }
        }
    }
}

fn status(error: ttrpc::Error) -> (Code, String) {
    let ttrpc::Error::RpcStatus(status) = error else { panic!("not an answer of the other side: {error}") };
    (status.code(), status.message)
}

/// The id that was refused works with a good bundle.
async fn expect_usable(task: &Task, id: &str, bundle: &Bundle) {
    task.create(id, &bundle.path, bundle.bind())
        .await
        .unwrap_or_else(|error| panic!("Create {id} again: {error}"));
    task.start(id).await.unwrap();
    let ended = task.wait(id).await.unwrap();
    assert_eq!(ended.exit_status, 7);
    let deleted = task.delete(id).await.unwrap();
    assert_eq!(deleted.exit_status, 7);
    let (code, _) = status(task.state(id).await.unwrap_err());
    assert_eq!(code, Code::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_without_config_json_is_refused() {
    let stage = stage!(Stage::shared_vm());
    let pod = stage.cri().run_pod("bundles").await;
    let task = Task::connect(&stage.node.pod_dir(&pod.id).join("task.sock")).await;
    let good = Bundle::make(&stage, "good", "exit 7");
    let empty = Bundle::make(&stage, "empty", "true");
    std::fs::remove_file(empty.path.join("config.json")).unwrap();
    let (code, text) = status(task.create("c1", &empty.path, empty.bind()).await.unwrap_err());
    assert!(text.contains("config.json"), "{code:?}: {text}");
    let broken = Bundle::make(&stage, "broken", "true");
    std::fs::write(broken.path.join("config.json"), "{\"ociVersion\":").unwrap();
    let (code, text) = status(task.create("c1", &broken.path, broken.bind()).await.unwrap_err());
    assert_eq!(code, Code::INVALID_ARGUMENT, "{text}");
    assert!(text.contains("config.json"), "{text}");
    let (code, text) = status(task.delete("c1").await.unwrap_err());
    assert_eq!(code, Code::NOT_FOUND, "{text}");
    expect_usable(&task, "c1", &good).await;
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_file_system_that_cannot_be_mounted_is_named() {
    let stage = stage!(Stage::shared_vm());
    let pod = stage.cri().run_pod("roots").await;
    let task = Task::connect(&stage.node.pod_dir(&pod.id).join("task.sock")).await;
    let good = Bundle::make(&stage, "good", "exit 7");
    let bad = [
        task::mount("bind", "/no/such/source", &["rbind", "ro"]),
        task::mount("overlay", "overlay", &["lowerdir=/no/such/lower:/no/such/other"]),
        task::mount("no-such-file-system", "none", &[]),
    ];
    for mount in bad {
        let what = format!("{mount:?}");
        let (code, text) = status(task.create("c1", &good.path, vec![mount]).await.expect_err(&what));
        assert!(text.contains("no/such") || text.contains("no-such"), "{what}: {code:?}: {text}");
        let (code, _) = status(task.delete("c1").await.unwrap_err());
        assert_eq!(code, Code::NOT_FOUND);
    }
    // The first of two mounts works: it must not stay.
    let mut two = good.bind();
    two.push(task::mount("bind", "/no/such/source", &["rbind"]));
    status(task.create("c1", &good.path, two).await.unwrap_err());
    expect_usable(&task, "c1", &good).await;
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn container_ids_that_are_no_file_names_are_refused() {
    let stage = stage!(Stage::shared_vm());
    let pod = stage.cri().run_pod("ids").await;
    let task = Task::connect(&stage.node.pod_dir(&pod.id).join("task.sock")).await;
    let good = Bundle::make(&stage, "good", "exit 7");
    for id in ["", "..", "a/b", "../x"] {
        let (code, text) = status(task.create(id, &good.path, good.bind()).await.expect_err(id));
        assert_eq!(code, Code::INVALID_ARGUMENT, "{id:?}: {text}");
    }
    expect_usable(&task, "c1", &good).await;
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_create_of_a_container_is_refused_and_harms_nothing() {
    let stage = stage!(Stage::shared_vm());
    let pod = stage.cri().run_pod("twice").await;
    let task = Task::connect(&stage.node.pod_dir(&pod.id).join("task.sock")).await;
    let good = Bundle::make(&stage, "good", "exit 7");
    task.create("c1", &good.path, good.bind()).await.unwrap();
    let (code, text) = status(task.create("c1", &good.path, good.bind()).await.unwrap_err());
    assert_eq!(code, Code::ALREADY_EXISTS, "{text}");
    task.start("c1").await.unwrap();
    assert_eq!(task.wait("c1").await.unwrap().exit_status, 7);
    task.delete("c1").await.unwrap();
    stage.end(&pod).await;
}
