//! containerd's event service.

use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use containerd_shim_protos::api::{Empty, ForwardRequest};
use containerd_shim_protos::shim_async::{Events, create_events};
use tokio::sync::watch;
use ttrpc::asynchronous::{Server, TtrpcContext};

/// An event as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) namespace: String,
    pub(crate) topic: String,
    pub(crate) type_url: String,
    pub(crate) value: Vec<u8>,
}

/// The service, as the test sees it.
#[derive(Clone)]
pub(crate) struct FakeContainerd {
    events: Arc<Mutex<Vec<Event>>>,
    arrived: watch::Sender<usize>,
    _server: Arc<Mutex<Option<Server>>>,
}

impl FakeContainerd {
    pub(crate) async fn listen(path: &Path) -> Self {
        let it = Self { events: Arc::default(), arrived: watch::Sender::new(0), _server: Arc::default() };
        let address = format!("unix://{}", path.display());
        let service = create_events(Arc::new(it.clone()));
        let mut server = Server::new().bind(&address).unwrap().register_service(service);
        server.start().await.unwrap();
        *it._server.lock().unwrap() = Some(server);
        it
    }

    /// Waits until so many events have arrived, and gives their topics.
    pub(crate) async fn topics(&self, count: usize) -> Vec<String> {
        self.arrived.subscribe().wait_for(|arrived| *arrived >= count).await.unwrap();
        self.events().into_iter().map(|event| event.topic).collect()
    }

    /// What has arrived.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }
}

#[async_trait]
impl Events for FakeContainerd {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap();
        assert!(envelope.timestamp.seconds > 0);
        let event = envelope.event.unwrap();
        self.events.lock().unwrap().push(Event {
            namespace: envelope.namespace,
            topic: envelope.topic,
            type_url: event.type_url,
            value: event.value,
        });
        self.arrived.send_modify(|arrived| *arrived += 1);
        Ok(Empty::new())
    }
}
