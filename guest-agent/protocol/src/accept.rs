//! The accept loop of every server that lives as long as its listener: an accept that fails is tried again, because to
//! end would end the service for everybody.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::sleep;

/// Pause after an accept that failed: as a rule a lack of descriptors or memory, which others may free meanwhile.
const PAUSE: Duration = Duration::from_millis(50);

/// The next connection of a unix socket. `failed` hears the first error of a row, to log it.
pub async fn accept_unix(listener: &UnixListener, failed: impl FnOnce(&io::Error)) -> UnixStream {
    accept(|context| listener.poll_accept(context).map_ok(|(stream, _peer)| stream), failed).await
}

/// The next connection that `poll` accepts. `failed` hears the first error of a row, to log it.
pub async fn accept<T>(
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
    failed: impl FnOnce(&io::Error),
) -> T {
    let mut failed = Some(failed);
    loop {
        match poll_fn(&mut poll).await {
            Ok(connection) => return connection,
            Err(error) => {
                if let Some(failed) = failed.take() {
                    failed(&error);
                }
                sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failed_accept_is_told_once_and_tried_again() {
        let mut errors = 3;
        let poll = |_: &mut Context<'_>| {
            Poll::Ready(if errors == 0 { Ok("connection") } else { Err(io::ErrorKind::OutOfMemory.into()) })
                .map_err(|error| {
                    errors -= 1;
                    error
                })
        };
        let mut told = 0;
        assert_eq!(accept(poll, |_| told += 1).await, "connection");
        assert_eq!((errors, told), (0, 1));
    }

    #[tokio::test]
    async fn a_unix_connection_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let (client, _server) =
            tokio::join!(UnixStream::connect(&path), accept_unix(&listener, |error| panic!("{error}")));
        client.unwrap();
    }
}
