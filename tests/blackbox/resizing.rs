//! A pod is resized in place, through containerd as kubelet asks for it: its VM grows where it can.

use std::time::Duration;

use bulkhead_tests::controller::Controller;
use bulkhead_tests::cri::{Container, Cri, Pod};
use bulkhead_tests::node::Options;
use bulkhead_tests::wait;
use k8s_cri::v1 as api;
use nix::sys::signal::Signal;
use tonic::{Code, Status};

use crate::resources::{cpu, memory};
use crate::stage::{Stage, stage};

const MIB: i64 = 1 << 20;

fn limits(cpus: i64, memory_mib: i64) -> api::LinuxContainerResources {
    api::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: cpus * 100_000,
        memory_limit_in_bytes: memory_mib * MIB,
        ..Default::default()
    }
}

/// One CPU and 64 MiB for the pod and its container.
async fn small(stage: &Stage, volume: Option<api::Mount>) -> (Pod, Container) {
    let mut config = stage.cri().pod_config("small");
    config.linux.as_mut().unwrap().resources = Some(limits(1, 64));
    let pod = stage.cri().try_run_pod(config).await.unwrap();
    let mut main = Cri::shell("main", "sleep 1000");
    main.mounts.extend(volume);
    main.linux.as_mut().unwrap().resources = Some(limits(1, 64));
    let container = stage.cri().start(&pod, main).await;
    (pod, container)
}

async fn resize_container(cri: &Cri, id: &str, limits: api::LinuxContainerResources) -> Result<(), Status> {
    let request = api::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(limits),
        ..Default::default()
    };
    cri.runtime().update_container_resources(request).await.map(drop)
}

/// CPUs that a process may use, and memory in MiB, as the guest has them.
async fn guest(cri: &Cri, id: &str) -> (u32, u32) {
    let said = cri.exec(id, "busybox nproc; grep MemTotal /proc/meminfo").await;
    let words: Vec<&str> = said.split_whitespace().collect();
    let [cpus, "MemTotal:", kib, "kB"] = words[..] else { panic!("{said:?}") };
    (cpus.parse().unwrap(), kib.parse::<u32>().unwrap() / 1024)
}

