//! A block device of the host that is a file of the test.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device; it goes with this value.
pub(crate) struct LoopDevice {
    pub(crate) path: PathBuf,
}

impl LoopDevice {
    /// With the content of `file`, or why there is none here.
    pub(crate) fn attach(file: &Path, options: &[&str]) -> Result<Self, String> {
        let mut losetup = Command::new("losetup");
        losetup.args(options).args(["--find", "--show"]).arg(file);
        let output = losetup.output().map_err(|error| format!("losetup: {error}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("no loop device: {}", said.trim()));
        }
        Ok(Self { path: String::from_utf8_lossy(&output.stdout).trim().into() })
    }

    /// Whether this process has it open.
    pub(crate) fn is_open_in(&self, pid: u32) -> bool {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors.into_iter().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path == self.path))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.path).status();
        if !detached.as_ref().is_ok_and(std::process::ExitStatus::success) {
            println!("{} is left: {detached:?}", self.path.display());
        }
    }
}
