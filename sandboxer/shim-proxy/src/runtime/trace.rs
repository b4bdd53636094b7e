//! Which trace a call belongs to (W3C Trace Context), handed on to the sandboxer. The proxy makes no spans of its own: there
//! is one proxy for each pod of the node, and it stays small.

use std::collections::HashMap;

use ttrpc::asynchronous::TtrpcContext;
use ttrpc::context::{self, Context};

/// Keys of the metadata that say so (<https://www.w3.org/TR/trace-context/>).
const KEYS: [&str; 2] = ["traceparent", "tracestate"];

/// What the metadata of a call says of its trace.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trace(HashMap<String, Vec<String>>);

impl Trace {
    /// That of a call of containerd's.
    pub(crate) fn of(call: &TtrpcContext) -> Self {
        let known =
            |key: &str| call.metadata.get_key_value(key).map(|(key, values)| (key.clone(), values.clone()));
        Self(KEYS.into_iter().filter_map(known).collect())
    }

    /// The context of a call without a deadline that belongs to it.
    pub(crate) fn without_deadline(&self) -> Context {
        Context { metadata: self.0.clone(), ..context::with_timeout(0) }
    }
}
