//! The actor: takes commands, starts the work, answers.

use std::future::Future;
use std::sync::Arc;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, WrapFuture};
use tokio::sync::Mutex;

use super::{NetworkError, Prepare, Release, Stats, prepare, release, stats};
use crate::ask::Reply;

/// The network of one pod.
#[derive(Debug, Default)]
pub struct Network {
    /// Held while the namespace is changed: commands that change it run one after the other, as they came.
    changing: Arc<Mutex<()>>,
}

impl Network {
    /// An actor that has done nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn run<T, F>(context: &mut Context<Self>, work: F, reply: Reply<T, NetworkError>)
    where
        T: 'static,
        F: Future<Output = Result<T, NetworkError>> + 'static,
    {
        let answer = |result, _: &mut Self, _: &mut Context<Self>| {
            // Nobody waits any more: descriptors close with the answer, the rest is the record's.
            drop(reply.send(result));
        };
        context.spawn(work.into_actor(&Self::default()).map(answer));
    }
}

impl Actor for Network {
    type Context = Context<Self>;
}

impl Handler<Prepare> for Network {
    type Result = ();

    fn handle(&mut self, message: Prepare, context: &mut Context<Self>) {
        let changing = Arc::clone(&self.changing);
        let work = async move {
            let _turn = changing.lock().await;
            prepare(&message.netns).await
        };
        Self::run(context, work, message.reply);
    }
}

impl Handler<Release> for Network {
    type Result = ();

    fn handle(&mut self, message: Release, context: &mut Context<Self>) {
        let changing = Arc::clone(&self.changing);
        let work = async move {
            let _turn = changing.lock().await;
            release(&message.record).await
        };
        Self::run(context, work, message.reply);
    }
}

impl Handler<Stats> for Network {
    type Result = ();

    fn handle(&mut self, message: Stats, context: &mut Context<Self>) {
        Self::run(context, async move { stats(&message.record).await }, message.reply);
    }
}
