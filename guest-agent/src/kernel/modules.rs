//! Kernel modules, loaded in the stages in which they are needed.
//!
//! The image lists its modules in load order, one file name a line, in `/lib/modules/order`. Loading one takes
//! milliseconds (tens under emulation), so only what the announcement needs is loaded before it, then what Setup and
//! containers need, and after Setup everything else. Within a stage the order of the list holds.
//!
//! Some hundred more are loaded on demand: the kernel asks for one by running `/sbin/modprobe`, which is a link to this
//! binary. `/lib/modules/archive` holds them, each gzipped by itself, and `index` says where each begins. A line of
//! `demand` has the names of a module (its own, those by which the kernel asks, modaliases of devices), a colon, and
//! the modules to load in order.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bulkhead_protocol::error::chain;
use flate2::read::GzDecoder;
use rustix::io::Errno;

use super::clock;

/// Where the image keeps its modules.
const DIR: &str = "/lib/modules";

/// The name under which the kernel runs this binary to get a module, modprobe(8).
pub(crate) const MODPROBE: &str = "modprobe";

/// Modules that the announcement needs.
const FOR_ANNOUNCE: [&str; 5] =
    ["virtio", "virtio_ring", "vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"];
/// Modules that find virtio devices on PCI.
const FOR_PCI: [&str; 3] = ["virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"];
/// Modules that find virtio devices without PCI.
const FOR_MMIO: [&str; 1] = ["virtio_mmio"];
/// Modules that Setup needs, for the share and the network.
const FOR_SETUP: [&str; 5] = ["fuse", "virtiofs", "failover", "net_failover", "virtio_net"];

/// The buses on which this machine has virtio devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Buses {
    pub(crate) pci: bool,
    pub(crate) mmio: bool,
}

/// The modules of the list by when they are needed.
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
    #[error("unpack module {module}")]
    Unpack { module: String, source: io::Error },
    #[error("load module {path}")]
    Load { path: PathBuf, source: Errno },
}

/// Sorts the image's list into stages.
pub(crate) fn plan() -> Result<Stages, ModuleError> {
    Ok(read("order")?.map(|list| stages(&list, buses())).unwrap_or_default())
}

/// Loads modules in order. A failure is logged and does not keep the next one from loading.
pub(crate) fn load_all(files: &[String]) {
    for file in files {
        let started = clock::boot_nanos();
        match load(&Path::new(DIR).join(file)) {
            Ok(()) => {
                let micros = (clock::boot_nanos() - started) / 1000;
                tracing::debug!(file, micros, "module loaded");
            }
            Err(error) => tracing::warn!(error = %chain(&error), "a module is missing"),
        }
    }
}

/// Does what the kernel asks modprobe for: `modprobe -q -- NAME`. Runs in a process of its own, not in the agent.
pub(crate) fn modprobe(args: &[String]) -> ExitCode {
    let loaded = args.last().is_some_and(|name| matches!(load_by_name(name), Ok(found) if found));
    if loaded { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Loads a module and what it depends on, unless it is loaded. A module that the image does not have counts as built
/// into the kernel.
///
/// # Errors
/// [`ModuleError`] for the first that does not load.
pub(crate) fn ensure_loaded(name: &str) -> Result<(), ModuleError> {
    // This is called for every container that needs the module, and the lists are long.
    if is_live(name) {
        return Ok(());
    }
    load_by_name(name).map(|_found| ())
}

/// Loads the modules with a name: a module's own name, an alias by which the kernel asks, or the modalias of a device.
/// Returns whether the image has any. Several modules may have one name, as ciphers do: it is enough that one of them
/// loads.
///
/// # Errors
/// [`ModuleError`] for the first that does not load, if none does.
pub(crate) fn load_by_name(name: &str) -> Result<bool, ModuleError> {
    let (Some(table), Some(index)) = (read("demand")?, read("index")?) else { return Ok(false) };
    let mut result = Ok(false);
    for modules in modules_for(&table, name) {
        let loaded = modules.iter().try_for_each(|module| load_archived(module, &index));
        match (&result, loaded) {
            (Ok(_) | Err(_), Ok(())) => result = Ok(true),
            (Ok(false), Err(error)) => result = Err(error),
            (Ok(true) | Err(_), Err(_)) => {}
        }
    }
    result
}

/// Reads one of the image's lists. None: the image has no modules.
fn read(file: &str) -> Result<Option<String>, ModuleError> {
    let path = Path::new(DIR).join(file);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ModuleError::ReadList { path, source }),
    }
}

