//! What is so at the moment of a scrape: sandboxes by state, and what each pod and its processes use of the host. It is
//! looked at anew each time, so a pod that is gone has no series.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use procfs::WithCurrentSystemInfo;
use procfs::process::Process;
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry};
use vmm_actors::cgroup::PodStats;
use vmm_actors::id::SandboxId;
use vmm_actors::sandbox::{PodMetrics, Snapshot, state};
use vmm_actors::{Sandboxes, Telemetry};

/// For the figures of one pod.
const PATIENCE: Duration = Duration::from_secs(3);

const POD: [&str; 3] = ["namespace", "pod", "sandbox"];
const INFO: [&str; 4] = ["namespace", "pod", "sandbox", "profile"];
const PART: [&str; 4] = ["namespace", "pod", "sandbox", "part"];
const LINK: [&str; 4] = ["namespace", "pod", "sandbox", "interface"];

/// Everything, sorted by name.
pub(super) async fn all(
    sandboxes: &Sandboxes,
    telemetry: &Telemetry,
) -> prometheus::Result<Vec<MetricFamily>> {
    let snapshots = sandboxes.list().await;
    let figures = join_all(snapshots.iter().map(|snapshot| figures(sandboxes, snapshot))).await;
    let now = Now::new()?;
    now.build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    for name in state::NAMES {
        now.sandboxes.with_label_values(&[&label(name)]);
    }
    for (snapshot, figures) in snapshots.iter().zip(&figures) {
        now.sandboxes.with_label_values(&[&label(snapshot.state)]).inc();
        now.name(snapshot);
        if let Some((figures, parts)) = figures {
            now.take(snapshot, figures, parts);
        }
    }
    let registry = Registry::new();
    for collector in telemetry.collectors().into_iter().chain(now.collectors()) {
        registry.register(collector)?;
    }
    Ok(registry.gather())
}

/// None of a sandbox that is being made or has ended, or whose actors are busy: the others are not to wait for it.
async fn figures(sandboxes: &Sandboxes, snapshot: &Snapshot) -> Option<(PodMetrics, Parts)> {
    let id = SandboxId::new(&snapshot.id).ok().filter(|_| snapshot.ready)?;
    let figures = tokio::time::timeout(PATIENCE, sandboxes.metrics(&id)).await.ok()?.ok()?;
    let processes = snapshot.processes.clone();
    let parts = tokio::task::spawn_blocking(move || usage(&processes)).await.unwrap_or_default();
    Some((figures, parts))
}

/// One of each, empty.
struct Now {
    build: IntGaugeVec,
    sandboxes: IntGaugeVec,
    info: IntGaugeVec,
    memory: IntGaugeVec,
    working_set: IntGaugeVec,
    limit: IntGaugeVec,
    cpu: CounterVec,
    heard: GaugeVec,
    part_memory: IntGaugeVec,
    part_cpu: CounterVec,
    received: IntCounterVec,
    sent: IntCounterVec,
}

impl Now {
    fn new() -> prometheus::Result<Self> {
        let counter =
            |name: &str, help: &str, labels: &[&str]| CounterVec::new(Opts::new(name, help), labels);
        let bytes = |name: &str, help: &str| IntCounterVec::new(Opts::new(name, help), &LINK);
        Ok(Self {
            build: gauge(
                "bulkhead_build_info",
                "Always 1; the label says which release runs.",
                &["version"],
            )?,
            sandboxes: gauge(
                "bulkhead_sandboxes",
                "Sandboxes that the service knows, by state.",
                &["state"],
            )?,
            info: info()?,
            memory: gauge(
                "bulkhead_pod_memory_usage_bytes",
                "Memory of the pod's host cgroup, page cache included.",
                &POD,
            )?,
            working_set: gauge(
                "bulkhead_pod_memory_working_set_bytes",
                "Memory of the pod's host cgroup without the page cache that is easily given back.",
                &POD,
            )?,
            limit: gauge(
                "bulkhead_pod_memory_limit_bytes",
                "Memory limit of the pod's host cgroup; missing where there is none.",
                &POD,
            )?,
            cpu: counter("bulkhead_pod_cpu_seconds_total", "CPU time of the pod's host cgroup.", &POD)?,
            heard: GaugeVec::new(
                Opts::new(
                    "bulkhead_guest_heartbeat_age_seconds",
                    "Time since the pod's guest answered last.",
                ),
                &POD,
            )?,
            part_memory: gauge(
                "bulkhead_process_resident_memory_bytes",
                "Resident memory of a process of the pod; pages of the guest count in each that has touched them.",
                &PART,
            )?,
            part_cpu: counter(
                "bulkhead_process_cpu_seconds_total",
                "CPU time of a process of the pod.",
                &PART,
            )?,
            received: bytes(
                "bulkhead_pod_network_receive_bytes_total",
                "Bytes that the pod has received on an interface.",
            )?,
            sent: bytes(
                "bulkhead_pod_network_transmit_bytes_total",
                "Bytes that the pod has sent on an interface.",
            )?,
        })
    }

