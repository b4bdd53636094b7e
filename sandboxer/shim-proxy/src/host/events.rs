//! Events for containerd's subscribers. A Task call only queues its event; one task forwards the queue in order.
//!
//! containerd's CRI plugin listens to OOM events only; docker, nerdctl and ctr depend on exits (fact 5). Events are not
//! durable: when the queue is full, the oldest event is dropped.

use std::collections::VecDeque;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::EventsClient;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::warn;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context;

use crate::runtime::backoff::Backoff;
use crate::runtime::clock;

/// Package of every event message.
const PACKAGE: &str = "containerd.events.";
/// Most events that are kept while containerd is away.
const CAPACITY: usize = 256;
/// How long containerd may take for one event.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Pauses between attempts while containerd is away.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// Where events are published. Its clones reach the same queue.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    namespace: Arc<str>,
    orders: mpsc::UnboundedSender<Order>,
}

/// What the forwarder is told.
#[derive(Debug)]
enum Order {
    Publish(Envelope),
    /// Answer once the queue is empty.
    Flush(oneshot::Sender<()>),
}

/// The queue, owned by the task that forwards it.
#[derive(Debug)]
pub(crate) struct Forwarder {
    address: PathBuf,
    orders: mpsc::UnboundedReceiver<Order>,
    queue: VecDeque<Envelope>,
    flushes: Vec<oneshot::Sender<()>>,
    /// Whether an event has come since the last pause.
    has_news: bool,
}

impl Events {
    /// A queue for a containerd namespace, and the task's part, which forwards to the ttrpc socket at `address`.
    pub(crate) fn new(address: PathBuf, namespace: &str) -> (Self, Forwarder) {
        let (sender, orders) = mpsc::unbounded_channel();
        let forwarder =
            Forwarder { address, orders, queue: VecDeque::new(), flushes: Vec::new(), has_news: false };
        (Self { namespace: namespace.into(), orders: sender }, forwarder)
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
            namespace: self.namespace.to_string(),
            topic: topic.to_owned(),
            event: Some(event).into(),
            ..Default::default()
        };
        // The forwarder ends with the process.
        self.orders.send(Order::Publish(envelope)).unwrap_or_default();
    }

    /// Waits until containerd has every queued event, for at most `limit`.
    pub(crate) async fn flush(&self, limit: Duration) {
        let (done, flushed) = oneshot::channel();
        self.orders.send(Order::Flush(done)).unwrap_or_default();
        // Events that are late stay queued.
        drop(timeout(limit, flushed).await);
    }
}

impl Forwarder {
    /// Forwards events as long as there is somebody to publish them. A connection lasts until the queue is empty.
    pub(crate) async fn run(mut self) {
        let mut pauses = PAUSES;
        while let Some(order) = self.orders.recv().await {
            self.take(order);
            self.has_news = false;
            while !self.queue.is_empty() {
                match self.forward_all().await {
                    Ok(()) => pauses.reset(),
                    Err(error) => {
                        if pauses.is_exhausted() {
                            warn!(%error, path = %self.address.display(), "containerd takes no events");
                        }
                        self.pause(pauses.pause()).await;
                    }
                }
            }
            for flush in self.flushes.drain(..) {
                // The caller may have stopped waiting.
                flush.send(()).unwrap_or_default();
            }
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Flush(done) => self.flushes.push(done),
            Order::Publish(envelope) => {
                if self.queue.len() >= CAPACITY
                    && let Some(lost) = self.queue.pop_front()
                {
                    warn!(topic = lost.topic, "containerd takes no events, dropped the oldest");
                }
                self.queue.push_back(envelope);
                self.has_news = true;
            }
        }
    }

    /// Pauses until the next attempt. A new event ends the pause: containerd may have come back.
    async fn pause(&mut self, pause: Duration) {
        let until = Instant::now() + pause;
        while !std::mem::take(&mut self.has_news) {
            match timeout_at(until, self.orders.recv()).await {
                Ok(Some(order)) => self.take(order),
                Ok(None) => return sleep_until(until).await,
                Err(_elapsed) => return,
            }
        }
    }

    async fn forward_all(&mut self) -> ttrpc::Result<()> {
        let stream = UnixStream::connect(&self.address).await;
        let stream = stream.map_err(|error| ttrpc::Error::Socket(error.to_string()))?;
        let client = EventsClient::new(Client::new(Socket::from(stream)));
        while let Some(envelope) = self.queue.front().cloned() {
            let request = ForwardRequest { envelope: Some(envelope.clone()).into(), ..Default::default() };
            let call = timeout(TIMEOUT, client.forward(context::with_timeout(0), &request));
            match self.while_taking_orders(call).await {
                Ok(Ok(_)) => {}
                // containerd has received it and would refuse it again.
                Ok(Err(ttrpc::Error::RpcStatus(status))) => {
                    warn!(topic = envelope.topic, error = status.message(), "containerd refused an event");
                }
                Ok(Err(error)) => return Err(error),
                Err(_elapsed) => return Err(ttrpc::Error::Socket("no answer".to_owned())),
            }
            // While we waited a full queue may have dropped it already.
            if self.queue.front() == Some(&envelope) {
                self.queue.pop_front();
            }
        }
        Ok(())
    }

    /// Does the work, and queues what is published meanwhile.
    async fn while_taking_orders<F: Future>(&mut self, work: F) -> F::Output {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                Some(order) = self.orders.recv() => self.take(order),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::events::task::TaskOOM;

    use super::*;

    fn publish(events: &Events, number: usize) {
        let event = TaskOOM { container_id: number.to_string(), ..Default::default() };
        events.publish("/tasks/oom", &event);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_drops_the_oldest_events() {
        let (events, mut forwarder) = Events::new("/nonexistent".into(), "k8s.io");
        for number in 0..CAPACITY + 3 {
            publish(&events, number);
        }
        while let Ok(order) = forwarder.orders.try_recv() {
            forwarder.take(order);
        }
        assert_eq!(forwarder.queue.len(), CAPACITY);
        let oldest = TaskOOM::parse_from_bytes(&forwarder.queue[0].event.value).unwrap();
        assert_eq!(oldest.container_id, "3");
    }

    #[tokio::test(start_paused = true)]
    async fn flush_ends_at_its_limit_when_containerd_is_away_and_at_once_when_nothing_is_queued() {
        let (events, forwarder) = Events::new("/nonexistent".into(), "k8s.io");
        tokio::spawn(forwarder.run());
        let started = Instant::now();
        events.flush(Duration::from_secs(9)).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
        publish(&events, 1);
        events.flush(Duration::from_secs(9)).await;
        assert_eq!(started.elapsed(), Duration::from_secs(9));
    }
}
