//! Stats: the guest's cgroup v2 figures as containerd's `io.containerd.cgroups.v2.Metrics` (fact 3.14).

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bulkhead_protocol::agent::{ContainerRef, StatsResponse};
use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use tokio::time::Instant;

use super::Pod;
use super::process::At;
use super::run::patient;
use crate::error::TaskError;

/// How long the guest may take: kubelet asks for every container in turn.
const PATIENCE: Duration = Duration::from_secs(1);
/// Exactly this, without a prefix: anything else fails the listing of the whole node.
const TYPE: &str = "io.containerd.cgroups.v2.Metrics";

impl Pod {
    /// A container's figures, until it is deleted: containerd 2.3 asks for them after an exit by SIGKILL, to learn
    /// whether that was the OOM killer (fact 5.2).
    ///
    /// # Errors
    /// `Agent…`, after 1 s at the latest, while it lives. Of an ended one the guest may have nothing more to say.
    pub(crate) async fn stats(&self, at: &At) -> Result<Any, TaskError> {
        let request = ContainerRef { container_id: at.container.id.clone(), ..Default::default() };
        let until = Instant::now() + PATIENCE;
        let act = "read its statistics";
        let call = self.agent.call(act, until, |agent| async move { agent.stats(patient(), &request).await });
        let mut stats = match call.await {
            Ok(stats) => stats,
            Err(_) if at.process.state().exit().is_some() => StatsResponse::default(),
            Err(error) => return Err(error),
        };
        if at.container.oom_told.load(Ordering::Relaxed) {
            let kills = stats.memory_events.entry("oom_kill".to_owned()).or_default();
            *kills = (*kills).max(1);
        }
        let figures = metrics(&stats).write_to_bytes();
        let nonsense = |_encoding| TaskError::AgentNonsense { act, fault: "figures that cannot be encoded" };
        let value = figures.map_err(nonsense)?;
        Ok(Any { type_url: TYPE.to_owned(), value, ..Default::default() })
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
    let key = |name: &str| figure(&stats.memory_stat, name);
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
        low: figure(events, "low"),
        high: figure(events, "high"),
        max: figure(events, "max"),
        oom: figure(events, "oom"),
        oom_kill: figure(events, "oom_kill"),
        oom_group_kill: figure(events, "oom_group_kill"),
        ..Default::default()
    }
}

fn figure(figures: &HashMap<String, u64>, name: &str) -> u64 {
    figures.get(name).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::answers::{MEMORY_EVENTS, MEMORY_KINDS};

    #[test]
    fn figures_land_in_the_fields_that_containerd_reads() {
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
    fn every_figure_that_is_let_through_lands_somewhere() {
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
    fn a_limit_that_is_not_told_is_no_limit() {
        assert_eq!(metrics(&StatsResponse::default()).memory.usage_limit, u64::MAX);
    }
}
