//! How actors are spoken to: a command is a plain value, and travels in an envelope that carries its reply channel.
//!
//! [`ask`] sends it with `try_send`. A caller that goes away cannot unsay a command that way, a full mailbox is an answer
//! instead of unbounded memory, and a handler that panics shows as a channel that closed without a word.

use std::fmt;

use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler, Message, Recipient};
use tokio::sync::oneshot;
use tracing::Span;

use crate::trace;

/// What an actor is asked to do. The actor handles [`Request`]s of it.
pub trait Command: fmt::Debug + Send + 'static {
    /// What it is answered with when it was done.
    type Answer: fmt::Debug + Send + 'static;
    /// What it is answered with when it failed.
    type Error: fmt::Debug + Send + 'static;
}

/// A command on its way to an actor.
#[derive(Debug)]
pub struct Request<C: Command> {
    /// What to do.
    pub command: C,
    /// Where the answer goes.
    pub reply: ReplyTo<C>,
}

impl<C: Command> Message for Request<C> {
    type Result = ();
}

/// Where the answer to this command goes.
pub type ReplyTo<C> = Reply<<C as Command>::Answer, <C as Command>::Error>;

/// Where an answer goes.
#[derive(Debug)]
pub struct Reply<T, E> {
    answer: oneshot::Sender<Result<T, E>>,
    call: Span,
}

impl<T, E> Reply<T, E> {
    /// One for the caller of this function, who is serving the call that the command is for.
    #[must_use]
    pub fn new() -> (Self, oneshot::Receiver<Result<T, E>>) {
        let (answer, answered) = oneshot::channel();
        (Self { answer, call: trace::current() }, answered)
    }

    /// Sends the answer.
    ///
    /// # Errors
    /// The answer, when nobody waits for it any more.
    pub fn send(self, answer: Result<T, E>) -> Result<(), Result<T, E>> {
        self.answer.send(answer)
    }

    /// The span of the call that the command is for: parent of what is done about it.
    #[must_use]
    pub fn call(&self) -> &Span {
        &self.call
    }
}

/// Why a command has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError<E> {
    /// The mailbox is full.
    #[error("the {0} actor has too many requests waiting; try again")]
    Busy(&'static str),
    /// The actor has ended, or ended while it worked on this.
    #[error("the {0} actor has ended")]
    Gone(&'static str),
    /// The actor did what was asked, and it failed.
    #[error(transparent)]
    Failed(E),
}

/// Sends a command and waits for its answer.
///
/// # Errors
/// [`AskError::Busy`] when the mailbox is full, [`AskError::Gone`] when the actor has ended or ends before it
/// answers, [`AskError::Failed`] with the actor's own error.
pub async fn ask<A, C>(addr: &Addr<A>, command: C) -> Result<C::Answer, AskError<C::Error>>
where
    A: Actor + Handler<Request<C>>,
    A::Context: ToEnvelope<A, Request<C>>,
    C: Command,
{
    let (reply, answer) = Reply::new();
    tell(addr, Request { command, reply }).map_err(|refusal| match refusal {
        TellError::Busy(actor) => AskError::Busy(actor),
        TellError::Gone(actor) => AskError::Gone(actor),
    })?;
    match answer.await {
        Ok(result) => result.map_err(AskError::Failed),
        Err(_closed) => Err(AskError::Gone(actor_name::<A>())),
    }
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TellError {
    /// The mailbox is full.
    #[error("the {0} actor has too many requests waiting")]
    Busy(&'static str),
    /// The actor has ended.
    #[error("the {0} actor has ended")]
    Gone(&'static str),
}

/// Sends a message that has no answer.
///
/// # Errors
/// [`TellError`] when the mailbox is full or closed.
pub fn tell<A, M>(addr: &Addr<A>, message: M) -> Result<(), TellError>
where
    A: Actor + Handler<M>,
    A::Context: ToEnvelope<A, M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    addr.try_send(message).map_err(|error| match error {
        actix::dev::SendError::Full(_) => TellError::Busy(actor_name::<A>()),
        actix::dev::SendError::Closed(_) => TellError::Gone(actor_name::<A>()),
    })
}

/// Answers a command. An asker that has gone away needs no answer.
pub fn answer<T, E>(reply: Reply<T, E>, result: Result<T, E>) {
    if reply.send(result).is_err() {
        tracing::debug!("nobody waits for an answer any more");
    }
}

/// Tells a parent what happened to its child, waiting for room in its mailbox: such news must not be lost.
pub async fn report<M>(parent: Recipient<M>, news: M)
where
    M: Message<Result = ()> + Send + 'static,
{
    if parent.send(news).await.is_err() {
        tracing::debug!(news = actor_name::<M>(), "the parent has ended before its child's news");
    }
}

/// Last path segment of a type's name, for messages.
fn actor_name<A>() -> &'static str {
    let path = std::any::type_name::<A>();
    path.rsplit("::").next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix::Context;

    struct Echo;
    impl Actor for Echo {
        type Context = Context<Self>;
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Say(Option<u32>);
    impl Command for Say {
        type Answer = u32;
        type Error = String;
    }
    impl Handler<Request<Say>> for Echo {
        type Result = ();
        fn handle(&mut self, Request { command: Say(value), reply }: Request<Say>, _: &mut Self::Context) {
            match value {
                Some(7) => drop(reply),
                Some(value) => reply.send(Ok(value)).unwrap(),
                None => reply.send(Err("nothing to say".into())).unwrap(),
            }
        }
    }

    #[actix::test]
    async fn an_answer_an_error_and_silence_are_told_apart() {
        let echo = Echo.start();
        assert_eq!(ask(&echo, Say(Some(3))).await, Ok(3));
        assert_eq!(ask(&echo, Say(None)).await, Err(AskError::Failed("nothing to say".into())));
        assert_eq!(ask(&echo, Say(Some(7))).await, Err(AskError::Gone("Echo")));
    }
}
