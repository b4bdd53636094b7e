//! The Shim actor.

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, WrapFuture};
use bulkhead_protocol::shim::{AttachRequest, VmGoneRequest};
use bulkhead_protocol::{SHIM_SOCKET_FD, TASK_SOCKET_FD};

use super::peer::Peer;
use super::{
    Attach, EndCause, Keep, Kill, Observe, ShimError, ShimExited, ShimRecord, ShimSpec, ShimView, Shutdown,
    Spawn, VmGone,
};
use crate::ask::{Reply, answer, report};
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
    state: State,
}

#[derive(Debug)]
enum State {
    Cold(ShimSpec),
    Failed,
    Up(Arc<OwnedProcess>),
    Ending { process: Arc<OwnedProcess>, waiters: Vec<Reply<Exit, ShimError>> },
    Gone(ShimExited),
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::Cold(_) => "cold",
            Self::Failed => "failed",
            Self::Up(_) => "up",
            Self::Ending { .. } => "ending",
            Self::Gone(_) => "gone",
        }
    }
}

impl Shim {
    /// A shim proxy that has not been started. `parent` is told of its end.
    #[must_use]
    pub fn new(spec: ShimSpec, parent: Recipient<ShimExited>) -> Self {
        Self { dir: spec.dir.clone(), parent, state: State::Cold(spec) }
    }

    /// Takes over a shim proxy that an earlier instance of this service started and kept. `None` when it is gone. Must
    /// be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ShimError::Adopt`] when the kernel does not let us find out.
    pub fn adopt(record: &ShimRecord, parent: Recipient<ShimExited>) -> Result<Option<Self>, ShimError> {
        let ShimRecord { process: identity, dir } = record;
        let pid = identity.pid;
        let adopted = OwnedProcess::adopt(identity).map_err(|source| ShimError::Adopt { pid, source })?;
        Ok(adopted.map(|process| {
            process.keep();
            Self { dir: dir.clone(), parent, state: State::Up(Arc::new(process)) }
        }))
    }

    fn watch(&self, ctx: &mut Context<Self>) {
        let State::Up(process) = &self.state else { return };
        let (process, output) = (Arc::clone(process), self.dir.shim_output());
        let ended = async move {
            let exit = process.wait().await;
            (exit, last_lines(&output, 8, 4096))
        };
        ctx.spawn(
            ended.into_actor(self).map(|(exit, last_words), shim, ctx| shim.ended(exit, last_words, ctx)),
        );
    }

    fn ended(&mut self, exit: Exit, last_words: String, ctx: &mut Context<Self>) {
        let mut exited = ShimExited { exit, cause: EndCause::Crashed, last_words };
        if let State::Ending { waiters, .. } = std::mem::replace(&mut self.state, State::Failed) {
            exited.cause = EndCause::Asked;
            for waiter in waiters {
                answer(waiter, Ok(exit));
            }
        }
        self.state = State::Gone(exited.clone());
        ctx.spawn(report(self.parent.clone(), exited).into_actor(self));
    }

    /// Ends the process by `way`, in whatever state it is.
    fn end<F>(
        &mut self,
        reply: Reply<Exit, ShimError>,
        way: impl FnOnce(Arc<OwnedProcess>) -> F,
        ctx: &mut Context<Self>,
    ) where
        F: Future<Output = ()> + 'static,
    {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Cold(_) | State::Failed => answer(reply, Ok(Exit::Unknown)),
            State::Up(process) => {
                ctx.spawn(way(Arc::clone(&process)).into_actor(self));
                self.state = State::Ending { process, waiters: vec![reply] };
            }
            State::Ending { process, mut waiters } => {
                ctx.spawn(way(Arc::clone(&process)).into_actor(self));
                waiters.push(reply);
                self.state = State::Ending { process, waiters };
            }
            State::Gone(exited) => {
                answer(reply, Ok(exited.exit));
                self.state = State::Gone(exited);
            }
        }
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
        if !matches!(self.state, State::Up(_) | State::Ending { .. }) {
            answer(reply, Err(ShimError::Refused { command, state: self.state.name() }));
            return;
        }
        let called = call(self.dir.shim_sock());
        ctx.spawn(async move { answer(reply, called.await) }.into_actor(self));
    }
}

/// Asks the proxy to end, and makes sure that it does.
async fn shut_down(process: Arc<OwnedProcess>, socket: PathBuf) {
    let asked = async {
        let asked = async { Peer::connect(&socket).await?.shutdown().await }.await;
        if let Err(error) = asked {
            tracing::debug!(%error, "the shim proxy did not answer to its shutdown");
        }
        process.wait().await
    };
    if tokio::time::timeout(ENDS_WITHIN, asked).await.is_err() {
        tracing::warn!(pid = process.identity().pid, "the shim proxy does not end when asked to, ending it");
        process.end(TERM_GRACE).await;
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

impl Handler<Spawn> for Shim {
    type Result = ();
    fn handle(&mut self, Spawn { cgroup, reply }: Spawn, ctx: &mut Self::Context) {
        let State::Cold(spec) = &self.state else {
            answer(reply, Err(ShimError::Refused { command: "be started", state: self.state.name() }));
            return;
        };
        let started = start(spec, cgroup);
        self.state = State::Failed;
        let started = started.map(|process| {
            let record = ShimRecord { process: process.identity().clone(), dir: self.dir.clone() };
            self.state = State::Up(Arc::new(process));
            self.watch(ctx);
            record
        });
        answer(reply, started);
    }
}

impl Handler<Keep> for Shim {
    type Result = ();
    fn handle(&mut self, Keep: Keep, _: &mut Self::Context) {
        if let State::Up(process) = &self.state {
            process.keep();
        }
    }
}

impl Handler<Attach> for Shim {
    type Result = ();
    fn handle(&mut self, Attach { vmm, vsock, netns, reply }: Attach, ctx: &mut Self::Context) {
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

impl Handler<VmGone> for Shim {
    type Result = ();
    fn handle(
        &mut self,
        VmGone { exit_status, exited_at_nanos, reason, reply }: VmGone,
        ctx: &mut Self::Context,
    ) {
        let request = VmGoneRequest { exit_status, exited_at_nanos, reason, ..VmGoneRequest::default() };
        let call = |socket: PathBuf| async move { Peer::connect(&socket).await?.vm_gone(&request).await };
        self.call("be told", reply, call, ctx);
    }
}

impl Handler<Observe> for Shim {
    type Result = ();
    fn handle(&mut self, Observe { reply }: Observe, ctx: &mut Self::Context) {
        let call = |socket: PathBuf| async move { Peer::connect(&socket).await?.observe().await };
        self.call::<ShimView, _>("be observed", reply, call, ctx);
    }
}

impl Handler<Shutdown> for Shim {
    type Result = ();
    fn handle(&mut self, Shutdown { reply }: Shutdown, ctx: &mut Self::Context) {
        let socket = self.dir.shim_sock();
        self.end(reply, |process| shut_down(process, socket), ctx);
    }
}

impl Handler<Kill> for Shim {
    type Result = ();
    fn handle(&mut self, Kill { reply }: Kill, ctx: &mut Self::Context) {
        let way = |process: Arc<OwnedProcess>| async move {
            process.end(Duration::ZERO).await;
        };
        self.end(reply, way, ctx);
    }
}

#[cfg(test)]
mod tests;
