//! From a recorded intent to a guest that is set up: one future that only asks the children.
//!
//! Dropping it at any point is safe: whatever a child made stays armed in that child until the sandbox is Running.
//!
//! ```text
//! cgroup ─┬─ shim proxy ────────────────────────────┐
//!         └─ share ── virtiofsd ─┐                  │
//! network ───────────────────────┼─ VMM ── agent ───┴─ attach
//! announcement's listener ───────┘
//! ```

use bulkhead_protocol::FEATURE_MEMORY_VOLUMES;
use bulkhead_protocol::agent::SetupRequest;
use bulkhead_protocol::error::chain;

use super::state::{Cause, Class};
use super::timeline::Timeline;
use crate::ask::{AskError, ask};
use crate::host::dir::DirError;
use crate::host::process::CgroupProcs;
use crate::network::Prepared;
use crate::sandbox::children::{Children, NodeContext};
use crate::sandbox::record::recorder::Recorder;
use crate::sandbox::record::{Nanos, Record, RecordError};
use crate::shim::ShimRecord;
use crate::virtiofsd::VirtiofsdRecord;
use crate::vm::VmRecord;
use crate::{agent, cgroup, mounts, network, shim, virtiofsd, vm};

/// What came up, for the record.
#[derive(Debug, Clone)]
pub(in crate::sandbox) struct BroughtUp {
    pub(in crate::sandbox) vm: VmRecord,
    pub(in crate::sandbox) virtiofsd: VirtiofsdRecord,
    pub(in crate::sandbox) shim: ShimRecord,
    pub(in crate::sandbox) network: network::NetworkRecord,
    /// [`Record::guest_memory_volumes`].
    pub(in crate::sandbox) guest_memory_volumes: bool,
}

