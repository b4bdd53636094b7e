//! A stream connection: one stream of containerd's streaming service, for as long as its ttrpc connection lives (fact
//! 4.6).
//!
//! Both sides send `google.protobuf.Any`. The receiver of bytes first sends a window update, which says how many bytes
//! the sender may send. The messages have one field each, so the wrapper types of protobuf, which look the same on the
//! wire, stand for them.

use std::sync::Arc;
use std::time::Duration;

use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::wrappers::{BytesValue, Int32Value, StringValue};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use ttrpc::r#async::{SSReceiver, SSSender};

/// `containerd.services.streaming.v1.StreamInit { string id = 1; }`: the first message, which names the stream.
const INIT: &str = "containerd.services.streaming.v1.StreamInit";
/// `containerd.types.transfer.Data { bytes data = 1; }`.
const DATA: &str = "containerd.types.transfer.Data";
/// `containerd.types.transfer.WindowUpdate { int32 update = 1; }`: the sender may send that many bytes more.
const WINDOW_UPDATE: &str = "containerd.types.transfer.WindowUpdate";
/// The answer of containerd's own server to the first message.
const EMPTY: &str = "google.protobuf.Empty";

/// Most bytes of output in one message: containerd 2.1 counts only what its reader takes of a message at once, which is
/// this much.
const MAX_DATA: usize = 32 * 1024;
/// Window for whatever containerd still sends when nobody reads any more, in bytes.
const DISCARD_WINDOW: i32 = 1 << 30;
/// How long a connection that ends may take for messages that are under way within this process.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(100);

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To the process.
    Input,
    /// From the process.
    Output,
}

/// What containerd sends on a stream.
#[derive(Debug)]
pub(super) enum Received {
    /// Bytes.
    Data(Vec<u8>),
    /// No more bytes will come.
    End,
}

#[derive(Debug)]
struct Shared {
    sender: SSSender<Any>,
    /// Bytes that containerd takes. Closed when the connection is over.
    window: Semaphore,
    grants: mpsc::UnboundedSender<i32>,
    closing: CancellationToken,
}

/// The connection, for the stream of the process.
#[derive(Debug)]
pub(crate) struct StreamConnection {
    shared: Arc<Shared>,
    received: mpsc::UnboundedReceiver<Received>,
}

/// The connection, for the registry: to recognise and to close it.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionHandle(Arc<Shared>);

impl StreamConnection {
    /// A connection over an open ttrpc stream; it works while the [`Exchange`] runs.
    pub(crate) fn new(sender: SSSender<Any>) -> (Self, Exchange) {
        let (grants, granted) = mpsc::unbounded_channel();
        let (deliver, received) = mpsc::unbounded_channel();
        let closing = CancellationToken::new();
        let shared = Arc::new(Shared { sender, window: Semaphore::new(0), grants, closing });
        (Self { shared: shared.clone(), received }, Exchange { shared, granted, deliver })
    }

    /// A handle to the same connection.
    pub(super) fn handle(&self) -> ConnectionHandle {
        ConnectionHandle(self.shared.clone())
    }

    /// Whether nothing can be sent on it any more.
    pub(super) fn is_over(&self) -> bool {
        self.shared.window.is_closed()
    }

    /// Lets containerd send that many bytes more.
    pub(super) fn grant(&self, bytes: i32) {
        self.shared.grant(bytes);
    }

    /// What containerd sends next; none when the connection is over. Can be dropped while it waits.
    pub(super) async fn receive(&mut self) -> Option<Received> {
        self.received.recv().await
    }

    /// Sends the first of `bytes`, as soon as containerd takes at least one, and answers how many it sent; none when
    /// the connection is over.
    pub(super) async fn send(&self, bytes: &[u8]) -> Option<usize> {
        let window = &self.shared.window;
        window.acquire().await.ok()?.forget();
        let wanted = bytes.len().min(MAX_DATA);
        let more = window.available_permits().min(wanted.saturating_sub(1));
        // One thread runs everything: the permits are still there.
        window.try_acquire_many(u32::try_from(more).ok()?).ok()?.forget();
        let (piece, _rest) = bytes.split_at_checked(more + 1)?;
        let data = BytesValue { value: piece.to_vec(), ..Default::default() };
        let sent = self.shared.sender.send(&pack(DATA, &data)?).await;
        if sent.is_err() {
            window.close();
        }
        sent.ok().map(|()| piece.len())
    }
}

