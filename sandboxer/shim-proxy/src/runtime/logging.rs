//! The log: lines on stderr, which the sandboxer points to a file in the pod's directory. That directory is small and
//! lives as long as the pod, so the file is kept short: when it is full, the older half goes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tracing::level_filters::LevelFilter;

/// The path of stderr, to open it again: to shorten a file one has to read it.
const STDERR: &str = "/proc/self/fd/2";
/// Longest log file, in bytes: a sixteenth of the pod's directory.
const MAX_LENGTH: u64 = 256 * 1024;
/// The line that stands for those that were dropped.
const DROPPED: &[u8] = b"earlier lines were dropped\n";

/// Installs the log at `level`.
pub(crate) fn init(level: &str) {
    let log = tracing_subscriber::fmt().with_ansi(false).with_max_level(parse_level(level));
    // Otherwise the subscriber reports on stderr that stderr takes nothing, and panics because that fails: a guest that
    // fills the pod's directory would end whatever task of ours logs something.
    let log = log.log_internal_errors(false);
    match BoundedFile::stderr() {
        Ok(Some(file)) => log.with_writer(Arc::new(file)).init(),
        Ok(None) => log.with_writer(io::stderr).init(),
        Err(error) => {
            log.with_writer(io::stderr).init();
            tracing::warn!(%error, "the log cannot be opened again and will not be shortened");
        }
    }
}

/// A level as tracing spells it; info for anything else and for the empty string, which tracing takes for error.
fn parse_level(level: &str) -> LevelFilter {
    if level.is_empty() { LevelFilter::INFO } else { level.parse().unwrap_or(LevelFilter::INFO) }
}

/// A log file that drops its older half when it gets too long.
#[derive(Debug)]
struct BoundedFile {
    file: File,
    max_length: u64,
}

impl BoundedFile {
    /// Stderr, if it is a file.
    fn stderr() -> io::Result<Option<Self>> {
        if !std::fs::metadata(STDERR)?.is_file() {
            return Ok(None);
        }
        let file = OpenOptions::new().read(true).append(true).open(STDERR)?;
        Ok(Some(Self { file, max_length: MAX_LENGTH }))
    }

    /// Makes room for a line.
    fn make_room(&self, line: usize) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let line = u64::try_from(line).unwrap_or(u64::MAX);
        if length.saturating_add(line) <= self.max_length {
            return Ok(());
        }
        let kept = self.newest_lines(length);
        // Truncated before it is written: a full file system has room only then.
        self.file.set_len(0)?;
        (&self.file).write_all(&[DROPPED, &kept?].concat())
    }

    /// The newest lines, half a file of them.
    fn newest_lines(&self, length: u64) -> io::Result<Vec<u8>> {
        let start = length.saturating_sub(self.max_length / 2);
        let mut bytes = vec![0; usize::try_from(length - start).unwrap_or_default()];
        let read = self.file.read_at(&mut bytes, start)?;
        bytes.truncate(read);
        let cut = bytes.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        Ok(bytes.split_off(cut))
    }
}

impl Write for &BoundedFile {
    /// Never fails: a full directory costs the line, and not the task that logs it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        drop(self.make_room(line.len()));
        drop((&self.file).write_all(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_level_means_info() {
        for (level, means) in [
            ("", LevelFilter::INFO),
            ("loud", LevelFilter::INFO),
            ("warn", LevelFilter::WARN),
            ("debug", LevelFilter::DEBUG),
        ] {
            assert_eq!(parse_level(level), means, "{level:?}");
        }
    }

    #[test]
    fn the_newest_lines_are_kept_and_the_file_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let file = OpenOptions::new().create(true).read(true).append(true).open(&path).unwrap();
        let bounded = BoundedFile { file, max_length: 1000 };
        let mut log = &bounded;
        let text = || std::fs::read_to_string(&path).unwrap();
        for number in 0..90 {
            writeln!(log, "line {number:03}.").unwrap();
        }
        assert_eq!(text().lines().next(), Some("line 000."), "nothing is dropped before it must be");
        for number in 90..1000 {
            // Whole lines, as tracing writes them.
            log.write_all(format!("line {number:03}.\n").as_bytes()).unwrap();
            assert!(text().len() <= 1000, "{}", text().len());
        }
        let text = text();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("earlier lines were dropped"));
        let rest: Vec<_> = lines.collect();
        assert!(rest.len() >= 48, "{text}");
        let expected: Vec<_> = (1000 - rest.len()..1000).map(|number| format!("line {number:03}.")).collect();
        assert_eq!(rest, expected);
    }

    #[test]
    fn a_full_disk_does_not_fail_the_writer() {
        let file = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let log = BoundedFile { file, max_length: 1000 };
        (&log).write_all(b"a line\n").unwrap();
    }
}
