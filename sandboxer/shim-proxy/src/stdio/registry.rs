//! The stream registry brings stream connections and the streams of processes together by containerd's streaming id.
//!
//! containerd connects before we know of the process, and again after its restart. The stream of a process claims its
//! id when the process is created and keeps it until the process is deleted. One task owns the registry.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::connection::{ConnectionHandle, Direction, StreamConnection};
use crate::runtime::owner::{Address, Message};

/// The registry, for everybody but its owner.
#[derive(Debug, Clone)]
pub(crate) struct StreamRegistry(Address<Registry>);

/// Every streaming id that containerd or a process has named.
#[derive(Debug)]
struct Registry {
    entries: HashMap<String, Entry>,
    address: Address<Registry>,
}

#[derive(Debug, Default)]
struct Entry {
    current: Option<Current>,
    /// A connection that no process has claimed yet.
    unclaimed: Option<StreamConnection>,
    claim: Option<ClaimedBy>,
    /// Whether the stream of the process is over: a connection that comes now is closed.
    ended: bool,
}

/// containerd's newest connection.
#[derive(Debug)]
struct Current {
    handle: ConnectionHandle,
    /// Whether containerd has closed its side.
    half_closed: bool,
}

/// The stream of the process.
#[derive(Debug)]
struct ClaimedBy {
    direction: Direction,
    connections: mpsc::UnboundedSender<StreamConnection>,
}

impl Entry {
    fn direction(&self) -> Option<Direction> {
        self.claim.as_ref().map(|claim| claim.direction)
    }

    fn close_current(&self) {
        if let Some(current) = &self.current {
            current.handle.close(self.direction());
        }
    }
}

impl StreamRegistry {
    /// A registry, owned by a new task.
    pub(crate) fn spawn() -> Self {
        let (address, inbox) = Address::new();
        let registry = Registry { entries: HashMap::new(), address: address.clone() };
        tokio::spawn(inbox.serve(registry));
        Self(address)
    }

    /// containerd has connected. An older connection with this id is closed.
    pub(crate) fn connect(&self, id: &str, connection: StreamConnection) -> Registration {
        let registration =
            Registration { registry: self.0.clone(), id: id.to_owned(), handle: connection.handle() };
        self.0.tell(Connect { id: id.to_owned(), connection });
        registration
    }

    /// Claims the id for the stream of a process; none when another one has it.
    pub(crate) async fn claim(&self, id: &str, direction: Direction) -> Option<Claim> {
        self.0.ask(MakeClaim { id: id.to_owned(), direction }).await.ok().flatten()
    }

    /// Whether containerd is connected and still wants the output.
    pub(super) async fn is_wanted(&self, id: &str) -> bool {
        // A registry that does not answer says nothing about containerd.
        self.0.ask(IsWanted(id.to_owned())).await.unwrap_or(true)
    }

    /// How many ids are in use, by containerd or by a process.
    #[cfg(test)]
    pub(crate) async fn len(&self) -> usize {
        self.0.ask(Len).await.unwrap()
    }
}

/// A connection in the registry.
#[derive(Debug)]
pub(crate) struct Registration {
    registry: Address<Registry>,
    id: String,
    handle: ConnectionHandle,
}

impl Registration {
    /// containerd has closed its side.
    pub(crate) fn half_closed(&self) {
        self.registry.tell(HalfClosed { id: self.id.clone(), handle: self.handle.clone() });
    }

    /// The connection is over.
    pub(crate) fn disconnect(self) {
        let Self { registry, id, handle } = self;
        registry.tell(Disconnect { id, handle });
    }
}

/// The id of a process's stream, and the connections that containerd makes with it.
#[derive(Debug)]
pub(crate) struct Claim {
    hold: Arc<Hold>,
    connections: mpsc::UnboundedReceiver<StreamConnection>,
}

/// Keeps a claim until the last clone is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    registry: Address<Registry>,
    id: String,
}

impl Claim {
    /// A further hold on the claim.
    pub(crate) fn hold(&self) -> Arc<Hold> {
        self.hold.clone()
    }

