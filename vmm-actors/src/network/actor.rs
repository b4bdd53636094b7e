//! The actor: takes commands, starts the work, answers.

use std::future::Future;
use std::sync::Arc;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, WrapFuture};
use tokio::sync::Mutex;

use super::{NetworkError, NetworkRecord, Prepare, Release, Stats, prepare, release, stats};
use crate::ask::{Reply, Request, answer};

/// The network of one pod.
#[derive(Debug)]
pub struct Network {
    record: NetworkRecord,
    /// Held while the namespace is changed: commands that change it run one after the other, as they came.
    changing: Arc<Mutex<()>>,
}

impl Network {
    /// The network that was planned with [`plan`](super::plan), or that an earlier instance of this service has
    /// prepared. What is in the durable record.
    #[must_use]
    pub fn new(record: NetworkRecord) -> Self {
        Self { record, changing: Arc::default() }
    }

    fn change<T, F>(&self, work: F) -> impl Future<Output = Result<T, NetworkError>> + use<T, F>
    where
        F: Future<Output = Result<T, NetworkError>>,
    {
        let changing = Arc::clone(&self.changing);
        async move {
            let _turn = changing.lock().await;
            work.await
        }
    }

    /// Does it to its end, whether somebody waits or not: descriptors close with the answer, the rest is the record's.
    fn run<T, F>(&self, context: &mut Context<Self>, work: F, reply: Reply<T, NetworkError>)
    where
        T: 'static,
        F: Future<Output = Result<T, NetworkError>> + 'static,
    {
        context.spawn(async move { answer(reply, work.await) }.into_actor(self));
    }
}

impl Actor for Network {
    type Context = Context<Self>;
}

impl Handler<Request<Prepare>> for Network {
    type Result = ();

    fn handle(&mut self, Request { reply, .. }: Request<Prepare>, context: &mut Context<Self>) {
        let netns = self.record.netns.clone();
        let prepared = self.change(async move { prepare(&netns).await });
        context.spawn(prepared.into_actor(self).map(|prepared, network, _| {
            if let Ok(prepared) = &prepared {
                network.record = prepared.record.clone();
            }
            answer(reply, prepared);
        }));
    }
}

impl Handler<Request<Release>> for Network {
    type Result = ();

    fn handle(&mut self, Request { reply, .. }: Request<Release>, context: &mut Context<Self>) {
        let record = self.record.clone();
        self.run(context, self.change(async move { release(&record).await }), reply);
    }
}

impl Handler<Request<Stats>> for Network {
    type Result = ();

    fn handle(&mut self, Request { reply, .. }: Request<Stats>, context: &mut Context<Self>) {
        let record = self.record.clone();
        self.run(context, async move { stats(&record).await }, reply);
    }
}
