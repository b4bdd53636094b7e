//! containerd's streaming service, which carries stdio with `io_type = "streaming"` (fact 4.6).
//!
//! containerd opens a connection for each stream, and its version 2.1 never closes one. So a connection that was opened
//! for a stream is closed with it.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use protobuf::well_known_types::any::Any;
use tracing::debug;
use ttrpc::r#async::{SSReceiver, ServerStream, Service, StreamHandler, StreamInner, TtrpcContext};

use super::lifetime::Lifetime;
use crate::stdio::{StreamConnection, StreamRegistry, connection};

/// Name of the service.
const SERVICE: &str = "containerd.services.streaming.v1.Streaming";
/// Its only method.
const METHOD: &str = "Stream";
/// ttrpc's id of the first request of a connection.
const FIRST_REQUEST: u32 = 1;

struct Streaming {
    registry: StreamRegistry,
    lifetime: Lifetime,
}

/// The service for one connection.
pub(crate) fn create(registry: StreamRegistry, lifetime: Lifetime) -> HashMap<String, Service> {
    let handler: Arc<dyn StreamHandler + Send + Sync> = Arc::new(Streaming { registry, lifetime });
    let service = Service { methods: HashMap::new(), streams: HashMap::from([(METHOD.to_owned(), handler)]) };
    HashMap::from([(SERVICE.to_owned(), service)])
}

#[async_trait]
impl StreamHandler for Streaming {
    /// Runs in a task of its own, which ttrpc does not end with the connection.
    async fn handler(
        &self,
        context: TtrpcContext,
        stream: StreamInner,
    ) -> ttrpc::Result<Option<ttrpc::Response>> {
        let (sender, mut receiver) = ServerStream::<Any, Any>::new(stream).split();
        let closed = self.lifetime.closed();
        let first = tokio::select! {
            first = first_message(&mut receiver) => first?,
            () = closed.cancelled() => None,
        };
        if let Some(first) = first {
            let Some(id) = connection::stream_id(&first) else {
                let text = format!("the first message must name a stream, not be a {}", first.type_url);
                return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, text)));
            };
            sender.send(&connection::init_answer()).await?;
            debug!(stream = id, "containerd connects");
            let (connection, exchange) = StreamConnection::new(sender);
            let registration = self.registry.connect(&id, connection);
            exchange.run(receiver, closed, || registration.half_closed()).await;
            registration.disconnect();
            debug!(stream = id, "over");
        }
        if context.mh.stream_id == FIRST_REQUEST {
            self.lifetime.close();
        }
        Ok(None)
    }
}

/// The first message. When a client in Go opens the stream, ttrpc makes an empty message of the request's payload,
/// which is skipped.
async fn first_message(receiver: &mut SSReceiver<Any>) -> ttrpc::Result<Option<Any>> {
    loop {
        match receiver.recv().await? {
            Some(message) if message.type_url.is_empty() => {}
            first => return Ok(first),
        }
    }
}