    /// Waits for the next connection that works. Can be dropped while it waits.
    pub(super) async fn next(&mut self) -> StreamConnection {
        loop {
            match self.connections.recv().await {
                Some(connection) if !connection.is_over() => return connection,
                Some(_over) => {}
                // The registry drops its end after the claim.
                None => std::future::pending().await,
            }
        }
    }

    /// The newest connection, if one has come since the last call.
    pub(super) fn newest(&mut self) -> Option<StreamConnection> {
        let mut newest = None;
        while let Ok(connection) = self.connections.try_recv() {
            newest = Some(connection);
        }
        newest
    }

    /// The stream of the process is over: the present connection is closed, and so is every later one.
    pub(super) fn end(&self) {
        self.hold.registry.tell(End(self.hold.id.clone()));
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.registry.tell(Release(std::mem::take(&mut self.id)));
    }
}

struct Connect {
    id: String,
    connection: StreamConnection,
}

impl Message<Registry> for Connect {
    type Answer = ();
    fn handle(self, registry: &mut Registry) {
        let entry = registry.entries.entry(self.id).or_default();
        entry.close_current();
        let handle = self.connection.handle();
        if entry.ended {
            handle.close(entry.direction());
        }
        entry.current = Some(Current { handle, half_closed: false });
        match &entry.claim {
            // A stream that has ended takes no connection.
            Some(claim) => claim.connections.send(self.connection).unwrap_or_default(),
            None => entry.unclaimed = Some(self.connection),
        }
    }
}

struct HalfClosed {
    id: String,
    handle: ConnectionHandle,
}

impl Message<Registry> for HalfClosed {
    type Answer = ();
    fn handle(self, registry: &mut Registry) {
        let current = registry.entries.get_mut(&self.id).and_then(|entry| entry.current.as_mut());
        if let Some(current) = current.filter(|current| current.handle.is_same(&self.handle)) {
            current.half_closed = true;
        }
    }
}

struct Disconnect {
    id: String,
    handle: ConnectionHandle,
}

impl Message<Registry> for Disconnect {
    type Answer = ();
    fn handle(self, registry: &mut Registry) {
        let Place::Occupied(mut place) = registry.entries.entry(self.id) else { return };
        let entry = place.get_mut();
        if !entry.current.as_ref().is_some_and(|current| current.handle.is_same(&self.handle)) {
            return;
        }
        (entry.current, entry.unclaimed) = (None, None);
        if entry.claim.is_none() {
            place.remove();
        }
    }
}

struct MakeClaim {
    id: String,
    direction: Direction,
}

impl Message<Registry> for MakeClaim {
    type Answer = Option<Claim>;
    fn handle(self, registry: &mut Registry) -> Option<Claim> {
        let entry = registry.entries.entry(self.id.clone()).or_default();
        if entry.claim.is_some() {
            return None;
        }
        let (sender, connections) = mpsc::unbounded_channel();
        if let Some(connection) = entry.unclaimed.take() {
            sender.send(connection).unwrap_or_default();
        }
        entry.claim = Some(ClaimedBy { direction: self.direction, connections: sender });
        let hold = Arc::new(Hold { registry: registry.address.clone(), id: self.id });
        Some(Claim { hold, connections })
    }
}

struct End(String);

impl Message<Registry> for End {
    type Answer = ();
    fn handle(self, registry: &mut Registry) {
        if let Some(entry) = registry.entries.get_mut(&self.0) {
            entry.ended = true;
            entry.close_current();
        }
    }
}

/// The process has been deleted.
struct Release(String);

impl Message<Registry> for Release {
    type Answer = ();
    fn handle(self, registry: &mut Registry) {
        if let Some(entry) = registry.entries.remove(&self.0) {
            entry.close_current();
        }
    }
}

struct IsWanted(String);

impl Message<Registry> for IsWanted {
    type Answer = bool;
    fn handle(self, registry: &mut Registry) -> bool {
        let current = registry.entries.get(&self.0).and_then(|entry| entry.current.as_ref());
        current.is_some_and(|current| !current.half_closed && !current.handle.is_over())
    }
}

#[cfg(test)]
struct Len;

#[cfg(test)]
impl Message<Registry> for Len {
    type Answer = usize;
    fn handle(self, registry: &mut Registry) -> usize {
        registry.entries.len()
    }
}
