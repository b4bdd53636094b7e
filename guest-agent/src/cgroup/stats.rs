//! Statistics of a container, from the files of its cgroup.

use bulkhead_protocol::agent::{IoEntry, StatsResponse};

use super::{Cgroup, CgroupError, keyed, limit, pairs};

/// Reads the statistics. Without a controller its numbers are 0 and its limits unlimited.
pub(crate) fn stats(cgroup: &Cgroup) -> Result<StatsResponse, CgroupError> {
    let cpu = cgroup.read("cpu.stat")?;
    let text = |file| cgroup.read(file).unwrap_or_default();
    let number = |file, default| limit(&text(file)).unwrap_or(default);
    let cpu = |key| keyed(&cpu, key).unwrap_or(0);
    let map = |file| pairs(&text(file)).map(|(key, value)| (key.to_owned(), value)).collect();
    Ok(StatsResponse {
        cpu_usage_usec: cpu("usage_usec"),
        cpu_user_usec: cpu("user_usec"),
        cpu_system_usec: cpu("system_usec"),
        cpu_nr_periods: cpu("nr_periods"),
        cpu_nr_throttled: cpu("nr_throttled"),
        cpu_throttled_usec: cpu("throttled_usec"),
        memory_usage: number("memory.current", 0),
        memory_usage_limit: number("memory.max", u64::MAX),
        memory_stat: map("memory.stat"),
        memory_events: map("memory.events"),
        swap_usage: number("memory.swap.current", 0),
        swap_limit: number("memory.swap.max", u64::MAX),
        pids_current: number("pids.current", 0),
        pids_limit: number("pids.max", u64::MAX),
        io: text("io.stat").lines().filter_map(io_entry).collect(),
        ..Default::default()
    })
}

/// `major:minor key=value …`
fn io_entry(line: &str) -> Option<IoEntry> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut entry = IoEntry { major: major.parse().ok()?, minor: minor.parse().ok()?, ..Default::default() };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let value = value.parse().unwrap_or(0);
        match key {
            "rbytes" => entry.rbytes = value,
            "wbytes" => entry.wbytes = value,
            "rios" => entry.rios = value,
            "wios" => entry.wios = value,
            _ => {}
        }
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read_from_the_files_of_a_cgroup() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = Cgroup { dir: dir.path().to_owned() };
        let files = [
            (
                "cpu.stat",
                "usage_usec 10\nuser_usec 7\nsystem_usec 3\nnr_periods 4\nnr_throttled 2\nthrottled_usec 1\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 1\nfile 2\ninactive_file 3\n"),
            ("memory.events", "oom 1\noom_kill 1\n"),
            ("pids.current", "2\n"),
            ("pids.max", "100\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n253:1\nbad\n"),
        ];
        for (file, text) in files {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let stats = stats(&cgroup).unwrap();
        assert_eq!((stats.cpu_usage_usec, stats.cpu_throttled_usec), (10, 1));
        assert_eq!((stats.memory_usage, stats.memory_usage_limit), (4096, u64::MAX));
        assert_eq!(stats.memory_stat.get("inactive_file"), Some(&3));
        assert_eq!(stats.memory_events.get("oom_kill"), Some(&1));
        assert_eq!((stats.pids_current, stats.pids_limit), (2, 100));
        assert_eq!((stats.swap_usage, stats.swap_limit), (0, u64::MAX));
        assert_eq!(stats.io.len(), 2);
        assert_eq!((stats.io[0].major, stats.io[0].wios), (8, 4));
    }

    #[test]
    fn a_missing_cgroup_is_an_error() {
        assert!(stats(&Cgroup { dir: "/nonexistent".into() }).is_err());
    }
}
