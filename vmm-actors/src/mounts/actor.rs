//! The actor: takes commands, has them done on threads that may block, answers.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use actix::{Actor, AsyncContext, Context, Handler, WrapFuture};
use tokio::sync::Mutex;

use super::{Close, MountsError, Open, Prepare, Release, close, open, prepare_for, release};
use crate::ask::{Reply, Request, answer};

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

    /// Does it to its end, whether somebody waits or not: the record knows what is there.
    fn run<T, F>(&self, context: &mut Context<Self>, work: F, reply: Reply<T, MountsError>)
    where
        T: 'static,
        F: Future<Output = Result<T, MountsError>> + 'static,
    {
        let changing = Arc::clone(&self.changing);
        let in_turn = async move {
            let _turn = changing.lock().await;
            answer(reply, work.await);
        };
        context.spawn(in_turn.into_actor(self));
    }
}

impl Actor for Mounts {
    type Context = Context<Self>;
}

impl Handler<Request<Open>> for Mounts {
    type Result = ();

    fn handle(&mut self, Request { reply, .. }: Request<Open>, context: &mut Context<Self>) {
        let share = self.share.clone();
        self.run(context, async move { open(&share).await }, reply);
    }
}

impl Handler<Request<Prepare>> for Mounts {
    type Result = ();

    fn handle(&mut self, Request { command, reply }: Request<Prepare>, context: &mut Context<Self>) {
        let (share, Prepare { container, rootfs, volumes, server }) = (self.share.clone(), command);
        let work = async move { prepare_for(server, &share, container, rootfs, volumes).await };
        self.run(context, work, reply);
    }
}

impl Handler<Request<Release>> for Mounts {
    type Result = ();

    fn handle(&mut self, Request { command, reply }: Request<Release>, context: &mut Context<Self>) {
        let (share, Release { container }) = (self.share.clone(), command);
        self.run(context, async move { release(&share, &container).await }, reply);
    }
}

impl Handler<Request<Close>> for Mounts {
    type Result = ();

    fn handle(&mut self, Request { reply, .. }: Request<Close>, context: &mut Context<Self>) {
        let share = self.share.clone();
        self.run(context, async move { close(&share).await }, reply);
    }
}
