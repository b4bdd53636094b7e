//! A directory with everything the settings name, none of it real.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Writes a file below the directory.
pub(crate) fn write(dir: &Path, name: &str, content: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, content).unwrap();
    path
}

/// Settings that this machine fulfils, whatever is installed on it. Nothing in them can run a VM.
pub(crate) fn fulfilled(dir: &Path) -> String {
    let program = |name: &str| {
        let path = write(dir, name, "#!/bin/sh\necho no VM today >&2\nexit 3\n");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    };
    let file = |name: &str, content: &str| write(dir, name, content).display().to_string();
    let below = |name: &str| dir.join(name).display().to_string();
    format!(
        "[sandboxer]\nlisten = {:?}\nrun_dir = {:?}\nstate_dir = {:?}\ncontainerd_address = {:?}\n\
         [shim]\nbinary = {:?}\n[guest]\nkernel = {:?}\nimage = {:?}\n\
         [qemu]\npath = {:?}\nvsock_path = {:?}\naccelerator = \"tcg\"\n[virtiofsd]\npath = {:?}\n",
        below("r/s.sock"),
        below("r"),
        below("state"),
        below("no-containerd.sock"),
        program("shim"),
        file("vmlinux", "\u{7f}ELF"),
        file("image", "070701"),
        program("qemu"),
        program("vsock"),
        program("virtiofsd"),
    )
}
