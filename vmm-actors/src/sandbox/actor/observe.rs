//! What a sandbox tells of itself.

use std::collections::BTreeMap;
use std::fmt;

use actix::{Context, Handler};

use super::Sandbox;
use crate::resize::beyond_the_pod;
use crate::sandbox::lifecycle::state::State;
use crate::sandbox::messages::{Observe, Snapshot};
use crate::sandbox::record::{Nanos, Record};

impl Sandbox {
    pub(super) fn end_time(&self) -> Nanos {
        self.ended_at.unwrap_or_else(Nanos::now)
    }

    pub(super) fn vmm_pid(&self) -> u32 {
        self.record.vm.as_ref().map_or(0, |vm| vm.vmm.pid)
    }

    pub(super) fn address(&self) -> String {
        format!("ttrpc+unix://{}", self.record.dir.task_sock().display())
    }

    fn processes(&self) -> BTreeMap<&'static str, u32> {
        let Record { vm, virtiofsd, shim, .. } = &self.record;
        let helper = vm.as_ref().and_then(|vm| vm.vsock_helper.as_ref());
        let all = [
            ("vmm", vm.as_ref().map(|vm| vm.vmm.pid)),
            ("vsock", helper.map(|helper| helper.pid)),
            ("virtiofsd", virtiofsd.as_ref().map(|virtiofsd| virtiofsd.process.pid)),
            ("shim_proxy", shim.as_ref().map(|shim| shim.process.pid)),
        ];
        all.into_iter().filter_map(|(part, pid)| Some((part, pid?))).collect()
    }

    fn snapshot(&self) -> Snapshot {
        let alive = self.state.cause().is_none();
        let size = self.record.size(&self.node.settings);
        let beyond = beyond_the_pod(&self.record.cgroup, &self.record.pod, size);
        let vmm = self
            .record
            .vm
            .as_ref()
            .map(|vm| format!("{}, {}", self.node.drivers.of(vm).name(vm), vm.acceleration));
        Snapshot {
            id: self.record.id.to_string(),
            ready: self.state == State::Running,
            state: self.state.name(),
            reason: self.state.cause().map(|cause| cause.reason.clone()),
            pid: if alive { self.vmm_pid() } else { 0 },
            processes: if alive { self.processes() } else { BTreeMap::new() },
            created_at: self.record.created_at.into(),
            exited_at: self.ended_at.map(Into::into),
            address: self.address(),
            warnings: beyond.iter().chain(&self.warnings).chain(&self.left).cloned().collect(),
            pod: format!("{}/{}", self.record.pod.namespace, self.record.pod.name),
            profile: self.record.profile.to_string(),
            vmm,
            size,
            containers: self.record.containers.by_id.keys().map(ToString::to_string).collect(),
            steps: self.timeline.steps(),
        }
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sandbox({}, {})", self.record.id, self.state.name())
    }
}

impl Handler<Observe> for Sandbox {
    type Result = Snapshot;

    fn handle(&mut self, _: Observe, _: &mut Context<Self>) -> Snapshot {
        self.snapshot()
    }
}
