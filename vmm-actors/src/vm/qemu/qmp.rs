//! QEMU's API. It serves one client at a time and takes the next when that one has gone, so nobody stays connected.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use futures::StreamExt;
use qapi::Enum;
use qapi::futures::{QapiEvents, QapiService, QmpStreamTokio};
use qapi::qmp::{self, Event, QmpCommand};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::UnixStream;

use super::super::{GuestState, VmError};

/// What the guest's processors do.
pub(super) async fn guest_state(socket: &Path) -> Result<GuestState, VmError> {
    let status = Session::open(socket).await?.execute("query-status", qmp::query_status {}).await?;
    Ok(if status.running {
        GuestState::Running
    } else {
        GuestState::Stopped(status.status.name().to_owned())
    })
}

/// One connection: commands one after the other, and what is told between them.
pub(super) struct Session {
    service: QapiService<QmpStreamTokio<WriteHalf<UnixStream>>>,
    events: QapiEvents<QmpStreamTokio<ReadHalf<UnixStream>>>,
    /// Devices that were deleted since the connection was made.
    deleted: BTreeSet<String>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session")
    }
}

impl Session {
    /// Connects, as soon as whoever is connected has gone.
    pub(super) async fn open(socket: &Path) -> Result<Self, VmError> {
        let failed = |act| move |source| VmError::Socket { act, path: socket.to_owned(), source };
        let negotiation = QmpStreamTokio::open_uds(socket).await.map_err(failed("connect to"))?;
        let stream = negotiation.negotiate().await.map_err(failed("negotiate on"))?;
        let (service, events) = stream.into_parts();
        Ok(Self { service, events, deleted: BTreeSet::new() })
    }

    /// Runs a command to its answer.
    pub(super) async fn execute<C: QmpCommand>(
        &mut self,
        command: &'static str,
        arguments: C,
    ) -> Result<C::Ok, VmError> {
        let answer = self.service.execute(arguments);
        tokio::pin!(answer);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => {
                    return answer.map_err(|error| VmError::Api { command, reason: error.to_string() });
                }
                event = self.events.next() => note(&mut self.deleted, command, event)?,
            }
        }
    }

    /// Waits until the device with this id, which was told to go, has gone.
    pub(super) async fn deleted(&mut self, id: &str) -> Result<(), VmError> {
        while !self.deleted.remove(id) {
            let event = self.events.next().await;
            note(&mut self.deleted, "device_del", event)?;
        }
        Ok(())
    }
}

/// Keeps what is of interest of an event; the connection's end is an error.
fn note(
    deleted: &mut BTreeSet<String>,
    command: &'static str,
    event: Option<std::io::Result<Event>>,
) -> Result<(), VmError> {
    match event {
        Some(Ok(event)) => {
            if let Event::DEVICE_DELETED { data, .. } = event {
                deleted.extend(data.device);
            }
            Ok(())
        }
        Some(Err(error)) => Err(VmError::Api { command, reason: error.to_string() }),
        None => Err(VmError::Api { command, reason: "it closed the connection".to_owned() }),
    }
}
