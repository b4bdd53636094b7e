//! What the kernel command line says to the agent.

use tracing::level_filters::LevelFilter;

/// Where the kernel shows its command line, proc(5).
pub(crate) const PATH: &str = "/proc/cmdline";

/// Value of the last word `key=value`. The kernel takes the last one, too.
pub(crate) fn value<'a>(cmdline: &'a str, key: &str) -> Option<&'a str> {
    cmdline
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .rfind(|(k, _)| *k == key)
        .map(|(_, v)| v)
}

/// The log level that `bulkhead.log=` asks for; info when it is missing or unknown.
pub(crate) fn log_level(cmdline: &str) -> LevelFilter {
    value(cmdline, "bulkhead.log").and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::INFO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_key_wins() {
        assert_eq!(value("a=1 quiet a=2\n", "a"), Some("2"));
        assert_eq!(value("ab=1", "a"), None);
        assert_eq!(value("root=/dev/x=y", "root"), Some("/dev/x=y"));
    }

    #[test]
    fn an_unknown_log_level_is_info() {
        assert_eq!(log_level("bulkhead.log=debug"), LevelFilter::DEBUG);
        assert_eq!(log_level("bulkhead.log=loud"), LevelFilter::INFO);
        assert_eq!(log_level("quiet"), LevelFilter::INFO);
    }
}
