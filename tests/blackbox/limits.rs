//! A container's limits: they hold in the guest, and change while the container runs.

use bulkhead_tests::cri::Cri;
use k8s_cri::v1 as api;

use crate::stage::{Stage, stage};

const MIB: i64 = 1 << 20;

fn resources(cpu_quota: i64, memory_mib: i64) -> api::LinuxContainerResources {
    api::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota,
        memory_limit_in_bytes: memory_mib * MIB,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containers_limits_hold_in_the_guest_and_can_be_changed() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let pod = cri.run_pod("limits").await;
    let limited = |name: &str| {
        let mut config = Cri::shell(name, "sleep 1000");
        config.linux.as_mut().unwrap().resources = Some(resources(20_000, 48));
        config
    };
    let main = cri.start(&pod, limited("main")).await;
    let other = cri.start(&pod, limited("other")).await;
    let limits = async |id: &str| cri.exec(id, "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max").await;
    let before = format!("20000 100000\n{}\n", 48 * MIB);
    assert_eq!(limits(&main.id).await, before);

    for (cpu_quota, memory_mib) in [(70_000, 96), (30_000, 64)] {
        let request = api::UpdateContainerResourcesRequest {
            container_id: main.id.clone(),
            linux: Some(resources(cpu_quota, memory_mib)),
            ..Default::default()
        };
        cri.runtime().update_container_resources(request).await.unwrap();
        assert_eq!(limits(&main.id).await, format!("{cpu_quota} 100000\n{}\n", memory_mib * MIB));
        let told = cri.container_status(&main.id).await.resources.unwrap().linux.unwrap();
        assert_eq!((told.cpu_quota, told.memory_limit_in_bytes), (cpu_quota, memory_mib * MIB));
    }
    assert_eq!(limits(&other.id).await, before, "another container's limits change with it");
    // The limit of now is the one that kills.
    let eat = ["dd", "if=/dev/zero", "of=/dev/null", "bs=56M", "count=1"];
    assert_eq!(cri.try_exec(&main.id, &eat).await.unwrap().0, 0);
    assert_eq!(cri.try_exec(&other.id, &eat).await.unwrap().0, 137);
    stage.end(&pod).await;
}

/// kubelet's CPU manager names CPUs of the node.
#[tokio::test(flavor = "multi_thread")]
async fn cpus_of_the_node_are_in_nobodys_way_and_a_change_of_them_is_refused() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let pod = cri.run_pod("pinned").await;
    let mut config = Cri::shell("main", "sleep 1000");
    let pinned = |cpus: &str, memory_mib| api::LinuxContainerResources {
        cpuset_cpus: cpus.to_owned(),
        ..resources(20_000, memory_mib)
    };
    config.linux.as_mut().unwrap().resources = Some(pinned("2-3", 48));
    let main = cri.start(&pod, config).await;
    let update = async |resources| {
        let linux = Some(resources);
        let request = api::UpdateContainerResourcesRequest {
            container_id: main.id.clone(),
            linux,
            ..Default::default()
        };
        cri.runtime().update_container_resources(request).await
    };
    let limit = async || cri.exec(&main.id, "cat /sys/fs/cgroup/memory.max").await;
    // containerd sends what the container was made with along with every change.
    update(resources(20_000, 64)).await.unwrap();
    assert_eq!(limit().await, format!("{}\n", 64 * MIB));
    let refused = update(pinned("1", 96)).await.unwrap_err();
    for says in ["CPUs \"1\"", "\"2-3\"", "nothing was changed"] {
        assert!(refused.message().contains(says), "{says}: {refused:?}");
    }
    assert_eq!(limit().await, format!("{}\n", 64 * MIB));
    let told = cri.container_status(&main.id).await.resources.unwrap().linux.unwrap();
    assert_eq!((told.cpuset_cpus.as_str(), told.memory_limit_in_bytes), ("2-3", 64 * MIB));
    stage.end(&pod).await;
}
