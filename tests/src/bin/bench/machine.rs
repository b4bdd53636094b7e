//! What the figures were taken on.

use std::collections::BTreeMap;
use std::time::Duration;

use bulkhead_tests::node::Node;

/// A short description by key.
pub(crate) async fn describe(node: &Node) -> BTreeMap<&'static str, String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("?", |(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    let first_line = |text: String| text.lines().next().unwrap_or_default().to_owned();
    let product = node.product();
    let containerd = node.base().containerd.display().to_string();
    BTreeMap::from([
        ("cpu", format!("{cpu}, {cores} cores")),
        ("memory", format!("{} MiB", memory.unwrap_or(0) / 1024)),
        ("kernel", first_line(node.run(&["uname", "-sr"]).await)),
        ("qemu", first_line(node.run(&[&product.qemu.display().to_string(), "--version"]).await)),
        ("containerd", first_line(node.run(&[&containerd, "--version"]).await)),
        ("virtiofsd", first_line(node.run(&[&product.virtiofsd.display().to_string(), "--version"]).await)),
    ])
}

/// The time of day of a containerd log line, since midnight.
pub(crate) fn time_of_day(line: &str) -> Duration {
    let time = line.split_once('T').and_then(|(_, rest)| rest.split_once('Z')).map(|(time, _)| time);
    let parts: Vec<f64> = time.unwrap_or_default().split(':').filter_map(|part| part.parse().ok()).collect();
    match parts.as_slice() {
        [hours, minutes, seconds] => Duration::from_secs_f64(hours * 3600.0 + minutes * 60.0 + seconds),
        _ => panic!("no time in containerd's log line: {line}"),
    }
}
