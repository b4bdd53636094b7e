//! A helper process of a pod dies: the pod is over, says so, and can be removed to the last trace.

use std::time::Duration;

use bulkhead_tests::cri::Cri;
use bulkhead_tests::{processes, wait};
use k8s_cri::v1 as api;
use nix::sys::signal::Signal;

use crate::stage::{Stage, VMM, stage};

/// Kills the only process running `program` of a pod with a running and an exited container.
async fn death_of(program: &str) {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let pod = cri.run_pod("mortal").await;
    let done = cri.start(&pod, Cri::shell("done", "echo done; exit 4")).await;
    let running = cri.start(&pod, Cri::shell("running", "echo started; sleep 1000")).await;
    assert_eq!(cri.wait_exit(&done.id).await.exit_code, 4);
    // What a guest has not said yet dies with it.
    let said =
        wait::until(Duration::from_secs(60), async || (!running.log().stdout.is_empty()).then_some(())).await;
    assert!(said.is_some(), "no output of the running container");

    for victim in stage.running(program) {
        processes::signal(victim.pid, Signal::SIGKILL);
    }
    cri.expect_not_ready(&pod.id).await;
    let status = cri.wait_exit(&running.id).await;
    assert_eq!(status.state(), api::ContainerState::ContainerExited);
    if program == "containerd-shim-bulkhead-v2" {
        // The process that knew the status is gone: containerd itself says 255.
        assert!([137, 255].contains(&status.exit_code), "{status:?}");
    } else {
        assert_eq!(status.exit_code, 137, "{status:?}");
    }
    assert_eq!(cri.wait_exit(&done.id).await.exit_code, 4, "an earlier exit code is rewritten");
    assert_eq!(running.log().stdout, "started\n");
    assert!(cri.try_exec(&running.id, &["/bin/true"]).await.is_err(), "exec in a dead pod succeeds");
    for helper in [VMM, "virtiofsd", "vhost-device-vsock"] {
        let left = stage.running(helper);
        assert!(left.is_empty(), "{left:?} outlives the pod");
    }
    stage.end(&pod).await;

    let again = stage.cri().run_pod("mortal").await;
    stage.end(&again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vsock_helper_killed() {
    death_of("vhost-device-vsock").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_one_pod_is_nothing_to_another() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let victim = cri.run_pod("victim").await;
    let vmm = stage.the_one(VMM);
    let other = cri.run_pod("other").await;
    let container = cri.start(&other, Cri::shell("main", "sleep 1000")).await;
    processes::signal(vmm.pid, Signal::SIGKILL);
    cri.expect_not_ready(&victim.id).await;
    assert!(cri.pod_ready(&other.id).await);
    assert_eq!(cri.exec(&container.id, "echo alive").await, "alive\n");
    cri.end_pod(&victim).await;
    stage.end(&other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_powers_off_ends_its_pod() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let mut pod = cri.pod_config("panic");
    pod.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let pod = cri.try_run_pod(pod).await.unwrap();
    let mut config = Cri::shell("main", "sleep 1000");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let container = cri.start(&pod, config).await;
    // The exec may not live to see its answer.
    let shot = cri.try_exec(&container.id, &["/bin/sh", "-c", "echo c > /proc/sysrq-trigger"]).await;
    eprintln!("crash of the guest: {shot:?}");
    cri.expect_not_ready(&pod.id).await;
    assert_eq!(cri.wait_exit(&container.id).await.exit_code, 137);
    stage.end(&pod).await;
}

/// In a pid namespace of its own a container that reboots ends itself, reboot(2); in one that the pod's containers share
/// it ends them all, and the pod with them: nothing could be started in there again.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_reboots_ends_itself_or_its_pod() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let privileged = |name: &str, script: &str, pid: api::NamespaceMode| {
        let mut config = Cri::shell(name, script);
        let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        context.privileged = true;
        context.namespace_options.as_mut().unwrap().pid = pid.into();
        config
    };
    for (way, pid) in [("reboot", api::NamespaceMode::Container), ("poweroff", api::NamespaceMode::Pod)] {
        let mut config = cri.pod_config(way);
        let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        context.privileged = true;
        context.namespace_options.get_or_insert_default().pid = pid.into();
        let pod = cri.try_run_pod(config).await.unwrap();
        let script = format!("/bin/busybox {way} -f; sleep 1000");
        let container = cri.start(&pod, privileged("main", &script, pid)).await;
        assert_ne!(cri.wait_exit(&container.id).await.exit_code, 0, "{way}");
        if pid == api::NamespaceMode::Pod {
            cri.expect_not_ready(&pod.id).await;
        } else {
            let next = cri.start(&pod, privileged("next", "echo still here", pid)).await;
            assert_eq!(cri.wait_exit(&next.id).await.exit_code, 0);
            assert_eq!(next.log().stdout, "still here\n");
        }
        stage.end(&pod).await;
    }
}

/// Nothing in it takes a signal any more, so that no container of it can be stopped.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_hangs_does_not_keep_its_pod() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let pod = cri.run_pod("hanging").await;
    let container = cri.start(&pod, Cri::shell("main", "sleep 1000")).await;
    processes::signal(stage.the_one(VMM).pid, Signal::SIGSTOP);
    cri.stop_pod(&pod).await;
    assert_eq!(cri.wait_exit(&container.id).await.exit_code, 137);
    cri.expect_not_ready(&pod.id).await;
    cri.remove_pod(&pod).await;
    stage.expect_clean().await;
}

/// Failures that users of other sandboxed runtimes have reported (the table in `main.rs`).
mod reported {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_2198_vmm_killed() {
        death_of(VMM).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_2198_virtiofsd_killed() {
        death_of("virtiofsd").await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_2198_shim_proxy_killed() {
        death_of("containerd-shim-bulkhead-v2").await;
    }
}
