//! The actor: takes commands, has them done on a thread that may block, answers.

use std::future::Future;
use std::sync::Arc;

use actix::{Actor, AsyncContext, Context, Handler, WrapFuture};
use tokio::sync::Mutex;

use super::{
    CgroupError, CgroupRecord, Create, Delete, Stats, Update, check_room, create, delete, stats, update,
};
use crate::ask::{Reply, Request, answer};

/// The host cgroup of one pod.
#[derive(Debug)]
pub struct Cgroup {
    record: CgroupRecord,
    /// Held while the cgroup is changed: commands that change it run one after the other, as they came.
    changing: Arc<Mutex<()>>,
}

impl Cgroup {
    /// The cgroup that was planned with [`plan`](super::plan) and is in the durable record: made already, or not yet.
    #[must_use]
    pub fn new(record: CgroupRecord) -> Self {
        Self { record, changing: Arc::default() }
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
        self.run(context, in_turn, reply);
    }

    /// Does it to its end, whether somebody waits or not: the record knows what is there.
    fn run<T, F>(&self, context: &mut Context<Self>, work: F, reply: Reply<T, CgroupError>)
    where
        T: 'static,
        F: Future<Output = Result<T, CgroupError>> + 'static,
    {
        context.spawn(async move { answer(reply, work.await) }.into_actor(self));
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

impl Handler<Request<Create>> for Cgroup {
    type Result = ();

    fn handle(&mut self, Request { command, reply }: Request<Create>, context: &mut Context<Self>) {
        let (record, Create { limits, needed_bytes }) = (self.record.clone(), command);
        let work = move || {
            check_room(&record, needed_bytes, None)?;
            create(&record, &limits)
        };
        self.change(context, blocking(work), reply);
    }
}

impl Handler<Request<Update>> for Cgroup {
    type Result = ();

    fn handle(&mut self, Request { command, reply }: Request<Update>, context: &mut Context<Self>) {
        let (record, Update { limits, needed_bytes, planned_bytes }) = (self.record.clone(), command);
        let work = move || {
            check_room(&record, needed_bytes, planned_bytes)?;
            update(&record, &limits)
        };
        self.change(context, blocking(work), reply);
    }
}

impl Handler<Request<Stats>> for Cgroup {
    type Result = ();

    fn handle(&mut self, Request { reply, .. }: Request<Stats>, context: &mut Context<Self>) {
        let record = self.record.clone();
        self.run(context, blocking(move || stats(&record)), reply);
    }
}

impl Handler<Request<Delete>> for Cgroup {
    type Result = ();

    fn handle(&mut self, Request { reply, .. }: Request<Delete>, context: &mut Context<Self>) {
        let record = self.record.clone();
        self.change(context, async move { delete(&record).await }, reply);
    }
}
