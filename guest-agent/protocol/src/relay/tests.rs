//! Two relays back to back: a client, this end, a stream, the other end, a server.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;

/// Nothing here may take longer.
const SOON: Duration = Duration::from_secs(10);

struct Carried {
    client: UnixStream,
    server: UnixStream,
    ends: [JoinHandle<Result<(), RelayError>>; 2],
}

fn carried() -> Carried {
    let (client, near) = UnixStream::pair().unwrap();
    let (far, server) = UnixStream::pair().unwrap();
    // Smaller than a frame, so that writers wait.
    let (here, there) = tokio::io::duplex(1000);
    Carried { client, server, ends: [tokio::spawn(relay(near, here)), tokio::spawn(relay(far, there))] }
}

impl Carried {
    async fn both_end(self) {
        for end in self.ends {
            timeout(SOON, end).await.expect("a relay that does not end").unwrap().unwrap();
        }
    }
}

async fn all(socket: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    timeout(SOON, socket.read_to_end(&mut bytes)).await.expect("an end").unwrap();
    bytes
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    for client_first in [true, false] {
        let mut it = carried();
        let (first, second) =
            if client_first { (&mut it.client, &mut it.server) } else { (&mut it.server, &mut it.client) };
        first.write_all(b"question").await.unwrap();
        first.shutdown().await.unwrap();
        assert_eq!(all(second).await, b"question");
        second.write_all(b"answer").await.unwrap();
        second.shutdown().await.unwrap();
        assert_eq!(all(first).await, b"answer");
        it.both_end().await;
    }
}

#[tokio::test]
async fn much_data_is_copied_both_ways_at_once() {
    let it = carried();
    let bytes: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
    let both = [it.client, it.server].map(|socket| {
        let (mut reader, mut writer) = socket.into_split();
        let (sent, expected) = (bytes.clone(), bytes.clone());
        let write = async move {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let read = async move {
            let mut came = Vec::new();
            reader.read_to_end(&mut came).await.unwrap();
            assert!(came == expected, "{} of {} bytes, or others", came.len(), expected.len());
        };
        [tokio::spawn(write), tokio::spawn(read)]
    });
    for task in both.into_iter().flatten() {
        timeout(SOON, task).await.expect("bytes that do not arrive").unwrap();
    }
    for end in it.ends {
        timeout(SOON, end).await.expect("a relay that does not end").unwrap().unwrap();
    }
}

#[tokio::test]
async fn closing_is_told_apart_from_shutting_down_writing() {
    for client_first in [true, false] {
        let mut it = carried();
        let (mut first, second) =
            if client_first { (it.client, &mut it.server) } else { (it.server, &mut it.client) };
        first.write_all(b"last words").await.unwrap();
        drop(first);
        assert_eq!(all(second).await, b"last words");
        let refused = async {
            while second.write_all(b"anybody?").await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, refused).await.expect("it takes what nobody reads");
        for end in it.ends {
            timeout(SOON, end).await.expect("a relay that does not end").unwrap().unwrap();
        }
    }
}

/// An end of writing alone must not look like a close.
#[tokio::test]
async fn after_shutting_down_writing_the_answer_still_arrives() {
    let mut it = carried();
    it.client.shutdown().await.unwrap();
    assert_eq!(all(&mut it.server).await, b"");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut bytes = [0; 5];
    for _ in 0..100 {
        it.server.write_all(b"chunk").await.unwrap();
        timeout(SOON, it.client.read_exact(&mut bytes)).await.unwrap().unwrap();
    }
    drop(it.server);
    assert_eq!(all(&mut it.client).await, b"");
}

#[tokio::test]
async fn closing_with_unread_data_is_sent_as_gone() {
    let mut it = carried();
    it.server.write_all(b"unread").await.unwrap();
    timeout(SOON, it.client.readable()).await.unwrap().unwrap();
    drop(it.client);
    assert_eq!(all(&mut it.server).await, b"");
    drop(it.server);
    for end in it.ends {
        timeout(SOON, end).await.expect("a relay that does not end").unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_broken_stream_breaks_the_socket() {
    let (mut client, near) = UnixStream::pair().unwrap();
    let (here, there) = tokio::io::duplex(1000);
    let end = tokio::spawn(relay(near, here));
    drop(there);
    assert_eq!(all(&mut client).await, b"");
    assert!(matches!(end.await.unwrap(), Err(RelayError::Cut)));
}

#[tokio::test]
async fn a_malformed_frame_ends_the_connection() {
    for words in [&[&(MAX_CHUNK + 1).to_le_bytes()[..]][..], &[&END, &4_u32.to_le_bytes(), b"late"]] {
        let (_client, near) = UnixStream::pair().unwrap();
        let (here, mut there) = tokio::io::duplex(1000);
        let end = tokio::spawn(relay(near, here));
        there.write_all(&words.concat()).await.unwrap();
        let error = timeout(SOON, end).await.unwrap().unwrap().unwrap_err();
        assert!(matches!(error, RelayError::Stream(_)), "{error}");
    }
}
