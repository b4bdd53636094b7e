//! The pod's figures and limits on the host.

use actix::{AsyncContext, Context, Handler, WrapFuture};

use super::actor::Sandbox;
use super::error::{SandboxError, chain};
use super::messages::{Metrics, PodMetrics, Update};
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

impl Handler<Update> for Sandbox {
    type Result = ();

    fn handle(&mut self, Update { resources, overhead, reply }: Update, ctx: &mut Context<Self>) {
        let Some(children) = self.children.clone() else { return };
        self.record.pod.resources = resources;
        self.record.pod.overhead = overhead;
        let (id, record) = (self.id(), self.record.cgroup.clone());
        let limits = self.record.host_limits(&self.host.settings);
        let save = self.save();
        let work = async move {
            let updated = ask(&children.cgroup, |reply| cgroup::Update { record, limits, reply }).await;
            let answer = match updated {
                Err(failed) => Err(SandboxError::Resources { id, reason: chain(&failed) }),
                Ok(()) => save.await.map_err(|source| SandboxError::Record { id, source }),
            };
            drop(reply.send(answer));
        };
        ctx.spawn(work.into_actor(self));
    }
}
