//! An owner is a task that holds a value; no other task touches it. Everybody else has an [`Address`] and sends
//! messages, which the owner handles one after the other, in the order in which they were sent.
//!
//! A handler never waits, so a long call never holds up an answer from memory. Long work is a task of its own, which
//! sends its result to the owner as a message. A message that has been sent is handled even if its sender goes away.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::{mpsc, oneshot};
use tracing::error;

/// A request to the owner of a `T`.
pub(crate) trait Message<T>: Send + 'static {
    /// What the sender gets back.
    type Answer: Send + 'static;

    /// Reads or changes the value. Must not wait.
    fn handle(self, owned: &mut T) -> Self::Answer;
}

/// The owner did not answer: it has ended, or it panicked in the handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the owner gave no answer")]
pub(crate) struct NoAnswer;

trait Deliver<T>: Send {
    fn deliver(self: Box<Self>, owned: &mut T);
}

struct Envelope<M, A> {
    message: M,
    reply: Option<oneshot::Sender<A>>,
}

impl<T, M: Message<T>> Deliver<T> for Envelope<M, M::Answer> {
    fn deliver(self: Box<Self>, owned: &mut T) {
        let answer = self.message.handle(owned);
        if let Some(reply) = self.reply {
            // A sender that has gone away needs no answer.
            drop(reply.send(answer));
        }
    }
}

/// Where messages to the owner of a `T` are sent. Its clones reach the same owner.
pub(crate) struct Address<T>(mpsc::UnboundedSender<Box<dyn Deliver<T>>>);

impl<T> Clone for Address<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for Address<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Address")
    }
}

impl<T: 'static> Address<T> {
    /// An address, and the inbox behind it.
    pub(crate) fn new() -> (Self, Inbox<T>) {
        // Not bounded: handlers do not wait, and no guest decides how many messages there are.
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), Inbox(receiver))
    }

    /// Sends a message and waits for the answer.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub(crate) async fn ask<M: Message<T>>(&self, message: M) -> Result<M::Answer, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        self.send(message, Some(reply));
        answer.await.map_err(|_closed| NoAnswer)
    }

    /// Sends a message whose answer does not matter.
    pub(crate) fn tell<M: Message<T>>(&self, message: M) {
        self.send(message, None);
    }

    fn send<M: Message<T>>(&self, message: M, reply: Option<oneshot::Sender<M::Answer>>) {
        // An owner that has ended takes no messages: then the reply channel closes.
        self.0.send(Box::new(Envelope { message, reply })).unwrap_or_default();
    }
}

/// The messages that have been sent and not yet been handled.
pub(crate) struct Inbox<T>(mpsc::UnboundedReceiver<Box<dyn Deliver<T>>>);

impl<T> Inbox<T> {
    /// Owns `value` and handles messages until no address is left. A panic in a handler costs its message the answer,
    /// and nothing else.
    pub(crate) async fn serve(mut self, mut value: T) {
        while let Some(message) = self.0.recv().await {
            if catch_unwind(AssertUnwindSafe(|| message.deliver(&mut value))).is_err() {
                error!("a handler panicked; its caller gets no answer");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Add(u32);

    impl Message<u32> for Add {
        type Answer = u32;
        fn handle(self, owned: &mut u32) -> u32 {
            *owned += self.0;
            *owned
        }
    }

    struct Panic;

    impl Message<u32> for Panic {
        type Answer = ();
        fn handle(self, _: &mut u32) {
            panic!("on purpose")
        }
    }

    #[tokio::test]
    async fn messages_are_handled_in_the_order_in_which_they_were_sent() {
        let (address, inbox) = Address::new();
        address.tell(Add(1));
        let asked = address.clone();
        let answer = tokio::spawn(async move { asked.ask(Add(2)).await });
        tokio::spawn(inbox.serve(0));
        assert_eq!(answer.await.unwrap(), Ok(3));
        assert_eq!(address.ask(Add(0)).await, Ok(3));
    }

    #[tokio::test]
    async fn a_message_is_handled_though_its_sender_has_gone() {
        let (address, inbox) = Address::new();
        let mut asking = Box::pin(address.ask(Add(5)));
        assert!(futures::poll!(asking.as_mut()).is_pending());
        drop(asking);
        tokio::spawn(inbox.serve(0));
        assert_eq!(address.ask(Add(0)).await, Ok(5));
    }

    #[tokio::test]
    async fn a_panic_in_a_handler_costs_one_answer() {
        let (address, inbox) = Address::new();
        tokio::spawn(inbox.serve(7));
        assert_eq!(address.ask(Panic).await, Err(NoAnswer));
        assert_eq!(address.ask(Add(0)).await, Ok(7));
    }

    #[tokio::test]
    async fn an_owner_that_has_ended_gives_no_answer() {
        let (address, inbox) = Address::<u32>::new();
        drop(inbox);
        assert_eq!(address.ask(Add(1)).await, Err(NoAnswer));
    }
}
