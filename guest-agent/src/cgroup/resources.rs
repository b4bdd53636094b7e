//! OCI resources, which are in terms of cgroup version 1, as files of version 2.

use oci_spec::runtime::LinuxResources;

use crate::kernel::capacity::Capacity;

/// Shares of version 1 reach from 2 to 2^18 and mean 1024 by default; weights from 1 to 10^4, by default 100.
const MAX_WEIGHT: u64 = 10_000;

/// The files to write, in order, each with its value.
pub(super) fn files(resources: &LinuxResources) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = Vec::new();
    let mut add = |file: &str, value: Option<String>| {
        if let Some(value) = value {
            files.push((file.to_owned(), value));
        }
    };
    if let Some(cpu) = resources.cpu() {
        add(
            "cpu.weight",
            cpu.shares().filter(|shares| *shares != 0).map(|shares| weight(shares).to_string()),
        );
        add("cpu.max", quota(cpu.quota(), cpu.period()));
        add("cpuset.cpus", cpu.cpus().clone());
        add("cpuset.mems", cpu.mems().clone());
    }
    if let Some(memory) = resources.memory() {
        let swap = memory.swap().zip(memory.limit()).map(|(swap, limit)| swap_only(swap, limit));
        // Memory before swap, so that a smaller limit holds first and their sum is never larger than the old and the
        // new one.
        add("memory.max", memory.limit().map(bytes));
        add("memory.swap.max", swap);
        add("memory.low", memory.reservation().map(bytes));
    }
    if let Some(pids) = resources.pids() {
        add("pids.max", Some(bytes(pids.limit())));
    }
    for page in resources.hugepage_limits().iter().flatten() {
        add(&format!("hugetlb.{}.max", page.page_size()), Some(page.limit().to_string()));
    }
    for (file, value) in resources.unified().iter().flatten() {
        // Only a file of this cgroup.
        if !file.contains('/') {
            add(file, Some(value.clone()));
        }
    }
    files
}

