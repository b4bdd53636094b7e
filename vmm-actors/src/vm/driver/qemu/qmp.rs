//! QEMU's API. It serves one client at a time and takes the next when that one has gone, so nobody stays connected.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use bulkhead_config::Machine;
use futures::StreamExt;
use qapi::Enum;
use qapi::futures::{QapiEvents, QapiService, QmpStreamTokio};
use qapi::qmp::{self, Event, QmpCommand};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::UnixStream;

use super::error::QemuError;
use crate::vm::GuestState;

/// What the guest's processors do.
pub(super) async fn guest_state(socket: &Path) -> Result<GuestState, QemuError> {
    let status = Session::open(socket).await?.execute("query-status", qmp::query_status {}).await?;
    Ok(if status.running {
        GuestState::Running
    } else {
        GuestState::Stopped(status.status.name().to_owned())
    })
}

/// The machine type, of which QEMU's own names are `microvm-machine` and `pc-q35-7.2-machine`.
pub(super) async fn machine(socket: &Path) -> Result<Machine, QemuError> {
    let ask = qmp::qom_get { path: "/machine".to_owned(), property: "type".to_owned() };
    let name = Session::open(socket).await?.execute("qom-get", ask).await?;
    let machine = name.as_str().and_then(machine_named);
    let unknown = || QemuError::Api { command: "qom-get", reason: format!("a machine of type {name}") };
    machine.ok_or_else(unknown)
}

fn machine_named(name: &str) -> Option<Machine> {
    match name {
        "microvm-machine" => Some(Machine::Microvm),
        name if name.starts_with("pc-q35") => Some(Machine::Q35),
        _ => None,
    }
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
    pub(super) async fn open(socket: &Path) -> Result<Self, QemuError> {
        let failed = |act| move |source| QemuError::Socket { act, path: socket.to_owned(), source };
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
    ) -> Result<C::Ok, QemuError> {
        let answer = self.service.execute(arguments);
        tokio::pin!(answer);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => {
                    return answer.map_err(|error| QemuError::Api { command, reason: error.to_string() });
                }
                event = self.events.next() => note(&mut self.deleted, command, event)?,
            }
        }
    }

    /// Waits until the device with this id, which was told to go, has gone.
    pub(super) async fn deleted(&mut self, id: &str) -> Result<(), QemuError> {
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
) -> Result<(), QemuError> {
    match event {
        Some(Ok(event)) => {
            if let Event::DEVICE_DELETED { data, .. } = event {
                deleted.extend(data.device);
            }
            Ok(())
        }
        Some(Err(error)) => Err(QemuError::Api { command, reason: error.to_string() }),
        None => Err(QemuError::Api { command, reason: "it closed the connection".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_known_by_qemus_names() {
        assert_eq!(machine_named("microvm-machine"), Some(Machine::Microvm));
        assert_eq!(machine_named("pc-q35-7.2-machine"), Some(Machine::Q35));
        assert_eq!(machine_named("pc-i440fx-7.2-machine"), None);
    }
}
