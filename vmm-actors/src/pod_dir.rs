//! Where everything of one pod lies below the runtime directory.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::host::mountinfo;
use crate::id::SandboxId;

/// Most that the files of one pod's directory may take, in bytes: the guest's console and what the helpers print, which
/// a guest can make grow. The kernel sees to it, whether or not the service runs.
pub const LIMIT: u64 = 4 << 20;

/// The runtime directory of one pod, `<run_dir>/s/<id>/`, mode 0700. A tmpfs of [`LIMIT`] bytes; gone after a reboot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodDir(PathBuf);

macro_rules! entries {
    ($($(#[$doc:meta])* $name:ident => $file:literal,)*) => {
        $(
            $(#[$doc])*
            #[must_use]
            pub fn $name(&self) -> PathBuf {
                self.0.join($file)
            }
        )*
    };
}

impl PodDir {
    /// The directory of `id` below `run_dir`. Nothing is created.
    #[must_use]
    pub fn new(run_dir: &Path, id: &SandboxId) -> Self {
        Self(run_dir.join("s").join(id.as_str()))
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The directory of `id`, wherever a runtime directory that was once set may be. That it is a mount tells; where
    /// nothing is mounted for `id`, it is the one below `run_dir`.
    ///
    /// # Errors
    /// What reading the kernel's list of mounts says.
    pub fn find(run_dir: &Path, id: &SandboxId) -> io::Result<Self> {
        let end = Path::new("s").join(id.as_str());
        let found = mountinfo::below(Path::new("/"))?.into_iter().rfind(|point| point.ends_with(&end));
        Ok(found.map_or_else(|| Self::new(run_dir, id), Self))
    }

    /// The runtime directory that it is in.
    #[must_use]
    pub fn run_dir(&self) -> Option<&Path> {
        self.0.parent().and_then(Path::parent)
    }

    entries! {
        /// Task API for containerd, served by the shim proxy.
        task_sock => "task.sock",
        /// Sandboxer to shim proxy.
        shim_sock => "shim.sock",
        /// Hybrid vsock of the VM: `CONNECT <port>` opens a guest port.
        vsock => "vsock.sock",
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
        /// What the shim proxy prints.
        shim_output => "shim.stderr",
        /// The tree that virtiofsd exports.
        shared => "shared",
    }
}
