//! One stream of containerd's streaming service, as long as its connection lives (fact 4.6).
//!
//! What is said on it is `google.protobuf.Any` both ways: who receives bytes says first for how many it has room, who
//! sends them stays within that. The messages have one field each, so that the wrapper types of protobuf, which look
//! the same on the wire, serve for them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::wrappers::{BytesValue, Int32Value, StringValue};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use ttrpc::r#async::{SSReceiver, SSSender};

use crate::runtime::lock::locked;

/// `containerd.services.streaming.v1.StreamInit { string id = 1; }`: which stream it is, the first message.
const INIT: &str = "containerd.services.streaming.v1.StreamInit";
/// `containerd.types.transfer.Data { bytes data = 1; }`.
const DATA: &str = "containerd.types.transfer.Data";
/// `containerd.types.transfer.WindowUpdate { int32 update = 1; }`: room for that many bytes more.
const ROOM: &str = "containerd.types.transfer.WindowUpdate";
/// What containerd's own server answers to the first message.
const EMPTY: &str = "google.protobuf.Empty";

/// Most bytes of output in one message. containerd 2.1 counts only what its reader takes of a message at once, which
/// is this much.
const PIECE: usize = 32 * 1024;
/// Room for all that containerd may still want to get rid of when nobody reads any more, in bytes.
const NO_MATTER: i32 = 1 << 30;
/// How long a line that is over takes for what is under way within this process.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// To the process.
    Input,
    /// From the process.
    Output,
}

/// What containerd says on a line.
#[derive(Debug)]
pub(super) enum Heard {
    /// Bytes.
    Data(Vec<u8>),
    /// No more bytes will come.
    End,
}

/// Our end of it, shared by the process's stream and the service.
#[derive(Debug)]
pub(crate) struct Line {
    sender: SSSender<Any>,
    /// Bytes that containerd has room for. Closed when the line is over.
    room: Semaphore,
    grants: mpsc::UnboundedSender<i32>,
    heard: Mutex<Option<mpsc::UnboundedReceiver<Heard>>>,
    hung_up: CancellationToken,
    /// Whether containerd has said its last.
    left: AtomicBool,
}

impl Line {
    /// A line over an open stream; it works while the exchange [runs](Exchange::run).
    pub(crate) fn new(sender: SSSender<Any>) -> (Arc<Self>, Exchange) {
        let (grants, granted) = mpsc::unbounded_channel();
        let (hear, heard) = mpsc::unbounded_channel();
        let line = Self {
            sender,
            room: Semaphore::new(0),
            grants,
            heard: Mutex::new(Some(heard)),
            hung_up: CancellationToken::new(),
            left: AtomicBool::new(false),
        };
        (Arc::new(line), Exchange { granted, hear })
    }

    /// Whether nothing can be said on it any more.
    pub(super) fn is_over(&self) -> bool {
        self.room.is_closed()
    }

    /// Whether containerd has closed its side. 2.1 does no more than that to an output that it does not want.
    pub(super) fn is_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// Ends it: containerd reads an end, or gets rid of what it has.
    pub(super) fn hang_up(&self, role: Option<Role>) {
        // Once: containerd counts room in 32 bits, with a sign.
        if role == Some(Role::Input) && !self.hung_up.is_cancelled() {
            self.grant(NO_MATTER);
        }
        self.hung_up.cancel();
    }

    /// Lets containerd send so many bytes more.
    pub(super) fn grant(&self, bytes: i32) {
        // A line that is over needs no room.
        self.grants.send(bytes).unwrap_or_default();
    }

    /// What containerd says on it. Can be taken once.
    pub(super) fn heard(&self) -> Option<mpsc::UnboundedReceiver<Heard>> {
        locked(&self.heard).take()
    }

    async fn say_room(&self, bytes: i32) {
        let room = Int32Value { value: bytes, ..Default::default() };
        if let Some(message) = pack(ROOM, &room)
            && let Err(error) = self.sender.send(&message).await
        {
            debug!(%error, "nobody hears of room");
        }
    }

