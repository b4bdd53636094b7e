//! Callers that wait for something of a sandbox.

use bulkhead_protocol::error::chain;
use tracing::Span;

use super::error::SandboxError;
use crate::ask::Reply;
use crate::id::SandboxId;

/// Callers that get the same answer at the same moment.
#[derive(Debug)]
pub(super) struct Waiters<T>(Vec<Reply<T, SandboxError>>);

impl<T> Default for Waiters<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Clone> Waiters<T> {
    pub(super) fn add(&mut self, reply: Reply<T, SandboxError>) {
        self.0.push(reply);
    }

    /// The span of the call of who has waited longest.
    pub(super) fn call(&self) -> Option<Span> {
        self.0.first().map(|reply| reply.call().clone())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Answers the caller that was added last, whose command made nothing happen.
    pub(super) fn refuse_newest(&mut self, refusal: SandboxError) {
        if let Some(reply) = self.0.pop() {
            drop(reply.send(Err(refusal)));
        }
    }

    /// Answers the first caller with the error itself and any other with its text: errors are not copied.
    pub(super) fn fail(&mut self, error: SandboxError, id: &SandboxId) {
        let reason = chain(&error);
        let mut first = Some(error);
        self.answer(|| {
            Err(first
                .take()
                .unwrap_or_else(|| SandboxError::Resources { id: id.clone(), reason: reason.clone() }))
        });
    }

    /// Answers everybody. A caller that has gone does not want its answer.
    pub(super) fn answer(&mut self, mut answer: impl FnMut() -> Result<T, SandboxError>) {
        for reply in self.0.drain(..) {
            drop(reply.send(answer()));
        }
    }
}
