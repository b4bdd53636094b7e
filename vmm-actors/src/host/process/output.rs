//! The last words of a process.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// The last lines of an output file, for an error message: at most `max_lines`, from at most the last `max_bytes`
/// bytes. Control sequences of terminals are left out and other unprintable characters replaced, because a guest may
/// have written them. A file that cannot be read has no last lines.
#[must_use]
pub fn last_lines(path: &Path, max_lines: usize, max_bytes: u64) -> String {
    let Ok((bytes, cut)) = tail(path, max_bytes) else { return String::new() };
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<String> = text.lines().map(printable).collect();
    if cut && lines.len() > 1 {
        lines.remove(0);
    }
    lines.retain(|line| !line.is_empty());
    let surplus = lines.len().saturating_sub(max_lines);
    lines.split_off(surplus).join("\n")
}

/// The end of a file, and whether something was before it.
fn tail(path: &Path, max_bytes: u64) -> std::io::Result<(Vec<u8>, bool)> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(max_bytes);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(max_bytes).read_to_end(&mut bytes)?;
    Ok((bytes, start > 0))
}

fn printable(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\t' => out.push(' '),
            // ECMA-48 control sequence: parameters up to a final byte in @..~.
            '\u{1b}' if characters.next_if_eq(&'[').is_some() => {
                while characters.next_if(|c| ('\u{20}'..'\u{40}').contains(c)).is_some() {}
                characters.next_if(|c| ('\u{40}'..='\u{7e}').contains(c));
            }
            '\r' | '\u{1b}' => {}
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        file
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let file = file(b"one\ntwo\n\nthree\n");
        assert_eq!(last_lines(file.path(), 2, 1024), "two\nthree");
    }

    #[test]
    fn a_line_cut_by_the_byte_limit_is_dropped() {
        let file = file(b"a long first line\nlast\n");
        assert_eq!(last_lines(file.path(), 9, 10), "last");
    }

    #[test]
    fn one_long_line_is_cut_but_kept() {
        let file = file(b"0123456789");
        assert_eq!(last_lines(file.path(), 9, 4), "6789");
    }

    #[test]
    fn terminal_sequences_and_control_characters_do_not_pass() {
        let file = file(b"\x1b[31mred\x1b[0m\x07\r\nb\xffd\x1b]x\n");
        assert_eq!(last_lines(file.path(), 9, 1024), "red\u{fffd}\nb\u{fffd}d]x");
    }

    #[test]
    fn a_missing_file_has_none() {
        assert_eq!(last_lines(Path::new("/nonexistent/x"), 9, 1024), "");
    }
}
