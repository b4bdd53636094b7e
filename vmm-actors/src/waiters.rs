//! Callers that wait for the same thing.

use tracing::Span;

use crate::ask::{Reply, answer};

/// Callers that get the same answer at the same moment. Dropped, it lets them hear that the actor has ended.
#[derive(Debug)]
pub(crate) struct Waiters<T, E>(Vec<Reply<T, E>>);

impl<T, E> Default for Waiters<T, E> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, E> Waiters<T, E> {
    pub(crate) fn of(first: Reply<T, E>) -> Self {
        Self(vec![first])
    }

    pub(crate) fn add(&mut self, reply: Reply<T, E>) {
        self.0.push(reply);
    }

    /// The span of the call of who has waited longest.
    pub(crate) fn call(&self) -> Option<Span> {
        self.0.first().map(|reply| reply.call().clone())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The caller, if there is one alone; else all of them.
    pub(crate) fn only(mut self) -> Result<Reply<T, E>, Self> {
        match self.0.pop() {
            Some(reply) if self.0.is_empty() => Ok(reply),
            Some(reply) => {
                self.0.push(reply);
                Err(self)
            }
            None => Err(self),
        }
    }

    /// Answers the caller that was added last, whose command made nothing happen.
    pub(crate) fn refuse_newest(&mut self, refusal: E) {
        if let Some(reply) = self.0.pop() {
            answer(reply, Err(refusal));
        }
    }

    /// Answers everybody.
    pub(crate) fn answer(&mut self, mut result: impl FnMut() -> Result<T, E>) {
        for reply in self.0.drain(..) {
            answer(reply, result());
        }
    }
}
