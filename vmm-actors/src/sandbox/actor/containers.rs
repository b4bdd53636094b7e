//! What is asked about containers, passed on to the actor that owns them; and its part of the record.

use actix::dev::SendError;
use actix::{AsyncContext, Context, Handler, WrapFuture};
use tracing::warn;

use super::Sandbox;
use crate::ask::{Command, Request, answer, tell};
use crate::containers::{self, ContainerError, Containers, ContainersRecord, Release, RunningPod, Started};
use crate::mounts::FileServer;
use crate::record_part::SavePart;
use crate::sandbox::lifecycle::state::State;
use crate::sandbox::messages::PrepareContainer;

impl Sandbox {
    /// Passes a request on as it is: its caller is answered by the other actor.
    fn pass_on<C>(&self, request: Request<C>)
    where
        C: Command<Error = ContainerError>,
        Containers: Handler<Request<C>>,
    {
        let Some(children) = &self.children else { return };
        match children.containers.try_send(request) {
            Ok(()) => {}
            Err(SendError::Full(Request { reply, .. })) => {
                answer(reply, Err(ContainerError::Busy(self.id())));
            }
            Err(SendError::Closed(Request { reply, .. })) => {
                answer(reply, Err(ContainerError::Ended(self.id())));
            }
        }
    }

    fn running_pod(&self) -> Option<RunningPod> {
        let vm = self.record.vm.as_ref().filter(|_| self.state == State::Running)?;
        // It makes the share its root (`--sandbox=namespace`).
        let server = self
            .record
            .virtiofsd
            .as_ref()
            .map(|virtiofsd| FileServer { process: virtiofsd.process.clone(), share: "/".into() });
        let memory_of = self.record.guest_memory_volumes.then(|| self.record.pod.uid.clone());
        let disk_hotplug = self.node.drivers.of(vm).capabilities(vm).hotplug.disk;
        Some(RunningPod { server, memory_of, disk_hotplug })
    }
}

impl Handler<Request<PrepareContainer>> for Sandbox {
    type Result = ();

    fn handle(&mut self, Request { command, reply }: Request<PrepareContainer>, _: &mut Context<Self>) {
        let Some(pod) = self.running_pod() else {
            let state = self.state.name();
            return answer(reply, Err(ContainerError::NotRunning { sandbox: self.id(), state }));
        };
        let command = containers::Prepare { request: command.request, pod };
        self.pass_on(Request { command, reply });
    }
}

impl Handler<Request<Release>> for Sandbox {
    type Result = ();

    fn handle(&mut self, request: Request<Release>, _: &mut Context<Self>) {
        self.pass_on(request);
    }
}

impl Handler<Started> for Sandbox {
    type Result = ();

    fn handle(&mut self, started: Started, _: &mut Context<Self>) {
        let Some(children) = &self.children else { return };
        if let Err(refusal) = tell(&children.containers, started) {
            warn!(parent: &self.span, %refusal, "the record is older than the truth");
        }
    }
}

impl Handler<Request<SavePart<ContainersRecord>>> for Sandbox {
    type Result = ();

    fn handle(
        &mut self,
        Request { command: SavePart { part }, reply }: Request<SavePart<ContainersRecord>>,
        ctx: &mut Context<Self>,
    ) {
        if self.state.cause().is_some() {
            // Everything of the containers is being released, and their part of the record is cleared then.
            return answer(reply, Ok(()));
        }
        self.record.containers = part;
        let save = self.save();
        ctx.spawn(async move { answer(reply, save.await) }.into_actor(self));
    }
}
