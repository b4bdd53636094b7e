//! A pod's figures: what containerd makes of the host's cgroup, what the sandboxer says, and that neither waits.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bulkhead_tests::controller::Controller;
use bulkhead_tests::cri::{Container, Cri, Pod};
use bulkhead_tests::node::Options;
use bulkhead_tests::peers::Line;
use bulkhead_tests::{processes, wait};
use k8s_cri::v1 as api;
use nix::sys::signal::Signal;
use prost::Message;
use tonic::Status;

use crate::stage::{Stage, VMM, stage};

/// How long figures may take: far less than anybody's deadline, and generous on a busy machine.
const PROMPT: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(60);
/// What the container may use.
const LIMIT: u64 = 64 << 20;
/// Work for some tenths of a second.
const LOOP: &str = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";

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
    let answer =
        tokio::time::timeout(wait::patiently(PROMPT), cri.runtime().pod_sandbox_stats(request)).await;
    let answer = answer.expect("figures come promptly")?;
    Ok(answer.into_inner().stats.unwrap().linux.unwrap())
}

async fn listed(cri: &Cri) -> Vec<String> {
    let request = api::ListPodSandboxStatsRequest::default();
    let answer =
        tokio::time::timeout(wait::patiently(PROMPT), cri.runtime().list_pod_sandbox_stats(request)).await;
    let stats = answer.expect("figures come promptly").unwrap().into_inner().stats;
    stats.into_iter().map(|stats| stats.attributes.unwrap().id).collect()
}

async fn metrics(stage: &Stage, id: &str) -> Result<Metrics, Status> {
    let controller = Controller::new(&stage.node.controller_socket());
    let answer = tokio::time::timeout(wait::patiently(PROMPT), controller.metrics(id))
        .await
        .expect("figures come promptly")?;
    let data = answer.metrics.unwrap().data.unwrap();
    assert_eq!(data.type_url, "io.containerd.cgroups.v2.Metrics", "containerd compares it whole");
    Ok(Metrics::decode(data.value.as_slice()).unwrap())
}

fn cpu_micros(stats: &api::LinuxPodSandboxStats) -> u64 {
    stats.cpu.as_ref().unwrap().usage_core_nano_seconds.as_ref().unwrap().value / 1000
}

/// Bytes that came into the pod and bytes that left it.
fn traffic(stats: &api::LinuxPodSandboxStats) -> (u64, u64) {
    let link = stats.network.as_ref().unwrap().default_interface.as_ref().unwrap();
    let [came, left] = [&link.rx_bytes, &link.tx_bytes].map(|count| count.as_ref().unwrap().value);
    (came, left)
}

/// What a pod sends and gets is counted from where it stands, though the host's link to the VM has it the other way.
async fn count_its_traffic(stage: &Stage, pod: &Pod, container: &Container) {
    let cri = stage.cri();
    let big = "head -c 400000 /dev/zero > /www/big; httpd -p 8080 -h /www";
    cri.exec(&container.id, big).await;
    let before = traffic(&pod_stats(cri, &pod.id).await.unwrap());
    let ip = cri.pod_ips(pod).await[0];
    let page = stage.node.http_get((ip, 8080).into(), "/big", PROMPT).await;
    assert_eq!(page.len(), 400_000);
    let after = traffic(&pod_stats(cri, &pod.id).await.unwrap());
    let (came, left) = (after.0 - before.0, after.1 - before.1);
    assert!(left > 400_000 && left < 800_000, "{left} bytes left the pod");
    assert!(came > 0 && came < 200_000, "{came} bytes came into the pod");
}

/// A container's figures as kubelet's `/metrics/cadvisor` has them, by name; some have several values.
async fn kubelets(cri: &Cri, pod: &Pod) -> HashMap<String, u64> {
    let listed = cri.runtime().list_pod_sandbox_metrics(api::ListPodSandboxMetricsRequest {}).await;
    let mut pods = listed.unwrap().into_inner().pod_metrics;
    assert_eq!(pods.len(), 1, "{pods:?}");
    let metrics = pods.remove(0);
    assert_eq!((metrics.pod_sandbox_id.as_str(), metrics.container_metrics.len()), (pod.id.as_str(), 1));
    let container = metrics.container_metrics.into_iter().next().unwrap();
    let all = metrics.metrics.into_iter().chain(container.metrics);
    all.map(|metric| (metric.name, metric.value.map_or(0, |value| value.value))).collect()
}

async fn are_told_to_kubelets_metrics(stage: &Stage, pod: &Pod, container: &Container) {
    let cri = stage.cri();
    let described = cri.runtime().list_metric_descriptors(api::ListMetricDescriptorsRequest {}).await;
    let described: HashSet<String> =
        described.unwrap().into_inner().descriptors.into_iter().map(|one| one.name).collect();
    let before = kubelets(cri, pod).await;
    for name in ["container_cpu_usage_seconds_total", "container_memory_working_set_bytes"] {
        assert!(described.contains(name), "{name} is not described: {described:?}");
    }
    for name in ["container_memory_usage_bytes", "container_memory_working_set_bytes", "container_memory_rss"]
    {
        assert!((4096..LIMIT).contains(&before[name]), "{name}: {before:?}");
    }
    for name in ["container_processes", "container_threads", "container_network_transmit_bytes_total"] {
        assert!(before[name] > 0, "{name}: {before:?}");
    }
    // Whole seconds.
    wait::expect("work in the guest costs kubelet's CPU seconds", SOON, async || {
        cri.exec(&container.id, LOOP).await;
        let name = "container_cpu_usage_seconds_total";
        (kubelets(cri, pod).await[name] > before[name]).then_some(())
    })
    .await;
}

async fn are_those_of_the_vm_and_grow_with_its_work(options: Options) {
    let line = options.line;
    let stage = stage!(Stage::vm(options));
    let cri = stage.cri();
    let pod = cri.run_pod("counted").await;
    let mut config = Cri::shell("main", "sleep 1000");
    let limit = i64::try_from(LIMIT).unwrap();
    config.linux.as_mut().unwrap().resources.get_or_insert_default().memory_limit_in_bytes = limit;
    let container = cri.start(&pod, config).await;
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

    cri.exec(&container.id, LOOP).await;
    let later = pod_stats(cri, &pod.id).await.unwrap();
    assert!(cpu_micros(&later) > cpu_micros(&after) + 10_000, "work in the guest costs no CPU time");
    assert_eq!(listed(cri).await.as_slice(), std::slice::from_ref(&pod.id));
    count_its_traffic(&stage, &pod, &container).await;
    if line != Line::V21 {
        are_told_to_kubelets_metrics(&stage, &pod, &container).await;
    }
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_are_those_of_the_vm() {
    are_those_of_the_vm_and_grow_with_its_work(Options::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_are_those_of_the_vm_on_containerd_2_1() {
    are_those_of_the_vm_and_grow_with_its_work(Options::on(Line::V21)).await;
}

/// Failures that users of other sandboxed runtimes have reported (the table in `main.rs`).
mod reported {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_13453_figures_wait_for_no_guest_and_keep_no_pod_from_being_removed() {
        let stage = stage!(Stage::shared_vm());
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
}
