//! A block device of the node: a file of the test behind a loop device.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device. The kernel detaches it when this value, and whoever else has it open, is gone, however the test ends.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    file: PathBuf,
    open: File,
}

impl Drop for LoopDevice {
    /// Its file may be the last test's on a node that another one uses next.
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.file) {
            eprintln!("cannot remove {}: {error}", self.file.display());
        }
    }
}

impl LoopDevice {
    /// Makes a file of `bytes` zeroes and a device of it, or says why this machine has none.
    pub fn make(file: &Path, bytes: u64, options: &[&str]) -> Result<Self, String> {
        File::create(file).and_then(|made| made.set_len(bytes)).expect("make the file of a loop device");
        let mut attach = Command::new("losetup");
        let output = attach.args(options).args(["--find", "--show"]).arg(file).output();
        let output = output.map_err(|error| format!("losetup: {error}"))?;
        if !output.status.success() {
            return Err(format!("no loop device: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let open = File::open(&path);
        // Of an open one this means: when it is closed.
        let detached = Command::new("losetup").arg("--detach").arg(&path).status();
        assert!(detached.is_ok_and(|status| status.success()), "{} stays attached", path.display());
        Ok(Self { path, file: file.to_owned(), open: open.expect("open a loop device") })
    }

    /// Its node.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is on it once this machine's own cache of it is written. That of a VM is another.
    #[must_use]
    pub fn settled(&self) -> Vec<u8> {
        self.open.sync_all().expect("sync a loop device");
        self.content()
    }

    /// What is on it.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        std::fs::read(&self.file).expect("read the file of a loop device")
    }

    /// Whether this process has it open.
    #[must_use]
    pub fn is_open_in(&self, pid: i32) -> bool {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors.into_iter().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path == self.path))
    }
}
