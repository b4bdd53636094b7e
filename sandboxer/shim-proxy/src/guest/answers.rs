//! The bounds of what a guest's answers may hold, and the only place that applies them.
//!
//! A guest can answer whatever it likes, while containerd, kubelet and log readers expect what a kernel would answer.
//! So every answer passes through [`Answer::bounded`], which [`AgentLink::call`](super::agent::AgentLink::call) demands
//! of its type.
//!
//! | what | bound | what happens beyond it |
//! |---|---|---|
//! | pid | 1 to [`MAX_PID`] | the answer is refused |
//! | exit status | [`MAX_STATUS`] | it is set to the bound |
//! | metric: a count, bytes, microseconds | [`MAX_METRIC`] | it is set to the bound |
//! | limit | none: all ones means no limit | – |
//! | metrics of block devices | [`MAX_DEVICES`] | only the first ones are kept |
//! | named metrics | those that containerd has fields for | others are left out |
//! | text | [`bulkhead_protocol::untrusted::MAX_TEXT`] | it is cut |
//!
//! ttrpc bounds the size of a whole answer (4 MiB), and its memory is charged to the pod's own cgroup.

use std::collections::HashMap;

use bulkhead_protocol::agent::{
    CreateContainerResponse, Empty, IoEntry, StartResponse, StatsResponse, WaitOomResponse, WaitResponse,
};

/// PID_MAX_LIMIT of the kernel (linux/threads.h), on 64 bits.
pub(crate) const MAX_PID: u32 = 1 << 22;
/// Largest exit status of a process; containerd itself uses it for "unknown".
pub(crate) const MAX_STATUS: u32 = 255;
/// Largest metric, a thousandth of the largest signed number: containerd converts microseconds to nanoseconds, and
/// kubelet adds signed numbers up. In bytes it is 8 PiB, in microseconds 292 years.
pub(crate) const MAX_METRIC: u64 = u64::MAX / 2 / 1000;
/// Most block devices: more than a VM can have, which is disks at 256 SCSI targets and some of the kernel's own.
pub(crate) const MAX_DEVICES: usize = 512;
/// Kinds of memory that containerd has fields for (containerd/cgroups, `cgroup2/stats/metrics.proto`).
pub(crate) const MEMORY_KINDS: [&str; 31] = [
    "anon",
    "file",
    "kernel_stack",
    "slab",
    "sock",
    "shmem",
    "file_mapped",
    "file_dirty",
    "file_writeback",
    "anon_thp",
    "inactive_anon",
    "active_anon",
    "inactive_file",
    "active_file",
    "unevictable",
    "slab_reclaimable",
    "slab_unreclaimable",
    "pgfault",
    "pgmajfault",
    "workingset_refault_file",
    "workingset_activate_file",
    "workingset_nodereclaim",
    "pgrefill",
    "pgscan",
    "pgsteal",
    "pgactivate",
    "pgdeactivate",
    "pglazyfree",
    "pglazyfreed",
    "thp_fault_alloc",
    "thp_collapse_alloc",
];
/// Events of memory that containerd has fields for.
pub(crate) const MEMORY_EVENTS: [&str; 6] = ["low", "high", "max", "oom", "oom_kill", "oom_group_kill"];

/// Why an answer is refused.
pub(crate) type Fault = &'static str;

/// An answer of the guest agent.
pub(crate) trait Answer: Sized {
    /// The answer within the bounds of this module.
    ///
    /// # Errors
    /// The part of it that is impossible.
    fn bounded(self) -> Result<Self, Fault>;
}

impl Answer for Empty {
    fn bounded(self) -> Result<Self, Fault> {
        Ok(Self::default())
    }
}

impl Answer for CreateContainerResponse {
    fn bounded(self) -> Result<Self, Fault> {
        Ok(Self { pid: pid(self.pid)?, ..Self::default() })
    }
}

impl Answer for StartResponse {
    fn bounded(self) -> Result<Self, Fault> {
        Ok(Self { pid: pid(self.pid)?, ..Self::default() })
    }
}

impl Answer for WaitResponse {
    /// The time of the end is bounded by the caller, who knows when the process was created.
    fn bounded(self) -> Result<Self, Fault> {
        Ok(Self {
            exit_status: self.exit_status.min(MAX_STATUS),
            exited_at_nanos: self.exited_at_nanos,
            oom_killed: self.oom_killed,
            ..Self::default()
        })
    }
}

impl Answer for WaitOomResponse {
    /// The count is sent back to the guest and used nowhere else.
    fn bounded(self) -> Result<Self, Fault> {
        Ok(Self { count: self.count, ..Self::default() })
    }
}

impl Answer for StatsResponse {
    fn bounded(self) -> Result<Self, Fault> {
        Ok(Self {
            cpu_usage_usec: metric(self.cpu_usage_usec),
            cpu_user_usec: metric(self.cpu_user_usec),
            cpu_system_usec: metric(self.cpu_system_usec),
            cpu_nr_periods: metric(self.cpu_nr_periods),
            cpu_nr_throttled: metric(self.cpu_nr_throttled),
            cpu_throttled_usec: metric(self.cpu_throttled_usec),
            memory_usage: metric(self.memory_usage),
            memory_usage_limit: self.memory_usage_limit,
            memory_stat: named(&self.memory_stat, &MEMORY_KINDS),
            memory_events: named(&self.memory_events, &MEMORY_EVENTS),
            swap_usage: metric(self.swap_usage),
            swap_limit: self.swap_limit,
            pids_current: metric(self.pids_current),
            pids_limit: self.pids_limit,
            io: self.io.into_iter().take(MAX_DEVICES).map(device).collect(),
            ..Self::default()
        })
    }
}

