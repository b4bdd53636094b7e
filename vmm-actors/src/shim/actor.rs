//! The Shim actor.

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, WrapFuture};
use bulkhead_protocol::shim::{AttachRequest, VmGoneRequest};
use bulkhead_protocol::{SHIM_SOCKET_FD, TASK_SOCKET_FD};

use super::peer::Peer;
use super::{
    Attach, EndCause, Keep, Observe, ShimError, ShimExited, ShimRecord, ShimSpec, ShimView, Shutdown, Spawn,
    VmGone,
};
use crate::ask::{Reply, Request, answer, report};
use crate::host::process::supervised::{Ended, EndedBy, Grace, Processes, Supervised};
use crate::host::process::{self, CgroupProcs, Exit, OwnedProcess, last_lines};
use crate::host::socket;
use crate::orphan::EndWhenOrphaned;
use crate::runtime_dir::PodDir;

/// How long the proxy may take to end once it was asked to.
const ENDS_WITHIN: Duration = Duration::from_secs(3);
/// How long it may take to end by SIGTERM.
const TERM_GRACE: Duration = Duration::from_secs(1);

/// Owns one shim proxy. See the [module](super).
#[derive(Debug)]
pub struct Shim {
    dir: PodDir,
    parent: Recipient<ShimExited>,
    /// None of a proxy that was taken over: it is not started again.
    spec: Option<ShimSpec>,
    process: Supervised<ShimExited>,
}

impl Shim {
    /// A shim proxy that has not been started. `parent` is told of its end.
    #[must_use]
    pub fn new(spec: ShimSpec, parent: Recipient<ShimExited>) -> Self {
        Self { dir: spec.dir.clone(), parent, spec: Some(spec), process: Supervised::cold() }
    }

    /// Takes over a shim proxy that an earlier instance of this service started and kept. `None` when it is gone. Must
    /// be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ShimError::Adopt`] when the kernel does not let us find out.
    pub fn adopt(record: &ShimRecord, parent: Recipient<ShimExited>) -> Result<Option<Self>, ShimError> {
        let ShimRecord { process, dir } = record;
        let adopted = Processes::adopt(process, None)
            .map_err(|source| ShimError::Adopt { pid: process.pid, source })?;
        Ok(adopted.map(|process| Self {
            dir: dir.clone(),
            parent,
            spec: None,
            process: Supervised::up(process),
        }))
    }

    fn watch(&self, ctx: &mut Context<Self>) {
        let Some(ended) = self.process.watch() else { return };
        let output = self.dir.shim_output();
        let exited = async move {
            let Ended { exit, by } = ended.await;
            let cause = if by == EndedBy::Request { EndCause::Asked } else { EndCause::Crashed };
            ShimExited { exit, cause, last_words: last_lines(&output, 8, 4096) }
        };
        ctx.spawn(exited.into_actor(self).map(|exited, shim, ctx| shim.ended(exited, ctx)));
    }

    fn ended(&mut self, exited: ShimExited, ctx: &mut Context<Self>) {
        self.process.gone(exited.exit, exited.clone());
        ctx.spawn(report(self.parent.clone(), exited).into_actor(self));
    }

    fn end(&self, grace: Grace, reply: Reply<Exit, ShimError>, ctx: &mut Context<Self>) {
        let ended = self.process.end(grace);
        ctx.spawn(async move { answer(reply, ended.await.map_err(ShimError::StillAlive)) }.into_actor(self));
    }

    /// Runs a call of the proxy, or refuses it when there is none.
    fn call<T, F>(
        &self,
        command: &'static str,
        reply: Reply<T, ShimError>,
        call: impl FnOnce(PathBuf) -> F,
        ctx: &mut Context<Self>,
    ) where
        F: Future<Output = Result<T, ShimError>> + 'static,
        T: 'static,
    {
        if self.process.pid().is_none() {
            answer(reply, Err(ShimError::Refused { command, state: self.process.name() }));
            return;
        }
        let called = call(self.dir.shim_sock());
        ctx.spawn(async move { answer(reply, called.await) }.into_actor(self));
    }
}

/// Asks the proxy to end. One that does not hear is ended by force.
async fn ask_to_end(socket: PathBuf) {
    let asked = async { Peer::connect(&socket).await?.shutdown().await };
    match tokio::time::timeout(ENDS_WITHIN, asked).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the shim proxy did not answer to its shutdown"),
        Err(_late) => tracing::warn!(socket = %socket.display(), "the shim proxy does not hear of its end"),
    }
}

