//! The actor: takes commands, has them done on threads that may block, answers.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, WrapFuture};
use tokio::sync::Mutex;

use super::{Close, MountsError, Open, Prepare, Release, close, open, prepare_for, release};
use crate::ask::Reply;

/// The mounts of one pod.
#[derive(Debug)]
pub struct Mounts {
    /// `shared/` of the pod's directory.
    share: PathBuf,
    /// Held while something is mounted or unmounted: commands run one after the other, as they came.
    changing: Arc<Mutex<()>>,
}

impl Mounts {
    /// An actor for the share at this absolute path, whose directory is there. Nothing is mounted.
    #[must_use]
    pub fn new(share: PathBuf) -> Self {
        Self { share, changing: Arc::default() }
    }

    fn run<T, F>(&self, context: &mut Context<Self>, work: F, reply: Reply<T, MountsError>)
    where
        T: 'static,
        F: Future<Output = Result<T, MountsError>> + 'static,
    {
        let changing = Arc::clone(&self.changing);
        let in_turn = async move {
            let _turn = changing.lock().await;
            work.await
        };
        let answer = |result, _: &mut Self, _: &mut Context<Self>| {
            // Nobody waits any more: the record knows what is there.
            drop(reply.send(result));
        };
        context.spawn(in_turn.into_actor(self).map(answer));
    }
}

impl Actor for Mounts {
    type Context = Context<Self>;
}

impl Handler<Open> for Mounts {
    type Result = ();

    fn handle(&mut self, message: Open, context: &mut Context<Self>) {
        let share = self.share.clone();
        self.run(context, async move { open(&share).await }, message.reply);
    }
}

impl Handler<Prepare> for Mounts {
    type Result = ();

    fn handle(&mut self, message: Prepare, context: &mut Context<Self>) {
        let Prepare { container, rootfs, volumes, server, reply } = message;
        let share = self.share.clone();
        let work = async move { prepare_for(server, &share, container, rootfs, volumes).await };
        self.run(context, work, reply);
    }
}

impl Handler<Release> for Mounts {
    type Result = ();

    fn handle(&mut self, message: Release, context: &mut Context<Self>) {
        let Release { container, reply } = message;
        let share = self.share.clone();
        self.run(context, async move { release(&share, &container).await }, reply);
    }
}

impl Handler<Close> for Mounts {
    type Result = ();

    fn handle(&mut self, message: Close, context: &mut Context<Self>) {
        let share = self.share.clone();
        self.run(context, async move { close(&share).await }, message.reply);
    }
}
