//! The end of an actor that nobody can address any more.
//!
//! actix keeps such an actor alive as long as it has work under way, and an owner of a process always has: it waits for
//! the process's end. Without this the guards of an owner would never be dropped.

use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use actix::{Actor, ActorContext, ActorFuture, Context};

/// To be spawned by an actor when it starts: stops it, with all its work, when its last address is dropped.
#[derive(Debug, Clone, Copy)]
pub struct EndWhenOrphaned;

impl<A> ActorFuture<A> for EndWhenOrphaned
where
    A: Actor<Context = Context<A>>,
{
    type Output = ();

    /// Polled with every wake of the actor, and the loss of its last address is one.
    fn poll(self: Pin<&mut Self>, _: &mut A, ctx: &mut Context<A>, _: &mut TaskContext<'_>) -> Poll<()> {
        if ctx.connected() {
            return Poll::Pending;
        }
        ctx.stop();
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix::{AsyncContext, WrapFuture};
    use tokio::sync::oneshot;

    /// Works for ever, and tells by closing `_alive` that it has been dropped.
    struct Busy {
        _alive: oneshot::Sender<()>,
    }

    impl Actor for Busy {
        type Context = Context<Self>;
        fn started(&mut self, ctx: &mut Self::Context) {
            ctx.spawn(EndWhenOrphaned);
            ctx.spawn(std::future::pending::<()>().into_actor(self));
        }
    }

    #[actix::test]
    async fn a_busy_actor_ends_with_its_last_address() {
        let (alive, mut ended) = oneshot::channel();
        let first = Busy { _alive: alive }.start();
        let second = first.clone();
        drop(first);
        tokio::task::yield_now().await;
        assert_eq!(ended.try_recv(), Err(oneshot::error::TryRecvError::Empty), "one address is left");
        drop(second);
        ended.await.unwrap_err();
    }
}