/// The first limit that would be raised above the guest's capacity, with that capacity. A limit that is above it
/// already and is not raised is none. `old` reads the files as they are.
pub(super) fn exceeding(
    files: &[(String, String)],
    old: impl Fn(&str) -> Option<String>,
    Capacity { cpus, memory_bytes }: Capacity,
) -> Option<(String, String)> {
    let raised = |file: &str, value: &str, read: fn(&str) -> Option<u64>, has: u64| {
        // "max" is the largest limit.
        let before = old(file).map_or(u64::MAX, |text| read(&text).unwrap_or(u64::MAX));
        read(value).is_some_and(|value| value > has && value > before)
    };
    files.iter().find_map(|(file, value)| match file.as_str() {
        "memory.max" if raised(file, value, number, memory_bytes) => {
            Some((format!("a memory limit of {value} bytes"), format!("{memory_bytes} bytes")))
        }
        "cpu.max" if raised(file, value, whole_cpus, cpus.into()) => {
            let limit = format!("a CPU limit of {} CPUs", whole_cpus(value).unwrap_or_default());
            Some((limit, format!("{cpus} CPUs")))
        }
        _other => None,
    })
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The CPUs that a `quota period` needs, rounded up.
fn whole_cpus(text: &str) -> Option<u64> {
    let mut words = text.split_whitespace();
    let (quota, period) = (number(words.next()?)?, number(words.next()?)?);
    (period > 0).then(|| quota.div_ceil(period))
}

/// A limit in bytes or processes; zero and negative numbers mean none.
fn bytes(limit: i64) -> String {
    if limit > 0 { limit.to_string() } else { "max".to_owned() }
}

/// Version 1 limits memory and swap together, version 2 swap alone.
fn swap_only(both: i64, memory: i64) -> String {
    if both <= 0 || memory <= 0 { "max".to_owned() } else { both.saturating_sub(memory).max(0).to_string() }
}

fn quota(quota: Option<i64>, period: Option<u64>) -> Option<String> {
    let quota = match quota {
        Some(quota) if quota > 0 => quota.to_string(),
        Some(_) => "max".to_owned(),
        // The kernel takes no period without a quota, and the quota in force must not change.
        None => return None,
    };
    Some(
        period
            .filter(|period| *period > 0)
            .map_or_else(|| quota.clone(), |period| format!("{quota} {period}")),
    )
}

/// The mapping that libcontainer applies when a container is created, so that an update with the same shares changes
/// nothing: 10^((log2(s)^2 + 125 log2(s)) / 612 - 7/34), which maps both ends and the defaults onto each other.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "both sides are clamped to small positive ranges"
)]
fn weight(shares: u64) -> u64 {
    if shares >= 1 << 18 {
        return MAX_WEIGHT;
    }
    let log = (shares.max(2) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, MAX_WEIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Vec<(String, String)> {
        files(&serde_json::from_str(json).unwrap())
    }

    fn pair(file: &str, value: &str) -> (String, String) {
        (file.to_owned(), value.to_owned())
    }

    #[test]
    fn a_limit_above_the_guests_capacity_is_found() {
        let files = |memory: &str, cpu: &str| {
            vec![("cpu.max".to_owned(), cpu.to_owned()), ("memory.max".to_owned(), memory.to_owned())]
        };
        let has = |cpus, memory_bytes| Capacity { cpus, memory_bytes };
        let (few, many) = (files("1000", "150000 100000"), files("3000", "350000 100000"));
        let old = |files: Vec<(String, String)>| {
            move |file: &str| {
                files.iter().find(|(name, _)| name == file).map(|(_, value)| format!("{value}\n"))
            }
        };
        assert_eq!(exceeding(&few, old(few.clone()), has(2, 2000)), None);
        let (limit, vm_has) = exceeding(&many, old(few.clone()), has(2, 2000)).unwrap();
        assert_eq!((limit.as_str(), vm_has.as_str()), ("a CPU limit of 4 CPUs", "2 CPUs"));
        let (limit, _) = exceeding(&many, old(few.clone()), has(4, 2000)).unwrap();
        assert!(limit.contains("3000 bytes"), "{limit}");
        assert_eq!(exceeding(&many, old(few), has(4, 3000)), None, "it has as much");
        assert_eq!(exceeding(&many, old(many.clone()), has(1, 1)), None, "it was so before");
        let none = files("max", "max 100000");
        assert_eq!(exceeding(&none, old(many.clone()), has(1, 1)), None, "none is asked for");
        assert_eq!(exceeding(&many, old(none), has(1, 1)), None, "it is lowered");
    }

    #[test]
    fn resources_of_kubernetes_are_translated() {
        let files = of(r#"{"cpu":{"shares":1024,"quota":50000,"period":100000},
            "memory":{"limit":1048576,"swap":1048576},"pids":{"limit":100},
            "hugepageLimits":[{"pageSize":"2MB","limit":0}],"unified":{"memory.oom.group":"1","../x":"1"}}"#);
        assert_eq!(
            files,
            [
                pair("cpu.weight", "100"),
                pair("cpu.max", "50000 100000"),
                pair("memory.max", "1048576"),
                pair("memory.swap.max", "0"),
                pair("pids.max", "100"),
                pair("hugetlb.2MB.max", "0"),
                pair("memory.oom.group", "1"),
            ]
        );
    }

    #[test]
    fn no_limit_is_max_and_absent_resources_are_not_written() {
        assert_eq!(of("{}"), []);
        assert_eq!(of(r#"{"cpu":{"period":100000}}"#), []);
        assert_eq!(of(r#"{"cpu":{"quota":-1,"period":100000}}"#), [pair("cpu.max", "max 100000")]);
        assert_eq!(of(r#"{"memory":{"limit":-1}}"#), [pair("memory.max", "max")]);
        assert_eq!(
            of(r#"{"memory":{"limit":10,"swap":-1}}"#),
            [pair("memory.max", "10"), pair("memory.swap.max", "max")]
        );
    }

    #[test]
    fn shares_map_onto_weights_at_both_ends_and_the_default() {
        assert_eq!(weight(2), 1);
        assert_eq!(weight(1024), 100);
        assert_eq!(weight(1 << 18), MAX_WEIGHT);
        assert_eq!(weight(u64::MAX), MAX_WEIGHT);
        assert!((2..1 << 18).step_by(997).all(|shares| weight(shares) <= weight(shares + 997)));
    }
}
