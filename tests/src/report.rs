//! What a run says beside its tests' results: what was skipped and why, and the logs of a failed node.

use std::io::Write;
use std::path::Path;

/// Says aloud that a test did not run. Written past libtest's capture, which hides what passing tests print.
///
/// With `BULKHEAD_REQUIRE_PEERS=1` a test that cannot run is a failed one.
pub fn skipped(test: &str, why: &str) {
    aloud(&format!("skipped: {test}: {why}\n"));
    assert!(
        std::env::var_os("BULKHEAD_REQUIRE_PEERS").is_none_or(|value| value != "1"),
        "{test} cannot run here: {why}"
    );
}

/// Writes to the real stderr.
pub fn aloud(text: &str) {
    let mut stderr = std::io::stderr().lock();
    if stderr.write_all(text.as_bytes()).is_err() {
        // Nobody listens: nothing left to tell them.
    }
}

/// Longer lines are cut: containerd logs whole OCI specs.
const LONGEST_LINE: usize = 600;

/// Prints the last `lines` lines of `file` under a heading.
pub fn tail(file: &Path, lines: usize) {
    let Ok(bytes) = std::fs::read(file) else { return };
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    let start = all.len().saturating_sub(lines);
    eprintln!("---- {} (last {} of {} lines)", file.display(), all.len() - start, all.len());
    for line in &all[start..] {
        let short: String = line.chars().take(LONGEST_LINE).collect();
        eprintln!("{short}");
    }
}
