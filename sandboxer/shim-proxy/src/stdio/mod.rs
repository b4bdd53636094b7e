//! The stdio of one process: containerd's end on this host, the guest's end on a vsock connection for each stream.
//!
//! What containerd names (fact 4) is opened first, so that a path that cannot be used fails Create before anything
//! is done. Each stream then is one task that copies, and that stops reading one side while the other is full.

pub(crate) mod connection;
mod deadlines;
mod fifo;
mod guest_stream;
mod input;
mod output;
mod registry;
mod streamed;

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_protocol::agent::stream_header::Kind;
use futures::future::{join_all, try_join_all};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::error::TaskError;
pub(crate) use connection::{Line, Role};
use deadlines::{Patience, Phase};
use fifo::{FifoReader, FifoWriter};
use guest_stream::Port;
use input::Source;
use output::Sink;
pub(crate) use registry::{Claim, Switchboard};
pub(crate) use streamed::{Inlet, Outlet};

/// What containerd asks for; empty strings: no such stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    /// One terminal instead of three pipes.
    pub(crate) terminal: bool,
    /// As containerd named it.
    pub(crate) stdin: String,
    /// As containerd named it.
    pub(crate) stdout: String,
    /// As containerd named it; with a terminal it is set all the same, and means nothing.
    pub(crate) stderr: String,
}

impl Request {
    /// As the guest is told.
    pub(crate) fn for_guest(&self) -> bulkhead_protocol::agent::Stdio {
        bulkhead_protocol::agent::Stdio {
            terminal: self.terminal,
            stdin: !self.stdin.is_empty(),
            stdout: !self.stdout.is_empty(),
            stderr: self.wants_stderr(),
            ..Default::default()
        }
    }

    /// Whether containerd has closed an output of a process that has not been started. Its FIFOs it removes; nobody
    /// who means to start the process does that, because its own shims open them at the start.
    pub(crate) fn is_abandoned(&self, switchboard: &Switchboard) -> bool {
        let stderr = if self.wants_stderr() { self.stderr.as_str() } else { "" };
        let closed = |uri| match target("output", uri) {
            Ok(Target::Fifo(path)) => is_missing(path),
            Ok(Target::Streamed(id)) => !switchboard.is_heard(id),
            Ok(Target::None | Target::File(_)) | Err(_) => false,
        };
        closed(&self.stdout) || closed(stderr)
    }

    fn wants_stderr(&self) -> bool {
        !self.terminal && !self.stderr.is_empty()
    }
}

