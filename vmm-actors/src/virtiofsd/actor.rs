//! The Virtiofsd actor.

use std::ffi::OsString;
use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, WrapFuture};
use bulkhead_config::{CacheMode, Virtiofsd as Settings};

use super::{
    EndCause, Keep, Kill, Observe, Spawn, VirtiofsdError, VirtiofsdExited, VirtiofsdRecord, VirtiofsdView,
};
use crate::ask::{Request, answer, report};
use crate::host::process::supervised::{Ended, EndedBy, Grace, Processes, Supervised};
use crate::host::process::{self, CgroupProcs, Exit, OwnedProcess, last_lines};
use crate::host::socket;
use crate::orphan::EndWhenOrphaned;
use crate::runtime_dir::VmDir;

/// How long the daemon may take to end by SIGTERM. Its namespace's first process does not hear it, so this is the
/// time that the request costs: short.
const TERM_GRACE: Duration = Duration::from_millis(100);
/// How long the news of a daemon that ended with its VMM is held back, so that the VMM's own end is heard first.
const VMM_FIRST: Duration = Duration::from_millis(500);
/// The listening socket's number in the daemon.
const SOCKET_FD: i32 = 3;
/// What the daemon prints when its VMM has gone.
const DISCONNECTED: &str = "Client disconnected";

/// Owns one virtiofsd. See the [module](super).
#[derive(Debug)]
pub struct Virtiofsd {
    dir: VmDir,
    parent: Recipient<VirtiofsdExited>,
    /// None of a daemon that was taken over: it is not started again.
    settings: Option<Settings>,
    process: Supervised<VirtiofsdExited>,
}

impl Virtiofsd {
    /// A daemon that has not been started, for the pod with this directory: [`VmDir::shared`] is served on
    /// [`VmDir::virtiofs_sock`]. `parent` is told of its end.
    #[must_use]
    pub fn new(dir: VmDir, settings: Settings, parent: Recipient<VirtiofsdExited>) -> Self {
        Self { dir, parent, settings: Some(settings), process: Supervised::cold() }
    }

    /// Takes over a daemon that an earlier instance of this service started and kept. `None` when it is gone. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// [`VirtiofsdError::Adopt`] when the kernel does not let us find out.
    pub fn adopt(
        record: &VirtiofsdRecord,
        parent: Recipient<VirtiofsdExited>,
    ) -> Result<Option<Self>, VirtiofsdError> {
        let VirtiofsdRecord { process, dir } = record;
        let adopted = Processes::adopt(process, None)
            .map_err(|source| VirtiofsdError::Adopt { pid: process.pid, source })?;
        Ok(adopted.map(|process| Self {
            dir: dir.clone(),
            parent,
            settings: None,
            process: Supervised::up(process),
        }))
    }

    fn watch(&self, ctx: &mut Context<Self>) {
        let Some(ended) = self.process.watch() else { return };
        let output = self.dir.virtiofsd_output();
        let exited = async move {
            let Ended { exit, by } = ended.await;
            let last_words = last_lines(&output, 8, 4096);
            VirtiofsdExited { exit, cause: cause(exit, by, &last_words), last_words }
        };
        ctx.spawn(exited.into_actor(self).map(|exited, daemon, ctx| daemon.ended(exited, ctx)));
    }

    fn ended(&mut self, exited: VirtiofsdExited, ctx: &mut Context<Self>) {
        self.process.gone(exited.exit, exited.clone());
        let parent = self.parent.clone();
        let told = async move {
            if exited.cause == EndCause::VmmDisconnected {
                tokio::time::sleep(VMM_FIRST).await;
            }
            report(parent, exited).await;
        };
        ctx.spawn(told.into_actor(self));
    }
}

