//! The Agent actor.

use std::time::{Duration, Instant};

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, SpawnHandle, WrapFuture};
use bulkhead_protocol::agent::Announce;
use bulkhead_protocol::version::negotiate;
use bulkhead_protocol::{FEATURE_RESIZE, untrusted};

use super::{
    AgentError, AgentSilent, AgentView, AnnounceSocket, AwaitGuest, Grow, Guest, Listen, Observe, Ping,
    Session, Setup, Shutdown,
};
use crate::ask::{Reply, ReplyTo, Request, answer, report};
use crate::host::process::last_lines;
use crate::orphan::EndWhenOrphaned;
use crate::runtime_dir::VmDir;

/// Pause between the end of a heartbeat and the next.
const BEAT_EVERY: Duration = Duration::from_secs(10);
/// How long the answer to a heartbeat may take: an emulated guest on a busy host is slow, not dead.
const BEAT_WITHIN: Duration = Duration::from_secs(10);
/// Heartbeats missed in a row that count as silence.
const SILENT_AFTER: u32 = 3;
/// How long a ping that somebody waits for may take.
const PING_WITHIN: Duration = Duration::from_secs(5);

/// Owns the session to one guest. See the [module](super).
#[derive(Debug)]
pub struct Agent {
    dir: VmDir,
    boot_timeout: Duration,
    parent: Recipient<AgentSilent>,
    state: State,
    waiter: Option<Waiter>,
    guest: Option<Guest>,
    missed: u32,
    /// When it answered last.
    heard: Option<Instant>,
}

/// How far the session is.
#[derive(Debug)]
enum State {
    Cold,
    /// The guest has not announced itself.
    Listening(SpawnHandle),
    /// It has, and is being dialled.
    Opening(SpawnHandle),
    /// It answers, or answered until lately.
    Up(Session),
    /// Taken over, but not reached yet; or its connection broke.
    Lost,
    /// It never answered.
    Failed(Option<AgentError>),
    /// It was told to power off: nobody listens for it any more.
    Ended,
}

/// Who waits for the guest, and the end of its patience.
#[derive(Debug)]
struct Waiter {
    reply: ReplyTo<AwaitGuest>,
    deadline: SpawnHandle,
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Listening(_) => "listening",
            Self::Opening(_) => "opening",
            Self::Up(_) => "up",
            Self::Lost => "lost",
            Self::Failed(_) => "failed",
            Self::Ended => "ended",
        }
    }
}

impl Agent {
    /// A session to the guest of the pod with this directory, which is yet to boot and may take `boot_timeout` for
    /// it. `parent` is told when it falls silent.
    #[must_use]
    pub fn new(dir: VmDir, boot_timeout: Duration, parent: Recipient<AgentSilent>) -> Self {
        Self::begin(State::Cold, dir, boot_timeout, parent)
    }

    /// A session to a guest that an earlier instance of this service has set up. It is dialled at once, and by every
    /// heartbeat until it answers.
    #[must_use]
    pub fn adopt(dir: VmDir, parent: Recipient<AgentSilent>) -> Self {
        // Nobody knows how long it has been silent: its silence is counted from now.
        let heard = Some(Instant::now());
        Self { heard, ..Self::begin(State::Lost, dir, BEAT_WITHIN, parent) }
    }

    fn begin(state: State, dir: VmDir, boot_timeout: Duration, parent: Recipient<AgentSilent>) -> Self {
        Self { dir, boot_timeout, parent, state, waiter: None, guest: None, missed: 0, heard: None }
    }

    fn announced(&mut self, announced: std::io::Result<Announce>, ctx: &mut Context<Self>) {
        let announce = match announced.map_err(|source| AgentError::Announcement { source }).and_then(fits) {
            Ok(announce) => announce,
            Err(error) => return self.fail(error, ctx),
        };
        let booted_in = Duration::from_nanos(announce.boot_nanos);
        tracing::debug!(dir = %self.dir.path().display(), ?booted_in, "the guest announced itself");
        let vsock = self.dir.vsock();
        let opened = async move { Session::open(&vsock).await };
        let opened = opened.into_actor(self).map(move |opened, agent, ctx| match opened {
            Ok((session, guest)) => {
                agent.up(session, Guest { booted_in: Some(booted_in), ..guest }, ctx);
                agent.beat_later(ctx);
            }
            Err(error) => agent.fail(error, ctx),
        });
        self.state = State::Opening(ctx.spawn(opened));
    }

    fn up(&mut self, session: Session, guest: Guest, ctx: &mut Context<Self>) {
        self.state = State::Up(session);
        self.missed = 0;
        self.heard = Some(Instant::now());
        self.guest = Some(guest.clone());
        if let Some(Waiter { reply, deadline }) = self.waiter.take() {
            ctx.cancel_future(deadline);
            answer(reply, Ok(guest));
        }
    }

