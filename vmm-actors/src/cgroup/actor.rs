//! The actor: takes commands, has them done on a thread that may block, answers.

use std::future::Future;
use std::sync::Arc;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, WrapFuture};
use tokio::sync::Mutex;

use super::{
    CgroupError, Create, Delete, Place, Stats, Update, check_room, create, delete, place, stats, update,
};
use crate::ask::Reply;

/// The host cgroup of one pod.
#[derive(Debug, Default)]
pub struct Cgroup {
    /// Held while the cgroup is changed: commands that change it run one after the other, as they came.
    changing: Arc<Mutex<()>>,
}

impl Cgroup {
    /// An actor that has done nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn change<T, F>(&self, context: &mut Context<Self>, work: F, reply: Reply<T, CgroupError>)
    where
        T: 'static,
        F: Future<Output = Result<T, CgroupError>> + 'static,
    {
        let changing = Arc::clone(&self.changing);
        let in_turn = async move {
            let _turn = changing.lock().await;
            work.await
        };
        Self::run(context, in_turn, reply);
    }

    fn run<T, F>(context: &mut Context<Self>, work: F, reply: Reply<T, CgroupError>)
    where
        T: 'static,
        F: Future<Output = Result<T, CgroupError>> + 'static,
    {
        let answer = |result, _: &mut Self, _: &mut Context<Self>| {
            // Nobody waits any more: the record knows what is there.
            drop(reply.send(result));
        };
        context.spawn(work.into_actor(&Self::default()).map(answer));
    }
}

/// System calls on cgroups wait for others: they are made where waiting is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CgroupError> + Send + 'static,
) -> Result<T, CgroupError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(CgroupError::CutOff))
}

impl Actor for Cgroup {
    type Context = Context<Self>;
}

impl Handler<Create> for Cgroup {
    type Result = ();

    fn handle(&mut self, message: Create, context: &mut Context<Self>) {
        let Create { record, limits, needed_bytes, reply } = message;
        let work = move || {
            check_room(&record, needed_bytes, None)?;
            create(&record, &limits)
        };
        self.change(context, blocking(work), reply);
    }
}

impl Handler<Place> for Cgroup {
    type Result = ();

    fn handle(&mut self, message: Place, context: &mut Context<Self>) {
        let Place { record, pid, reply } = message;
        self.change(context, blocking(move || place(&record, pid)), reply);
    }
}

impl Handler<Update> for Cgroup {
    type Result = ();

    fn handle(&mut self, message: Update, context: &mut Context<Self>) {
        let Update { record, limits, needed_bytes, planned_bytes, reply } = message;
        let work = move || {
            check_room(&record, needed_bytes, planned_bytes)?;
            update(&record, &limits)
        };
        self.change(context, blocking(work), reply);
    }
}

impl Handler<Stats> for Cgroup {
    type Result = ();

    fn handle(&mut self, message: Stats, context: &mut Context<Self>) {
        let Stats { record, reply } = message;
        Self::run(context, blocking(move || stats(&record)), reply);
    }
}

impl Handler<Delete> for Cgroup {
    type Result = ();

    fn handle(&mut self, message: Delete, context: &mut Context<Self>) {
        let Delete { record, reply } = message;
        self.change(context, async move { delete(&record).await }, reply);
    }
}
