//! How a child of a sandbox makes its part of the sandbox's record durable.
//!
//! One actor writes a record: the sandbox. A child that owns a part of it hands each new version of that part to the
//! sandbox, which puts it into the record and saves the whole. Versions are saved in the order in which they were handed
//! over, and the answer comes when the version, or a later one, is on disk.

use std::fmt;
use std::io;
use std::path::PathBuf;

use actix::Recipient;
use actix::dev::SendError;

use crate::ask::{AskError, Command, Reply, Request};
use crate::id::SandboxId;

/// Who is told of a new version.
const OWNER: &str = "Sandbox";

/// A part of the sandbox's record has become this, and is to be durable. A sandbox that ends takes no new version: what
/// the part speaks of is being released with everything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavePart<P> {
    /// The whole part.
    pub part: P,
}

impl<P: fmt::Debug + Send + 'static> Command for SavePart<P> {
    /// It is on disk, or a later version is.
    type Answer = ();
    type Error = RecordError;
}

/// The way to the owner of the record, for the child that owns the part `P` of it.
#[derive(Debug, Clone)]
pub struct RecordHandle<P: fmt::Debug + Send + 'static>(Recipient<Request<SavePart<P>>>);

impl<P: fmt::Debug + Send + 'static> RecordHandle<P> {
    /// A handle that tells this actor.
    #[must_use]
    pub fn new(owner: Recipient<Request<SavePart<P>>>) -> Self {
        Self(owner)
    }

    /// Hands a new version over, at once: not only when the future is polled. The future answers when it is durable.
    ///
    /// # Errors
    /// [`AskError::Failed`] when it could not be written; [`AskError::Busy`] and [`AskError::Gone`] when it was not even
    /// tried.
    pub fn save(&self, part: P) -> impl Future<Output = Result<(), AskError<RecordError>>> + use<P> {
        let (reply, saved) = Reply::new();
        let sent = self.0.try_send(Request { command: SavePart { part }, reply });
        async move {
            match sent {
                Ok(()) => {}
                Err(SendError::Full(_)) => return Err(AskError::Busy(OWNER)),
                Err(SendError::Closed(_)) => return Err(AskError::Gone(OWNER)),
            }
            match saved.await {
                Ok(result) => result.map_err(AskError::Failed),
                Err(_closed) => Err(AskError::Gone(OWNER)),
            }
        }
    }
}

/// What went wrong with a record's file.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The directory could not be made or listed.
    #[error("cannot use the state directory {path}; it must be a writable directory on a local disk")]
    OpenDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The record could not be made durable.
    #[error("cannot write the sandbox's record {path}; is the disk full or read-only?")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The record could not be turned into JSON.
    #[error("cannot encode the record of sandbox {id}")]
    Encode {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        source: serde_json::Error,
    },
    /// The record could not be deleted.
    #[error("cannot delete the sandbox's record {path}")]
    Delete {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix::{Actor, ActorContext, Context, Handler, Message};

    /// Ends at part 0.
    #[derive(Default)]
    struct Owner(Vec<u32>);

    #[derive(Message)]
    #[rtype(result = "Vec<u32>")]
    struct Seen;

    impl Actor for Owner {
        type Context = Context<Self>;
    }

    impl Handler<Request<SavePart<u32>>> for Owner {
        type Result = ();
        fn handle(
            &mut self,
            Request { command: SavePart { part }, reply }: Request<SavePart<u32>>,
            ctx: &mut Self::Context,
        ) {
            if part == 0 {
                return ctx.stop();
            }
            self.0.push(part);
            crate::ask::answer(reply, Ok(()));
        }
    }

    impl Handler<Seen> for Owner {
        type Result = Vec<u32>;
        fn handle(&mut self, Seen: Seen, _: &mut Self::Context) -> Vec<u32> {
            self.0.clone()
        }
    }

    #[actix::test]
    async fn versions_come_in_the_order_in_which_they_were_handed_over() {
        let owner = Owner::default().start();
        let handle = RecordHandle::new(owner.clone().recipient());
        let (first, second, never_polled) = (handle.save(1), handle.save(2), handle.save(3));
        second.await.unwrap();
        first.await.unwrap();
        drop(never_polled);
        assert_eq!(owner.send(Seen).await.unwrap(), [1, 2, 3]);
    }

    #[actix::test]
    async fn an_owner_that_has_ended_is_an_answer() {
        let handle = RecordHandle::new(Owner::default().start().recipient());
        assert!(matches!(handle.save(0).await, Err(AskError::Gone(OWNER))), "it ends over this one");
        assert!(matches!(handle.save(1).await, Err(AskError::Gone(OWNER))));
    }
}