fn pid(pid: u32) -> Result<u32, Fault> {
    if (1..=MAX_PID).contains(&pid) { Ok(pid) } else { Err("a pid that there cannot be") }
}

fn metric(metric: u64) -> u64 {
    metric.min(MAX_METRIC)
}

fn named(metrics: &HashMap<String, u64>, names: &[&str]) -> HashMap<String, u64> {
    let known = names.iter().filter_map(|name| Some(((*name).to_owned(), metric(*metrics.get(*name)?))));
    known.collect()
}

fn device(entry: IoEntry) -> IoEntry {
    IoEntry {
        major: metric(entry.major),
        minor: metric(entry.minor),
        rbytes: metric(entry.rbytes),
        wbytes: metric(entry.wbytes),
        rios: metric(entry.rios),
        wios: metric(entry.wios),
        ..IoEntry::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_impossible_pid_is_refused() {
        let created = |pid| CreateContainerResponse { pid, ..Default::default() }.bounded().map(|it| it.pid);
        let started = |pid| StartResponse { pid, ..Default::default() }.bounded().map(|it| it.pid);
        for pid in [1, MAX_PID] {
            assert_eq!((created(pid), started(pid)), (Ok(pid), Ok(pid)));
        }
        for pid in [0, MAX_PID + 1, u32::MAX] {
            assert!(created(pid).is_err() && started(pid).is_err(), "{pid}");
        }
    }

    #[test]
    fn an_exit_status_is_cut_to_one_byte() {
        for (said, heard) in [(0, 0), (255, 255), (256, 255), (u32::MAX, 255)] {
            let answer = WaitResponse { exit_status: said, oom_killed: true, ..Default::default() };
            let answer = answer.bounded().unwrap();
            assert_eq!((answer.exit_status, answer.oom_killed), (heard, true));
        }
    }

    #[test]
    fn metrics_are_bounded_and_limits_are_not() {
        let all = u64::MAX;
        let entry = IoEntry {
            major: all,
            minor: all,
            rbytes: all,
            wbytes: all,
            rios: all,
            wios: all,
            ..Default::default()
        };
        let stats = StatsResponse {
            cpu_usage_usec: all,
            cpu_user_usec: MAX_METRIC,
            cpu_system_usec: MAX_METRIC + 1,
            cpu_nr_periods: all,
            cpu_nr_throttled: all,
            cpu_throttled_usec: all,
            memory_usage: all,
            memory_usage_limit: all,
            memory_stat: HashMap::from([("anon".to_owned(), all)]),
            memory_events: HashMap::from([("oom_kill".to_owned(), all)]),
            swap_usage: all,
            swap_limit: all,
            pids_current: all,
            pids_limit: all,
            io: vec![entry],
            ..Default::default()
        };
        let most = MAX_METRIC;
        let bounded = stats.bounded().unwrap();
        let expected = StatsResponse {
            cpu_usage_usec: most,
            cpu_user_usec: most,
            cpu_system_usec: most,
            cpu_nr_periods: most,
            cpu_nr_throttled: most,
            cpu_throttled_usec: most,
            memory_usage: most,
            memory_usage_limit: all,
            memory_stat: HashMap::from([("anon".to_owned(), most)]),
            memory_events: HashMap::from([("oom_kill".to_owned(), most)]),
            swap_usage: most,
            swap_limit: all,
            pids_current: most,
            pids_limit: all,
            io: vec![IoEntry {
                major: most,
                minor: most,
                rbytes: most,
                wbytes: most,
                rios: most,
                wios: most,
                ..Default::default()
            }],
            ..Default::default()
        };
        assert_eq!(bounded, expected);
        assert!(most.checked_mul(1000).is_some_and(|nanos| i64::try_from(nanos).is_ok()));
    }

    #[test]
    fn lists_and_maps_are_bounded() {
        let entries = |count: u64| (0..count).map(|minor| IoEntry { minor, ..Default::default() }).collect();
        for (said, heard) in
            [(0, 0), (MAX_DEVICES, MAX_DEVICES), (MAX_DEVICES + 1, MAX_DEVICES), (100_000, MAX_DEVICES)]
        {
            let stats = StatsResponse { io: entries(u64::try_from(said).unwrap()), ..Default::default() };
            let io = stats.bounded().unwrap().io;
            assert_eq!(io.len(), heard);
            assert!(io.iter().zip(0..).all(|(entry, minor)| entry.minor == minor), "the first ones");
        }
        let noise = |names: &[&str]| {
            let known = names.iter().map(|name| ((*name).to_owned(), 7));
            known.chain((0..10_000).map(|number| (format!("noise{number}"), 7))).collect::<HashMap<_, _>>()
        };
        let stats = StatsResponse {
            memory_stat: noise(&MEMORY_KINDS),
            memory_events: noise(&MEMORY_EVENTS),
            ..Default::default()
        };
        let stats = stats.bounded().unwrap();
        assert_eq!(
            (stats.memory_stat.len(), stats.memory_events.len()),
            (MEMORY_KINDS.len(), MEMORY_EVENTS.len())
        );
    }

    #[test]
    fn unknown_fields_are_left_out() {
        let mut answer = Empty::default();
        answer.special_fields.mut_unknown_fields().add_length_delimited(99, vec![0; 100_000]);
        assert_eq!(answer.bounded().unwrap(), Empty::default());
    }
}
