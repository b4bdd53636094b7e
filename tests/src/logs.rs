//! Container log files in CRI's format: `<time> <stream> <P|F> <text>`.

use std::path::Path;

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What a container's log file holds, split by stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log {
    /// Standard output as the container wrote it, but for a newline the last partial line may have lacked.
    pub stdout: String,
    /// Standard error likewise.
    pub stderr: String,
}

impl Log {
    /// Reads a log file; a missing one is empty. Panics on a line that is not in CRI's format.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut log = Self::default();
        for line in text.lines() {
            let (stream, full, rest) = parse(line).unwrap_or_else(|| panic!("not a CRI log line: {line:?}"));
            let target = match stream {
                Stream::Stdout => &mut log.stdout,
                Stream::Stderr => &mut log.stderr,
            };
            target.push_str(rest);
            if full {
                target.push('\n');
            }
        }
        log
    }
}

fn parse(line: &str) -> Option<(Stream, bool, &str)> {
    let (_time, rest) = line.split_once(' ')?;
    let (stream, rest) = rest.split_once(' ')?;
    let (tag, text) = rest.split_once(' ')?;
    let stream = match stream {
        "stdout" => Stream::Stdout,
        "stderr" => Stream::Stderr,
        _ => return None,
    };
    Some((stream, tag == "F", text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_and_partial_lines() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        std::fs::write(&file, "t stdout P ab\nt stderr F bad\nt stdout F cd\nt stdout F \n").unwrap();
        let log = Log::read(&file);
        assert_eq!(log, Log { stdout: "abcd\n\n".into(), stderr: "bad\n".into() });
    }

    #[test]
    fn nothing_for_a_line_without_a_tag() {
        assert_eq!(parse("2024-01-01T00:00:00Z stdout"), None);
        assert_eq!(parse("2024-01-01T00:00:00Z console F x"), None);
    }
}
