//! A mount namespace of a test's own, somebody who looks at it from another one, and what containers are made of.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use tempfile::TempDir;

use super::super::*;
use crate::id::ContainerId;

/// Runs a test on a thread with a mount namespace of its own, in a directory that is a file system of its own and
/// shared, as `/run` is. Nothing of it is seen outside or left.
pub(super) fn in_own_mounts(test: impl AsyncFnOnce(&Path) + Send + 'static) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().canonicalize().unwrap();
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), c"mode=755").unwrap();
        mount_change(&path, MountPropagationFlags::SHARED).unwrap();
        // Threads that the runtime makes for blocking work are in this namespace as well.
        actix::System::new().block_on(test(&path));
    };
    if let Err(panic) = std::thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

/// A process in a mount namespace that gets what is mounted in ours later, as virtiofsd is. (Here: a thread.)
pub(super) struct Spectator(Sender<Box<dyn FnOnce() + Send>>);

impl Spectator {
    pub(super) fn new() -> Self {
        let (send, receive) = channel::<Box<dyn FnOnce() + Send>>();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).unwrap();
            receive.into_iter().for_each(|act| act());
        });
        let spectator = Self(send);
        spectator.see(|| ());
        spectator
    }

    pub(super) fn see<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> T {
        let (send, receive) = channel();
        self.0.send(Box::new(move || drop(send.send(act())))).unwrap();
        receive.recv_timeout(Duration::from_secs(5)).expect("the spectator panicked")
    }

    pub(super) fn read(&self, path: &Path) -> std::io::Result<String> {
        let path = path.to_owned();
        self.see(move || fs::read_to_string(path))
    }

    pub(super) fn write(&self, path: &Path) -> std::io::Result<()> {
        let path = path.to_owned();
        self.see(move || fs::write(path, "by the guest"))
    }
}

pub(super) fn id(name: &str) -> ContainerId {
    ContainerId::new(name).unwrap()
}

pub(super) fn words(text: &str) -> Vec<String> {
    text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

pub(super) fn file(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// A snapshot as the overlay snapshotter gives it.
pub(super) fn overlay(dir: &Path) -> RootfsMount {
    file(&dir.join("snap/1/fs/etc/name"), "lower");
    for name in ["snap/2/fs", "snap/2/work"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    let snap = dir.join("snap").display().to_string();
    let options = format!("index=off,lowerdir={snap}/1/fs,upperdir={snap}/2/fs,workdir={snap}/2/work");
    RootfsMount {
        kind: "overlay".into(),
        source: "overlay".into(),
        options: words(&options),
        ..Default::default()
    }
}

pub(super) fn volume(number: u32, source: &Path, options: &str) -> BindMount {
    BindMount { source: source.to_owned(), number, options: words(options) }
}
