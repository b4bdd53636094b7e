//! Lines on stderr, which the sandboxer points to a file in the pod's directory. That directory is small and lives as
//! long as the pod, so the file is kept short: the newest lines stay.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;

/// What stderr is, to open it anew: to shorten a file one has to read it.
const STDERR: &str = "/proc/self/fd/2";
/// Most that the file holds, in bytes: a sixteenth of the pod's directory.
const LONGEST: u64 = 256 * 1024;
/// What is in the place of lines that were dropped.
const DROPPED: &[u8] = b"earlier lines were dropped\n";

/// Installs the log at `level`.
pub(crate) fn init(level: &str) {
    let log = tracing_subscriber::fmt().with_ansi(false).with_max_level(parsed(level));
    // Else it says on stderr that stderr takes nothing, and panics because that fails: a guest that fills the pod's
    // directory would end whatever task of ours has something to say.
    let log = log.log_internal_errors(false);
    match Bounded::stderr() {
        Ok(Some(file)) => log.with_writer(Mutex::new(file)).init(),
        Ok(None) => log.with_writer(io::stderr).init(),
        Err(error) => {
            log.with_writer(io::stderr).init();
            tracing::warn!(%error, "the log cannot be opened anew and will not be shortened");
        }
    }
}

/// A level as tracing spells it; anything else, and nothing, is info. tracing itself takes nothing for error.
fn parsed(level: &str) -> LevelFilter {
    if level.is_empty() { LevelFilter::INFO } else { level.parse().unwrap_or(LevelFilter::INFO) }
}

/// A log file that drops its older half when it gets too long.
#[derive(Debug)]
struct Bounded {
    file: File,
    longest: u64,
}

impl Bounded {
    /// Stderr, if it is a file.
    fn stderr() -> io::Result<Option<Self>> {
        if !std::fs::metadata(STDERR)?.is_file() {
            return Ok(None);
        }
        let file = OpenOptions::new().read(true).append(true).open(STDERR)?;
        Ok(Some(Self { file, longest: LONGEST }))
    }

    /// Makes room for a line.
    fn make_room(&self, line: usize) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let line = u64::try_from(line).unwrap_or(u64::MAX);
        if length.saturating_add(line) <= self.longest {
            return Ok(());
        }
        let kept = self.newest(length);
        // First: a full file system has room only then.
        self.file.set_len(0)?;
        (&self.file).write_all(&[DROPPED, &kept?].concat())
    }

    /// The newest lines, half a file of them.
    fn newest(&self, length: u64) -> io::Result<Vec<u8>> {
        let start = length.saturating_sub(self.longest / 2);
        let mut bytes = vec![0; usize::try_from(length - start).unwrap_or_default()];
        let read = self.file.read_at(&mut bytes, start)?;
        bytes.truncate(read);
        let cut = bytes.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        Ok(bytes.split_off(cut))
    }
}

impl Write for Bounded {
    /// Never fails: a full directory costs the line, not the one who had something to say.
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
    fn what_is_no_level_is_info() {
        for (level, means) in [
            ("", LevelFilter::INFO),
            ("loud", LevelFilter::INFO),
            ("warn", LevelFilter::WARN),
            ("debug", LevelFilter::DEBUG),
        ] {
            assert_eq!(parsed(level), means, "{level:?}");
        }
    }

    #[test]
    fn the_newest_lines_stay_and_the_file_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let file = OpenOptions::new().create(true).read(true).append(true).open(&path).unwrap();
        let mut log = Bounded { file, longest: 1000 };
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
    fn a_full_disk_is_no_failure() {
        let file = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let mut log = Bounded { file, longest: 1000 };
        log.write_all(b"a line\n").unwrap();
    }
}
