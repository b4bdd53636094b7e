//! Stats: the guest's cgroup v2 metrics as containerd's `io.containerd.cgroups.v2.Metrics` (fact 3.14).

use std::collections::HashMap;
use std::time::Duration;

use bulkhead_protocol::agent::{ContainerRef, StatsResponse};
use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use tokio::time::Instant;

use super::process::ProcessRef;
use super::{Pod, PodHandle, without_deadline};
use crate::error::TaskError;
use crate::runtime::owner::Message;

/// How long the guest may take: kubelet asks for every container in turn.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Type of the answer. Exactly this, without a prefix: anything else fails the listing of the whole node.
const TYPE: &str = "io.containerd.cgroups.v2.Metrics";

impl PodHandle {
    /// A container's metrics, until it is deleted: containerd 2.3 asks for them after an exit by SIGKILL, to learn
    /// whether that was the OOM killer (fact 5.2).
    ///
    /// # Errors
    /// `Agent…`, after 1 s at the latest, while it lives. For an ended container the guest may have no metrics any
    /// more: then they are zero.
    pub(crate) async fn stats(&self, process: &ProcessRef) -> Result<Any, TaskError> {
        let request = ContainerRef { container_id: process.container_id().to_owned(), ..Default::default() };
        let until = Instant::now() + TIMEOUT;
        let act = "read its statistics";
        let call = self
            .links()
            .agent
            .call(act, until, |agent| async move { agent.stats(without_deadline(), &request).await });
        let mut stats = match call.await {
            Ok(stats) => stats,
            Err(_) if process.state().exit().is_some() => StatsResponse::default(),
            Err(error) => return Err(error),
        };
        if self.ask(IsOomTold(process.clone())).await? {
            let kills = stats.memory_events.entry("oom_kill".to_owned()).or_default();
            *kills = (*kills).max(1);
        }
        let metrics = metrics(&stats).write_to_bytes();
        let invalid = |_encoding| TaskError::AgentNonsense { act, fault: "figures that cannot be encoded" };
        let value = metrics.map_err(invalid)?;
        Ok(Any { type_url: TYPE.to_owned(), value, ..Default::default() })
    }
}

/// Whether subscribers have been told of an OOM kill in a container.
struct IsOomTold(ProcessRef);

impl Message<Pod> for IsOomTold {
    type Answer = bool;
    fn handle(self, pod: &mut Pod) -> bool {
        pod.container_mut(&self.0).is_some_and(|container| container.oom_told)
    }
}

fn metrics(stats: &StatsResponse) -> Metrics {
    let pids = PidsStat { current: stats.pids_current, limit: stats.pids_limit, ..Default::default() };
    let cpu = CPUStat {
        usage_usec: stats.cpu_usage_usec,
        user_usec: stats.cpu_user_usec,
        system_usec: stats.cpu_system_usec,
        nr_periods: stats.cpu_nr_periods,
        nr_throttled: stats.cpu_nr_throttled,
        throttled_usec: stats.cpu_throttled_usec,
        ..Default::default()
    };
    let usage = stats.io.iter().map(|entry| IOEntry {
        major: entry.major,
        minor: entry.minor,
        rbytes: entry.rbytes,
        wbytes: entry.wbytes,
        rios: entry.rios,
        wios: entry.wios,
        ..Default::default()
    });
    Metrics {
        pids: Some(pids).into(),
        cpu: Some(cpu).into(),
        memory: Some(memory(stats)).into(),
        io: Some(IOStat { usage: usage.collect(), ..Default::default() }).into(),
        memory_events: Some(memory_events(&stats.memory_events)).into(),
        ..Default::default()
    }
}