/// What a stdio string of containerd means.
#[derive(Debug, PartialEq, Eq)]
enum Target<'a> {
    None,
    Fifo(&'a Path),
    File(&'a Path),
    Streamed(&'a str),
}

fn target<'a>(stream: &'static str, uri: &'a str) -> Result<Target<'a>, TaskError> {
    let refuse = |what: &str| {
        let text = format!("{stream} {uri:?}: {what} (containerd's io_type \"fifo\" and \"streaming\" work)");
        Err(TaskError::BadRequest(text))
    };
    match uri.split_once("://") {
        _ if uri.is_empty() => Ok(Target::None),
        None if uri.starts_with('/') => Ok(Target::Fifo(Path::new(uri))),
        Some(("fifo", path)) => Ok(Target::Fifo(Path::new(path))),
        Some(("file", path)) => Ok(Target::File(Path::new(path))),
        Some(("binary", _)) => refuse("logging binaries are not supported by Bulkhead"),
        // containerd's ids are hex, nothing in them is escaped.
        Some((_, rest)) => match rest.split_once("?streaming_id=") {
            Some((_, id)) if !id.is_empty() => Ok(Target::Streamed(id)),
            Some(_) | None => refuse("neither an absolute path nor a URI that is known"),
        },
        None => refuse("neither an absolute path nor a URI that is known"),
    }
}

fn is_missing(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// The host's ends, opened, before the guest knows of the process.
#[derive(Debug)]
pub(crate) struct HostEnds {
    stdin: Option<(Source, Option<OwnedFd>)>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    claims: Vec<Arc<Claim>>,
}

impl HostEnds {
    /// Opens what containerd named. Never blocks, whether containerd has opened its ends or not (fact 4.1).
    ///
    /// # Errors
    /// [`TaskError::BadRequest`] for what is not supported, [`TaskError::OpenStdio`].
    pub(crate) fn open(request: &Request, switchboard: &Arc<Switchboard>) -> Result<Self, TaskError> {
        let mut desk = Desk { switchboard, claims: Vec::new() };
        let stdin = match target("stdin", &request.stdin)? {
            Target::None => None,
            Target::Fifo(path) => {
                let (fifo, hold) = FifoReader::open(path).map_err(failed("stdin", path))?;
                Some((Source::Fifo(fifo), Some(hold)))
            }
            Target::Streamed(id) => {
                Some((Source::Streamed(Inlet::new(desk.claim("stdin", id, Role::Input)?)), None))
            }
            Target::File(path) => {
                let text = format!("stdin {}: only a FIFO will do", path.display());
                return Err(TaskError::BadRequest(text));
            }
        };
        let stdout = desk.sink("stdout", &request.stdout)?;
        let stderr = if request.wants_stderr() { desk.sink("stderr", &request.stderr)? } else { None };
        Ok(Self { stdin, stdout, stderr, claims: desk.claims })
    }
}

/// Where streaming ids are claimed.
struct Desk<'a> {
    switchboard: &'a Arc<Switchboard>,
    claims: Vec<Arc<Claim>>,
}

impl Desk<'_> {
    fn claim(&mut self, stream: &str, id: &str, role: Role) -> Result<Arc<Claim>, TaskError> {
        let taken = || TaskError::AlreadyExists { what: format!("{stream} with streaming id {id}") };
        let claim = self.switchboard.claim(id, role).ok_or_else(taken)?;
        self.claims.push(claim.clone());
        Ok(claim)
    }

    fn sink(&mut self, stream: &'static str, uri: &str) -> Result<Option<Sink>, TaskError> {
        match target(stream, uri)? {
            Target::None => Ok(None),
            Target::Fifo(path) => {
                FifoWriter::open(path).map(|fifo| Some(Sink::Fifo(fifo))).map_err(failed(stream, path))
            }
            Target::File(path) => {
                let file = OpenOptions::new().append(true).create(true).open(path);
                file.map(|file| Some(Sink::File(file))).map_err(failed(stream, path))
            }
            Target::Streamed(id) => {
                Ok(Some(Sink::Streamed(Outlet::new(self.claim(stream, id, Role::Output)?))))
            }
        }
    }
}

fn failed(stream: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> TaskError + use<> {
    let path = PathBuf::from(path);
    move |source| TaskError::OpenStdio { stream, path, source: Arc::new(source) }
}

/// The guest's ends, connected.
#[derive(Debug)]
pub(crate) struct GuestEnds {
    stdin: Option<(Port, UnixStream)>,
    stdout: Option<(Port, UnixStream)>,
    stderr: Option<(Port, UnixStream)>,
}

/// Which process the streams belong to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    /// The container.
    pub(crate) container: &'a str,
    /// The exec; empty for the init process.
    pub(crate) exec: &'a str,
}

impl GuestEnds {
    /// Connects every stream that the request names, at once.
    ///
    /// # Errors
    /// [`TaskError::ConnectStream`].
    pub(crate) async fn connect(
        vsock: &Path,
        owner: Owner<'_>,
        request: &Request,
    ) -> Result<Self, TaskError> {
        let guest = request.for_guest();
        let wanted = [
            (guest.stdin, "stdin", Kind::STDIN),
            (guest.stdout, "stdout", Kind::STDOUT),
            (guest.stderr, "stderr", Kind::STDERR),
        ];
        let vsock = &Arc::<Path>::from(vsock);
        let dials = wanted.into_iter().map(|(wanted, stream, kind)| async move {
            if !wanted {
                return Ok(None);
            }
            let port = Port::new(vsock.clone(), owner.container, owner.exec, kind);
            match port.connect().await {
                Ok(end) => Ok(Some((port, end))),
                Err(source) => Err(TaskError::ConnectStream { stream, source: Arc::new(source) }),
            }
        });
        let mut ends = try_join_all(dials).await?.into_iter();
        let mut next = || ends.next().flatten();
        Ok(Self { stdin: next(), stdout: next(), stderr: next() })
    }
}

/// The streams of a process at work. Dropping them closes both ends at once.
#[derive(Debug)]
pub(crate) struct Streams {
    phase: watch::Sender<Phase>,
    /// The extra write end that keeps stdin open while containerd is away.
    stdin_hold: Option<OwnedFd>,
    /// Streaming ids, which stay ours after the end: containerd may ask for it once more.
    _claims: Vec<Arc<Claim>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Streams {
    /// Starts copying.
    pub(crate) fn start(host: HostEnds, guest: GuestEnds) -> Self {
        let phase = watch::Sender::new(Phase::Alive);
        let patience = || Patience::new(phase.subscribe());
        let mut tasks = Vec::with_capacity(3);
        for (sink, from) in [(host.stdout, guest.stdout), (host.stderr, guest.stderr)] {
            if let (Some(sink), Some((port, from))) = (sink, from) {
                tasks.push(tokio::spawn(output::output(port, from, sink, patience())));
            }
        }
        let mut stdin_hold = None;
        if let (Some((source, hold)), Some((port, to))) = (host.stdin, guest.stdin) {
            stdin_hold = hold;
            tasks.push(tokio::spawn(input::input(port, source, to, patience())));
        }
        Self { phase, stdin_hold, _claims: host.claims, tasks }
    }

    /// From now on the process sees the end of stdin as soon as containerd has closed its end.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin_hold = None;
    }

    /// The process has ended: its input stops, its output is what is under way.
    pub(crate) fn end(&mut self) {
        self.stdin_hold = None;
        self.phase.send_if_modified(|phase| {
            let first = *phase == Phase::Alive;
            if first {
                *phase = Phase::Ending;
            }
            first
        });
    }

    /// The VM is gone: what has reached the host is delivered, nothing is waited for.
    pub(crate) fn cut(&mut self) {
        self.stdin_hold = None;
        self.phase.send_replace(Phase::Cut);
    }

    /// Waits until every stream has ended; false when that takes longer than `patience`.
    pub(crate) async fn finished(&mut self, patience: Duration) -> bool {
        // A stream task ends in nothing but its end; a panic of one is an end too.
        let all = timeout(patience, join_all(self.tasks.iter_mut())).await;
        if all.is_ok() {
            self.tasks.clear();
        }
        all.is_ok()
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[cfg(test)]
mod relay_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stdio_strings_are_told_apart() {
        assert_eq!(target("stdin", "").unwrap(), Target::None);
        assert_eq!(target("stdout", "/a/b").unwrap(), Target::Fifo(Path::new("/a/b")));
        assert_eq!(target("stdout", "fifo:///a").unwrap(), Target::Fifo(Path::new("/a")));
        assert_eq!(target("stdout", "file:///a").unwrap(), Target::File(Path::new("/a")));
        let streamed = target("stdout", "ttrpc+unix:///s?streaming_id=x-stdout").unwrap();
        assert_eq!(streamed, Target::Streamed("x-stdout"));
        for bad in ["binary:///x?y", "ttrpc+unix:///s?streaming_id=", "relative", "http://x"] {
            let error = target("stdout", bad).unwrap_err().to_string();
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
}
