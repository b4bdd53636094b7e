//! The two ends of a process's streams, before bytes are copied: the host's ends are opened first, so that a path that
//! cannot be used fails Create before anything is done; then the guest's ends are connected.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bulkhead_protocol::agent::stream_header::Kind;
use futures::future::try_join_all;
use tokio::net::UnixStream;

use super::connection::Direction;
use super::fifo::{FifoReader, FifoWriter};
use super::guest_stream::GuestStream;
use super::input::Source;
use super::output::Sink;
use super::registry::{Claim, Hold, StreamRegistry};
use super::request::{Request, Target};
use super::streamed::{StreamReader, StreamWriter};
use crate::error::TaskError;

/// The host's ends, opened.
#[derive(Debug)]
pub(crate) struct HostEnds {
    /// With the extra write end that keeps a FIFO open while containerd is away.
    pub(super) stdin: Option<(Source, Option<OwnedFd>)>,
    pub(super) stdout: Option<Sink>,
    pub(super) stderr: Option<Sink>,
    pub(super) holds: Vec<Arc<Hold>>,
}

impl HostEnds {
    /// Opens what containerd named. Never blocks, whether or not containerd has opened its ends (fact 4.1).
    ///
    /// # Errors
    /// [`TaskError::BadRequest`] for what is not supported, [`TaskError::OpenStdio`], [`TaskError::AlreadyExists`] for
    /// a streaming id that another process has.
    pub(crate) async fn open(request: &Request, registry: &StreamRegistry) -> Result<Self, TaskError> {
        let mut opener = Opener { registry, holds: Vec::new() };
        let stdin = match Target::parse("stdin", &request.stdin)? {
            Target::None => None,
            Target::Fifo(path) => {
                let (fifo, hold) = FifoReader::open(path).map_err(open_failed("stdin", path))?;
                Some((Source::Fifo(fifo), Some(hold)))
            }
            Target::Streamed(id) => {
                let claim = opener.claim("stdin", id, Direction::Input).await?;
                Some((Source::Streamed(StreamReader::new(claim)), None))
            }
            Target::File(path) => {
                let text = format!("stdin {}: only a FIFO will do", path.display());
                return Err(TaskError::BadRequest(text));
            }
        };
        let stdout = opener.sink("stdout", &request.stdout).await?;
        let stderr =
            if request.wants_stderr() { opener.sink("stderr", &request.stderr).await? } else { None };
        Ok(Self { stdin, stdout, stderr, holds: opener.holds })
    }
}

/// Opens outputs and collects the claims.
struct Opener<'a> {
    registry: &'a StreamRegistry,
    holds: Vec<Arc<Hold>>,
}

impl Opener<'_> {
    async fn claim(&mut self, stream: &str, id: &str, direction: Direction) -> Result<Claim, TaskError> {
        let taken = || TaskError::AlreadyExists { what: format!("{stream} with streaming id {id}") };
        let claim = self.registry.claim(id, direction).await.ok_or_else(taken)?;
        self.holds.push(claim.hold());
        Ok(claim)
    }

    async fn sink(&mut self, stream: &'static str, uri: &str) -> Result<Option<Sink>, TaskError> {
        match Target::parse(stream, uri)? {
            Target::None => Ok(None),
            Target::Fifo(path) => {
                FifoWriter::open(path).map(|fifo| Some(Sink::Fifo(fifo))).map_err(open_failed(stream, path))
            }
            Target::File(path) => {
                let file = OpenOptions::new().append(true).create(true).open(path);
                file.map(|file| Some(Sink::File(file))).map_err(open_failed(stream, path))
            }
            Target::Streamed(id) => {
                let claim = self.claim(stream, id, Direction::Output).await?;
                Ok(Some(Sink::Streamed(StreamWriter::new(claim))))
            }
        }
    }
}

fn open_failed(stream: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TaskError + use<> {
    let path = PathBuf::from(path);
    move |source| TaskError::OpenStdio { stream, path, source: Arc::new(source) }
}

/// The guest's ends, connected.
#[derive(Debug)]
pub(crate) struct GuestEnds {
    pub(super) stdin: Option<(GuestStream, UnixStream)>,
    pub(super) stdout: Option<(GuestStream, UnixStream)>,
    pub(super) stderr: Option<(GuestStream, UnixStream)>,
}

/// The process that streams belong to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    /// The container.
    pub(crate) container: &'a str,
    /// The exec; empty for the init process.
    pub(crate) exec: &'a str,
}

impl GuestEnds {
    /// Connects every stream that the request names, all at once.
    ///
    /// # Errors
    /// [`TaskError::ConnectStream`].
    pub(crate) async fn connect(
        vsock: &Arc<Path>,
        owner: Owner<'_>,
        request: &Request,
    ) -> Result<Self, TaskError> {
        let guest = request.for_guest();
        let wanted = [
            (guest.stdin, "stdin", Kind::STDIN),
            (guest.stdout, "stdout", Kind::STDOUT),
            (guest.stderr, "stderr", Kind::STDERR),
        ];
        let dials = wanted.into_iter().map(|(wanted, stream, kind)| async move {
            if !wanted {
                return Ok(None);
            }
            let guest = GuestStream::new(vsock.clone(), owner.container, owner.exec, kind);
            match guest.connect().await {
                Ok(end) => Ok(Some((guest, end))),
                Err(source) => Err(TaskError::ConnectStream { stream, source: Arc::new(source) }),
            }
        });
        let mut ends = try_join_all(dials).await?.into_iter();
        let mut next = || ends.next().flatten();
        Ok(Self { stdin: next(), stdout: next(), stderr: next() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_streaming_id_belongs_to_one_process_at_a_time() {
        let registry = StreamRegistry::spawn();
        let request = Request { stdout: "ttrpc+unix:///s?streaming_id=x".into(), ..Default::default() };
        let first = HostEnds::open(&request, &registry).await.unwrap();
        let error = HostEnds::open(&request, &registry).await.unwrap_err();
        assert!(matches!(error, TaskError::AlreadyExists { .. }), "{error}");
        drop(first);
        HostEnds::open(&request, &registry).await.unwrap();
        assert_eq!(registry.len().await, 0);
        assert!(!Path::new("/s").exists());
    }
}
