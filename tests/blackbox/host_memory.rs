//! The host's memory limits: a pod that cannot fit is refused, and one that the host's OOM killer ends says so.

use std::path::{Path, PathBuf};

use bulkhead_tests::controller::Controller;
use bulkhead_tests::cri::Cri;
use bulkhead_tests::node;
use bulkhead_tests::report;
use k8s_cri::v1 as api;

use crate::stage::{Stage, VMM, stage};

const MIB: u64 = 1 << 20;

/// The pod's own cgroup as kubelet makes it, which is the parent of the one that Bulkhead makes.
struct Limited {
    limit: PathBuf,
    usage: PathBuf,
    stat: PathBuf,
}

impl Limited {
    fn of(group: &str) -> Option<Self> {
        let group = group.trim_start_matches('/');
        let v1 = Path::new("/sys/fs/cgroup/memory").join(group);
        let v2 = Path::new("/sys/fs/cgroup").join(group);
        let of = |group: PathBuf, limit: &str, usage: &str| Self {
            limit: group.join(limit),
            usage: group.join(usage),
            stat: group.join("memory.stat"),
        };
        let v1 = of(v1, "memory.limit_in_bytes", "memory.usage_in_bytes");
        let v2 = of(v2, "memory.max", "memory.current");
        [v1, v2].into_iter().find(|files| files.limit.exists())
    }

    fn set(&self, bytes: u64) {
        std::fs::write(&self.limit, bytes.to_string()).unwrap();
    }

    /// What cannot be given back: without the page cache of programs and files.
    fn usage(&self) -> u64 {
        let whole: u64 = std::fs::read_to_string(&self.usage).unwrap().trim().parse().unwrap();
        let stat = std::fs::read_to_string(&self.stat).unwrap();
        // v1 counts what is below in figures of their own.
        let total = if stat.contains("total_active_file") { "total_" } else { "" };
        let figure = |name: &str| -> u64 {
            let name = format!("{total}{name} ");
            stat.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
        };
        whole - figure("active_file") - figure("inactive_file")
    }
}

/// What the sandboxer says of why the pod ended.
async fn reason(stage: &Stage, id: &str) -> String {
    let status = Controller::new(&stage.node.controller_socket()).status(id).await.unwrap();
    let info: serde_json::Value = serde_json::from_str(&status.info["info"]).unwrap();
    info["bulkhead"]["reason"].as_str().unwrap_or_default().to_owned()
}

/// Failures that users of other sandboxed runtimes have reported (the table in `main.rs`).
mod reported {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_10969_a_vm_that_the_host_kills_says_so_and_leaves_nothing() {
        let stage = stage!(Stage::shared_vm());
        let cri = stage.cri();
        let pod = cri.run_pod("hungry").await;
        let container = cri.start(&pod, Cri::shell("main", "sleep 1000")).await;
        let group = pod.cgroup.clone().unwrap();
        let Some(limited) = Limited::of(&group) else {
            report::skipped("a_vm_that_the_host_kills", "the host has no memory controller");
            return stage.end(&pod).await;
        };
        // kubelet or an operator tightens the pod's limit, and then the guest wants more of the memory it was promised.
        limited.set(limited.usage() + 8 * MIB);
        let eaten =
            cri.try_exec(&container.id, &["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"]).await;
        assert!(!matches!(eaten, Ok((0, _, _))), "the guest had room left: {eaten:?}");

        cri.expect_not_ready(&pod.id).await;
        let reason = reason(&stage, &pod.id).await;
        let killed = "killed by the host's OOM killer: the memory limit of ";
        assert!(
            reason.contains(killed) && reason.contains(&group) && reason.contains("overhead"),
            "{reason}"
        );
        assert!(stage.node.sandboxer_log().contains(killed), "the log does not say it");
        assert_eq!(cri.wait_exit(&container.id).await.exit_code, 137);
        for helper in [VMM, "virtiofsd", "vhost-device-vsock"] {
            let left = stage.running(helper);
            assert!(left.is_empty(), "{left:?} outlives the pod");
        }
        stage.end(&pod).await;
    }

    /// A pod whose own cgroup, as kubelet makes it from the pod's limit, is too small for a VM.
    #[tokio::test(flavor = "multi_thread")]
    async fn kata_6129_a_pod_without_overhead_runs_beside_its_cgroup() {
        let stage = stage!(Stage::shared_vm());
        let cri = stage.cri();
        let mut config = cri.pod_config("plain");
        let linux = config.linux.as_mut().unwrap();
        linux.resources =
            Some(api::LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() });
        let group = linux.cgroup_parent.clone();
        node::make_cgroup(&group);
        let Some(limited) = Limited::of(&group) else {
            return report::skipped("a_pod_without_overhead", "the host has no memory controller");
        };
        limited.set(64 * MIB);
        let pod = cri.try_run_pod(config).await.unwrap();
        let container = cri.start(&pod, Cri::shell("main", "sleep 1000")).await;
        assert_eq!(cri.exec(&container.id, "echo alive").await, "alive\n");
        let status = Controller::new(&stage.node.controller_socket()).status(&pod.id).await.unwrap();
        let beside = format!("{}/bulkhead-{}", Path::new(&group).parent().unwrap().display(), pod.id);
        let told = format!("{beside}, limited to 512 MiB, which the scheduler does not know of");
        assert!(status.info["info"].contains(&told), "{:?} without {told:?}", status.info["info"]);
        assert!(stage.node.sandboxer_log().contains(&told), "the log does not warn");
        let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", stage.the_one(VMM).pid)).unwrap();
        assert!(cgroup.contains(&beside) && !cgroup.contains(&group), "{cgroup}");
        assert!(limited.usage() < MIB, "what is not in the pod's cgroup does not count there");
        stage.end(&pod).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_6129_a_pod_that_cannot_fit_below_a_limit_is_refused() {
        let stage = stage!(Stage::shared_vm());
        let cri = stage.cri();
        let mut config = cri.pod_config("tight");
        let linux = config.linux.as_mut().unwrap();
        // What all pods may use together, and what nothing beside the pod's own cgroup avoids.
        let all = linux.cgroup_parent.replace("/pod", "/tight/pod");
        let group = Path::new(&std::mem::replace(&mut linux.cgroup_parent, all)).with_file_name("tight");
        let group = group.display().to_string();
        node::make_cgroup(&group);
        let Some(limited) = Limited::of(&group) else {
            return report::skipped("a_pod_that_cannot_fit", "the host has no memory controller");
        };
        limited.set(128 * MIB);
        let refused = cri.try_run_pod(config).await.unwrap_err();
        let says = refused.message();
        assert!(says.contains("128 MiB") && says.contains(&group) && says.contains("overhead"), "{says}");
        node::remove_cgroup(&group);
        stage.expect_clean().await;
    }
}
