//! QEMU's API. It serves one client at a time and takes the next when that one has gone, so nobody stays connected.

use std::path::Path;

use qapi::Enum;
use qapi::futures::{QapiStream, QmpStreamTokio};
use qapi::qmp::{self, QmpCommand};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::UnixStream;

use super::super::{GuestState, VmError};

type Stream = QapiStream<QmpStreamTokio<ReadHalf<UnixStream>>, QmpStreamTokio<WriteHalf<UnixStream>>>;

/// What the guest's processors do.
pub(super) async fn guest_state(socket: &Path) -> Result<GuestState, VmError> {
    let status = execute(socket, "query-status", qmp::query_status {}).await?;
    Ok(if status.running {
        GuestState::Running
    } else {
        GuestState::Stopped(status.status.name().to_owned())
    })
}

/// One connection, one command.
async fn execute<C: QmpCommand>(
    socket: &Path,
    command: &'static str,
    arguments: C,
) -> Result<C::Ok, VmError> {
    let mut stream = connect(socket).await?;
    let failed = |error: qapi::ExecuteError| VmError::Api { command, reason: error.to_string() };
    stream.execute(arguments).await.map_err(failed)
}

async fn connect(socket: &Path) -> Result<Stream, VmError> {
    let failed = |act| move |source| VmError::Socket { act, path: socket.to_owned(), source };
    let negotiation = QmpStreamTokio::open_uds(socket).await.map_err(failed("connect to"))?;
    negotiation.negotiate().await.map_err(failed("negotiate on"))
}
