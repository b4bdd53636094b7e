//! A pod's figures: what containerd makes of the host's cgroup, what the sandboxer says, and that neither waits.

use std::time::Duration;

use bulkhead_tests::controller::Controller;
use bulkhead_tests::cri::Cri;
use bulkhead_tests::node::Options;
use bulkhead_tests::{processes, wait};
use k8s_cri::v1 as api;
use nix::sys::signal::Signal;
use prost::Message;
use tonic::Status;

use crate::stage::{Stage, VMM, stage};

/// How long figures may take: far less than anybody's deadline, and generous on a busy machine.
const PROMPT: Duration = Duration::from_secs(30);

/// What is read here of `io.containerd.cgroups.v2.Metrics` (containerd/cgroups, `cgroup2/stats/metrics.proto`).
#[derive(Message)]
struct Metrics {
    #[prost(message, optional, tag = "1")]
    pids: Option<One>,
    #[prost(message, optional, tag = "2")]
    cpu: Option<One>,
    #[prost(message, optional, tag = "4")]
    memory: Option<Memory>,
}

/// The first figure of a group: the number of processes; the CPU time in microseconds.
#[derive(Message)]
struct One {
    #[prost(uint64, tag = "1")]
    first: u64,
}

#[derive(Message)]
struct Memory {
    #[prost(uint64, tag = "32")]
    usage: u64,
    #[prost(uint64, tag = "33")]
    usage_limit: u64,
}

async fn pod_stats(cri: &Cri, id: &str) -> Result<api::LinuxPodSandboxStats, Status> {
    let request = api::PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
    let answer = tokio::time::timeout(PROMPT, cri.runtime().pod_sandbox_stats(request)).await;
    let answer = answer.expect("figures come promptly")?;
    Ok(answer.into_inner().stats.unwrap().linux.unwrap())
}

async fn listed(cri: &Cri) -> Vec<String> {
    let request = api::ListPodSandboxStatsRequest::default();
    let answer = tokio::time::timeout(PROMPT, cri.runtime().list_pod_sandbox_stats(request)).await;
    let stats = answer.expect("figures come promptly").unwrap().into_inner().stats;
    stats.into_iter().map(|stats| stats.attributes.unwrap().id).collect()
}

async fn metrics(stage: &Stage, id: &str) -> Result<Metrics, Status> {
    let controller = Controller::new(&stage.node.controller_socket());
    let answer =
        tokio::time::timeout(PROMPT, controller.metrics(id)).await.expect("figures come promptly")?;
    let data = answer.metrics.unwrap().data.unwrap();
    assert_eq!(data.type_url, "io.containerd.cgroups.v2.Metrics", "containerd compares it whole");
    Ok(Metrics::decode(data.value.as_slice()).unwrap())
}

fn cpu_micros(stats: &api::LinuxPodSandboxStats) -> u64 {
    stats.cpu.as_ref().unwrap().usage_core_nano_seconds.as_ref().unwrap().value / 1000
}

async fn are_those_of_the_vm_and_grow_with_its_work(options: Options) {
    let stage = stage!(Stage::vm(options));
    let cri = stage.cri();
    let pod = cri.run_pod("counted").await;
    let container = cri.start(&pod, Cri::shell("main", "sleep 1000")).await;
    let before = pod_stats(cri, &pod.id).await.unwrap();
    let own = metrics(&stage, &pod.id).await.unwrap();
    let after = pod_stats(cri, &pod.id).await.unwrap();
    // containerd reads kubelet's cgroup, and all that is in it is what the sandboxer counts.
    let micros = own.cpu.unwrap().first;
    assert!(cpu_micros(&before) <= micros && micros <= cpu_micros(&after), "{before:?} {micros} {after:?}");
    let memory = own.memory.unwrap();
    assert!(memory.usage > 32 << 20, "a VM uses {} bytes", memory.usage);
    assert!(memory.usage_limit > memory.usage, "{memory:?}");
    let working_set = after.memory.as_ref().unwrap().working_set_bytes.as_ref().unwrap().value;
    assert!(working_set > 32 << 20, "a VM's working set is {working_set} bytes");
    assert!(own.pids.unwrap().first >= 4, "VMM, two helpers and the shim proxy");
    let links = after.network.as_ref().unwrap();
    assert_eq!(links.default_interface.as_ref().unwrap().name, "eth0");
    assert_eq!(after.containers.len(), 1, "{:?}", after.containers);

    let loops = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";
    cri.exec(&container.id, loops).await;
    let later = pod_stats(cri, &pod.id).await.unwrap();
    assert!(cpu_micros(&later) > cpu_micros(&after) + 10_000, "work in the guest costs no CPU time");
    assert_eq!(listed(cri).await.as_slice(), std::slice::from_ref(&pod.id));
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_are_those_of_the_vm() {
    are_those_of_the_vm_and_grow_with_its_work(Options::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_are_those_of_the_vm_on_containerd_2_1() {
    are_those_of_the_vm_and_grow_with_its_work(Options::old_containerd()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn field_3_figures_wait_for_no_guest_and_keep_no_pod_from_being_removed() {
    let stage = stage!(Stage::vm(Options::default()));
    let cri = stage.cri();
    let stuck = cri.run_pod("stuck").await;
    let vmm = stage.the_one(VMM);
    let _container = cri.start(&stuck, Cri::shell("main", "sleep 1000")).await;
    let well = cri.run_pod("well").await;
    processes::signal(vmm.pid, Signal::SIGSTOP);
    metrics(&stage, &stuck.id).await.unwrap();
    metrics(&stage, &well.id).await.unwrap();
    assert!(listed(cri).await.contains(&well.id), "one guest hides the figures of another pod");

    // Asked for all the time, while the pod is killed and removed.
    let (asking, controller) = (stuck.id.clone(), Controller::new(&stage.node.controller_socket()));
    let asking = tokio::spawn(async move { while controller.metrics(&asking).await.is_ok() {} });
    processes::signal(vmm.pid, Signal::SIGKILL);
    cri.expect_not_ready(&stuck.id).await;
    let gone = wait::until(PROMPT, async || metrics(&stage, &stuck.id).await.err()).await;
    let code = gone.expect("a dead pod has no figures").code();
    assert!(
        matches!(code, tonic::Code::NotFound | tonic::Code::Unavailable),
        "{code:?}: fails every pod's list"
    );
    assert!(listed(cri).await.contains(&well.id), "a dead pod hides the figures of another pod");
    cri.end_pod(&stuck).await;
    asking.await.unwrap();
    stage.end(&well).await;
}
