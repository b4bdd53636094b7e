//! Two profiles of one service: pods of each are made by its settings, and outlive them.

use std::time::Duration;

use bulkhead_tests::controller::Controller;
use bulkhead_tests::cri::{Container, Cri, DEADLINE, Pod};
use bulkhead_tests::node::Options;
use bulkhead_tests::processes::Process;
use bulkhead_tests::wait;
use nix::sys::signal::Signal;
use tonic::Status;

use crate::stage::{Stage, stage};

/// The profile beside the default one.
const BIG: &str = "big";
/// containerd's runtime of it.
const BIG_RUNTIME: &str = "bulkhead-big";

async fn try_run_big(cri: &Cri, name: &str) -> Result<Pod, Status> {
    cri.try_run_pod_with(cri.pod_config(name), BIG_RUNTIME, wait::patiently(DEADLINE)).await
}

/// Memory that the guest has, in MiB.
async fn memory_mib(cri: &Cri, container: &Container) -> u32 {
    let said = cri.exec(&container.id, "grep MemTotal /proc/meminfo").await;
    let words: Vec<&str> = said.split_whitespace().collect();
    let ["MemTotal:", kib, "kB"] = words[..] else { panic!("{said:?}") };
    kib.parse::<u32>().unwrap() / 1024
}

/// The profile of a pod as the sandboxer's Status tells it on this socket.
async fn told(socket: &std::path::Path, pod: &Pod) -> String {
    let status = Controller::new(socket).status(&pod.id).await.unwrap();
    let info: serde_json::Value = serde_json::from_str(&status.info["info"]).unwrap();
    info["bulkhead"]["profile"].as_str().unwrap_or_else(|| panic!("no profile in {info}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_two_profiles_differ_and_outlive_the_removal_of_one_profile() {
    let options = Options::default().with_profile(BIG).with("profile.big.vm", "memory_mib", "512").with(
        "profile.big.qemu",
        "machine",
        "\"q35\"",
    );
    let mut stage = stage!(Stage::vm(options));
    let cri = stage.cri();
    let plain = cri.run_pod("plain").await;
    let big = try_run_big(cri, "big").await.unwrap();
    let in_plain = cri.start(&plain, Cri::shell("main", "sleep 1000")).await;
    let in_big = cri.start(&big, Cri::shell("main", "sleep 1000")).await;

    let (small, large) = (memory_mib(cri, &in_plain).await, memory_mib(cri, &in_big).await);
    assert!(small < 256 && (384..512).contains(&large), "{small} and {large} MiB");
    let is_q35 = |process: &Process| process.args.iter().any(|arg| arg.starts_with("q35,"));
    let vmms = [stage.vmm_of(&plain), stage.vmm_of(&big)];
    assert_eq!([is_q35(&vmms[0]), is_q35(&vmms[1])], [false, true]);
    // Each socket answers for every sandbox.
    for socket in [stage.node.controller_socket(), stage.node.profile_socket(BIG)] {
        assert_eq!(told(&socket, &plain).await, "default", "{}", socket.display());
        assert_eq!(told(&socket, &big).await, BIG, "{}", socket.display());
    }

    stage.node.stop_sandboxer(Signal::SIGTERM).await;
    stage.node.remove_profile(BIG);
    stage.node.start_sandboxer().await;
    let cri = stage.cri();
    for (pod, container) in [(&plain, &in_plain), (&big, &in_big)] {
        // containerd dials a sandboxer that was away again after up to 3 s.
        wait::expect("containerd reaches the sandboxer", Duration::from_secs(10), async || {
            cri.pod_status(&pod.id).await.ok()
        })
        .await;
        assert!(cri.pod_ready(&pod.id).await, "{}", pod.id);
        assert_eq!(cri.exec(&container.id, "echo well").await, "well\n");
        let second = cri.start(pod, Cri::shell("second", "exit 6")).await;
        assert_eq!(cri.wait_exit(&second.id).await.exit_code, 6);
    }
    assert_eq!([stage.vmm_of(&plain).pid, stage.vmm_of(&big).pid], [vmms[0].pid, vmms[1].pid]);
    assert_eq!(told(&stage.node.controller_socket(), &big).await, BIG);
    let refused = try_run_big(cri, "late").await.unwrap_err();
    assert!(refused.message().contains("no profile big in the settings any more"), "{refused:?}");

    cri.end_pod(&big).await;
    stage.end(&plain).await;
}