fn memory(stats: &StatsResponse) -> MemoryStat {
    let key = |name: &str| metric(&stats.memory_stat, name);
    // containerd computes the available memory as limit - working set: 0 would be a huge number (fact 3.14).
    let limit = |value: u64| if value == 0 { u64::MAX } else { value };
    MemoryStat {
        anon: key("anon"),
        file: key("file"),
        kernel_stack: key("kernel_stack"),
        slab: key("slab"),
        sock: key("sock"),
        shmem: key("shmem"),
        file_mapped: key("file_mapped"),
        file_dirty: key("file_dirty"),
        file_writeback: key("file_writeback"),
        anon_thp: key("anon_thp"),
        inactive_anon: key("inactive_anon"),
        active_anon: key("active_anon"),
        inactive_file: key("inactive_file"),
        active_file: key("active_file"),
        unevictable: key("unevictable"),
        slab_reclaimable: key("slab_reclaimable"),
        slab_unreclaimable: key("slab_unreclaimable"),
        pgfault: key("pgfault"),
        pgmajfault: key("pgmajfault"),
        workingset_refault: key("workingset_refault_file"),
        workingset_activate: key("workingset_activate_file"),
        workingset_nodereclaim: key("workingset_nodereclaim"),
        pgrefill: key("pgrefill"),
        pgscan: key("pgscan"),
        pgsteal: key("pgsteal"),
        pgactivate: key("pgactivate"),
        pgdeactivate: key("pgdeactivate"),
        pglazyfree: key("pglazyfree"),
        pglazyfreed: key("pglazyfreed"),
        thp_fault_alloc: key("thp_fault_alloc"),
        thp_collapse_alloc: key("thp_collapse_alloc"),
        usage: stats.memory_usage,
        usage_limit: limit(stats.memory_usage_limit),
        swap_usage: stats.swap_usage,
        swap_limit: stats.swap_limit,
        ..Default::default()
    }
}

fn memory_events(events: &HashMap<String, u64>) -> MemoryEvents {
    MemoryEvents {
        low: metric(events, "low"),
        high: metric(events, "high"),
        max: metric(events, "max"),
        oom: metric(events, "oom"),
        oom_kill: metric(events, "oom_kill"),
        oom_group_kill: metric(events, "oom_group_kill"),
        ..Default::default()
    }
}

fn metric(metrics: &HashMap<String, u64>, name: &str) -> u64 {
    metrics.get(name).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::answers::{MEMORY_EVENTS, MEMORY_KINDS};

    #[test]
    fn metrics_are_in_the_fields_that_containerd_reads() {
        let stats = StatsResponse {
            cpu_usage_usec: 7,
            memory_usage: 100,
            memory_usage_limit: u64::MAX,
            memory_stat: HashMap::from([("inactive_file".to_owned(), 30), ("anon".to_owned(), 4)]),
            memory_events: HashMap::from([("oom_kill".to_owned(), 2)]),
            pids_current: 3,
            ..Default::default()
        };
        let metrics = metrics(&stats);
        assert_eq!(metrics.cpu.usage_usec, 7);
        assert_eq!((metrics.memory.usage, metrics.memory.usage_limit), (100, u64::MAX));
        assert_eq!((metrics.memory.inactive_file, metrics.memory.anon), (30, 4));
        assert_eq!((metrics.memory_events.oom_kill, metrics.pids.current), (2, 3));
    }

    #[test]
    fn every_metric_that_passes_the_bounds_has_a_field() {
        let nothing = metrics(&StatsResponse::default());
        let only = |name: &str| HashMap::from([(name.to_owned(), 7)]);
        for kind in MEMORY_KINDS {
            let stats = StatsResponse { memory_stat: only(kind), ..Default::default() };
            assert_ne!(metrics(&stats).memory, nothing.memory, "{kind}");
        }
        for event in MEMORY_EVENTS {
            let stats = StatsResponse { memory_events: only(event), ..Default::default() };
            assert_ne!(metrics(&stats).memory_events, nothing.memory_events, "{event}");
        }
    }

    #[test]
    fn a_missing_limit_means_no_limit() {
        assert_eq!(metrics(&StatsResponse::default()).memory.usage_limit, u64::MAX);
    }
}
