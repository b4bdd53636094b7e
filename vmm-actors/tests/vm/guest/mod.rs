//! A real guest, spoken to as sandboxer and shim proxy do.

pub(crate) mod container;
pub(crate) mod stream;

use std::path::PathBuf;
use std::time::Duration;

use bulkhead_config::Machine;
use bulkhead_protocol::agent::SetupRequest;
use bulkhead_protocol::agent_ttrpc::AgentClient;
use bulkhead_protocol::hybrid_vsock::dial;
use bulkhead_protocol::{AGENT_PORT, SHARE_TAG, version};
use tokio::net::UnixStream;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context;
use vmm_actors::agent::AwaitGuest;
use vmm_actors::ask::ask;

use crate::rig::Rig;

/// How long a guest may take to accept: as long as a slow machine needs.
const DIAL_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest end of a guest that is no failure.
const END_LIMIT: Duration = Duration::from_secs(30);

/// A running guest with a session of its own to the agent; both end with the value.
pub(crate) struct Guest {
    pub(crate) agent: AgentClient,
    rig: Rig,
}

impl Guest {
    /// Boots it and makes it a pod with a share and the host's time; `None` where something is missing, said aloud.
    pub(crate) async fn pod(machine: Machine) -> Option<Self> {
        let mut rig = Rig::new(machine)?;
        rig.boot().await;
        ask(&rig.agent, AwaitGuest).await.unwrap();
        let agent = dial(&rig.dir.vsock(), AGENT_PORT, DIAL_TIMEOUT).await.unwrap();
        let agent = AgentClient::new(Client::new(Socket::new(agent)));
        let hello = agent.hello(soon(), &version::agent_hello("test")).await.unwrap();
        assert_eq!(hello.version, version::MAX_VERSION);
        agent.setup(soon(), &setup()).await.unwrap();
        Some(Self { agent, rig })
    }

    /// A connection to a vsock port of the guest.
    pub(crate) async fn connect(&self, port: u32) -> UnixStream {
        dial(&self.rig.dir.vsock(), port, DIAL_TIMEOUT).await.unwrap()
    }

    /// Waits until the VMM has ended by itself; nothing of it may be left.
    pub(crate) async fn ended(mut self) {
        let exited = tokio::time::timeout(END_LIMIT, self.rig.vmm_exited.recv()).await;
        exited.expect("the VM ends").expect("the end is told");
        self.rig.virtiofsd_exited.recv().await.expect("so does its file server");
        self.rig.assert_nothing_runs();
    }

    pub(crate) fn share(&self) -> PathBuf {
        self.rig.dir.shared()
    }
}

/// A deadline that only a hang misses.
pub(crate) fn soon() -> context::Context {
    context::with_duration(Duration::from_secs(60))
}

pub(crate) fn setup() -> SetupRequest {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    SetupRequest {
        sandbox_id: "pod-1".into(),
        hostname: "web-0".into(),
        resolv_conf: "nameserver 10.96.0.10\n".into(),
        host_time_nanos: i64::try_from(now.as_nanos()).unwrap(),
        share_tag: SHARE_TAG.into(),
        ..Default::default()
    }
}
