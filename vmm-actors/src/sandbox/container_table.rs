//! Which containers of a pod have mounts in the share, and who waits for that to change.

use std::collections::BTreeMap;

use super::messages::PreparedContainer;
use super::record::Record;
use super::waiters::Waiters;
use crate::id::ContainerId;

/// Containers by id.
#[derive(Debug, Default)]
pub(super) struct Containers(pub(super) BTreeMap<ContainerId, Container>);

/// What is known of a container.
#[derive(Debug)]
pub(super) enum Container {
    /// Mounts are being made. Whoever asks for release meanwhile waits here too.
    Preparing { prepared: Waiters<PreparedContainer>, release: Waiters<()> },
    /// Mounts are there.
    Prepared(PreparedContainer),
    /// A previous process recorded it: its mounts may be there.
    Recorded,
    /// Mounts are being undone.
    Releasing(Waiters<()>),
}

impl Containers {
    pub(super) fn recorded(record: &Record) -> Self {
        Self(record.containers.keys().map(|id| (id.clone(), Container::Recorded)).collect())
    }
}