impl ConnectionHandle {
    /// Whether both handles are for the same connection.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether nothing can be sent on it any more.
    pub(super) fn is_over(&self) -> bool {
        self.0.window.is_closed()
    }

    /// Ends the connection. containerd then reads the end of an output; of an input it may send what it still has,
    /// which is discarded.
    pub(super) fn close(&self, direction: Option<Direction>) {
        // Only once: containerd counts the window in 32 bits with a sign.
        if direction == Some(Direction::Input) && !self.0.closing.is_cancelled() {
            self.0.grant(DISCARD_WINDOW);
        }
        self.0.closing.cancel();
    }
}

impl Shared {
    fn grant(&self, bytes: i32) {
        // A connection that is over needs no window.
        self.grants.send(bytes).unwrap_or_default();
    }

    async fn send_window_update(&self, bytes: i32) {
        let update = Int32Value { value: bytes, ..Default::default() };
        if let Some(message) = pack(WINDOW_UPDATE, &update)
            && let Err(error) = self.sender.send(&message).await
        {
            debug!(%error, "a window update was not sent");
        }
    }
}

/// The service's part of a connection.
#[derive(Debug)]
pub(crate) struct Exchange {
    shared: Arc<Shared>,
    granted: mpsc::UnboundedReceiver<i32>,
    deliver: mpsc::UnboundedSender<Received>,
}

impl Exchange {
    /// Works until the connection is closed by us or `lost`; then it is over. `ended` is called when containerd has
    /// closed its side, which is all that its version 2.1 does to an output that it does not want.
    pub(crate) async fn run(self, mut receiver: SSReceiver<Any>, lost: &CancellationToken, ended: impl Fn()) {
        let Self { shared, mut granted, deliver } = self;
        let grant = async {
            while let Some(bytes) = granted.recv().await {
                shared.send_window_update(bytes).await;
            }
        };
        let closed_by_us = tokio::select! {
            biased;
            () = listen(&shared, &deliver, &mut receiver, &ended) => false,
            () = grant => false,
            () = shared.closing.cancelled() => true,
            () = lost.cancelled() => false,
        };
        if closed_by_us {
            while let Ok(bytes) = granted.try_recv() {
                drop(timeout(DRAIN_TIMEOUT, shared.send_window_update(bytes)).await);
            }
        } else {
            // What had arrived before the loss counts.
            drop(timeout(DRAIN_TIMEOUT, listen(&shared, &deliver, &mut receiver, &ended)).await);
        }
        shared.window.close();
    }
}

/// Takes what arrives. Once nothing more can arrive, this waits to be dropped.
async fn listen(
    shared: &Shared,
    deliver: &mpsc::UnboundedSender<Received>,
    receiver: &mut SSReceiver<Any>,
    ended: &impl Fn(),
) {
    loop {
        match receiver.recv().await {
            Ok(Some(message)) => take(shared, deliver, &message),
            Ok(None) => {
                ended();
                // A stream that has ended does not listen any more.
                deliver.send(Received::End).unwrap_or_default();
            }
            Err(_closed) => return std::future::pending().await,
        }
    }
}

fn take(shared: &Shared, deliver: &mpsc::UnboundedSender<Received>, message: &Any) {
    match message.type_url.as_str() {
        WINDOW_UPDATE => {
            let update = Int32Value::parse_from_bytes(&message.value).map_or(0, |update| update.value);
            shared.window.add_permits(usize::try_from(update).unwrap_or_default());
        }
        DATA => {
            if let Ok(data) = BytesValue::parse_from_bytes(&message.value) {
                deliver.send(Received::Data(data.value)).unwrap_or_default();
            }
        }
        other => debug!(message = other, "unknown message on a stream"),
    }
}

fn pack(type_url: &str, message: &impl Message) -> Option<Any> {
    let value = message.write_to_bytes().ok()?;
    Some(Any { type_url: type_url.to_owned(), value, ..Default::default() })
}

/// The stream that the first message names.
pub(crate) fn stream_id(message: &Any) -> Option<String> {
    let id = StringValue::parse_from_bytes(&message.value).ok()?.value;
    (message.type_url == INIT && !id.is_empty()).then_some(id)
}

/// The answer to the first message.
pub(crate) fn init_answer() -> Any {
    Any { type_url: EMPTY.to_owned(), ..Default::default() }
}
