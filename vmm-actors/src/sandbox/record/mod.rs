//! The durable form of a sandbox.

pub(super) mod recorder;
mod request;
mod store;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use bulkhead_config::{ProfileName, Settings, WithoutOverhead};
use serde::{Deserialize, Serialize};

pub use request::CreateSandbox;
pub use store::{Broken, Found, Store};

pub use crate::record_part::RecordError;

use crate::cause::{Cause, Class};
use crate::cgroup::{self, CgroupError, CgroupRecord, Limits};
use crate::containers::ContainersRecord;
use crate::host::process::boot_id;
use crate::id::{ContainerdNamespace, SandboxId, VmId};
use crate::network::{self, NetworkRecord};
use crate::pod_spec::PodSpec;
use crate::resize::{Allotment, Basis, size_of};
use crate::runtime_dir::{PodDir, VmDir};
use crate::shim::ShimRecord;
use crate::virtiofsd::VirtiofsdRecord;
use crate::vm::{Size, VmRecord};

/// Everything a successor needs to finish or to adopt a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The sandbox.
    pub id: SandboxId,
    /// containerd's namespace that it belongs to; CRI's in records of releases that knew no other.
    #[serde(default)]
    pub containerd_namespace: ContainerdNamespace,
    /// The profile that it was made by; the default one in records of releases that had no other. What a running sandbox
    /// needs of the profile's settings is in this record.
    #[serde(default)]
    pub profile: ProfileName,
    /// The Controller socket of that profile, where containerd asks for the sandbox; none in records of releases that did
    /// not write it.
    #[serde(default)]
    pub controller: Option<PathBuf>,
    /// How far it got.
    pub phase: Phase,
    /// `/proc/sys/kernel/random/boot_id` of the boot it was made in.
    pub boot_id: String,
    /// When Create came.
    pub created_at: Nanos,
    /// What the pod asks for.
    pub pod: PodSpec,
    /// The pod's network namespace as containerd named it.
    pub netns: PathBuf,
    /// The pod's runtime directory.
    pub dir: PodDir,
    /// The runtime directory of its VM. None in records of releases that had both in one: [`Record::vm_dir`] knows.
    #[serde(default)]
    pub vm_dir: Option<VmDir>,
    /// Its host cgroup: planned before it exists.
    pub cgroup: CgroupRecord,
    /// Its taps and redirects: planned before they exist.
    pub network: NetworkRecord,
    /// The VMM, once launched.
    pub vm: Option<VmRecord>,
    /// The size that the VM was given; none in records of releases that did not write it.
    #[serde(default)]
    pub size: Option<Size>,
    /// What the settings said of sizes when it was made; none in records of releases that did not write it.
    #[serde(default)]
    pub basis: Option<Basis>,
    /// The file server, once started.
    pub virtiofsd: Option<VirtiofsdRecord>,
    /// The shim proxy, once started.
    pub shim: Option<ShimRecord>,
    /// Its volumes in memory are tmpfs of the guest, whose agent can make them. Not so in records of releases that shared
    /// the node's with it.
    #[serde(default)]
    pub guest_memory_volumes: bool,
    /// Its containers, and what is attached to the VM for them.
    #[serde(flatten)]
    pub containers: ContainersRecord,
}

impl Record {
    /// The intent: written before the first effect.
    ///
    /// # Errors
    /// [`IntendError`] when there is no such profile, the pod's cgroup parent cannot be one, or no id can be made.
    pub fn intend(request: CreateSandbox, settings: &Settings) -> Result<Self, IntendError> {
        let CreateSandbox { id, containerd_namespace, profile, netns, pod } = request;
        let Some(settings) = settings.profile(&profile) else {
            return Err(IntendError::UnknownProfile(profile));
        };
        let size = size_of(&pod.resources, Basis::from(&settings.vm));
        Ok(Self {
            phase: Phase::Starting,
            // Without /proc nothing of a sandbox can be made; the bring-up says so better than this could.
            boot_id: boot_id().unwrap_or_default(),
            created_at: Nanos::now(),
            dir: PodDir::new(&settings.sandboxer.run_dir, &id),
            vm_dir: Some(VmDir::new(&settings.sandboxer.run_dir, &VmId::random()?)),
            cgroup: plan_cgroup(&pod, settings, &id, size)?,
            network: network::plan(&netns),
            netns,
            size: Some(size),
            basis: Some(Basis::from(&settings.vm)),
            pod,
            vm: None,
            virtiofsd: None,
            shim: None,
            guest_memory_volumes: false,
            containers: ContainersRecord::default(),
            controller: Some(settings.sandboxer.listen.clone()),
            profile,
            containerd_namespace,
            id,
        })
    }

