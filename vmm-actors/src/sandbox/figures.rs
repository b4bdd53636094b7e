//! The pod's figures on the host.

use actix::{AsyncContext, Context, Handler, WrapFuture};

use super::actor::Sandbox;
use super::error::{SandboxError, chain};
use super::messages::{Metrics, PodMetrics};
use crate::ask::ask;
use crate::{cgroup, network};

impl Handler<Metrics> for Sandbox {
    type Result = ();

    fn handle(&mut self, Metrics(reply): Metrics, ctx: &mut Context<Self>) {
        let Some(children) = self.children.clone() else { return };
        let (id, cgroup, network) = (self.id(), self.record.cgroup.clone(), self.record.network.clone());
        let work = async move {
            let (cgroup, network) = tokio::join!(
                ask(&children.cgroup, |reply| cgroup::Stats { record: cgroup, reply }),
                ask(&children.network, |reply| network::Stats { record: network, reply }),
            );
            // A pod whose network is gone still has CPU and memory to show.
            let network = network.unwrap_or_default();
            let metrics = cgroup.map(|cgroup| PodMetrics { cgroup, network });
            drop(
                reply.send(metrics.map_err(|failed| SandboxError::Resources { id, reason: chain(&failed) })),
            );
        };
        ctx.spawn(work.into_actor(self));
    }
}
