//! Whether this host has what the settings name. Reads, changes nothing.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::finding::{Finding, Findings, Program, quoted};
use crate::{Settings, vmm};

/// First bytes of an ELF file (elf(5)).
const ELF: [u8; 4] = *b"\x7fELF";

/// Everything that is missing or of the wrong kind.
pub(crate) fn findings(settings: &Settings) -> Vec<Finding> {
    let mut findings = Findings::default();
    programs(settings, &mut findings);
    guest(settings, &mut findings);
    directories(settings, &mut findings);
    hardware(settings, &mut findings);
    findings.0
}

fn programs(settings: &Settings, findings: &mut Findings) {
    let mut programs: Vec<Program<'_>> = vec![
        ("shim.binary", &settings.shim.binary, "install containerd-shim-bulkhead-v2 or name where it is"),
        ("virtiofsd.path", &settings.virtiofsd.path, "install virtiofsd or name where it is"),
    ];
    programs.extend(vmm::programs(settings.vmms()));
    for (key, path, remedy) in programs.into_iter().filter(|(_, path, _)| path.is_absolute()) {
        match fs::metadata(path) {
            Err(error) => findings.add(key, quoted(path), missing(&error), remedy),
            Ok(metadata) if !metadata.is_file() => findings.add(key, quoted(path), "not a file", remedy),
            Ok(metadata) if !is_executable(&metadata) => {
                findings.add(key, quoted(path), "not executable", "chmod +x, or name another file");
            }
            Ok(_) => {}
        }
    }
}

fn guest(settings: &Settings, findings: &mut Findings) {
    let remedy = "build it with `make image` or name where it is";
    let (kernel, image) = (&settings.guest.kernel, &settings.guest.image);
    for (key, path) in [("guest.kernel", kernel), ("guest.image", image)] {
        match fs::metadata(path) {
            _ if !path.is_absolute() => {}
            Err(error) => findings.add(key, quoted(path), missing(&error), remedy),
            Ok(metadata) if !metadata.is_file() => findings.add(key, quoted(path), "not a file", remedy),
            Ok(metadata) if metadata.len() == 0 => findings.add(key, quoted(path), "an empty file", remedy),
            Ok(_) if key == "guest.kernel" => kernel_format(path, findings),
            Ok(_) => {}
        }
    }
}

fn kernel_format(kernel: &Path, findings: &mut Findings) {
    let right = "an uncompressed ELF vmlinux (a bzImage or vmlinuz is compressed)";
    match beginning(kernel) {
        Ok(ELF) => {}
        Ok(_) => findings.add("guest.kernel", quoted(kernel), "not an ELF file", right),
        Err(error) => findings.add("guest.kernel", quoted(kernel), error.to_string(), right),
    }
}

fn directories(settings: &Settings, findings: &mut Findings) {
    let sandboxer = &settings.sandboxer;
    for (key, path) in
        [("sandboxer.run_dir", &sandboxer.run_dir), ("sandboxer.state_dir", &sandboxer.state_dir)]
    {
        if let Ok(metadata) = fs::metadata(path)
            && !metadata.is_dir()
        {
            findings.add(key, quoted(path), "not a directory", "remove the file or name another directory");
        }
    }
    let listen = &sandboxer.listen;
    let in_the_way = |kind: fs::FileType| !kind.is_socket();
    if fs::symlink_metadata(listen).is_ok_and(|found| in_the_way(found.file_type())) {
        let wrong = "something that is no socket is in the way";
        findings.add("sandboxer.listen", quoted(listen), wrong, "remove it or name another path");
    }
    // run_dir is made at the start; any other directory is somebody else's.
    let parent = listen.parent().filter(|parent| !parent.starts_with(&sandboxer.run_dir));
    if let Some(parent) = parent.filter(|parent| parent.is_absolute() && !parent.is_dir()) {
        let wrong = format!("{} is no directory", parent.display());
        findings.add("sandboxer.listen", quoted(listen), wrong, "make it, or listen in run_dir");
    }
}

fn hardware(settings: &Settings, findings: &mut Findings) {
    let source = &settings.vm.entropy_source;
    if source.is_absolute() && File::open(source).is_err() {
        findings.add("vm.entropy_source", quoted(source), "cannot be opened", "for example /dev/urandom");
    }
    vmm::host(settings.vmms(), findings);
    if settings.vm.hugepages && huge_pages() == 0 {
        let right = "reserve some (sysctl vm.nr_hugepages), or false";
        findings.add("vm.hugepages", "true".into(), "this host has no huge pages reserved", right);
    }
}

fn huge_pages() -> u64 {
    let text = fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

fn missing(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::NotFound { "no such file".to_owned() } else { error.to_string() }
}

fn is_executable(metadata: &Metadata) -> bool {
    metadata.mode() & 0o111 != 0
}

/// The first four bytes, zeros where the file is shorter.
fn beginning(path: &Path) -> io::Result<[u8; 4]> {
    let mut magic = Vec::with_capacity(4);
    File::open(path)?.take(4).read_to_end(&mut magic)?;
    magic.resize(4, 0);
    Ok(magic.try_into().unwrap_or_default())
}