    fn fail(&mut self, error: AgentError, ctx: &mut Context<Self>) {
        let unsaid = match self.waiter.take() {
            Some(Waiter { reply, deadline }) => {
                ctx.cancel_future(deadline);
                answer(reply, Err(error));
                None
            }
            None => Some(error),
        };
        self.state = State::Failed(unsaid);
    }

    /// The guest's time is up.
    fn late(&mut self, ctx: &mut Context<Self>) {
        let (after, console_tail) = (self.boot_timeout, last_lines(&self.dir.console(), 20, 8 * 1024));
        match std::mem::replace(&mut self.state, State::Cold) {
            State::Listening(listening) => {
                ctx.cancel_future(listening);
                self.fail(AgentError::NoAnnouncement { after, console_tail }, ctx);
            }
            State::Opening(opening) => {
                ctx.cancel_future(opening);
                self.fail(AgentError::NoAnswer { after, console_tail }, ctx);
            }
            State::Lost => {
                if let Some(Waiter { reply, .. }) = self.waiter.take() {
                    answer(reply, Err(AgentError::NoAnswer { after, console_tail }));
                }
                self.state = State::Lost;
            }
            other @ (State::Cold | State::Up(_) | State::Failed(_) | State::Ended) => self.state = other,
        }
    }

    fn beat_later(&self, ctx: &mut Context<Self>) {
        ctx.run_later(BEAT_EVERY, Self::beat);
    }

    /// One heartbeat: the guest's time on the session, or a new session where it broke.
    fn beat(&mut self, ctx: &mut Context<Self>) {
        let session = match &self.state {
            State::Up(session) => Some(session.clone()),
            State::Lost => None,
            State::Cold | State::Listening(_) | State::Opening(_) | State::Failed(_) | State::Ended => return,
        };
        let vsock = self.dir.vsock();
        let beat = async move {
            match session {
                Some(session) => session.keep_time(BEAT_WITHIN).await.map(|()| None),
                None => match tokio::time::timeout(BEAT_WITHIN, Session::open(&vsock)).await {
                    Ok(opened) => opened.map(Some),
                    Err(elapsed) => {
                        let source = std::io::Error::new(std::io::ErrorKind::TimedOut, elapsed);
                        Err(AgentError::Dial { socket: vsock, source })
                    }
                },
            }
        };
        ctx.spawn(beat.into_actor(self).map(|outcome, agent, ctx| {
            agent.beaten(outcome, ctx);
            agent.beat_later(ctx);
        }));
    }

    fn beaten(&mut self, outcome: Result<Option<(Session, Guest)>, AgentError>, ctx: &mut Context<Self>) {
        if matches!(self.state, State::Ended) {
            return;
        }
        match outcome {
            Ok(opened) => {
                if self.missed >= SILENT_AFTER {
                    tracing::info!(dir = %self.dir.path().display(), "the guest answers again");
                }
                self.missed = 0;
                self.heard = Some(Instant::now());
                if let Some((session, guest)) = opened {
                    tracing::debug!(dir = %self.dir.path().display(), "connected to the guest again");
                    let booted_in = self.guest.as_ref().and_then(|guest| guest.booted_in);
                    self.up(session, Guest { booted_in, ..guest }, ctx);
                }
            }
            Err(error) => {
                if error.is_broken_connection() {
                    self.state = State::Lost;
                }
                self.missed = self.missed.saturating_add(1);
                tracing::debug!(dir = %self.dir.path().display(), missed = self.missed, %error, "heartbeat missed");
                if self.missed == SILENT_AFTER {
                    let silent = AgentSilent { missed: self.missed, error };
                    ctx.spawn(report(self.parent.clone(), silent).into_actor(self));
                }
            }
        }
    }

    /// Runs a call of the session, or refuses it when there is none.
    fn call<T, F>(
        &self,
        command: &'static str,
        reply: Reply<T, AgentError>,
        call: impl FnOnce(Session) -> F,
        ctx: &mut Context<Self>,
    ) where
        F: Future<Output = Result<T, AgentError>> + 'static,
        T: 'static,
    {
        let State::Up(session) = &self.state else {
            answer(reply, Err(AgentError::Refused { command, state: self.state.name() }));
            return;
        };
        let called = call(session.clone());
        ctx.spawn(async move { answer(reply, called.await) }.into_actor(self));
    }
}

/// Refuses a guest whose agent does not speak our language, before anything is asked of it.
fn fits(announce: Announce) -> Result<Announce, AgentError> {
    match negotiate(announce.min_version, announce.max_version) {
        Ok(_) => Ok(announce),
        Err(source) => {
            let agent_build = untrusted::text(&announce.agent_build);
            Err(AgentError::Version { agent_build, source })
        }
    }
}

