//! Kernel modules, loaded in the stages in which they are needed.
//!
//! The image lists its modules in load order, one file name a line, in `/lib/modules/order`. Loading one costs
//! milliseconds (tens under emulation), so only what carries the announcement is loaded before it, then what Setup
//! and containers need, and after Setup everything else. Within a stage the list's order holds.
//!
//! More modules lie there for the kernel to ask for: it runs `/sbin/modprobe`, which is this binary by another name.
//! `/lib/modules/demand` has a line for each name it may ask for, with the files to load in order.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::io::Errno;

/// Where the image keeps its modules.
const DIR: &str = "/lib/modules";

/// The name by which the kernel runs this binary when it wants a module, modprobe(8).
pub(crate) const MODPROBE: &str = "modprobe";

/// What the announcement travels on.
const FOR_ANNOUNCE: [&str; 5] =
    ["virtio", "virtio_ring", "vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"];
/// How virtio devices are found on a machine with PCI.
const FOR_PCI: [&str; 3] = ["virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"];
/// How virtio devices are found on a machine without (QEMU's microvm).
const FOR_MMIO: [&str; 1] = ["virtio_mmio"];
/// What Setup needs: the share and the network.
const FOR_SETUP: [&str; 5] = ["fuse", "virtiofs", "failover", "net_failover", "virtio_net"];

/// How this machine shows its virtio devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Buses {
    pub(crate) pci: bool,
    pub(crate) mmio: bool,
}

/// The listed modules by the time at which they are needed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Stages {
    pub(crate) announce: Vec<String>,
    pub(crate) setup: Vec<String>,
    pub(crate) rest: Vec<String>,
}

/// A module that could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModuleError {
    #[error("read the module list {path}")]
    ReadList { path: PathBuf, source: io::Error },
    #[error("open module {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("load module {path}")]
    Load { path: PathBuf, source: Errno },
}

/// Sorts the image's list into stages.
pub(crate) fn plan() -> Result<Stages, ModuleError> {
    let path = Path::new(DIR).join("order");
    match std::fs::read_to_string(&path) {
        Ok(list) => Ok(stages(&list, buses())),
        // A kernel with everything built in.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Stages::default()),
        Err(source) => Err(ModuleError::ReadList { path, source }),
    }
}

/// Loads modules in order. One that fails is reported and does not keep the next from loading.
pub(crate) fn load_all(files: &[String]) {
    for file in files {
        let started = crate::clock::boot_nanos();
        match load(&Path::new(DIR).join(file)) {
            Ok(()) => {
                let micros = (crate::clock::boot_nanos() - started) / 1000;
                tracing::debug!(file, micros, "module loaded");
            }
            Err(error) => tracing::warn!(error = %crate::status::chain(&error), "a module is missing"),
        }
    }
}

/// Does what the kernel asks of modprobe: `modprobe -q -- NAME`. A process of its own, not the agent.
pub(crate) fn on_demand(args: &[String]) -> ExitCode {
    let table = std::fs::read_to_string(Path::new(DIR).join("demand")).unwrap_or_default();
    let files = args.last().and_then(|name| demanded(&table, name));
    let loaded = files.is_some_and(|files| load_missing(&files).is_ok());
    if loaded { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Loads a module that waits for its first use, and what it depends on. One that the image does not have is taken
/// for built in.
///
/// # Errors
/// [`ModuleError`] for the first that does not load.
pub(crate) fn demand(name: &str) -> Result<(), ModuleError> {
    let table = std::fs::read_to_string(Path::new(DIR).join("demand")).unwrap_or_default();
    load_missing(&demanded(&table, name).unwrap_or_default())
}

fn load_missing(files: &[&str]) -> Result<(), ModuleError> {
    files.iter().try_for_each(|file| match load(&Path::new(DIR).join(file)) {
        // Its file goes when it is loaded.
        Err(ModuleError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        loaded => loaded,
    })
}

/// The files to load for a name; the kernel does not tell dashes from underscores.
fn demanded<'a>(table: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let plain = |name: &str| name.replace('-', "_");
    table.lines().find_map(|line| {
        let mut words = line.split(' ');
        let found = words.next().is_some_and(|first| plain(first) == plain(name));
        found.then(|| words.collect())
    })
}

fn load(path: &Path) -> Result<(), ModuleError> {
    let file = File::open(path).map_err(|source| ModuleError::Open { path: path.to_owned(), source })?;
    match rustix::system::finit_module(&file, parameters(path), 0) {
        // Loaded already, or for a device or a hypervisor that this machine does not have.
        Ok(()) | Err(Errno::EXIST | Errno::NODEV | Errno::OPNOTSUPP) => {
            // The kernel has its own copy now; the file's memory is better given back.
            if let Err(error) = std::fs::remove_file(path) {
                tracing::debug!(path = %path.display(), %error, "could not remove a loaded module's file");
            }
            Ok(())
        }
        Err(source) => Err(ModuleError::Load { path: path.to_owned(), source }),
    }
}

/// What a module is told.
fn parameters(path: &Path) -> &'static CStr {
    match path.file_name().and_then(OsStr::to_str) {
        // Whoever wants a disk says where it is: a search would ask 256 targets.
        Some("scsi_mod.ko") => c"scan=manual",
        Some(_) | None => c"",
    }
}

fn buses() -> Buses {
    let any = |dir: &str, wanted: &dyn Fn(&str) -> bool| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_str().is_some_and(wanted))
    };
    Buses {
        pci: any("/sys/bus/pci/devices", &|_| true),
        // The ACPI id of virtio-mmio, virtio specification 4.2.2 and QEMU's microvm.
        mmio: any("/sys/bus/platform/devices", &|name| name.starts_with("LNRO0005")),
    }
}