    /// The runtime directory of the pod's VM.
    #[must_use]
    pub fn vm_dir(&self) -> VmDir {
        self.vm_dir.clone().unwrap_or_else(|| VmDir::within(&self.dir))
    }

    /// The size of the pod's VM.
    pub(crate) fn size(&self, settings: &Settings) -> Size {
        self.size.unwrap_or_else(|| size_of(&self.pod.resources, self.basis(settings)))
    }

    /// What the sizes of its VM are reckoned from, now and after any update.
    pub(crate) fn basis(&self, settings: &Settings) -> Basis {
        let now = Basis::from(&settings.vm);
        let guess = || self.size.map_or(now, |size| now.within(size, &self.pod.resources));
        self.basis.unwrap_or_else(guess)
    }

    /// What the pod is given of its host.
    pub(crate) fn allotment(&self, settings: &Settings) -> Allotment {
        Allotment {
            resources: self.pod.resources.clone(),
            overhead: self.pod.overhead.clone(),
            basis: self.basis(settings),
            size: self.size(settings),
            outside: self.cgroup.outside,
            has_parent: !self.pod.cgroup_parent.is_empty(),
        }
    }

    /// The pod is given something else of the host.
    pub(crate) fn allot(&mut self, allotment: Allotment) {
        let Allotment { resources, overhead, basis, size, outside: _, has_parent: _ } = allotment;
        self.pod.resources = resources;
        self.pod.overhead = overhead;
        self.basis = Some(basis);
        self.size = Some(size);
    }
}

/// Why not even the intent of a sandbox can be written.
#[derive(Debug, thiserror::Error)]
pub enum IntendError {
    /// The settings have changed since the profile's socket was made.
    #[error(
        "there is no profile {0} in the settings any more; add [profile.{0}] and restart bulkhead-sandboxer, or give the \
         pod another RuntimeClass"
    )]
    UnknownProfile(ProfileName),
    /// The pod's cgroup parent cannot be one.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The kernel gives no random numbers.
    #[error("cannot make an id for the VM")]
    VmId(#[from] std::io::Error),
}

impl IntendError {
    /// As the state machine takes it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::UnknownProfile(_) | Self::Cgroup(_) => Class::Invalid,
            Self::VmId(_) => Class::Lost,
        }
    }
}

/// Where VMM and helpers of a pod go: into the pod's own cgroup, or beside it where that has no room for a VM and
/// nobody has said how much a VM takes.
fn plan_cgroup(
    pod: &PodSpec,
    settings: &Settings,
    id: &SandboxId,
    size: Size,
) -> Result<CgroupRecord, CgroupError> {
    let default_parent = &settings.cgroup.default_parent;
    let inside = cgroup::plan(&pod.cgroup_parent, default_parent, id)?;
    let may_leave = settings.cgroup.without_overhead == WithoutOverhead::Outside
        && pod.overhead.memory_limit_bytes <= 0
        && !pod.cgroup_parent.is_empty();
    if may_leave && cgroup::check_room(&inside, Limits::needed_bytes(size.memory_bytes()), None).is_err() {
        return cgroup::plan_outside(&pod.cgroup_parent, default_parent, id);
    }
    Ok(inside)
}

/// How far a sandbox got, as far as a successor must know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Start has not been answered: containerd will not remember it.
    Starting,
    /// Start was, or may have been, answered.
    Running,
    /// Everything is released, or was tried to be.
    Stopped {
        /// Why.
        cause: Cause,
        /// When.
        at: Nanos,
    },
}

/// A point in time, nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nanos(pub i64);

impl Nanos {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        Self::from(SystemTime::now())
    }
}

impl From<SystemTime> for Nanos {
    fn from(time: SystemTime) -> Self {
        let nanos = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        Self(i64::try_from(nanos).unwrap_or(i64::MAX))
    }
}

impl From<Nanos> for SystemTime {
    fn from(nanos: Nanos) -> Self {
        UNIX_EPOCH + std::time::Duration::from_nanos(nanos.0.unsigned_abs())
    }
}

#[cfg(test)]
pub(super) use store::tests;