impl Actor for Agent {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.spawn(EndWhenOrphaned);
        // Without effect but for a guest that is taken over.
        self.beat(ctx);
    }
}

impl Handler<Request<Listen>> for Agent {
    type Result = ();
    fn handle(&mut self, Request { command: Listen, reply }: Request<Listen>, ctx: &mut Self::Context) {
        if !matches!(self.state, State::Cold) {
            answer(reply, Err(AgentError::Refused { command: "listen", state: self.state.name() }));
            return;
        }
        let vsock = self.dir.vsock();
        let bound = AnnounceSocket::bind(&vsock).map(|socket| {
            let announced = socket.announced().into_actor(self);
            self.state =
                State::Listening(ctx.spawn(announced.map(|got, agent, ctx| agent.announced(got, ctx))));
        });
        let path = AnnounceSocket::path(&vsock);
        answer(reply, bound.map_err(|source| AgentError::Listen { path, source }));
    }
}

impl Handler<Request<AwaitGuest>> for Agent {
    type Result = ();
    fn handle(
        &mut self,
        Request { command: AwaitGuest, reply }: Request<AwaitGuest>,
        ctx: &mut Self::Context,
    ) {
        let refused = AgentError::Refused { command: "be waited for", state: self.state.name() };
        match &mut self.state {
            State::Up(_) => answer(reply, self.guest.clone().ok_or(refused)),
            State::Failed(error) => answer(reply, Err(error.take().unwrap_or(refused))),
            State::Cold | State::Ended => answer(reply, Err(refused)),
            State::Listening(_) | State::Opening(_) | State::Lost if self.waiter.is_some() => {
                answer(reply, Err(refused));
            }
            State::Listening(_) | State::Opening(_) | State::Lost => {
                let deadline = ctx.run_later(self.boot_timeout, Self::late);
                self.waiter = Some(Waiter { reply, deadline });
            }
        }
    }
}

impl Handler<Request<Setup>> for Agent {
    type Result = ();
    fn handle(
        &mut self,
        Request { command: Setup { request }, reply }: Request<Setup>,
        ctx: &mut Self::Context,
    ) {
        let call = |session: Session| async move { session.setup(&request).await };
        self.call("become a pod", reply, call, ctx);
    }
}

impl Handler<Request<Grow>> for Agent {
    type Result = ();
    fn handle(&mut self, Request { command: Grow { to }, reply }: Request<Grow>, ctx: &mut Self::Context) {
        let capable =
            self.guest.as_ref().is_none_or(|guest| guest.features.iter().any(|name| name == FEATURE_RESIZE));
        if !capable {
            let agent_build = self.guest.as_ref().map(|guest| guest.agent_build.clone()).unwrap_or_default();
            let what = "take CPUs or memory that its VM is given while it runs";
            return answer(reply, Err(AgentError::Incapable { agent_build, what }));
        }
        self.call("grow", reply, move |session| async move { session.grow(to).await }, ctx);
    }
}

impl Handler<Request<Ping>> for Agent {
    type Result = ();
    fn handle(&mut self, Request { command: Ping, reply }: Request<Ping>, ctx: &mut Self::Context) {
        self.call("be pinged", reply, |session| async move { session.ping(PING_WITHIN).await }, ctx);
    }
}

impl Handler<Request<Shutdown>> for Agent {
    type Result = ();
    fn handle(
        &mut self,
        Request { command: Shutdown { grace }, reply }: Request<Shutdown>,
        ctx: &mut Self::Context,
    ) {
        let session = match std::mem::replace(&mut self.state, State::Ended) {
            State::Up(session) => Some(session),
            // A guest that was taken over a moment ago may not have been reached yet.
            State::Lost => None,
            other @ (State::Cold
            | State::Listening(_)
            | State::Opening(_)
            | State::Failed(_)
            | State::Ended) => {
                answer(reply, Err(AgentError::Refused { command: "be shut down", state: other.name() }));
                self.state = other;
                return;
            }
        };
        let vsock = self.dir.vsock();
        let told = async move {
            let session = match session {
                Some(session) => session,
                None => Session::open(&vsock).await?.0,
            };
            session.shutdown(grace).await
        };
        ctx.spawn(async move { answer(reply, told.await) }.into_actor(self));
    }
}

impl Handler<Request<Observe>> for Agent {
    type Result = ();
    fn handle(&mut self, Request { command: Observe, reply }: Request<Observe>, _: &mut Self::Context) {
        let state = if self.missed >= SILENT_AFTER { "silent" } else { self.state.name() };
        let heard = self.heard.map(|at| at.elapsed());
        answer(reply, Ok(AgentView { state, guest: self.guest.clone(), missed: self.missed, heard }));
    }
}

#[cfg(test)]
mod tests;
