//! A pod's resources on the host: what they are, and changing them while the pod runs.

use std::path::{Path, PathBuf};

use bulkhead_tests::controller::Controller;
use bulkhead_tests::cri::{Cri, Pod};
use k8s_cri::v1 as api;
use tonic::{Code, Status};

use crate::stage::{Stage, stage};

const MIB: i64 = 1 << 20;

/// A file of the pod's own cgroup, below the one that kubelet makes, in the hierarchy that has it.
fn file(pod: &Pod, names: [&str; 2]) -> Option<String> {
    let group = pod.cgroup.as_ref().unwrap().trim_start_matches('/');
    let roots = ["", "cpu", "cpu,cpuacct", "memory"].map(|name| Path::new("/sys/fs/cgroup").join(name));
    let own = roots.map(|root| root.join(group).join(format!("bulkhead-{}", pod.id)));
    let paths: Vec<PathBuf> = own.iter().flat_map(|own| names.map(|name| own.join(name))).collect();
    let found = paths.iter().find_map(|path| std::fs::read_to_string(path).ok());
    found.map(|text| text.trim().to_owned())
}

pub(crate) fn cpu(pod: &Pod) -> Option<String> {
    file(pod, ["cpu.cfs_quota_us", "cpu.max"])
}

pub(crate) fn memory(pod: &Pod) -> Option<String> {
    file(pod, ["memory.limit_in_bytes", "memory.max"])
}

/// A pod with raw cgroup files.
async fn raw(stage: &Stage, files: &[(&str, &str)]) -> Result<Pod, Status> {
    let mut config = stage.cri().pod_config("raw");
    config.linux.as_mut().unwrap().resources = Some(api::LinuxContainerResources {
        hugepage_limits: vec![api::HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }],
        unified: files.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        ..Default::default()
    });
    stage.cri().try_run_pod(config).await
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_cgroup_files_and_huge_page_limits_hold_or_are_refused_by_name() {
    let stage = stage!(Stage::shared_vm());
    let refused = raw(&stage, &[("memory.no_such", "1")]).await.unwrap_err();
    assert!(refused.message().contains("\"memory.no_such\" cannot be set"), "{}", refused.message());
    stage.expect_clean().await;
    let there = [("memory.high", "1073741824"), ("pids.max", "500")];
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        // cgroup v1 has none of them.
        let refused = raw(&stage, &there).await.unwrap_err();
        assert!(refused.message().contains("this host has cgroup v1"), "{}", refused.message());
        return stage.expect_clean().await;
    }
    let pod = raw(&stage, &there).await.unwrap();
    let huge = ("hugetlb.2MB.max", "4194304");
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap();
    let wanted = there.into_iter().chain(controllers.contains("hugetlb").then_some(huge));
    for (key, value) in wanted {
        assert_eq!(file(&pod, [key, key]).as_deref(), Some(value), "{key}");
    }
    stage.end(&pod).await;
}

/// Failures that users of other sandboxed runtimes have reported (the table in `main.rs`).
mod reported {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_9902_new_pod_limits_hold_or_the_answer_says_what_cannot_be_changed() {
        let stage = stage!(Stage::shared_vm());
        let mut config = stage.cri().pod_config("limited");
        config.linux.as_mut().unwrap().resources = Some(api::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 200_000,
            memory_limit_in_bytes: 64 * MIB,
            ..Default::default()
        });
        let pod = stage.cri().try_run_pod(config).await.unwrap();
        let container = stage.cri().start(&pod, Cri::shell("main", "sleep 1000")).await;
        assert_eq!(stage.cri().exec(&container.id, "grep -c ^processor /proc/cpuinfo").await, "2\n");
        let Some((before, room)) = cpu(&pod).zip(memory(&pod)) else {
            println!("skipped: the host has no cpu and memory controllers");
            return stage.end(&pod).await;
        };
        assert!(before.starts_with("200000"), "{before}");

        let controller = Controller::new(&stage.node.controller_socket());
        controller.update(&pod.id, r#"{"cpu_period":100000,"cpu_quota":50000}"#).await.unwrap();
        assert!(cpu(&pod).unwrap().starts_with("50000"));
        assert_eq!(memory(&pod).unwrap(), room, "what is not set stays");

        let more = r#"{"cpu_quota":400000,"cpu_period":100000,"memory_limit_in_bytes":536870912}"#;
        let refused = controller.update(&pod.id, more).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        for says in ["CPUs from 2 to 4", "memory from ", "resize a running VM", "nothing was changed"] {
            assert!(refused.message().contains(says), "{says}: {}", refused.message());
        }
        assert!(cpu(&pod).unwrap().starts_with("50000"), "half of a refused update holds");
        assert_eq!(memory(&pod).unwrap(), room);
        assert_eq!(stage.cri().exec(&container.id, "echo alive").await, "alive\n");
        // Its connection is an open file of the sandboxer.
        drop(controller);
        stage.end(&pod).await;
    }
}