/// Which step failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::sandbox) enum BringUpError {
    #[error("cannot record the sandbox")]
    Record(#[source] RecordError),
    #[error("cannot make the pod's directory")]
    Directory(#[source] DirError),
    #[error("cannot make the pod's cgroup")]
    Cgroup(#[source] AskError<cgroup::CgroupError>),
    #[error("cannot connect the pod's network")]
    Network(#[source] AskError<network::NetworkError>),
    #[error("cannot make the pod's share")]
    Mounts(#[source] AskError<mounts::MountsError>),
    #[error("cannot start virtiofsd")]
    Virtiofsd(#[source] AskError<virtiofsd::VirtiofsdError>),
    #[error("cannot start the shim proxy")]
    Shim(#[source] AskError<shim::ShimError>),
    #[error("cannot listen for the guest")]
    Listen(#[source] AskError<agent::AgentError>),
    #[error("cannot boot the VM")]
    Boot(#[source] AskError<vm::VmError>),
    #[error("the guest did not come up")]
    Guest(#[source] AskError<agent::AgentError>),
    #[error("the guest cannot become the pod")]
    Setup(#[source] AskError<agent::AgentError>),
    #[error("the shim proxy cannot reach the guest")]
    Attach(#[source] AskError<shim::ShimError>),
}

impl BringUpError {
    /// As the state machine takes it.
    pub(in crate::sandbox) fn cause(&self) -> Cause {
        Cause { class: self.class(), reason: chain(self) }
    }

    fn class(&self) -> Class {
        match self {
            Self::Network(AskError::Failed(network::NetworkError::Netns(_))) => Class::Invalid,
            Self::Boot(AskError::Failed(error)) if error.is_misconfigured() => Class::Invalid,
            Self::Virtiofsd(AskError::Failed(error)) if error.is_misconfigured() => Class::Invalid,
            Self::Shim(AskError::Failed(error)) if error.is_misconfigured() => Class::Invalid,
            Self::Guest(AskError::Failed(error)) if error.is_timeout() => Class::TimedOut,
            Self::Setup(AskError::Failed(error)) if error.is_refusal() => Class::Invalid,
            Self::Cgroup(AskError::Failed(error)) if error.is_refusal() => Class::Invalid,
            Self::Record(_) => Class::Exhausted,
            Self::Directory(_)
            | Self::Cgroup(_)
            | Self::Network(_)
            | Self::Mounts(_)
            | Self::Virtiofsd(_)
            | Self::Shim(_)
            | Self::Listen(_)
            | Self::Boot(_)
            | Self::Guest(_)
            | Self::Setup(_)
            | Self::Attach(_) => Class::Lost,
        }
    }
}

/// Everything bringing up needs, so that the future borrows nothing of the actor.
pub(in crate::sandbox) struct BringUp {
    pub(in crate::sandbox) node: NodeContext,
    pub(in crate::sandbox) record: Record,
    pub(in crate::sandbox) recorder: Recorder,
    pub(in crate::sandbox) children: Children,
    pub(in crate::sandbox) timeline: Timeline,
}

/// The host's side of a pod, ready for a VMM.
struct HostSide {
    procs: CgroupProcs,
    network: Prepared,
    virtiofsd: VirtiofsdRecord,
    shim: ShimRecord,
}

impl BringUp {
    /// Brings it up; `host_ready` is called when only VMM and guest are left to wait for.
    pub(in crate::sandbox) async fn run(self, host_ready: impl FnOnce()) -> Result<BroughtUp, BringUpError> {
        self.record_intent().await?;
        let HostSide { procs, network, virtiofsd, shim } = self.host_side().await?;
        host_ready();
        let Prepared { links, description, record: network } = network;
        let booted = self.boot(procs, links).await?;
        let guest = self.guest(description).await?;
        self.attach(&booted).await?;
        let guest_memory_volumes = guest.features.iter().any(|feature| feature == FEATURE_MEMORY_VOLUMES);
        Ok(BroughtUp { vm: booted, virtiofsd, shim, network, guest_memory_volumes })
    }

    async fn record_intent(&self) -> Result<(), BringUpError> {
        let saved = self.recorder.save(&self.record);
        self.timeline.step("record the intent", saved).await.map_err(BringUpError::Record)
    }

    /// What does not depend on each other is made at once.
    async fn host_side(&self) -> Result<HostSide, BringUpError> {
        self.make_directories()?;
        let (network, (procs, virtiofsd, shim), ()) =
            tokio::try_join!(self.network(), self.helpers(), self.listen())?;
        Ok(HostSide { procs, network, virtiofsd, shim })
    }

    /// They go with everything else of the sandbox.
    fn make_directories(&self) -> Result<(), BringUpError> {
        let made = self.record.dir.create().and_then(|()| self.record.vm_dir().create(&self.record.id));
        made.map_err(BringUpError::Directory)
    }

    async fn network(&self) -> Result<Prepared, BringUpError> {
        let prepared = ask(&self.children.network, network::Prepare);
        self.timeline.step("network", prepared).await.map_err(BringUpError::Network)
    }

    async fn helpers(&self) -> Result<(CgroupProcs, VirtiofsdRecord, ShimRecord), BringUpError> {
        let (procs, ()) = tokio::try_join!(self.cgroup(), self.share())?;
        let (virtiofsd, shim) = tokio::try_join!(self.virtiofsd(procs.clone()), self.shim(procs.clone()))?;
        Ok((procs, virtiofsd, shim))
    }

    async fn cgroup(&self) -> Result<CgroupProcs, BringUpError> {
        let allotment = self.record.allotment(&self.node.settings);
        let (limits, needed_bytes) = (allotment.host_limits(), allotment.needed_bytes());
        let created = ask(&self.children.cgroup, cgroup::Create { limits, needed_bytes });
        let procs = self.timeline.step("cgroup", created).await.map_err(BringUpError::Cgroup)?;
        self.children.watch_memory();
        Ok(procs)
    }

    async fn share(&self) -> Result<(), BringUpError> {
        let opened = ask(&self.children.mounts, mounts::Open);
        self.timeline.step("share", opened).await.map_err(BringUpError::Mounts)
    }

    async fn virtiofsd(&self, cgroup: CgroupProcs) -> Result<VirtiofsdRecord, BringUpError> {
        let spawned = ask(&self.children.virtiofsd, virtiofsd::Spawn { cgroup: Some(cgroup) });
        self.timeline.step("virtiofsd", spawned).await.map_err(BringUpError::Virtiofsd)
    }

    async fn shim(&self, cgroup: CgroupProcs) -> Result<ShimRecord, BringUpError> {
        let spawned = ask(&self.children.shim, shim::Spawn { cgroup: Some(cgroup) });
        self.timeline.step("shim proxy", spawned).await.map_err(BringUpError::Shim)
    }

    /// The guest's announcement must find somebody: a dial without a listener costs it two seconds.
    async fn listen(&self) -> Result<(), BringUpError> {
        let listening = ask(&self.children.agent, agent::Listen);
        self.timeline.step("listen for the guest", listening).await.map_err(BringUpError::Listen)
    }

    async fn boot(
        &self,
        procs: CgroupProcs,
        links: Vec<network::PreparedLink>,
    ) -> Result<VmRecord, BringUpError> {
        let settings = self.node.settings_of(&self.record.profile);
        let mut spec = vm::LaunchSpec::new(self.record.vm_dir(), settings);
        spec.size = self.record.size(&self.node.settings);
        spec.cgroup = Some(procs);
        spec.nics = links.into_iter().map(nic).collect();
        let booted = ask(&self.children.vm, vm::Boot { spec: Box::new(spec) });
        let booted = self.timeline.step("launch the VMM", booted).await.map_err(BringUpError::Boot)?;
        Ok(booted.record)
    }

    async fn guest(&self, network: network::PodNetwork) -> Result<agent::Guest, BringUpError> {
        let announced = ask(&self.children.agent, agent::AwaitGuest);
        let guest = self.timeline.step("boot the guest", announced).await.map_err(BringUpError::Guest)?;
        let request = Box::new(self.setup_request(network));
        let set_up = ask(&self.children.agent, agent::Setup { request });
        self.timeline.step("set up the guest", set_up).await.map_err(BringUpError::Setup)?;
        Ok(guest)
    }

    async fn attach(&self, vm: &VmRecord) -> Result<(), BringUpError> {
        let (vmm, vsock, netns) = (vm.vmm.clone(), vm.dir.vsock(), self.record.netns.clone());
        let attached = ask(&self.children.shim, shim::Attach { vmm, vsock, netns });
        self.timeline.step("attach the shim proxy", attached).await.map_err(BringUpError::Attach)
    }

    fn setup_request(&self, network: network::PodNetwork) -> SetupRequest {
        let pod = &self.record.pod;
        let addresses = network.addresses();
        let network::PodNetwork { interfaces, routes, neighbours, loopback_addresses, rules, sysctls } =
            network;
        SetupRequest {
            sandbox_id: self.record.id.to_string(),
            hostname: pod.hostname.clone(),
            resolv_conf: pod.resolv_conf.clone(),
            hosts: pod.hosts(&addresses),
            interfaces,
            routes,
            neighbours,
            loopback_addresses,
            rules,
            network_sysctls: sysctls,
            sysctls: pod.sysctls.clone().into_iter().collect(),
            host_time_nanos: Nanos::now().0,
            shared_pid_namespace: pod.shared_pid_namespace,
            share_tag: bulkhead_protocol::SHARE_TAG.to_owned(),
            ..SetupRequest::default()
        }
    }
}

fn nic(link: network::PreparedLink) -> vm::Nic {
    let network::PreparedLink { tap, mac, mtu, .. } = link;
    let [a, b, c, d, e, f] = mac;
    vm::Nic { tap, mac: format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"), mtu }
}