/// The modules to load for each module that has a name. Dashes and underscores are the same to the kernel. A name in
/// the table that ends with a star matches every name with that beginning (modaliases).
fn modules_for<'a>(table: &'a str, name: &str) -> Vec<Vec<&'a str>> {
    let plain = |name: &str| name.replace('-', "_");
    let wanted = plain(name);
    let has = |found: &str| match found.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => plain(found) == wanted,
    };
    let line = |line: &'a str| {
        let (names, modules) = line.split_once(" : ")?;
        names.split(' ').any(has).then(|| modules.split(' ').collect())
    };
    table.lines().filter_map(line).collect()
}

fn load_archived(module: &str, index: &str) -> Result<(), ModuleError> {
    // A dependency is loaded already in most cases, and looking costs less than unpacking it.
    if is_live(module) {
        return Ok(());
    }
    let path = Path::new(DIR).join("archive");
    let unpacked = location(index, module)
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        .and_then(|(at, length)| unpack(&path, at, length))
        .map_err(|source| ModuleError::Unpack { module: module.to_owned(), source })?;
    match rustix::system::init_module(&unpacked, parameters(module)) {
        Err(error) if !is_harmless(error) => Err(ModuleError::Load { path: module.into(), source: error }),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether a module is loaded and ready. A module that is built in has no such state.
fn is_live(module: &str) -> bool {
    let state = std::fs::read_to_string(Path::new("/sys/module").join(module).join("initstate"));
    state.is_ok_and(|state| state.trim() == "live")
}

/// Where a module begins in the archive, and its length there, in bytes.
fn location(index: &str, module: &str) -> Option<(u64, u64)> {
    let line = index.lines().find_map(|line| line.strip_prefix(module)?.strip_prefix(' '))?;
    let (at, length) = line.split_once(' ')?;
    Some((at.parse().ok()?, length.parse().ok()?))
}

fn unpack(archive: &Path, at: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut archive = File::open(archive)?;
    archive.seek(SeekFrom::Start(at))?;
    let mut module = Vec::new();
    GzDecoder::new(archive.take(length)).read_to_end(&mut module)?;
    Ok(module)
}

fn load(path: &Path) -> Result<(), ModuleError> {
    let file = File::open(path).map_err(|source| ModuleError::Open { path: path.to_owned(), source })?;
    match rustix::system::finit_module(&file, c"", 0) {
        Err(source) if !is_harmless(source) => Err(ModuleError::Load { path: path.to_owned(), source }),
        Ok(()) | Err(_) => {
            // The kernel has its own copy now, and the file takes memory.
            if let Err(error) = std::fs::remove_file(path) {
                tracing::debug!(path = %path.display(), %error, "could not remove a loaded module's file");
            }
            Ok(())
        }
    }
}

/// Whether the module is loaded already, or is for a device or hypervisor that this machine does not have.
fn is_harmless(error: Errno) -> bool {
    matches!(error, Errno::EXIST | Errno::NODEV | Errno::OPNOTSUPP)
}

/// Parameters of a module.
fn parameters(module: &str) -> &'static CStr {
    match module {
        // Hosts are scanned only where a disk was attached (see `hotplug/scsi.rs`): a whole host has 256 targets.
        "scsi_mod" => c"scan=manual",
        _ => c"",
    }
}

fn buses() -> Buses {
    let any = |dir: &str, wanted: &dyn Fn(&str) -> bool| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_str().is_some_and(wanted))
    };
    Buses {
        pci: any("/sys/bus/pci/devices", &|_| true),
        // The ACPI id of virtio-mmio (Linux, `drivers/virtio/virtio_mmio.c`).
        mmio: any("/sys/bus/platform/devices", &|name| name.starts_with("LNRO0005")),
    }
}

