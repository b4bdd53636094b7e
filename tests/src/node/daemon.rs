//! A daemon of the node, started inside its namespaces.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::namespaces::Namespaces;
use crate::{processes, wait};

/// A daemon and its log. Dropped, it is killed; what it started lives on.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    /// The `nsenter` that waits for it: its exit status is the daemon's.
    parent: Child,
    /// Known once it runs; a daemon that ended at once never had one.
    pid: Option<i32>,
    log: PathBuf,
}

impl Daemon {
    pub(crate) async fn start(
        namespaces: &Namespaces,
        log: &Path,
        environment: &[(&str, &str)],
        args: &[&str],
    ) -> Self {
        Self::start_by(namespaces.enter(), log, environment, args).await
    }

    /// The same, with `folder` as working directory.
    pub(crate) async fn start_in(
        namespaces: &Namespaces,
        folder: &Path,
        log: &Path,
        environment: &[(&str, &str)],
        args: &[&str],
    ) -> Self {
        Self::start_by(namespaces.enter_in(folder), log, environment, args).await
    }

    async fn start_by(mut command: Command, log: &Path, environment: &[(&str, &str)], args: &[&str]) -> Self {
        let name = args[0].rsplit('/').next().expect("a program has a name").to_owned();
        let output =
            std::fs::File::options().create(true).append(true).open(log).expect("open the daemon's log");
        command
            .args(args)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("share the log"))
            .stderr(output)
            .process_group(0);
        let parent = command.spawn().expect("run nsenter");
        let entered = i32::try_from(parent.id()).expect("a pid is an i32");
        let mut daemon = Self { name, parent, pid: None, log: log.to_path_buf() };
        let name = daemon.name.clone();
        daemon.pid = wait::expect(&format!("{name} runs"), Duration::from_secs(10), async || {
            if daemon.ended().is_some() {
                return Some(None);
            }
            let pid = *processes::children(entered).first()?;
            (processes::read(pid)?.program() == name).then_some(Some(pid))
        })
        .await;
        daemon
    }

    /// Pid on this machine.
    #[must_use]
    pub const fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// Its log file.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its exit status once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.parent.try_wait().expect("look after the daemon")
    }

    /// Sends a signal and waits for its end.
    pub async fn end(mut self, signal: Signal) -> ExitStatus {
        if let Some(pid) = self.pid {
            processes::signal(pid, signal);
        }
        let what = format!("{} ends on {signal}", self.name);
        wait::expect(&what, Duration::from_secs(30), async || self.ended()).await
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let (Ok(None), Some(pid)) = (self.parent.try_wait(), self.pid) {
            processes::signal(pid, Signal::SIGKILL);
        }
        drop(self.parent.wait());
    }
}
