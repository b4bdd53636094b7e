//! What hangs in the kernel: a process that SIGKILL does not end, a file system that does not answer.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// How often the kernel is asked again before it is given up.
const ATTEMPTS: u32 = 200_000;

/// A process in the freezer of cgroup v1: SIGKILL waits until it is thawed, as it does for one that waits for a disk.
/// Thawed with this value. Needs root.
#[derive(Debug)]
pub struct Frozen {
    pid: u32,
    hierarchy: PathBuf,
    group: PathBuf,
}

impl Frozen {
    /// Freezes a process; the freezer is mounted in `dir`.
    ///
    /// # Errors
    /// When the kernel has no such freezer, or it does not freeze the process.
    pub fn new(pid: u32, dir: &Path) -> io::Result<Self> {
        let hierarchy = dir.join(format!("freezer-{pid}"));
        fs::create_dir(&hierarchy)?;
        mount("bulkhead-test", &hierarchy, "cgroup", MountFlags::empty(), Some(c"freezer"))?;
        let group = hierarchy.join(format!("bulkhead-test-{pid}"));
        let frozen = Self { pid, hierarchy, group };
        fs::create_dir(&frozen.group)?;
        fs::write(frozen.group.join("cgroup.procs"), pid.to_string())?;
        let state = frozen.group.join("freezer.state");
        fs::write(&state, "FROZEN")?;
        attempt(|| fs::read_to_string(&state).is_ok_and(|now| now.trim() == "FROZEN"))
            .then_some(frozen)
            .ok_or_else(|| io::Error::other("the kernel does not freeze the process"))
    }

    fn thaw(&self) -> io::Result<()> {
        if self.group.exists() {
            fs::write(self.group.join("freezer.state"), "THAWED")?;
            // One that has been killed meanwhile leaves by itself.
            let _gone = fs::write(self.hierarchy.join("cgroup.procs"), self.pid.to_string());
            if !attempt(|| fs::remove_dir(&self.group).is_ok()) {
                fs::remove_dir(&self.group)?;
            }
        }
        unmount(&self.hierarchy, UnmountFlags::DETACH)?;
        fs::remove_dir(&self.hierarchy)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = self.thaw() {
            tracing::error!(pid = self.pid, %error, "the process is still frozen");
        }
    }
}

/// A file system of which every question waits for an answer that never comes, as those of a server that is away.
/// With this value the questions fail and it goes. Needs root.
#[derive(Debug)]
pub struct HungFilesystem {
    path: PathBuf,
    server: Option<File>,
}

impl HungFilesystem {
    /// Mounts it on this directory.
    ///
    /// # Errors
    /// When the kernel has no FUSE, or does not mount it.
    pub fn mount(path: &Path) -> io::Result<Self> {
        // Nobody ever reads from it.
        let server = File::options().read(true).write(true).open("/dev/fuse")?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let options = std::ffi::CString::new(options)?;
        mount("bulkhead-test", path, "fuse", MountFlags::empty(), Some(options.as_c_str()))?;
        Ok(Self { path: path.to_owned(), server: Some(server) })
    }
}

impl Drop for HungFilesystem {
    fn drop(&mut self) {
        // Without a server the kernel answers.
        self.server = None;
        if let Err(error) = unmount(&self.path, UnmountFlags::DETACH) {
            tracing::error!(path = %self.path.display(), %error, "a file system that hangs stays mounted");
        }
    }
}

fn attempt(mut done: impl FnMut() -> bool) -> bool {
    (0..ATTEMPTS).any(|_| {
        let done = done();
        if !done {
            std::thread::yield_now();
        }
        done
    })
}
