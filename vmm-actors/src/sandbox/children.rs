//! The actors below one sandbox: begun together, new or with what a previous process left.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr, Recipient};
use bulkhead_config::{ProfileName, Settings};
use bulkhead_protocol::error::chain;
use tracing::{Span, warn};

use super::record::{Phase, Record, Store};
use crate::agent::{self, Agent};
use crate::ask::tell;
use crate::cgroup::Cgroup;
use crate::containers::{self, Containers, ContainersRecord};
use crate::monitor::{self, Monitor};
use crate::mounts::Mounts;
use crate::network::Network;
use crate::record_part::RecordHandle;
use crate::resize;
use crate::shim::{self, Shim, ShimSpec};
use crate::telemetry::Telemetry;
use crate::virtiofsd::{self, Virtiofsd};
use crate::vm::{self, Drivers, Vm};

/// What every sandbox of the process shares.
#[derive(Debug, Clone)]
pub struct NodeContext {
    /// The settings of the node, with all profiles.
    pub settings: Arc<Settings>,
    /// The VMM drivers.
    pub drivers: Drivers,
    /// The records.
    pub store: Store,
    /// Counters and histograms.
    pub telemetry: Telemetry,
}

impl NodeContext {
    /// The settings for VMs of this profile that are launched; those of the default profile if there is none of this name
    /// any more, for which nothing is launched.
    #[must_use]
    pub fn settings_of(&self, profile: &ProfileName) -> &Settings {
        self.settings.profile(profile).unwrap_or(&self.settings)
    }
}

/// Where the children tell what happens to them.
#[derive(Debug, Clone)]
pub(super) struct Parent {
    pub(super) vm: Recipient<vm::VmmExited>,
    pub(super) virtiofsd: Recipient<virtiofsd::VirtiofsdExited>,
    pub(super) shim: Recipient<shim::ShimExited>,
    pub(super) agent: Recipient<agent::AgentSilent>,
    pub(super) oom: Recipient<monitor::Oom>,
    pub(super) pressure: Recipient<monitor::Pressure>,
    pub(super) containers: RecordHandle<ContainersRecord>,
}

/// One of each, alive as long as the sandbox actor.
#[derive(Debug, Clone)]
pub(super) struct Children {
    pub(super) cgroup: Addr<Cgroup>,
    pub(super) monitor: Addr<Monitor>,
    pub(super) network: Addr<Network>,
    pub(super) containers: Addr<Containers>,
    pub(super) mounts: Addr<Mounts>,
    pub(super) virtiofsd: Addr<Virtiofsd>,
    pub(super) vm: Addr<Vm>,
    pub(super) agent: Addr<Agent>,
    pub(super) shim: Addr<Shim>,
}

impl Children {
    /// Children that take over whatever of the record lives, and the names of recorded parts that are gone or cannot be
    /// looked at. Those begin anew; the cgroup still has every process.
    pub(super) fn start(node: &NodeContext, record: &Record, parent: &Parent) -> (Self, Vec<&'static str>) {
        let mut gone = Vec::new();
        let mounts = Mounts::new(record.vm_dir().shared()).start();
        let vm = start_vm(node, record, parent, &mut gone);
        let agent = start_agent(node, record, parent);
        let context = containers::PodContext {
            sandbox: record.id.clone(),
            pod: record.pod.clone(),
            mounts: mounts.clone(),
            vm: vm.clone(),
            agent: agent.clone(),
            record: parent.containers.clone(),
            span: Span::current(),
        };
        let children = Self {
            cgroup: Cgroup::new(record.cgroup.clone()).start(),
            monitor: Monitor::new(record.cgroup.clone(), parent.oom.clone(), parent.pressure.clone()).start(),
            network: Network::new(record.network.clone()).start(),
            containers: Containers::new(context, record.containers.clone()).start(),
            mounts,
            vm,
            virtiofsd: start_virtiofsd(node, record, parent, &mut gone),
            agent,
            shim: start_shim(node, record, parent, &mut gone),
        };
        (children, gone)
    }

