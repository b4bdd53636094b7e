//! A pod's figures in the form containerd reads: `io.containerd.cgroups.v2.Metrics`, whatever the host's cgroup
//! version. Field numbers: containerd/cgroups, `cgroup2/stats/metrics.proto`; fields we cannot fill are left out.

use containerd_sandbox::Any;
use prost::Message;
use vmm_actors::cgroup::PodStats;
use vmm_actors::network::LinkStats;

/// containerd compares it as a whole: a prefix would make it an unknown type.
const METRICS_TYPE: &str = "io.containerd.cgroups.v2.Metrics";

#[derive(Message)]
struct Metrics {
    #[prost(message, optional, tag = "1")]
    pids: Option<Pids>,
    #[prost(message, optional, tag = "2")]
    cpu: Option<Cpu>,
    #[prost(message, optional, tag = "4")]
    memory: Option<Memory>,
    #[prost(message, repeated, tag = "9")]
    network: Vec<Network>,
}

#[derive(Message)]
struct Pids {
    #[prost(uint64, tag = "1")]
    current: u64,
}

#[derive(Message)]
struct Cpu {
    #[prost(uint64, tag = "1")]
    usage_usec: u64,
}

#[derive(Message)]
struct Memory {
    #[prost(uint64, tag = "13")]
    inactive_file: u64,
    #[prost(uint64, tag = "18")]
    pgfault: u64,
    #[prost(uint64, tag = "19")]
    pgmajfault: u64,
    #[prost(uint64, tag = "32")]
    usage: u64,
    #[prost(uint64, tag = "33")]
    usage_limit: u64,
}

#[derive(Message)]
struct Network {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint64, tag = "2")]
    rx_bytes: u64,
    #[prost(uint64, tag = "3")]
    rx_packets: u64,
    #[prost(uint64, tag = "4")]
    rx_errors: u64,
    #[prost(uint64, tag = "5")]
    rx_dropped: u64,
    #[prost(uint64, tag = "6")]
    tx_bytes: u64,
    #[prost(uint64, tag = "7")]
    tx_packets: u64,
    #[prost(uint64, tag = "8")]
    tx_errors: u64,
    #[prost(uint64, tag = "9")]
    tx_dropped: u64,
}

/// The figures as containerd reads them.
pub(crate) fn encode(pod: PodStats, links: Vec<LinkStats>) -> Any {
    let memory = Memory {
        // What containerd takes off the usage again to have the working set.
        inactive_file: pod.memory_usage.saturating_sub(pod.memory_working_set),
        pgfault: pod.minor_faults.saturating_add(pod.major_faults),
        pgmajfault: pod.major_faults,
        usage: pod.memory_usage,
        usage_limit: pod.memory_limit,
    };
    let metrics = Metrics {
        pids: Some(Pids { current: pod.pids }),
        cpu: Some(Cpu { usage_usec: pod.cpu_usage_nanos / 1000 }),
        memory: Some(memory),
        network: links.into_iter().map(network).collect(),
    };
    Any { type_url: METRICS_TYPE.to_owned(), value: metrics.encode_to_vec() }
}

fn network(link: LinkStats) -> Network {
    Network {
        name: link.name,
        rx_bytes: link.rx_bytes,
        rx_packets: link.rx_packets,
        rx_errors: link.rx_errors,
        rx_dropped: link.rx_dropped,
        tx_bytes: link.tx_bytes,
        tx_packets: link.tx_packets,
        tx_errors: link.tx_errors,
        tx_dropped: link.tx_dropped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_arrive_in_containerd_s_fields() {
        let pod = PodStats {
            cpu_usage_nanos: 5_000_000,
            memory_usage: 300,
            memory_working_set: 200,
            memory_limit: u64::MAX,
            minor_faults: 7,
            major_faults: 2,
            pids: 4,
        };
        let links =
            vec![LinkStats { name: "eth0".to_owned(), rx_bytes: 11, tx_dropped: 12, ..Default::default() }];
        let any = encode(pod, links);
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let read = Metrics::decode(any.value.as_slice()).unwrap();
        let memory = read.memory.unwrap();
        assert_eq!(memory.usage - memory.inactive_file, 200, "the working set");
        assert_eq!((memory.usage_limit, memory.pgfault, memory.pgmajfault), (u64::MAX, 9, 2));
        assert_eq!((read.cpu.unwrap().usage_usec, read.pids.unwrap().current), (5000, 4));
        assert_eq!((read.network[0].name.as_str(), read.network[0].rx_bytes), ("eth0", 11));
    }
}
