//! The pod's figures on the host.

use actix::{AsyncContext, Context, Handler, WrapFuture};

use super::Sandbox;
use crate::ask::{Request, answer, ask};
use crate::sandbox::error::SandboxError;
use crate::sandbox::messages::{Metrics, PodMetrics};
use crate::{agent, cgroup, network};

impl Handler<Request<Metrics>> for Sandbox {
    type Result = ();

    fn handle(&mut self, Request { command: Metrics, reply }: Request<Metrics>, ctx: &mut Context<Self>) {
        let (None, Some(children)) = (self.state.cause(), self.children.clone()) else {
            // What is left of it counts for nothing, and nobody waits for its release.
            return answer(reply, Err(SandboxError::NoMetrics { id: self.id(), state: self.state.name() }));
        };
        let id = self.id();
        let work = async move {
            let (cgroup, network, guest) = tokio::join!(
                ask(&children.cgroup, cgroup::Stats),
                ask(&children.network, network::Stats),
                ask(&children.agent, agent::Observe),
            );
            // A pod whose network is gone still has CPU and memory to show.
            let network = network.unwrap_or_default();
            let guest_heard = guest.ok().and_then(|view| view.heard);
            let metrics = cgroup.map(|cgroup| PodMetrics { cgroup, network, guest_heard });
            answer(reply, metrics.map_err(|source| SandboxError::Resources { id, source: Box::new(source) }));
        };
        ctx.spawn(work.into_actor(self));
    }
}
