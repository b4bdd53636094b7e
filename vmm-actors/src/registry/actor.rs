//! The registry's handlers.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use actix::{Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, WrapFuture};
use bulkhead_protocol::error::chain;
use tokio::sync::oneshot;
use tracing::{error, warn};

use super::messages::{Create, List, Lookup};
use super::recovery::origin_of;
use crate::ask::Request;
use crate::id::SandboxId;
use crate::sandbox::record::{Found, Record};
use crate::sandbox::state::Cause;
use crate::sandbox::{Left, NodeContext, Origin, Place, Sandbox, SandboxError};

const MAILBOX: usize = 1024;

/// The map of sandboxes; see the [module](super).
#[derive(Debug)]
pub struct Registry {
    node: NodeContext,
    sandboxes: HashMap<SandboxId, Life>,
    /// Sandboxes that a previous process left, until the actor has started.
    recovered: Vec<(SandboxId, Origin)>,
    next_generation: u64,
}

/// One life of a sandbox actor. A rebuilt one has another generation, so that what the old one said last is not
/// taken for the new one's word.
#[derive(Debug)]
struct Life {
    addr: Addr<Sandbox>,
    generation: u64,
}

impl Registry {
    /// A registry that begins with what was recovered.
    #[must_use]
    pub fn new(node: NodeContext, recovered: Vec<(SandboxId, Origin)>) -> Self {
        Self { node, sandboxes: HashMap::new(), recovered, next_generation: 0 }
    }

    fn give_life(&mut self, id: SandboxId, begin: Origin, ctx: &mut Context<Self>) {
        self.next_generation += 1;
        let generation = self.next_generation;
        let (left_in_order, end) = oneshot::channel();
        let place =
            Place { registry: ctx.address().recipient(), generation, left_in_order: Some(left_in_order) };
        let sandbox = Sandbox::new(begin, self.node.clone(), place);
        self.sandboxes.insert(id.clone(), Life { addr: sandbox.start(), generation });
        let ended = end.into_actor(self).map(move |end, registry, ctx| {
            if end.is_err() {
                registry.rebuild(id, generation, ctx);
            }
        });
        ctx.spawn(ended);
    }

    /// The actor of `id` panicked: make it anew from its record, never from memory.
    fn rebuild(&mut self, id: SandboxId, generation: u64, ctx: &mut Context<Self>) {
        if self.sandboxes.get(&id).is_none_or(|life| life.generation != generation) {
            return;
        }
        error!(sandbox = %id, "the sandbox's actor ended unasked; rebuilding it from its record");
        self.sandboxes.remove(&id);
        match self.node.store.load_one(&id) {
            Some(Found::Record(record)) => {
                let (id, begin) = origin_of(record);
                self.give_life(id, begin, ctx);
            }
            Some(Found::Quarantined { path, why, .. }) => {
                error!(sandbox = %id, path = %path.display(), why = chain(&why), "its record cannot be read");
            }
            None => warn!(sandbox = %id, "no record is left of it"),
        }
    }
}

impl Actor for Registry {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        for (id, begin) in std::mem::take(&mut self.recovered) {
            self.give_life(id, begin, ctx);
        }
    }
}

impl Handler<Request<Create>> for Registry {
    type Result = ();

    fn handle(
        &mut self,
        Request { command: Create { request }, reply }: Request<Create>,
        ctx: &mut Self::Context,
    ) {
        let id = request.id.clone();
        match self.sandboxes.entry(id.clone()) {
            Entry::Occupied(_) => {
                // The caller may have gone; then nobody wants the answer.
                drop(reply.send(Err(SandboxError::AlreadyExists(id))));
            }
            Entry::Vacant(_) => match Record::intend(*request, &self.node.settings) {
                Ok(record) => self.give_life(id, Origin::New { record: Box::new(record), reply }, ctx),
                Err(refused) => {
                    let cause = Cause { class: refused.class(), reason: chain(&refused) };
                    self.node.telemetry.did_not_start(cause.class);
                    drop(reply.send(Err(SandboxError::Ended { id, cause })));
                }
            },
        }
    }
}

impl Handler<Lookup> for Registry {
    type Result = Option<Addr<Sandbox>>;

    fn handle(&mut self, Lookup(id): Lookup, _: &mut Self::Context) -> Self::Result {
        self.sandboxes.get(&id).map(|life| life.addr.clone())
    }
}

impl Handler<List> for Registry {
    type Result = Vec<Addr<Sandbox>>;

    fn handle(&mut self, _: List, _: &mut Self::Context) -> Self::Result {
        self.sandboxes.values().map(|life| life.addr.clone()).collect()
    }
}

impl Handler<Left> for Registry {
    type Result = ();

    fn handle(&mut self, Left { id, generation }: Left, _: &mut Self::Context) {
        if let Entry::Occupied(life) = self.sandboxes.entry(id)
            && life.get().generation == generation
        {
            life.remove();
        }
    }
}