/// The VM's size as the sandboxer's Status tells it: CPUs, and memory in MiB. containerd keeps that to itself.
async fn told(stage: &Stage, pod: &Pod) -> (u64, u64) {
    let status = Controller::new(&stage.node.controller_socket()).status(&pod.id).await.unwrap();
    let info: serde_json::Value = serde_json::from_str(&status.info["info"]).unwrap();
    let size = &info["bulkhead"]["size"];
    let number = |key: &str| size[key].as_u64().unwrap_or_else(|| panic!("no {key} in {info}"));
    (number("vcpus"), number("memory_mib"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_on_q35_grows_in_place_and_works_with_what_it_got() {
    let mut stage = stage!(Stage::vm(Options::default().with("qemu", "machine", "\"q35\"")));
    let shared = stage.node.dir().join("pods/volume");
    std::fs::create_dir(&shared).unwrap();
    let volume = api::Mount {
        container_path: "/v".into(),
        host_path: shared.display().to_string(),
        ..Default::default()
    };
    let (pod, container) = small(&stage, Some(volume)).await;
    let before = guest(stage.cri(), &container.id).await;
    assert_eq!((before.0, told(&stage, &pod).await), (1, (1, 320)));

    // A container gets no more than its VM has, whoever asks.
    let refused = resize_container(stage.cri(), &container.id, limits(3, 512)).await.unwrap_err();
    assert!(refused.message().contains("resize the pod first"), "{refused:?}");

    stage.cri().try_resize_pod(&pod.id, limits(3, 512)).await.unwrap();
    assert_eq!(told(&stage, &pod).await, (3, 768));
    let after = guest(stage.cri(), &container.id).await;
    assert_eq!((after.0, after.1 - before.1), (3, 448), "the container that ran before has it too");
    if let Some((quota, room)) = cpu(&pod).zip(memory(&pod)) {
        assert!(quota.starts_with("300000"), "{quota}");
        assert_eq!(room.parse::<i64>().unwrap() / MIB, 768 + 192, "what VM and helpers need");
    }
    resize_container(stage.cri(), &container.id, limits(3, 512)).await.unwrap();

    // The file server and the way out work with pages of the new memory: the kernel takes those first.
    let text: String = (0..250_000).map(|line| format!("{line:012}\n")).collect();
    std::fs::write(shared.join("in"), &text).unwrap();
    let script = "cp /v/in /v/out && busybox dd if=/dev/zero of=/dev/null bs=390M count=1 2>&1 | cat";
    let filled = stage.cri().exec(&container.id, script).await;
    assert!(filled.contains("1+0 records out"), "{filled}");
    assert!(std::fs::read_to_string(shared.join("out")).unwrap() == text, "written otherwise");
    assert!(stage.cri().exec(&container.id, "cat /v/out").await == text, "read otherwise");

    // Its size is the VM's, not the service's.
    stage.node.stop_sandboxer(Signal::SIGKILL).await;
    stage.node.start_sandboxer().await;
    assert_eq!(told(&stage, &pod).await, (3, 768));

    // containerd's client has been refused meanwhile, and takes its time to dial again. kubelet repeats the call, too.
    let smaller = wait::expect("containerd has the sandboxer again", Duration::from_secs(30), async || {
        let answer = stage.cri().try_resize_pod(&pod.id, limits(1, 64)).await;
        Some(answer).filter(|answer| !matches!(answer, Err(status) if status.code() == Code::Unavailable))
    });
    smaller.await.unwrap();
    assert_eq!(told(&stage, &pod).await, (3, 768), "it does not shrink");
    assert_eq!(guest(stage.cri(), &container.id).await, after);
    assert!(cpu(&pod).is_none_or(|quota| quota.starts_with("100000")));
    let refused = stage.cri().try_resize_pod(&pod.id, limits(9, 64)).await.unwrap_err();
    assert!(refused.message().contains("CPUs from 3 to 9"), "{}", refused.message());
    assert!(refused.message().contains("max_vcpus"), "{}", refused.message());
    stage.end(&pod).await;
}

/// Failures that users of other sandboxed runtimes have reported (the table in `main.rs`).
mod reported {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_9902_a_pod_on_microvm_is_told_that_it_cannot_grow_and_keeps_everything() {
        let stage = stage!(Stage::shared_vm());
        let (pod, container) = small(&stage, None).await;
        let (host, before) = ((cpu(&pod), memory(&pod)), guest(stage.cri(), &container.id).await);
        let refused = stage.cri().try_resize_pod(&pod.id, limits(2, 128)).await.unwrap_err();
        for says in
            ["CPUs from 1 to 2 and memory from 320 to 384 MiB", "machine = \"q35\"", "nothing was changed"]
        {
            assert!(refused.message().contains(says), "{says}: {}", refused.message());
        }
        assert_eq!(((cpu(&pod), memory(&pod)), guest(stage.cri(), &container.id).await), (host, before));
        assert_eq!(told(&stage, &pod).await, (1, 320));
        let refused = resize_container(stage.cri(), &container.id, limits(2, 64)).await.unwrap_err();
        assert!(refused.message().contains("a CPU limit of 2 CPUs is more than the 1 CPUs"), "{refused:?}");

        // What needs no larger VM is done.
        stage.cri().try_resize_pod(&pod.id, limits(1, 32)).await.unwrap();
        resize_container(stage.cri(), &container.id, limits(1, 32)).await.unwrap();
        let limit = stage.cri().exec(&container.id, "cat /sys/fs/cgroup/memory.max").await;
        assert_eq!(limit.trim().parse::<i64>().unwrap() / MIB, 32);
        stage.end(&pod).await;
    }
}
