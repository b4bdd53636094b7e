//! The host's end of a stdio stream.

use bulkhead_protocol::agent::{StreamHeader, stream_header::Kind};
use bulkhead_protocol::stream::END;
use bulkhead_protocol::{STREAM_PORT, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::Guest;

/// Connects one stream of a process.
pub(crate) async fn open(guest: &Guest, container: &str, exec: &str, kind: Kind) -> UnixStream {
    let mut stream = guest.connect(STREAM_PORT).await;
    let header = StreamHeader {
        container_id: container.into(),
        exec_id: exec.into(),
        kind: kind.into(),
        ..Default::default()
    };
    frame::write_message(&mut stream, &header).await.unwrap();
    stream
}

/// The next frame; nothing at the end of the stream.
pub(crate) async fn next(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let length = stream.read_u32_le().await.expect("a stream ends with a frame of length 0");
    let mut chunk = vec![0; length as usize];
    stream.read_exact(&mut chunk).await.unwrap();
    (length > 0).then_some(chunk)
}

/// Reads until this text has come: a terminal's output arrives in pieces.
pub(crate) async fn expect(stream: &mut UnixStream, text: &str) {
    let mut all = Vec::new();
    while !all.ends_with(text.as_bytes()) {
        let so_far = String::from_utf8_lossy(&all).into_owned();
        all.extend(next(stream).await.unwrap_or_else(|| panic!("{text:?} was to come, {so_far:?} came")));
    }
}

/// Everything up to the end of the stream.
pub(crate) async fn read_all(mut stream: UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(chunk) = next(&mut stream).await {
        all.extend_from_slice(&chunk);
    }
    all
}

/// One chunk to stdin.
pub(crate) async fn write(stream: &mut UnixStream, chunk: &[u8]) {
    stream.write_u32_le(u32::try_from(chunk.len()).unwrap()).await.unwrap();
    stream.write_all(chunk).await.unwrap();
}

/// End of stdin; waits until the guest has taken it.
pub(crate) async fn end(mut stream: UnixStream) {
    stream.write_all(&END).await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0, "the guest says nothing on stdin");
}