    /// Sends the first of `bytes`, as soon as containerd has room for one, and says how many went; none when the line
    /// is over.
    pub(super) async fn send(&self, bytes: &[u8]) -> Option<usize> {
        self.room.acquire().await.ok()?.forget();
        let wanted = bytes.len().min(PIECE);
        let more = self.room.available_permits().min(wanted.saturating_sub(1));
        // One thread runs everything: what is available stays so.
        self.room.try_acquire_many(u32::try_from(more).ok()?).ok()?.forget();
        let (piece, _rest) = bytes.split_at_checked(more + 1)?;
        let data = BytesValue { value: piece.to_vec(), ..Default::default() };
        let sent = self.sender.send(&pack(DATA, &data)?).await;
        if sent.is_err() {
            self.room.close();
        }
        sent.ok().map(|()| piece.len())
    }
}

/// The service's part of a line.
#[derive(Debug)]
pub(crate) struct Exchange {
    granted: mpsc::UnboundedReceiver<i32>,
    hear: mpsc::UnboundedSender<Heard>,
}

impl Exchange {
    /// Works until somebody hangs up or the connection is `lost`; then the line is over.
    pub(crate) async fn run(self, line: &Line, mut receiver: SSReceiver<Any>, lost: &CancellationToken) {
        let Self { mut granted, hear } = self;
        let grant = async {
            while let Some(bytes) = granted.recv().await {
                line.say_room(bytes).await;
            }
        };
        let hung_up = tokio::select! {
            biased;
            () = listen(line, &hear, &mut receiver) => false,
            () = grant => false,
            () = line.hung_up.cancelled() => true,
            () = lost.cancelled() => false,
        };
        if hung_up {
            while let Ok(bytes) = granted.try_recv() {
                drop(timeout(LAST_WORDS, line.say_room(bytes)).await);
            }
        } else {
            // What had come before the loss counts.
            drop(timeout(LAST_WORDS, listen(line, &hear, &mut receiver)).await);
        }
        line.room.close();
    }
}

/// Takes what comes. After the end of it nothing more does, and this waits to be dropped.
async fn listen(line: &Line, hear: &mpsc::UnboundedSender<Heard>, receiver: &mut SSReceiver<Any>) {
    loop {
        match receiver.recv().await {
            Ok(Some(message)) => take(line, hear, &message),
            Ok(None) => {
                line.left.store(true, Ordering::Relaxed);
                // Whoever does not listen knows of an end already.
                hear.send(Heard::End).unwrap_or_default();
            }
            Err(_closed) => return std::future::pending().await,
        }
    }
}

fn take(line: &Line, hear: &mpsc::UnboundedSender<Heard>, message: &Any) {
    match message.type_url.as_str() {
        ROOM => {
            let room = Int32Value::parse_from_bytes(&message.value).map_or(0, |room| room.value);
            line.room.add_permits(usize::try_from(room).unwrap_or_default());
        }
        DATA => {
            if let Ok(data) = BytesValue::parse_from_bytes(&message.value) {
                hear.send(Heard::Data(data.value)).unwrap_or_default();
            }
        }
        other => debug!(message = other, "unknown on a line"),
    }
}

fn pack(type_url: &str, message: &impl Message) -> Option<Any> {
    let value = message.write_to_bytes().ok()?;
    Some(Any { type_url: type_url.to_owned(), value, ..Default::default() })
}

/// Which stream the first message asks for.
pub(crate) fn asked_for(message: &Any) -> Option<String> {
    let id = StringValue::parse_from_bytes(&message.value).ok()?.value;
    (message.type_url == INIT && !id.is_empty()).then_some(id)
}

/// The answer to the first message.
pub(crate) fn ready() -> Any {
    Any { type_url: EMPTY.to_owned(), ..Default::default() }
}
