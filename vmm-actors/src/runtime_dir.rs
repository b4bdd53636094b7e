//! Where everything of a pod and of a VM lies below the runtime directory. Both are gone after a reboot.

use std::io;
use std::path::{Path, PathBuf};

use bulkhead_protocol::{SHIM_SOCKET, TASK_SOCKET, VSOCK_SOCKET};
use serde::{Deserialize, Serialize};

use crate::host::dir::{BOUNDED, DirError, PrivateDir};
use crate::host::mountinfo;
use crate::id::{SandboxId, VmId};

/// Directory of the pods' directories, below the runtime directory.
pub const PODS: &str = "s";
/// Directory of the VMs' directories, below the runtime directory.
pub const VMS: &str = "vm";

/// Most that the files of one VM's directory may take, in bytes: the guest's console and what the helpers print, which
/// a guest can make grow. The kernel sees to it, whether or not the service runs.
pub const LIMIT: u64 = 4 << 20;

/// The runtime directory of one pod, `<run_dir>/s/<sandbox id>/`, mode 0700: sockets for containerd and of the shim
/// proxy, which bounds what it prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodDir(PathBuf);

/// The runtime directory of one VM, `<run_dir>/vm/<vm id>/`, mode 0700: everything that belongs to the VM, whichever pod
/// it serves. A tmpfs of [`LIMIT`] bytes. Of a pod that a release without VM ids made, it is the pod's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmDir(PathBuf);

macro_rules! entries {
    ($type:ident: $($(#[$doc:meta])* $name:ident => $file:expr,)*) => {
        impl $type {
            /// The directory itself.
            #[must_use]
            pub fn path(&self) -> &Path {
                &self.0
            }

            /// The runtime directory that it is in.
            #[must_use]
            pub fn run_dir(&self) -> Option<&Path> {
                self.0.parent().and_then(Path::parent)
            }

            $(
                $(#[$doc])*
                #[must_use]
                pub fn $name(&self) -> PathBuf {
                    self.0.join($file)
                }
            )*
        }
    };
}

entries! { PodDir:
    /// Task API for containerd, served by the shim proxy.
    task_sock => TASK_SOCKET,
    /// Sandboxer to shim proxy.
    shim_sock => SHIM_SOCKET,
    /// What the shim proxy prints.
    shim_output => "shim.stderr",
}

entries! { VmDir:
    /// Hybrid vsock of the VM: `CONNECT <port>` opens a guest port.
    vsock => VSOCK_SOCKET,
    /// vhost-user socket between VMM and virtiofsd.
    virtiofs_sock => "virtiofs.sock",
    /// The VMM's API.
    vmm_sock => "vmm.sock",
    /// vhost-user socket between VMM and vsock helper.
    vhost_vsock_sock => "vhost.sock",
    /// What the VMM prints.
    vmm_output => "vmm.stderr",
    /// What the vsock helper prints.
    vsock_output => "vsock.stderr",
    /// What the guest prints.
    console => "console.log",
    /// What virtiofsd prints.
    virtiofsd_output => "virtiofsd.stderr",
    /// The tree that virtiofsd exports.
    shared => "shared",
    /// The id of the sandbox that the VM belongs to: for the case that no record says so.
    owner => "owner",
}

impl PodDir {
    /// The directory of `id` below `run_dir`. Nothing is created.
    #[must_use]
    pub fn new(run_dir: &Path, id: &SandboxId) -> Self {
        Self(run_dir.join(PODS).join(id.as_str()))
    }

    /// Makes it.
    ///
    /// # Errors
    /// [`DirError::Create`].
    pub fn create(&self) -> Result<(), DirError> {
        PrivateDir::create(&self.0).map(PrivateDir::keep)
    }
}

impl VmDir {
    /// The directory of `id` below `run_dir`. Nothing is created.
    #[must_use]
    pub fn new(run_dir: &Path, id: &VmId) -> Self {
        Self(run_dir.join(VMS).join(id.as_str()))
    }

    /// The directory of the VM of a pod that a release without VM ids made.
    #[must_use]
    pub fn within(pod: &PodDir) -> Self {
        Self(pod.0.clone())
    }

    /// Makes it, for the VM of this sandbox.
    ///
    /// # Errors
    /// [`DirError`]; nothing is left of it then.
    pub fn create(&self, owner: &SandboxId) -> Result<(), DirError> {
        let made = PrivateDir::create_bounded(&self.0, LIMIT)?;
        let written = std::fs::write(self.owner(), owner.as_str());
        written.map_err(|source| DirError::Create { path: self.owner(), source })?;
        made.keep();
        Ok(())
    }

    /// The directories of the VMs of this sandbox, in whatever runtime directory, for a sandbox without a record.
    ///
    /// # Errors
    /// What reading the kernel's list of mounts says.
    pub fn find(owner: &SandboxId) -> io::Result<Vec<Self>> {
        let all = mountinfo::of_source(BOUNDED)?.into_iter().map(Self);
        let is_owned = |dir: &Self| std::fs::read_to_string(dir.owner()).is_ok_and(|id| id == owner.as_str());
        Ok(all.filter(is_owned).collect())
    }

    /// The directory of this sandbox, if a release without VM ids made it: a mount called after the sandbox.
    ///
    /// # Errors
    /// What reading the kernel's list of mounts says.
    pub fn find_within_pod(owner: &SandboxId) -> io::Result<Option<Self>> {
        let end = Path::new(PODS).join(owner.as_str());
        let found = mountinfo::below(Path::new("/"))?.into_iter().rfind(|point| point.ends_with(&end));
        Ok(found.map(Self))
    }
}
