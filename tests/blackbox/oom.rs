//! Memory that runs out: in one container, in the whole guest.

use bulkhead_tests::cri::{Container, Cri, Pod};
use k8s_cri::v1 as api;

use crate::stage::{Stage, stage};

const MIB: i64 = 1 << 20;

/// Takes all the memory that it can get: there is no newline in /dev/zero.
fn hungry(name: &str) -> api::ContainerConfig {
    api::ContainerConfig { command: vec!["/bin/tail".into(), "/dev/zero".into()], ..Cri::shell(name, "") }
}

fn resources(config: &mut api::ContainerConfig) -> &mut api::LinuxContainerResources {
    config.linux.as_mut().unwrap().resources.get_or_insert_default()
}

fn limited(mut config: api::ContainerConfig, mib: i64) -> api::ContainerConfig {
    resources(&mut config).memory_limit_in_bytes = mib * MIB;
    config
}

async fn expect_oom_killed(cri: &Cri, container: &Container) {
    let status = cri.wait_exit(&container.id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
}

async fn expect_alive(cri: &Cri, pod: &Pod, container: &Container) {
    assert!(cri.pod_ready(&pod.id).await, "the pod is gone");
    let status = cri.container_status(&container.id).await;
    assert_eq!(status.state(), api::ContainerState::ContainerRunning, "{status:?}");
    assert_eq!(cri.exec(&container.id, "echo alive").await, "alive\n");
}

/// Failures that users of other sandboxed runtimes have reported (the table in `main.rs`).
mod reported {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_1369_oom_killed_is_said_of_the_container_that_was_and_of_no_other() {
        let stage = stage!(Stage::shared());
        let cri = stage.cri();
        let pod = cri.run_pod("oom").await;
        let calm = cri.start(&pod, limited(Cri::shell("calm", "sleep 1000"), 32)).await;
        // Killed like one that ran out of memory, with memory to spare.
        let killed =
            cri.start(&pod, limited(Cri::shell("killed", "kill -9 $$; sleep 1; exit 137"), 32)).await;
        let status = cri.wait_exit(&killed.id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"), "{status:?}");

        for attempt in 0..2 {
            let mut config = limited(hungry("hungry"), 24);
            config.metadata.as_mut().unwrap().attempt = attempt;
            let container = cri.start(&pod, config).await;
            expect_oom_killed(cri, &container).await;
            expect_alive(cri, &pod, &calm).await;
            // As kubelet does when it starts the container again in the same pod.
            cri.remove(&container.id).await;
        }
        let (code, ..) = cri.try_exec(&calm.id, &["/bin/tail", "/dev/zero"]).await.unwrap();
        assert_eq!(code, 137, "an exec that takes more than the container's limit");
        expect_alive(cri, &pod, &calm).await;
        stage.end(&pod).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_1111_a_guest_without_memory_loses_a_container_and_not_its_agent() {
        let stage = stage!(Stage::shared_vm());
        let cri = stage.cri();
        let pod = cri.run_pod("starved").await;
        let mut calm = Cri::shell("calm", "sleep 1000");
        // As kubelet does it: guaranteed pods are spared, best-effort ones are taken first.
        resources(&mut calm).oom_score_adj = -997;
        let calm = cri.start(&pod, calm).await;
        for (name, score) in [("best-effort", 1000), ("burstable", 2), ("unset", 0)] {
            let mut config = hungry(name);
            resources(&mut config).oom_score_adj = score;
            let container = cri.start(&pod, config).await;
            expect_oom_killed(cri, &container).await;
            expect_alive(cri, &pod, &calm).await;
        }
        // Nor does a crowd of processes reach it.
        let mut crowd = Cri::shell("crowd", "for i in 1 2 3 4 5 6; do tail /dev/zero & done; wait; exit 3");
        resources(&mut crowd).oom_score_adj = 1000;
        let crowd = cri.start(&pod, crowd).await;
        let status = cri.wait_exit(&crowd.id).await;
        assert!([3, 137].contains(&status.exit_code), "{status:?}");
        expect_alive(cri, &pod, &calm).await;
        let more = cri.start(&pod, Cri::shell("more", "echo here")).await;
        assert_eq!(cri.wait_exit(&more.id).await.exit_code, 0);
        assert_eq!(more.log().stdout, "here\n");
        stage.end(&pod).await;
    }
}