fn start(spec: &ShimSpec, cgroup: Option<CgroupProcs>) -> Result<OwnedProcess, ShimError> {
    let listen = |path: PathBuf| socket::listen(&path).map_err(|source| ShimError::Listen { path, source });
    let (task, shim) = (listen(spec.dir.task_sock())?, listen(spec.dir.shim_sock())?);
    let start = process::Spawn {
        program: spec.binary.clone(),
        args: args(spec),
        output: spec.dir.shim_output(),
        fds: vec![(task.into(), TASK_SOCKET_FD), (shim.into(), SHIM_SOCKET_FD)],
        cgroup,
        env: Vec::new(),
    };
    OwnedProcess::spawn(start).map_err(|source| ShimError::Start { source })
}

fn args(spec: &ShimSpec) -> Vec<OsString> {
    let options: [(&str, OsString); 5] = [
        ("--id", spec.id.as_str().into()),
        ("--dir", spec.dir.path().into()),
        ("--control", spec.control.clone().into()),
        ("--containerd-events", spec.containerd_events.clone().into()),
        ("--namespace", spec.namespace.as_str().into()),
    ];
    let mut args = vec![OsString::from("serve")];
    args.extend(options.into_iter().flat_map(|(name, value)| [name.into(), value]));
    args
}

impl Actor for Shim {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.spawn(EndWhenOrphaned);
        // Something runs already only where it was adopted.
        self.watch(ctx);
    }
}

impl Handler<Request<Spawn>> for Shim {
    type Result = ();
    fn handle(
        &mut self,
        Request { command: Spawn { cgroup }, reply }: Request<Spawn>,
        ctx: &mut Self::Context,
    ) {
        let Some(spec) = self.spec.as_ref().filter(|_| self.process.is_cold()) else {
            answer(reply, Err(ShimError::Refused { command: "be started", state: self.process.name() }));
            return;
        };
        let started = start(spec, cgroup);
        self.process = Supervised::failed();
        let started = started.map(|process| {
            let record = ShimRecord { process: process.identity().clone(), dir: self.dir.clone() };
            self.process = Supervised::up(Processes::new(process, None));
            self.watch(ctx);
            record
        });
        answer(reply, started);
    }
}

impl Handler<Keep> for Shim {
    type Result = ();
    fn handle(&mut self, Keep: Keep, _: &mut Self::Context) {
        self.process.keep();
    }
}

impl Handler<Request<Attach>> for Shim {
    type Result = ();
    fn handle(
        &mut self,
        Request { command: Attach { vmm, vsock, netns }, reply }: Request<Attach>,
        ctx: &mut Self::Context,
    ) {
        let request = AttachRequest {
            vmm_pid: vmm.pid,
            vmm_start_time: vmm.start_time,
            vsock: vsock.to_string_lossy().into_owned(),
            netns: netns.to_string_lossy().into_owned(),
            ..AttachRequest::default()
        };
        let call = |socket: PathBuf| async move { Peer::connect(&socket).await?.attach(&request).await };
        self.call("be attached", reply, call, ctx);
    }
}

impl Handler<Request<VmGone>> for Shim {
    type Result = ();
    fn handle(
        &mut self,
        Request { command: VmGone { exit_status, exited_at_nanos, reason }, reply }: Request<VmGone>,
        ctx: &mut Self::Context,
    ) {
        let request = VmGoneRequest { exit_status, exited_at_nanos, reason, ..VmGoneRequest::default() };
        let call = |socket: PathBuf| async move { Peer::connect(&socket).await?.vm_gone(&request).await };
        self.call("be told", reply, call, ctx);
    }
}

impl Handler<Request<Observe>> for Shim {
    type Result = ();
    fn handle(&mut self, Request { command: Observe, reply }: Request<Observe>, ctx: &mut Self::Context) {
        let call = |socket: PathBuf| async move { Peer::connect(&socket).await?.observe().await };
        self.call::<ShimView, _>("be observed", reply, call, ctx);
    }
}

impl Handler<Request<Shutdown>> for Shim {
    type Result = ();
    fn handle(&mut self, Request { command: Shutdown, reply }: Request<Shutdown>, ctx: &mut Self::Context) {
        if self.process.pid().is_some() {
            ctx.spawn(ask_to_end(self.dir.shim_sock()).into_actor(self));
        }
        self.end(Grace { by_itself: ENDS_WITHIN, by_sigterm: TERM_GRACE }, reply, ctx);
    }
}

#[cfg(test)]
mod tests;
