//! Waiting for what the kernel has to say about a cgroup's memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tells that something happened to a cgroup. What happens between two waits is not lost.
#[derive(Debug)]
pub struct CgroupEvents {
    descriptor: AsyncFd<OwnedFd>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// An eventfd: readable when it has counted something.
    Counter,
    /// A file of a cgroup that is urgent when its text has changed since it was read.
    Text,
    /// A trigger that is urgent once each time.
    Trigger,
}

impl CgroupEvents {
    /// Events of cgroup v1 (kernel, `admin-guide/cgroup-v1/memory.rst`): of `file` in `directory`, `arguments` as that
    /// file wants them. The end of the cgroup is an event, too. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// What the kernel says, above all when there is no such cgroup or file.
    pub fn of_v1(directory: &Path, file: &str, arguments: &str) -> io::Result<Self> {
        let counter = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let source = File::open(directory.join(file))?;
        let order = format!("{} {} {arguments}", counter.as_raw_fd(), source.as_raw_fd());
        fs::write(directory.join("cgroup.event_control"), order.trim_end())?;
        Ok(Self { descriptor: super::process::watch_readable(counter)?, kind: Kind::Counter })
    }

    /// Changes of a file of cgroup v2 that tells its own (`memory.events`, `cgroup.events`). Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// What the kernel says, above all when there is no such file.
    pub fn of_v2(file: &Path) -> io::Result<Self> {
        let mut events = File::open(file)?;
        read_again(&mut events)?;
        Ok(Self { descriptor: super::process::watch_urgent(events.into())?, kind: Kind::Text })
    }

    /// A stall that `trigger` describes (kernel, `accounting/psi.rst`), in a file such as `memory.pressure`. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// What the kernel says: a kernel without PSI, no such file, or no right to set a trigger.
    pub fn of_stall(file: &Path, trigger: &str) -> io::Result<Self> {
        let mut pressure = OpenOptions::new().read(true).write(true).open(file)?;
        // The kernel wants the text with its end.
        pressure.write_all(format!("{trigger}\0").as_bytes())?;
        Ok(Self { descriptor: super::process::watch_urgent(pressure.into())?, kind: Kind::Trigger })
    }

    /// Waits until something happened since the last call, or the cgroup has ended.
    ///
    /// # Errors
    /// What the kernel says; a cgroup of v2 that has ended is [`Errno::NODEV`].
    pub async fn happened(&self) -> io::Result<()> {
        if self.kind == Kind::Counter {
            return self.counted().await;
        }
        let mut ready = self.descriptor.ready(Interest::PRIORITY).await?;
        ready.clear_ready();
        if self.kind == Kind::Text {
            // Only who reads the text is told of the next change.
            read_again(&mut File::from(self.descriptor.get_ref().as_fd().try_clone_to_owned()?))?;
        }
        Ok(())
    }

    async fn counted(&self) -> io::Result<()> {
        let mut count = [0; 8];
        loop {
            let mut ready = self.descriptor.readable().await?;
            match rustix::io::read(self.descriptor.get_ref(), &mut count) {
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn read_again(file: &mut File) -> io::Result<()> {
    file.rewind()?;
    file.read_to_end(&mut Vec::new()).map(drop)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;

    /// A cgroup of this test's own.
    struct Own(PathBuf);

    impl Own {
        fn below(root: &str, name: &str) -> Option<Self> {
            let path = Path::new(root).join(format!("bulkhead-events-{}-{name}", std::process::id()));
            if let Err(error) = fs::create_dir(&path) {
                println!("skipped: cannot make {}: {error}", path.display());
                return None;
            }
            Some(Self(path))
        }
    }

    impl Drop for Own {
        fn drop(&mut self) {
            drop(fs::remove_dir(&self.0));
        }
    }

    async fn nothing_more(events: &CgroupEvents) {
        let more = tokio::time::timeout(Duration::from_millis(20), events.happened()).await;
        assert!(more.is_err(), "nothing had happened");
    }

    #[tokio::test]
    async fn the_end_of_a_v1_cgroup_is_an_event() {
        let Some(own) = Own::below("/sys/fs/cgroup/memory", "v1") else { return };
        let events = CgroupEvents::of_v1(&own.0, "memory.oom_control", "").unwrap();
        nothing_more(&events).await;
        drop(own);
        events.happened().await.unwrap();
    }

    #[tokio::test]
    async fn every_change_of_a_v2_file_is_told() {
        let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let v2 = root.into_iter().find(|root| Path::new(root).join("cgroup.controllers").exists());
        let Some(own) = v2.and_then(|root| Own::below(root, "v2")) else {
            return println!("skipped: cgroup v2 is not mounted");
        };
        let events = CgroupEvents::of_v2(&own.0.join("cgroup.events")).unwrap();
        nothing_more(&events).await;
        let mut child = tokio::process::Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
        fs::write(own.0.join("cgroup.procs"), child.id().unwrap().to_string()).unwrap();
        events.happened().await.unwrap();
        nothing_more(&events).await;
        child.kill().await.unwrap();
        events.happened().await.unwrap();
    }

    #[tokio::test]
    async fn a_stall_is_told_of_where_the_kernel_counts_them() {
        let file = Path::new("/proc/pressure/memory");
        match CgroupEvents::of_stall(file, "full 150000 1000000") {
            // What stalls in this machine is not this test's to say; that nothing is told at once is.
            Ok(events) => drop(tokio::time::timeout(Duration::from_millis(20), events.happened()).await),
            Err(error) => println!("skipped: no pressure triggers at {}: {error}", file.display()),
        }
        let error = CgroupEvents::of_stall(Path::new("/nonexistent"), "full 1 1").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