fn stages(list: &str, buses: Buses) -> Stages {
    let mut stages = Stages::default();
    for file in list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let stem = stem(file);
        let names = |group: &[&str]| group.contains(&stem.as_str());
        // A machine that shows neither bus (say, mmio devices from the kernel command line) gets both.
        let neither = !buses.pci && !buses.mmio;
        let stage = match (names(&FOR_PCI), names(&FOR_MMIO)) {
            (true, _) if !buses.pci && !neither => continue,
            (_, true) if !buses.mmio && !neither => continue,
            (true, _) | (_, true) => &mut stages.announce,
            (false, false) if names(&FOR_ANNOUNCE) => &mut stages.announce,
            (false, false) if names(&FOR_SETUP) => &mut stages.setup,
            (false, false) => &mut stages.rest,
        };
        stage.push(file.to_owned());
    }
    stages
}

/// Module name of a file, as the kernel spells it: dashes are underscores.
fn stem(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.strip_suffix(".ko").unwrap_or(name).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "virtio_ring.ko\nvirtio.ko\n# a note\nvirtio_mmio.ko\nvirtio_pci_modern_dev.ko\n\n\
        virtio_pci.ko\nvsock.ko\nvmw_vsock_virtio_transport_common.ko\nvmw_vsock_virtio_transport.ko\nfuse.ko\n\
        virtiofs.ko\nvirtio_net.ko\nvirtio-rng.ko\n";

    #[test]
    fn only_what_carries_the_announcement_comes_first() {
        let pci = stages(LIST, Buses { pci: true, mmio: false });
        assert_eq!(
            pci.announce,
            [
                "virtio_ring.ko",
                "virtio.ko",
                "virtio_pci_modern_dev.ko",
                "virtio_pci.ko",
                "vsock.ko",
                "vmw_vsock_virtio_transport_common.ko",
                "vmw_vsock_virtio_transport.ko"
            ]
        );
        assert_eq!(pci.setup, ["fuse.ko", "virtiofs.ko", "virtio_net.ko"]);
        assert_eq!(pci.rest, ["virtio-rng.ko"]);
    }

    #[test]
    fn a_bus_that_the_machine_does_not_have_gets_no_driver() {
        let mmio = stages(LIST, Buses { pci: false, mmio: true });
        assert!(mmio.announce.contains(&"virtio_mmio.ko".to_owned()));
        assert!(![mmio.announce, mmio.setup, mmio.rest].concat().iter().any(|file| file.contains("pci")));
    }

    #[test]
    fn without_a_bus_in_sight_both_are_tried() {
        let both = stages(LIST, Buses { pci: false, mmio: false });
        assert!(both.announce.contains(&"virtio_mmio.ko".to_owned()));
        assert!(both.announce.contains(&"virtio_pci.ko".to_owned()));
    }

    #[test]
    fn nothing_else_is_lost() {
        for (pci, mmio, loaded) in
            [(true, true, 12), (true, false, 11), (false, true, 10), (false, false, 12)]
        {
            let planned = stages(LIST, Buses { pci, mmio });
            assert_eq!(planned.announce.len() + planned.setup.len() + planned.rest.len(), loaded);
        }
        assert_eq!(stem("kernel/drivers/char/hw_random/virtio-rng.ko"), "virtio_rng");
    }

    #[test]
    fn a_module_that_is_not_there_is_named() {
        let error = load(Path::new("/nonexistent/x.ko")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/x.ko"), "{error}");
    }

    #[test]
    fn a_module_is_found_by_any_of_its_names() {
        let table = "bridge llc.ko stp.ko bridge.ko\nrtnl-link-bridge llc.ko stp.ko bridge.ko\n";
        let files = ["llc.ko", "stp.ko", "bridge.ko"];
        for name in ["bridge", "rtnl-link-bridge", "rtnl_link_bridge"] {
            assert_eq!(demanded(table, name).unwrap(), files, "{name}");
        }
        assert_eq!(demanded(table, "net-pf-16"), None);
        assert_eq!(demanded("", "bridge"), None);
    }
}