    /// Those that are asked when the pod's limits change.
    pub(super) fn of_resize(&self) -> resize::Actors {
        let (vm, agent, cgroup) = (self.vm.clone(), self.agent.clone(), self.cgroup.clone());
        resize::Actors { vm, agent, cgroup }
    }

    /// Has the host's memory watched for the pod, whose cgroup is there.
    pub(super) fn watch_memory(&self) {
        if let Err(refusal) = tell(&self.monitor, monitor::Watch) {
            warn!(%refusal, "the host's memory is not watched for the pod");
        }
    }

    /// The record is durable and says Running: what the children hold outlives them from now on.
    pub(super) fn keep(&self) {
        let told =
            [tell(&self.virtiofsd, virtiofsd::Keep), tell(&self.vm, vm::Keep), tell(&self.shim, shim::Keep)];
        for refusal in told.into_iter().filter_map(Result::err) {
            warn!(%refusal, "a child still holds its guard; it would end the pod with this service");
        }
    }
}

fn start_vm(node: &NodeContext, record: &Record, parent: &Parent, gone: &mut Vec<&'static str>) -> Addr<Vm> {
    let parent = || parent.vm.clone();
    let adopted = record.vm.as_ref().map(|vm| Vm::adopt(vm, node.drivers.of(vm), parent()));
    let hypervisor = node.settings_of(&record.profile).vm.hypervisor;
    let new = || Vm::new(node.drivers.of_profile(&record.profile, hypervisor), parent());
    adopted_or(("the VM", gone), adopted, new).start()
}

fn start_agent(node: &NodeContext, record: &Record, parent: &Parent) -> Addr<Agent> {
    let (dir, parent) = (record.vm_dir(), parent.agent.clone());
    let agent = match record.phase {
        Phase::Running => Agent::adopt(dir, parent),
        Phase::Starting | Phase::Stopped { .. } => {
            let guest = &node.settings_of(&record.profile).guest;
            Agent::new(dir, Duration::from_secs(guest.boot_timeout_secs.get().into()), parent)
        }
    };
    agent.start()
}

fn start_virtiofsd(
    node: &NodeContext,
    record: &Record,
    parent: &Parent,
    gone: &mut Vec<&'static str>,
) -> Addr<Virtiofsd> {
    let parent = || parent.virtiofsd.clone();
    let adopted = record.virtiofsd.as_ref().map(|virtiofsd| Virtiofsd::adopt(virtiofsd, parent()));
    let settings = node.settings_of(&record.profile).virtiofsd.clone();
    adopted_or(("virtiofsd", gone), adopted, || Virtiofsd::new(record.vm_dir(), settings, parent())).start()
}

fn start_shim(
    node: &NodeContext,
    record: &Record,
    parent: &Parent,
    gone: &mut Vec<&'static str>,
) -> Addr<Shim> {
    let parent = || parent.shim.clone();
    let adopted = record.shim.as_ref().map(|shim| Shim::adopt(shim, parent()));
    adopted_or(("the shim proxy", gone), adopted, || {
        let (id, namespace) = (record.id.clone(), record.containerd_namespace.clone());
        Shim::new(ShimSpec::new(id, namespace, record.dir.clone(), &node.settings), parent())
    })
    .start()
}

fn adopted_or<A, E>(
    (what, gone): (&'static str, &mut Vec<&'static str>),
    adopted: Option<Result<Option<A>, E>>,
    new: impl FnOnce() -> A,
) -> A
where
    E: std::error::Error + 'static,
{
    match adopted {
        Some(Ok(Some(actor))) => return actor,
        Some(Ok(None)) => gone.push(what),
        Some(Err(failed)) => {
            warn!(what, error = chain(&failed), "cannot take it over");
            gone.push(what);
        }
        None => {}
    }
    new()
}
