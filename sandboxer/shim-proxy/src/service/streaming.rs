//! containerd's streaming service, by which it carries stdio with `io_type = "streaming"` (fact 4.6).
//!
//! containerd opens a connection for each stream, and its 2.1 never closes one; so a connection that was opened for a
//! stream ends with it.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use protobuf::well_known_types::any::Any;
use tracing::debug;
use ttrpc::r#async::{SSReceiver, ServerStream, Service, StreamHandler, StreamInner, TtrpcContext};

use crate::service::connections::Call;
use crate::stdio::{Line, Switchboard, connection};

/// Its name.
const SERVICE: &str = "containerd.services.streaming.v1.Streaming";
/// Its only method.
const METHOD: &str = "Stream";
/// ttrpc's id of the first request of a connection.
const FIRST: u32 = 1;

struct Streaming {
    switchboard: Arc<Switchboard>,
    call: Call,
}

/// The service for one connection.
pub(crate) fn create(switchboard: Arc<Switchboard>, call: Call) -> HashMap<String, Service> {
    let handler: Arc<dyn StreamHandler + Send + Sync> = Arc::new(Streaming { switchboard, call });
    let service = Service { methods: HashMap::new(), streams: HashMap::from([(METHOD.to_owned(), handler)]) };
    HashMap::from([(SERVICE.to_owned(), service)])
}

#[async_trait]
impl StreamHandler for Streaming {
    /// A task of its own, which ttrpc does not end with the connection.
    async fn handler(
        &self,
        context: TtrpcContext,
        stream: StreamInner,
    ) -> ttrpc::Result<Option<ttrpc::Response>> {
        let (sender, mut receiver) = ServerStream::<Any, Any>::new(stream).split();
        let first = tokio::select! {
            first = first(&mut receiver) => first?,
            () = self.call.lost() => None,
        };
        if let Some(first) = first {
            let Some(id) = connection::asked_for(&first) else {
                let text = format!("the first message must name a stream, not be a {}", first.type_url);
                return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, text)));
            };
            sender.send(&connection::ready()).await?;
            debug!(stream = id, "containerd connects");
            let (line, exchange) = Line::new(sender);
            self.switchboard.connect(&id, line.clone());
            exchange.run(&line, receiver, self.call.loss()).await;
            self.switchboard.disconnect(&id, &line);
            debug!(stream = id, "over");
        }
        if context.mh.stream_id == FIRST {
            self.call.hang_up();
        }
        Ok(None)
    }
}

/// The first message. ttrpc makes one of the request's payload when a client in Go opens the stream; it is empty.
async fn first(receiver: &mut SSReceiver<Any>) -> ttrpc::Result<Option<Any>> {
    loop {
        match receiver.recv().await? {
            Some(message) if message.type_url.is_empty() => {}
            first => return Ok(first),
        }
    }
}