/// A daemon whose VMM goes ends by itself with 0, and says so for those who are not told the code.
fn cause(exit: Exit, by: EndedBy, last_words: &str) -> EndCause {
    match exit {
        _ if by == EndedBy::Request => EndCause::Asked,
        Exit::Code(0) => EndCause::VmmDisconnected,
        Exit::Unknown if last_words.contains(DISCONNECTED) => EndCause::VmmDisconnected,
        Exit::Code(_) | Exit::Signal(_) | Exit::Unknown => EndCause::Crashed,
    }
}

fn start(
    dir: &VmDir,
    settings: &Settings,
    cgroup: Option<CgroupProcs>,
) -> Result<OwnedProcess, VirtiofsdError> {
    let path = dir.virtiofs_sock();
    let listener = socket::listen(&path).map_err(|source| VirtiofsdError::Listen { path, source })?;
    let start = process::Spawn {
        program: settings.path.clone(),
        args: args(dir, settings),
        output: dir.virtiofsd_output(),
        fds: vec![(listener.into(), SOCKET_FD)],
        cgroup,
        env: Vec::new(),
    };
    OwnedProcess::spawn(start).map_err(|source| VirtiofsdError::Start { source })
}

fn args(dir: &VmDir, settings: &Settings) -> Vec<OsString> {
    let cache = match settings.cache {
        CacheMode::Never => "never",
        CacheMode::Auto => "auto",
        CacheMode::Always => "always",
    };
    let mut args: Vec<OsString> = vec!["--shared-dir".into(), dir.shared().into()];
    // File capabilities are extended attributes; the guest must see where one host file system ends and another
    // begins, or inode numbers would clash.
    args.extend(["--sandbox=namespace", "--announce-submounts", "--xattr"].map(OsString::from));
    args.push(format!("--fd={SOCKET_FD}").into());
    args.push(format!("--cache={cache}").into());
    args.push(format!("--thread-pool-size={}", settings.thread_pool_size).into());
    args.extend(settings.extra_args.iter().map(OsString::from));
    args
}

impl Actor for Virtiofsd {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.spawn(EndWhenOrphaned);
        // Something runs already only where it was adopted.
        self.watch(ctx);
    }
}

impl Handler<Request<Spawn>> for Virtiofsd {
    type Result = ();
    fn handle(
        &mut self,
        Request { command: Spawn { cgroup }, reply }: Request<Spawn>,
        ctx: &mut Self::Context,
    ) {
        let Some(settings) = self.settings.as_ref().filter(|_| self.process.is_cold()) else {
            answer(reply, Err(VirtiofsdError::Refused { state: self.process.name() }));
            return;
        };
        let started = start(&self.dir, settings, cgroup);
        self.process = Supervised::failed();
        let started = started.map(|process| {
            let record = VirtiofsdRecord { process: process.identity().clone(), dir: self.dir.clone() };
            self.process = Supervised::up(Processes::new(process, None));
            self.watch(ctx);
            record
        });
        answer(reply, started);
    }
}

impl Handler<Keep> for Virtiofsd {
    type Result = ();
    fn handle(&mut self, Keep: Keep, _: &mut Self::Context) {
        self.process.keep();
    }
}

impl Handler<Request<Kill>> for Virtiofsd {
    type Result = ();
    fn handle(&mut self, Request { command: Kill, reply }: Request<Kill>, ctx: &mut Self::Context) {
        let ended = self.process.end(Grace { by_sigterm: TERM_GRACE, ..Grace::NONE });
        let ended = async move { answer(reply, ended.await.map_err(VirtiofsdError::StillAlive)) };
        ctx.spawn(ended.into_actor(self));
    }
}

impl Handler<Request<Observe>> for Virtiofsd {
    type Result = ();
    fn handle(&mut self, Request { command: Observe, reply }: Request<Observe>, _: &mut Self::Context) {
        let view = VirtiofsdView {
            state: self.process.name(),
            pid: self.process.pid(),
            exited: self.process.told().cloned(),
        };
        answer(reply, Ok(view));
    }
}

#[cfg(test)]
mod tests;
