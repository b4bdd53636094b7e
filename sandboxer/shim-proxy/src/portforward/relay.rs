//! One forwarded connection, from the namespace's loopback to the guest's.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_protocol::agent::stream_header::Kind;
use bulkhead_protocol::agent::{ForwardAnswer, StreamHeader};
use bulkhead_protocol::forward::{CopyError, from_stream, into_stream};
use bulkhead_protocol::{STREAM_PORT, frame, untrusted};
use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tracing::{debug, info};

use crate::error::chain;
use crate::guest::dial;

/// How long the guest may take to dial both of its loopback addresses.
const ANSWER: Duration = Duration::from_secs(25);
/// A client that has closed altogether is noticed by a probe, after this much silence and at this pace.
const PROBES: Duration = Duration::from_secs(30);

/// Why a connection ended other than by both of its ends.
#[derive(Debug, thiserror::Error)]
enum Reset {
    #[error("cannot tell which port was dialled")]
    Port(#[source] io::Error),
    #[error("the guest took no connection")]
    Dial(#[source] io::Error),
    #[error("the guest did not answer")]
    Silent,
    #[error("nothing in the guest takes connections: {}", untrusted::text(.0))]
    Refused(String),
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error("the client has gone")]
    ClientGone,
}

/// Carries one connection. One that cannot be is reset: containerd then tells its client so.
pub(super) async fn relay(mut client: TcpStream, vsock: Arc<Path>) {
    let Err(reset) = carry(&mut client, &vsock).await else { return };
    let port = client.local_addr().map_or(0, |address| address.port());
    match &reset {
        Reset::Refused(_) => info!(port, error = chain(&reset), "a forwarded connection was refused"),
        Reset::Port(_) | Reset::Dial(_) | Reset::Silent | Reset::Copy(_) | Reset::ClientGone => {
            debug!(port, error = chain(&reset), "a forwarded connection was reset");
        }
    }
    if let Err(error) = sockopt::set_socket_linger(&client, Some(Duration::ZERO)) {
        debug!(port, %error, "the client hears of an end instead of a reset");
    }
}

async fn carry(client: &mut TcpStream, vsock: &Path) -> Result<(), Reset> {
    let port = client.local_addr().map_err(Reset::Port)?.port();
    let mut guest = timeout(ANSWER, ask(vsock, port)).await.unwrap_or(Err(Reset::Silent))?;
    probe(client);
    let (mut from_client, mut to_client) = client.split();
    let (mut from_guest, mut to_guest) = guest.split();
    let up = async {
        into_stream(&mut from_client, &mut to_guest).await?;
        // The end of what a client says looks the same as its going away, until it does not take an answer.
        match from_client.ready(Interest::ERROR).await {
            Ok(_) => Err(Reset::ClientGone),
            Err(error) => Err(CopyError::Tcp(error).into()),
        }
    };
    let down = async {
        from_stream(&mut from_guest, &mut to_client).await?;
        // The second end: the guest has all of ours.
        from_guest.read_u32_le().await.map(drop).map_err(|error| CopyError::Stream(error).into())
    };
    tokio::select! {
        reset = up => reset,
        done = down => done,
    }
}

/// Has the guest dial its port.
async fn ask(vsock: &Path, port: u16) -> Result<UnixStream, Reset> {
    let mut guest = dial::guest_port(vsock, STREAM_PORT).await.map_err(Reset::Dial)?;
    let header = StreamHeader { kind: Kind::FORWARD.into(), port: port.into(), ..Default::default() };
    frame::write_message(&mut guest, &header).await.map_err(Reset::Dial)?;
    let answer: ForwardAnswer = frame::read_message(&mut guest).await.map_err(Reset::Dial)?;
    if answer.refused.is_empty() { Ok(guest) } else { Err(Reset::Refused(answer.refused)) }
}

/// Without probes a client that has closed would stay half open for as long as the server says nothing.
fn probe(client: &TcpStream) {
    let asked = sockopt::set_socket_keepalive(client, true)
        .and_then(|()| sockopt::set_tcp_keepidle(client, PROBES))
        .and_then(|()| sockopt::set_tcp_keepintvl(client, PROBES));
    if let Err(error) = asked {
        debug!(%error, "a client that goes away may not be noticed");
    }
}
