//! What containerd asks for: three stdio strings and whether there is a terminal.

use std::path::Path;

use super::registry::StreamRegistry;
use crate::error::TaskError;

/// The stdio of a process as containerd requests it; empty strings: no such stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    /// One terminal instead of three pipes.
    pub(crate) terminal: bool,
    /// As containerd named it.
    pub(crate) stdin: String,
    /// As containerd named it.
    pub(crate) stdout: String,
    /// As containerd named it; with a terminal it is set all the same, and ignored.
    pub(crate) stderr: String,
}

impl Request {
    /// The request in the form of the agent's contract.
    pub(crate) fn for_guest(&self) -> bulkhead_protocol::agent::Stdio {
        bulkhead_protocol::agent::Stdio {
            terminal: self.terminal,
            stdin: !self.stdin.is_empty(),
            stdout: !self.stdout.is_empty(),
            stderr: self.wants_stderr(),
            ..Default::default()
        }
    }

    /// Whether containerd has closed an output of a process that has not been started. containerd removes the FIFOs
    /// then; a caller that is going to start the process does not, because containerd's own shims open them at the
    /// start.
    pub(crate) async fn is_abandoned(&self, registry: &StreamRegistry) -> bool {
        let stderr = if self.wants_stderr() { self.stderr.as_str() } else { "" };
        is_closed(&self.stdout, registry).await || is_closed(stderr, registry).await
    }

    pub(super) fn wants_stderr(&self) -> bool {
        !self.terminal && !self.stderr.is_empty()
    }
}

async fn is_closed(uri: &str, registry: &StreamRegistry) -> bool {
    match Target::parse("output", uri) {
        Ok(Target::Fifo(path)) => is_missing(path),
        Ok(Target::Streamed(id)) => !registry.is_wanted(id).await,
        Ok(Target::None | Target::File(_)) | Err(_) => false,
    }
}

fn is_missing(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// The meaning of a stdio string of containerd.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target<'a> {
    /// No such stream.
    None,
    /// A FIFO that containerd has made.
    Fifo(&'a Path),
    /// A file to append to.
    File(&'a Path),
    /// A stream of the streaming service, by its id.
    Streamed(&'a str),
}

impl<'a> Target<'a> {
    /// Parses the string of `stream`, which is stdin, stdout or stderr.
    ///
    /// # Errors
    /// [`TaskError::BadRequest`] for what is not supported.
    pub(super) fn parse(stream: &'static str, uri: &'a str) -> Result<Self, TaskError> {
        let refuse = |what: &str| {
            let text =
                format!("{stream} {uri:?}: {what} (containerd's io_type \"fifo\" and \"streaming\" work)");
            Err(TaskError::BadRequest(text))
        };
        match uri.split_once("://") {
            _ if uri.is_empty() => Ok(Self::None),
            None if uri.starts_with('/') => Ok(Self::Fifo(Path::new(uri))),
            Some(("fifo", path)) => Ok(Self::Fifo(Path::new(path))),
            Some(("file", path)) => Ok(Self::File(Path::new(path))),
            Some(("binary", _)) => refuse("logging binaries are not supported by Bulkhead"),
            // containerd's ids are hex, nothing in them is escaped.
            Some((_, rest)) => match rest.split_once("?streaming_id=") {
                Some((_, id)) if !id.is_empty() => Ok(Self::Streamed(id)),
                Some(_) | None => refuse("neither an absolute path nor a URI that is known"),
            },
            None => refuse("neither an absolute path nor a URI that is known"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stdio_strings_are_parsed_by_their_form() {
        assert_eq!(Target::parse("stdin", "").unwrap(), Target::None);
        assert_eq!(Target::parse("stdout", "/a/b").unwrap(), Target::Fifo(Path::new("/a/b")));
        assert_eq!(Target::parse("stdout", "fifo:///a").unwrap(), Target::Fifo(Path::new("/a")));
        assert_eq!(Target::parse("stdout", "file:///a").unwrap(), Target::File(Path::new("/a")));
        let streamed = Target::parse("stdout", "ttrpc+unix:///s?streaming_id=x-stdout").unwrap();
        assert_eq!(streamed, Target::Streamed("x-stdout"));
        for bad in ["binary:///x?y", "ttrpc+unix:///s?streaming_id=", "relative", "http://x"] {
            let error = Target::parse("stdout", bad).unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
    }

    #[test]
    fn a_terminal_has_no_stderr() {
        let request =
            Request { terminal: true, stdout: "/o".into(), stderr: "/e".into(), ..Default::default() };
        let guest = request.for_guest();
        assert!(guest.terminal && guest.stdout && !guest.stderr && !guest.stdin);
    }

    #[tokio::test]
    async fn a_process_is_not_abandoned_as_long_as_no_output_was_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let registry = StreamRegistry::spawn();
        let here = Request { stdout: path("."), stdin: path("gone"), ..Default::default() };
        let file = Request { stdout: format!("file://{}", path("gone")), ..Default::default() };
        let terminal =
            Request { terminal: true, stdout: path("."), stderr: path("gone"), ..Default::default() };
        for request in [Request::default(), here, file, terminal] {
            assert!(!request.is_abandoned(&registry).await, "{request:?}");
        }
        let gone = Request { stdout: path("gone"), ..Default::default() };
        assert!(gone.is_abandoned(&registry).await);
    }
}
