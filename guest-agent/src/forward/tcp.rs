//! TCP connections that the host forwards to the pod's loopback (`kubectl port-forward`).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bulkhead_protocol::agent::ForwardAnswer;
use bulkhead_protocol::error::chain;
use bulkhead_protocol::forward::{CopyError, from_stream, into_stream};
use bulkhead_protocol::frame;
use bulkhead_protocol::stream::END;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long a connect may take: a server with a full backlog does not accept.
const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// How long the host may take to close when everything has arrived.
const FAREWELL: Duration = Duration::from_secs(10);

/// Why a connection ended other than by both of its ends.
#[derive(Debug, thiserror::Error)]
enum Reset {
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error("the host closed the stream")]
    HostGone,
    #[error("the server takes no more")]
    ServerGone,
}

/// Connects to the port, answers whether that worked, and copies bytes until both sides have ended.
pub(crate) async fn serve<S>(mut host: S, port: u32)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let dialled = dial(port).await;
    let refused = dialled.as_ref().err().map_or_else(String::new, |error| chain(error));
    let answer = ForwardAnswer { refused, ..ForwardAnswer::default() };
    if let Err(error) = frame::write_message(&mut host, &answer).await {
        tracing::debug!(port, %error, "the host did not wait for its forwarded connection");
        return;
    }
    let Ok(mut server) = dialled else { return };
    if let Err(reset) = relay(host, &mut server).await {
        tracing::debug!(port, error = %chain(&reset), "a forwarded connection was reset");
        // So that the server gets a reset, as from a local client.
        if let Err(error) = rustix::net::sockopt::set_socket_linger(&server, Some(Duration::ZERO)) {
            tracing::debug!(port, %error, "the server hears of an end instead of a reset");
        }
    }
}

/// IPv4 first, as containerd does for a pod without a VM.
async fn dial(port: u32) -> io::Result<TcpStream> {
    let Some(port) = u16::try_from(port).ok().filter(|port| *port > 0) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no TCP port"));
    };
    match dial_one((Ipv4Addr::LOCALHOST, port).into()).await {
        Ok(stream) => Ok(stream),
        // The first error is that of the usual case.
        Err(error) => dial_one((Ipv6Addr::LOCALHOST, port).into()).await.map_err(|_second| error),
    }
}

async fn dial_one(address: SocketAddr) -> io::Result<TcpStream> {
    let dialled = timeout(DIAL_LIMIT, TcpStream::connect(address)).await;
    dialled.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
}

async fn relay<S>(host: S, server: &mut TcpStream) -> Result<(), Reset>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_host, mut to_host) = tokio::io::split(host);
    let (mut from_server, mut to_server) = server.split();
    let (host_ended, host_end) = oneshot::channel();
    let receive = async {
        match from_stream(&mut from_host, &mut to_server).await {
            // Fails only when the other direction has ended.
            Ok(()) => drop(host_ended.send(())),
            Err(CopyError::Stream(_)) => return,
            // What the server has sent already is still forwarded; what the host sends is not.
            Err(CopyError::Tcp(_)) => drop(host_ended),
        }
        // Only the close is expected; anything else is discarded.
        drop(tokio::io::copy(&mut from_host, &mut tokio::io::sink()).await);
    };
    let send = async {
        into_stream(&mut from_server, &mut to_host).await?;
        host_end.await.map_err(|_dropped| Reset::ServerGone)?;
        to_host.write_all(&END).await.map_err(CopyError::Stream)?;
        to_host.flush().await.map_err(CopyError::Stream)?;
        Ok::<(), Reset>(())
    };
    tokio::pin!(receive);
    tokio::select! {
        () = &mut receive => Err(Reset::HostGone),
        sent = send => {
            sent?;
            // Everything has arrived, even if the host does not close.
            drop(timeout(FAREWELL, receive).await);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, DuplexStream};
    use tokio::net::TcpListener;

    use super::*;

    async fn opened(port: u16) -> (DuplexStream, ForwardAnswer) {
        let (mut ours, theirs) = tokio::io::duplex(1 << 20);
        tokio::spawn(serve(theirs, port.into()));
        let answer = frame::read_message(&mut ours).await.unwrap();
        (ours, answer)
    }

    async fn say(host: &mut DuplexStream, bytes: &[u8]) {
        host.write_u32_le(u32::try_from(bytes.len()).unwrap()).await.unwrap();
        host.write_all(bytes).await.unwrap();
    }

    async fn hear(host: &mut DuplexStream) -> Vec<u8> {
        let length = host.read_u32_le().await.unwrap();
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        host.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    #[tokio::test]
    async fn a_port_without_a_listener_is_refused_with_a_reason() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let (mut host, answer) = opened(free).await;
        assert!(answer.refused.contains("refused"), "{answer}");
        assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
        assert!(!opened(0).await.1.refused.is_empty());
    }

    #[tokio::test]
    async fn each_direction_ends_independently() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut host, answer) = opened(listener.local_addr().unwrap().port()).await;
        assert_eq!(answer.refused, "");
        let (mut server, _) = listener.accept().await.unwrap();
        say(&mut host, b"question").await;
        say(&mut host, b"").await;
        let mut question = Vec::new();
        server.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        server.write_all(b"answer").await.unwrap();
        assert_eq!(hear(&mut host).await, b"answer");
        drop(server);
        assert_eq!(hear(&mut host).await, b"", "the server's end");
        assert_eq!(hear(&mut host).await, b"", "everything has arrived");
    }

    #[tokio::test]
    async fn a_server_that_listens_on_ipv6_only_is_reached() {
        let Ok(listener) = TcpListener::bind("[::1]:0").await else {
            println!("skipped: no IPv6 here");
            return;
        };
        let (_host, answer) = opened(listener.local_addr().unwrap().port()).await;
        assert_eq!(answer.refused, "");
        listener.accept().await.unwrap();
    }

    #[tokio::test]
    async fn the_server_gets_a_reset_when_the_host_closes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (host, _) = opened(listener.local_addr().unwrap().port()).await;
        let (mut server, _) = listener.accept().await.unwrap();
        drop(host);
        let error = server.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_reset_of_the_server_closes_the_stream_without_an_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut host, _) = opened(listener.local_addr().unwrap().port()).await;
        let (server, _) = listener.accept().await.unwrap();
        rustix::net::sockopt::set_socket_linger(&server, Some(Duration::ZERO)).unwrap();
        drop(server);
        assert_eq!(host.read(&mut [0]).await.unwrap(), 0, "closed without an end");
    }
}
