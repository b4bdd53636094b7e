//! Events for containerd's subscribers: queued, forwarded in order, never waited for by a Task call.
//!
//! containerd's CRI listens to OOM only; docker, nerdctl and ctr depend on exits (fact 5). Events are not durable:
//! when the queue is full the oldest goes.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::EventsClient;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::warn;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context;

use crate::runtime::clock;
use crate::runtime::lock::locked;

/// Package of every message that is published.
const PACKAGE: &str = "containerd.events.";
/// Events kept while containerd is away.
const CAPACITY: usize = 256;
/// How long containerd may take for one event.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause between attempts while containerd is away, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The queue and where it goes.
#[derive(Debug)]
pub(crate) struct Events {
    namespace: String,
    address: PathBuf,
    queue: Mutex<VecDeque<Envelope>>,
    queued: Notify,
    drained: Notify,
}

impl Events {
    /// A queue to the ttrpc socket at `address`, for a containerd namespace.
    pub(crate) fn new(address: PathBuf, namespace: String) -> Arc<Self> {
        Arc::new(Self {
            namespace,
            address,
            queue: Mutex::default(),
            queued: Notify::new(),
            drained: Notify::new(),
        })
    }

    /// Queues an event.
    pub(crate) fn publish<M: Message>(&self, topic: &str, event: &M) {
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(error) => {
                warn!(topic, %error, "cannot encode an event");
                return;
            }
        };
        // The bare message name: containerd's typeurl knows no prefix (fact 5.3).
        let event = Any { type_url: format!("{PACKAGE}{}", M::NAME), value, ..Default::default() };
        let envelope = Envelope {
            timestamp: Some(clock::timestamp(clock::now_nanos())).into(),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(event).into(),
            ..Default::default()
        };
        let mut queue = locked(&self.queue);
        if queue.len() >= CAPACITY
            && let Some(lost) = queue.pop_front()
        {
            warn!(topic = lost.topic, "containerd takes no events, dropped the oldest");
        }
        queue.push_back(envelope);
        self.queued.notify_one();
    }

    /// Waits until every queued event is with containerd, at most `patience`.
    pub(crate) async fn flush(&self, patience: Duration) {
        let empty = async {
            loop {
                let drained = self.drained.notified();
                if locked(&self.queue).is_empty() {
                    return;
                }
                drained.await;
            }
        };
        // Late is the queue's business, not the caller's.
        drop(timeout(patience, empty).await);
    }

    /// Forwards for ever. A connection lasts as long as there is something to say.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut pause = PAUSES.0;
        loop {
            self.queued.notified().await;
            while !locked(&self.queue).is_empty() {
                match self.forward_all().await {
                    Ok(()) => pause = PAUSES.0,
                    Err(error) => {
                        if pause == PAUSES.1 {
                            warn!(%error, path = %self.address.display(), "containerd takes no events");
                        }
                        // A new event is a reason to try at once: containerd may have come back.
                        drop(timeout(pause, self.queued.notified()).await);
                        pause = (pause * 2).min(PAUSES.1);
                    }
                }
            }
        }
    }

    async fn forward_all(&self) -> ttrpc::Result<()> {
        let stream = UnixStream::connect(&self.address).await;
        let stream = stream.map_err(|error| ttrpc::Error::Socket(error.to_string()))?;
        let client = EventsClient::new(Client::new(Socket::from(stream)));
        loop {
            let Some(envelope) = locked(&self.queue).front().cloned() else {
                self.drained.notify_waiters();
                return Ok(());
            };
            let request = ForwardRequest { envelope: Some(envelope.clone()).into(), ..Default::default() };
            let answer = timeout(PATIENCE, client.forward(context::with_timeout(0), &request)).await;
            match answer {
                Ok(Ok(_)) => {}
                // containerd has heard it and will not like it better a second time.
                Ok(Err(ttrpc::Error::RpcStatus(status))) => {
                    warn!(topic = envelope.topic, error = status.message(), "containerd refused an event");
                }
                Ok(Err(error)) => return Err(error),
                Err(_elapsed) => return Err(ttrpc::Error::Socket("no answer".to_owned())),
            }
            let mut queue = locked(&self.queue);
            // While we waited a full queue may have dropped it already.
            if queue.front() == Some(&envelope) {
                queue.pop_front();
            }
        }
    }
}