fn stages(list: &str, buses: Buses) -> Stages {
    let mut stages = Stages::default();
    for file in list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let name = module_name(file);
        let names = |group: &[&str]| group.contains(&name.as_str());
        // On a machine that shows neither bus (for example with mmio devices from the kernel command line) both are
        // loaded.
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
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.strip_suffix(".ko").unwrap_or(name).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::GzEncoder;

    use super::*;

    const LIST: &str = "virtio_ring.ko\nvirtio.ko\n# a note\nvirtio_mmio.ko\nvirtio_pci_modern_dev.ko\n\n\
        virtio_pci.ko\nvsock.ko\nvmw_vsock_virtio_transport_common.ko\nvmw_vsock_virtio_transport.ko\nfuse.ko\n\
        virtiofs.ko\nvirtio_net.ko\nvirtio-rng.ko\n";

    #[test]
    fn the_first_stage_has_only_what_the_announcement_needs() {
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
    fn modules_of_a_missing_bus_are_left_out() {
        let mmio = stages(LIST, Buses { pci: false, mmio: true });
        assert!(mmio.announce.contains(&"virtio_mmio.ko".to_owned()));
        assert!(![mmio.announce, mmio.setup, mmio.rest].concat().iter().any(|file| file.contains("pci")));
    }

    #[test]
    fn without_a_known_bus_both_are_loaded() {
        let both = stages(LIST, Buses { pci: false, mmio: false });
        assert!(both.announce.contains(&"virtio_mmio.ko".to_owned()));
        assert!(both.announce.contains(&"virtio_pci.ko".to_owned()));
    }

    #[test]
    fn every_other_module_is_in_a_stage() {
        for (pci, mmio, loaded) in
            [(true, true, 12), (true, false, 11), (false, true, 10), (false, false, 12)]
        {
            let planned = stages(LIST, Buses { pci, mmio });
            assert_eq!(planned.announce.len() + planned.setup.len() + planned.rest.len(), loaded);
        }
        assert_eq!(module_name("kernel/drivers/char/hw_random/virtio-rng.ko"), "virtio_rng");
    }

    #[test]
    fn a_missing_module_file_is_named() {
        let error = load(Path::new("/nonexistent/x.ko")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/x.ko"), "{error}");
    }

    #[test]
    fn a_module_is_found_by_any_of_its_names() {
        let table = "bridge rtnl-link-bridge : llc stp bridge\nllc : llc\naes_ti crypto-aes : aes_ti\n\
            aesni-intel crypto-aes : crypto_simd aesni_intel\n";
        for name in ["bridge", "rtnl-link-bridge", "rtnl_link_bridge"] {
            assert_eq!(modules_for(table, name), [["llc", "stp", "bridge"]], "{name}");
        }
        assert_eq!(modules_for(table, "aesni_intel"), [["crypto_simd", "aesni_intel"]]);
        assert_eq!(modules_for(table, "crypto-aes"), [vec!["aes_ti"], vec!["crypto_simd", "aesni_intel"]]);
        for name in ["net-pf-16", ":", "stp", ""] {
            assert!(modules_for(table, name).is_empty(), "{name}");
        }
    }

    #[test]
    fn a_module_is_found_by_the_modalias_of_a_device() {
        let table = "virtio_scsi virtio:d00000008v* : scsi_common scsi_mod virtio_scsi\n\
            virtio_blk virtio:d00000002v* : virtio_blk\n";
        let scsi = modules_for(table, "virtio:d00000008v00001AF4");
        assert_eq!(scsi, [["scsi_common", "scsi_mod", "virtio_scsi"]]);
        assert_eq!(modules_for(table, "virtio:d00000002v00001AF4"), [["virtio_blk"]]);
        for name in ["virtio:d00000018v00001AF4", "virtio:", "virtio:d00000008"] {
            assert!(modules_for(table, name).is_empty(), "{name}");
        }
    }

    #[test]
    fn a_module_is_unpacked_from_the_archive() {
        let packed = |text: &str| {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap()
        };
        let (llc, llc2) = (packed("first"), packed("second"));
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("archive");
        std::fs::write(&archive, [llc.as_slice(), &llc2].concat()).unwrap();
        let index = format!("llc 0 {}\nllc2 {} {}\nodd 1\n", llc.len(), llc.len(), llc2.len());
        for (module, text) in [("llc", "first"), ("llc2", "second")] {
            let (at, length) = location(&index, module).unwrap();
            assert_eq!(unpack(&archive, at, length).unwrap(), text.as_bytes(), "{module}");
        }
        assert_eq!(
            (location(&index, "ll"), location(&index, "odd"), location("", "llc")),
            (None, None, None)
        );
        assert!(unpack(&archive, 1, 9).is_err(), "that is no beginning");
    }
}
