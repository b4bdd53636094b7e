//! The resource limits of containerd, which made the pod: without a VM its containers would be its descendants and
//! have them wherever their spec says nothing.

use std::collections::BTreeMap;

use vmm_actors::ResourceLimit;

/// Lines of `/proc/<pid>/limits` (proc(5)) and the OCI spec's names of them.
const NAMES: [(&str, &str); 16] = [
    ("Max cpu time", "RLIMIT_CPU"),
    ("Max file size", "RLIMIT_FSIZE"),
    ("Max data size", "RLIMIT_DATA"),
    ("Max stack size", "RLIMIT_STACK"),
    ("Max core file size", "RLIMIT_CORE"),
    ("Max resident set", "RLIMIT_RSS"),
    ("Max processes", "RLIMIT_NPROC"),
    ("Max open files", "RLIMIT_NOFILE"),
    ("Max locked memory", "RLIMIT_MEMLOCK"),
    ("Max address space", "RLIMIT_AS"),
    ("Max file locks", "RLIMIT_LOCKS"),
    ("Max pending signals", "RLIMIT_SIGPENDING"),
    ("Max msgqueue size", "RLIMIT_MSGQUEUE"),
    ("Max nice priority", "RLIMIT_NICE"),
    ("Max realtime priority", "RLIMIT_RTPRIO"),
    ("Max realtime timeout", "RLIMIT_RTTIME"),
];

/// The limits of a process. None of one that cannot be looked at: the pod is worth more than its limits.
pub(crate) fn read(pid: Option<i32>) -> BTreeMap<String, ResourceLimit> {
    // A pid of another pid namespace is 0, unix(7).
    let Some(pid) = pid.filter(|pid| *pid > 0) else { return BTreeMap::new() };
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_else(|error| {
        tracing::warn!(pid, %error, "containerd's resource limits cannot be read, containers get the guest's");
        String::new()
    });
    parse(&text)
}

fn parse(text: &str) -> BTreeMap<String, ResourceLimit> {
    let limits = text.lines().filter_map(|line| {
        let (start, name) = NAMES.iter().find(|(start, _)| line.starts_with(start))?;
        let mut words = line.get(start.len()..)?.split_whitespace();
        let limit = ResourceLimit { soft: number(words.next()?)?, hard: number(words.next()?)? };
        Some(((*name).to_owned(), limit))
    });
    limits.collect()
}

fn number(word: &str) -> Option<u64> {
    if word == "unlimited" { Some(u64::MAX) } else { word.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_of_a_process_is_known() {
        let limits = read(i32::try_from(std::process::id()).ok());
        assert_eq!(limits.len(), NAMES.len(), "{limits:?}");
        let open = rustix_limit();
        assert_eq!(limits.get("RLIMIT_NOFILE"), Some(&open));
        assert!(read(None).is_empty() && read(Some(0)).is_empty() && read(Some(i32::MAX)).is_empty());
    }

    fn rustix_limit() -> ResourceLimit {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let number = |value: Option<u64>| value.unwrap_or(u64::MAX);
        ResourceLimit { soft: number(limit.current), hard: number(limit.maximum) }
    }

    #[test]
    fn what_is_no_limit_is_left_out() {
        let text = "Limit  Soft Limit  Hard Limit  Units\nMax cpu time  unlimited  7  seconds\nMax open files  x  1\n\
            Max processes 3\nMax something 1 2\n";
        let expected = BTreeMap::from([("RLIMIT_CPU".to_owned(), ResourceLimit { soft: u64::MAX, hard: 7 })]);
        assert_eq!(parse(text), expected);
    }
}
