//! A block device of the host that is a file of the test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device. The kernel detaches it when this value, and whoever else has it open, is gone.
pub(crate) struct LoopDevice {
    pub(crate) path: PathBuf,
    _open: File,
}

impl LoopDevice {
    /// With the content of `file`, or why there is none here.
    pub(crate) fn attach(file: &Path) -> Result<Self, String> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        let output = output.map_err(|error| format!("losetup: {error}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("no loop device: {}", said.trim()));
        }
        let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let open = File::open(&path);
        // Of an open one this means: when it is closed.
        let detached = Command::new("losetup").arg("--detach").arg(&path).status();
        assert!(detached.is_ok_and(|status| status.success()), "{} stays attached", path.display());
        Ok(Self { path, _open: open.unwrap() })
    }

    /// Whether this process has it open.
    pub(crate) fn is_open_in(&self, pid: u32) -> bool {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors.into_iter().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path == self.path))
    }
}
