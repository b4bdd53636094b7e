//! One forwarded connection, from the namespace's loopback to the guest's.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_protocol::agent::stream_header::Kind;
use bulkhead_protocol::agent::{ForwardAnswer, StreamHeader};
use bulkhead_protocol::error::chain;
use bulkhead_protocol::forward::{CopyError, from_stream, into_stream};
use bulkhead_protocol::{STREAM_PORT, frame, untrusted};
use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tracing::{debug, info};

use crate::guest::dial;

/// How long the guest may take to dial both of its loopback addresses.
const DIAL_TIMEOUT: Duration = Duration::from_secs(25);
/// Idle time and interval of the keepalive probes that notice a client that has closed altogether.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Why a connection was reset, instead of ended by both sides.
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

/// Forwards one connection. If that fails the connection is reset: containerd then reports it to its client.
pub(super) async fn relay(mut client: TcpStream, vsock: Arc<Path>) {
    let Err(reset) = forward(&mut client, &vsock).await else { return };
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

async fn forward(client: &mut TcpStream, vsock: &Path) -> Result<(), Reset> {
    let port = client.local_addr().map_err(Reset::Port)?.port();
    let mut guest = timeout(DIAL_TIMEOUT, dial_in_guest(vsock, port)).await.unwrap_or(Err(Reset::Silent))?;
    enable_keepalive(client);
    let (mut from_client, mut to_client) = client.split();
    let (mut from_guest, mut to_guest) = guest.split();
    let up = async {
        into_stream(&mut from_client, &mut to_guest).await?;
        // A client that has closed altogether looks like one that has only ended its input, until an answer fails.
        match from_client.ready(Interest::ERROR).await {
            Ok(_) => Err(Reset::ClientGone),
            Err(error) => Err(CopyError::Tcp(error).into()),
        }
    };
    let down = async {
        from_stream(&mut from_guest, &mut to_client).await?;
        // The second end mark: the guest has received everything.
        from_guest.read_u32_le().await.map(drop).map_err(|error| CopyError::Stream(error).into())
    };
    tokio::select! {
        reset = up => reset,
        done = down => done,
    }
}

/// Has the guest dial its port.
async fn dial_in_guest(vsock: &Path, port: u16) -> Result<UnixStream, Reset> {
    let mut guest = dial::guest_port(vsock, STREAM_PORT).await.map_err(Reset::Dial)?;
    let header = StreamHeader { kind: Kind::FORWARD.into(), port: port.into(), ..Default::default() };
    frame::write_message(&mut guest, &header).await.map_err(Reset::Dial)?;
    let answer: ForwardAnswer = frame::read_message(&mut guest).await.map_err(Reset::Dial)?;
    if answer.refused.is_empty() { Ok(guest) } else { Err(Reset::Refused(answer.refused)) }
}

/// Switches keepalive on: without it a connection whose client has gone stays half open until the server sends
/// something.
fn enable_keepalive(client: &TcpStream) {
    let enabled = sockopt::set_socket_keepalive(client, true)
        .and_then(|()| sockopt::set_tcp_keepidle(client, KEEPALIVE))
        .and_then(|()| sockopt::set_tcp_keepintvl(client, KEEPALIVE));
    if let Err(error) = enabled {
        debug!(%error, "a client that goes away may not be noticed");
    }
}
