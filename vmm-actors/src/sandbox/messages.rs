//! What a sandbox hears.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use actix::Message;
use serde::Serialize;

use super::error::SandboxError;
use super::lifecycle::state::Event;
use super::lifecycle::timeline::StepTime;
use crate::ask::Command;
use crate::containers::{ContainerError, ContainerRequest, PreparedContainer};
use crate::pod_spec::Resources;
use crate::vm::Size;

/// Start the sandbox; answered when its guest is set up and its record says Running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start;

impl Command for Start {
    type Answer = Started;
    type Error = SandboxError;
}

/// A started sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Pid of the VMM on the host.
    pub pid: u32,
    /// When Create came.
    pub created_at: SystemTime,
    /// Where the Task API is served, as containerd spells it.
    pub address: String,
}

/// End the VM and release everything; answered when that is done. Repeats join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop;

impl Command for Stop {
    type Answer = ();
    type Error = SandboxError;
}

/// Stop, then forget the sandbox; answered when nothing is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shutdown;

impl Command for Shutdown {
    type Answer = ();
    type Error = SandboxError;
}

/// Answered when the sandbox has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait;

impl Command for Wait {
    type Answer = Exited;
    type Error = SandboxError;
}

/// How a sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exited {
    /// 0 when it was stopped, 137 when it was lost.
    pub status: u32,
    /// When.
    pub at: SystemTime,
}

/// The caller of Create or Start went away before it was answered.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Abandon;

/// containerd's store does not know this sandbox.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Orphan;

/// What is there to see, answered at once.
#[derive(Debug, Message)]
#[rtype(result = "Snapshot")]
pub struct Observe;

/// A sandbox at one moment.
#[derive(Debug, Clone, Serialize, actix::dev::MessageResponse)]
pub struct Snapshot {
    /// The sandbox.
    pub id: String,
    /// It runs, and Start was answered.
    pub ready: bool,
    /// Name of its state.
    pub state: &'static str,
    /// Why it ended, where it did.
    pub reason: Option<String>,
    /// Pid of the VMM; 0 when there is none.
    pub pid: u32,
    /// Its processes on the host by what they are, as long as they may live.
    pub processes: BTreeMap<&'static str, u32>,
    /// When Create came.
    pub created_at: SystemTime,
    /// When it ended.
    pub exited_at: Option<SystemTime>,
    /// Where the Task API is served.
    pub address: String,
    /// What an operator should know, for example that the VM is emulated.
    pub warnings: Vec<String>,
    /// Kubernetes name and namespace of the pod.
    pub pod: String,
    /// The profile that it was made by.
    pub profile: String,
    /// The VMM driver and how guest instructions run.
    pub vmm: Option<String>,
    /// Processors and memory of the VM.
    pub size: Size,
    /// Containers with mounts.
    pub containers: Vec<String>,
    /// How long each step of coming up took, in the order of their ends.
    pub steps: Vec<StepTime>,
}

/// Make what a container needs; answered with what the guest must know. A repeat joins the first or gets its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrepareContainer {
    /// What.
    pub request: ContainerRequest,
}

impl Command for PrepareContainer {
    type Answer = PreparedContainer;
    type Error = ContainerError;
}

/// Read the pod's figures on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metrics;

impl Command for Metrics {
    type Answer = PodMetrics;
    type Error = SandboxError;
}

/// The pod's figures as the host sees them.
#[derive(Debug, Clone)]
pub struct PodMetrics {
    /// CPU, memory and pids of VMM and helpers.
    pub cgroup: crate::cgroup::PodStats,
    /// Counters of the pod's links, from the pod's view.
    pub network: Vec<crate::network::LinkStats>,
    /// How long ago the guest answered last, or was taken over.
    pub guest_heard: Option<Duration>,
}

/// Give the pod other limits. What is not set keeps what it is; a VM that has to grow does, or nothing is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// Sum of what the pod's containers may use.
    pub resources: Resources,
    /// What the sandbox itself may use beside them.
    pub overhead: Resources,
}

impl Command for Update {
    /// The answer.
    type Answer = ();
    type Error = SandboxError;
}

/// From the actor's own futures: an event of the state machine.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Happened(pub(super) Event);

/// How long a sandbox may wait for Start. containerd may pull a pause image between Create and Start (2.3 does).
pub(super) const START_OVERDUE: Duration = Duration::from_secs(5 * 60);
