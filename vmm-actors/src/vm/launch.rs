//! What a driver is told to start.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use bulkhead_config::Settings;

use super::Size;
use crate::host::process::CgroupProcs;
use crate::runtime_dir::VmDir;

/// One VM to start. Nothing in it depends on the driver.
#[derive(Debug)]
pub struct LaunchSpec {
    /// Where the VM's sockets and output files go. Must exist.
    pub dir: VmDir,
    /// Uncompressed kernel with a PVH entry.
    pub kernel: PathBuf,
    /// Initial root image.
    pub image: PathBuf,
    /// Kernel command line of the guest; the driver adds what its machine needs.
    pub cmdline: String,
    /// Processors and memory.
    pub size: Size,
    /// How far it may grow while it runs, where the driver can; what is below its size means nothing.
    pub room: Size,
    /// Back guest memory by huge pages of the host.
    pub hugepages: bool,
    /// Block devices of the host may come later.
    pub block_volumes: bool,
    /// Where the guest's entropy device reads from.
    pub entropy_source: PathBuf,
    /// The pod's share is served on [`VmDir::virtiofs_sock`], with tag `bulkhead`.
    pub share: Share,
    /// Network devices, in the order in which the guest sees them.
    pub nics: Vec<Nic>,
    /// Every process of the VM starts in it.
    pub cgroup: Option<CgroupProcs>,
}

/// Whether the guest sees the pod's share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// A virtiofs device: its socket must already listen.
    Exported,
    /// None.
    Absent,
}

/// One network device of the guest.
pub struct Nic {
    /// The host's side.
    pub tap: OwnedFd,
    /// Hardware address as the guest sees it, `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// In bytes.
    pub mtu: u32,
}

impl fmt::Debug for Nic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nic({}, mtu {})", self.mac, self.mtu)
    }
}

impl LaunchSpec {
    /// A VM as the settings describe it, with the pod's share and without network devices and cgroup.
    #[must_use]
    pub fn new(dir: VmDir, settings: &Settings) -> Self {
        let Settings { guest, vm, .. } = settings;
        Self {
            dir,
            kernel: guest.kernel.clone(),
            image: guest.image.clone(),
            cmdline: cmdline(settings),
            size: Size { vcpus: vm.vcpus, memory_mib: vm.memory_mib },
            room: Size { vcpus: vm.max_vcpus, memory_mib: vm.max_memory_mib },
            hugepages: vm.hugepages,
            block_volumes: vm.block_volumes,
            entropy_source: vm.entropy_source.clone(),
            share: Share::Exported,
            nics: Vec::new(),
            cgroup: None,
        }
    }
}

/// The part of the command line that the agent and the administrator want.
fn cmdline(settings: &Settings) -> String {
    let mut words = vec![format!("bulkhead.log={}", settings.guest.agent_log_level)];
    if settings.vm.debug_console {
        words.push("bulkhead.console=1".to_owned());
    }
    let params = settings.guest.kernel_params.trim();
    if !params.is_empty() {
        words.push(params.to_owned());
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_administrators_parameters_come_last() {
        let mut settings = Settings::default();
        settings.guest.agent_log_level = "debug".into();
        settings.guest.kernel_params = " loglevel=7 ".into();
        assert_eq!(cmdline(&settings), "bulkhead.log=debug loglevel=7");
    }
}
