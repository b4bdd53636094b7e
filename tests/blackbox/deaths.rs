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
async fn field_7_vmm_killed() {
    death_of(VMM).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn field_7_virtiofsd_killed() {
    death_of("virtiofsd").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vsock_helper_killed() {
    death_of("vhost-device-vsock").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn field_7_shim_proxy_killed() {
    death_of("containerd-shim-bulkhead-v2").await;
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