    fn name(&self, snapshot: &Snapshot) {
        let [namespace, pod, sandbox] = pod_labels(snapshot);
        self.info.with_label_values(&[namespace, pod, sandbox, &snapshot.profile]).set(1);
    }

    fn take(&self, snapshot: &Snapshot, figures: &PodMetrics, parts: &Parts) {
        let labels = pod_labels(snapshot);
        let [namespace, pod, sandbox] = labels;
        let more = |label| [namespace, pod, sandbox, label];
        let PodStats { memory_usage, memory_working_set, memory_limit, cpu_usage_nanos, .. } = figures.cgroup;
        self.memory.with_label_values(&labels).set(integer(memory_usage));
        self.working_set.with_label_values(&labels).set(integer(memory_working_set));
        if memory_limit != u64::MAX {
            self.limit.with_label_values(&labels).set(integer(memory_limit));
        }
        self.cpu.with_label_values(&labels).inc_by(Duration::from_nanos(cpu_usage_nanos).as_secs_f64());
        if let Some(heard) = figures.guest_heard {
            self.heard.with_label_values(&labels).set(heard.as_secs_f64());
        }
        for (part, usage) in parts {
            self.part_memory.with_label_values(&more(part)).set(integer(usage.resident_bytes));
            self.part_cpu.with_label_values(&more(part)).inc_by(usage.cpu.as_secs_f64());
        }
        for link in &figures.network {
            self.received.with_label_values(&more(&link.name)).inc_by(link.rx_bytes);
            self.sent.with_label_values(&more(&link.name)).inc_by(link.tx_bytes);
        }
    }

    fn collectors(self) -> Vec<Box<dyn Collector>> {
        vec![
            Box::new(self.build),
            Box::new(self.sandboxes),
            Box::new(self.info),
            Box::new(self.memory),
            Box::new(self.working_set),
            Box::new(self.limit),
            Box::new(self.cpu),
            Box::new(self.heard),
            Box::new(self.part_memory),
            Box::new(self.part_cpu),
            Box::new(self.received),
            Box::new(self.sent),
        ]
    }
}

fn gauge(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
    IntGaugeVec::new(Opts::new(name, help), labels)
}

/// By which profile each sandbox was made.
fn info() -> prometheus::Result<IntGaugeVec> {
    let help =
        "Always 1, for each sandbox that the service knows; the label profile says by which it was made.";
    gauge("bulkhead_pod_info", help, &INFO)
}

/// The values of [`POD`].
fn pod_labels(snapshot: &Snapshot) -> [&str; 3] {
    let (namespace, pod) = snapshot.pod.split_once('/').unwrap_or(("", &snapshot.pod));
    [namespace, pod, &snapshot.id]
}

/// What each process of a pod uses, by what it is.
type Parts = Vec<(&'static str, Usage)>;

struct Usage {
    resident_bytes: u64,
    cpu: Duration,
}

/// Of the processes that live. The pod's end is near when one is missing, and told elsewhere.
fn usage(processes: &BTreeMap<&'static str, u32>) -> Parts {
    let of = |pid: u32| {
        let stat = Process::new(i32::try_from(pid).ok()?).and_then(|process| process.stat()).ok()?;
        let ticks = stat.utime.saturating_add(stat.stime);
        let millis = ticks.saturating_mul(1000) / procfs::ticks_per_second().max(1);
        Some(Usage { resident_bytes: stat.rss_bytes().get(), cpu: Duration::from_millis(millis) })
    };
    processes.iter().filter_map(|(part, pid)| Some((*part, of(*pid)?))).collect()
}

/// A state's name, which is written for people.
fn label(name: &str) -> String {
    name.replace(", ", "_").replace(' ', "_")
}

fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_one_that_is_gone_is_left_out() {
        let processes = BTreeMap::from([("own", std::process::id()), ("none", u32::MAX)]);
        let found = usage(&processes);
        let [(part, usage)] = found.as_slice() else { panic!("{}", found.len()) };
        assert_eq!(*part, "own");
        assert!(usage.resident_bytes > 1 << 20, "{}", usage.resident_bytes);
    }

    #[test]
    fn every_metric_is_registered_once() {
        let registry = Registry::new();
        for collector in
            Telemetry::new().unwrap().collectors().into_iter().chain(Now::new().unwrap().collectors())
        {
            registry.register(collector).unwrap();
        }
    }
}
