//! Which containers of a pod have something on the host, and who waits for that to change. Pure.

use std::collections::BTreeMap;

use super::error::ContainerError;
use super::messages::PreparedContainer;
use super::record::ContainersRecord;
use crate::ask::Reply;
use crate::id::ContainerId;
use crate::waiters::Waiters;

/// Callers of Prepare.
pub(super) type PrepareWaiters = Waiters<PreparedContainer, ContainerError>;
/// Callers of Release.
pub(super) type ReleaseWaiters = Waiters<(), ContainerError>;

/// Containers by id.
#[derive(Debug, Default)]
pub(super) struct Table(BTreeMap<ContainerId, Container>);

/// What is known of a container.
#[derive(Debug)]
enum Container {
    /// Disks and mounts are being made. Who asks for release meanwhile waits here, too.
    Preparing { prepared: PrepareWaiters, release: ReleaseWaiters },
    /// They are there.
    Prepared(PreparedContainer),
    /// They may be there: a previous process recorded it, or its release failed.
    Recorded,
    /// They are being undone.
    Releasing(ReleaseWaiters),
}

/// What is to be done for a Prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnPrepare {
    /// Nothing: it was answered, or waits for what is under way.
    Nothing,
    /// Make what the container needs.
    Make,
    /// Undo what may be there, and make it anew.
    MakeAgain,
}

/// What is to be done for a Release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnRelease {
    /// Nothing: it was answered, or waits for what is under way.
    Nothing,
    /// Undo what the container has.
    Undo,
}

impl Table {
    pub(super) fn recorded(record: &ContainersRecord) -> Self {
        Self(record.by_id.keys().map(|id| (id.clone(), Container::Recorded)).collect())
    }

    /// Prepare was asked for.
    pub(super) fn prepare(
        &mut self,
        id: &ContainerId,
        reply: Reply<PreparedContainer, ContainerError>,
    ) -> OnPrepare {
        let then = match self.0.get_mut(id) {
            Some(Container::Prepared(known)) => {
                crate::ask::answer(reply, Ok(known.clone()));
                return OnPrepare::Nothing;
            }
            Some(Container::Preparing { prepared, .. }) => {
                prepared.add(reply);
                return OnPrepare::Nothing;
            }
            Some(Container::Releasing(_)) => {
                crate::ask::answer(reply, Err(ContainerError::Releasing(id.clone())));
                return OnPrepare::Nothing;
            }
            Some(Container::Recorded) => OnPrepare::MakeAgain,
            None => OnPrepare::Make,
        };
        let preparing = Container::Preparing { prepared: Waiters::of(reply), release: Waiters::default() };
        self.0.insert(id.clone(), preparing);
        then
    }

    /// Release was asked for.
    pub(super) fn release(&mut self, id: &ContainerId, reply: Reply<(), ContainerError>) -> OnRelease {
        match self.0.get_mut(id) {
            None => crate::ask::answer(reply, Ok(())),
            Some(Container::Preparing { release, .. } | Container::Releasing(release)) => release.add(reply),
            Some(known @ (Container::Prepared(_) | Container::Recorded)) => {
                *known = Container::Releasing(Waiters::of(reply));
                return OnRelease::Undo;
            }
        }
        OnRelease::Nothing
    }

    /// What a container needs was made: answers its callers. Who asked for its release meanwhile is next.
    pub(super) fn made(&mut self, id: &ContainerId, made: &PreparedContainer) -> OnRelease {
        let Some(Container::Preparing { prepared, release }) = self.0.get_mut(id) else {
            return OnRelease::Nothing;
        };
        prepared.answer(|| Ok(made.clone()));
        let release = std::mem::take(release);
        let (next, then) = match release.len() {
            0 => (Container::Prepared(made.clone()), OnRelease::Nothing),
            _ => (Container::Releasing(release), OnRelease::Undo),
        };
        self.0.insert(id.clone(), next);
        then
    }

    /// What a container needs was not made: answers who waits for that, and who for its release. None of a container that
    /// was forgotten meanwhile.
    pub(super) fn not_made(&mut self, id: &ContainerId) -> Option<(PrepareWaiters, ReleaseWaiters)> {
        match self.0.remove(id) {
            Some(Container::Preparing { prepared, release }) => Some((prepared, release)),
            Some(other) => {
                self.0.insert(id.clone(), other);
                None
            }
            None => None,
        }
    }

    /// What a container had was undone, or not: answers who waits for that, unless the container was forgotten meanwhile.
    /// One that was not undone is still known: the next release, or the end of the sandbox, tries again.
    pub(super) fn undone(&mut self, id: &ContainerId, success: bool) -> Option<ReleaseWaiters> {
        let Some(Container::Releasing(waiters)) = self.0.remove(id) else { return None };
        if !success {
            self.0.insert(id.clone(), Container::Recorded);
        }
        Some(waiters)
    }

    /// The span of the call for which a container is being released.
    pub(super) fn release_call(&self, id: &ContainerId) -> Option<tracing::Span> {
        match self.0.get(id) {
            Some(Container::Releasing(waiters)) => waiters.call(),
            Some(Container::Preparing { .. } | Container::Prepared(_) | Container::Recorded) | None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot::error::TryRecvError;

    fn id() -> ContainerId {
        ContainerId::new("c").unwrap()
    }

    fn made() -> PreparedContainer {
        let (rootfs, spec) = ("/r".to_owned(), Vec::new());
        PreparedContainer { spec, rootfs, sockets: Vec::new(), memory: Vec::new(), disks: Vec::new() }
    }

    #[test]
    fn a_container_is_made_once_for_all_who_ask_and_released_for_all() {
        let mut table = Table::default();
        let ((first, mut one), (second, mut other), (third, mut late)) =
            (Reply::new(), Reply::new(), Reply::new());
        assert_eq!(table.prepare(&id(), first), OnPrepare::Make);
        assert_eq!(table.prepare(&id(), second), OnPrepare::Nothing);
        assert_eq!(one.try_recv().unwrap_err(), TryRecvError::Empty);
        assert_eq!(table.made(&id(), &made()), OnRelease::Nothing);
        assert_eq!(table.prepare(&id(), third), OnPrepare::Nothing);
        for answer in [&mut one, &mut other, &mut late] {
            assert_eq!(answer.try_recv().unwrap().unwrap(), made());
        }
        let ((first, mut one), (second, mut other), (early, mut refused)) =
            (Reply::new(), Reply::new(), Reply::new());
        assert_eq!(table.release(&id(), first), OnRelease::Undo);
        assert_eq!(table.release(&id(), second), OnRelease::Nothing);
        assert_eq!(table.prepare(&id(), early), OnPrepare::Nothing);
        assert!(matches!(refused.try_recv().unwrap(), Err(ContainerError::Releasing(_))));
        table.undone(&id(), true).unwrap().answer(|| Ok(()));
        one.try_recv().unwrap().unwrap();
        other.try_recv().unwrap().unwrap();
    }

    #[test]
    fn a_release_waits_for_the_container_that_is_being_made() {
        let mut table = Table::default();
        let ((prepare, mut prepared), (release, mut released)) = (Reply::new(), Reply::new());
        table.prepare(&id(), prepare);
        assert_eq!(table.release(&id(), release), OnRelease::Nothing);
        assert_eq!(table.made(&id(), &made()), OnRelease::Undo);
        prepared.try_recv().unwrap().unwrap();
        assert_eq!(released.try_recv().unwrap_err(), TryRecvError::Empty);
        table.undone(&id(), true).unwrap().answer(|| Ok(()));
        released.try_recv().unwrap().unwrap();
    }

    #[test]
    fn what_was_not_undone_is_undone_before_it_is_made_again() {
        let record = ContainersRecord { by_id: [(id(), Default::default())].into(), ..Default::default() };
        let mut table = Table::recorded(&record);
        let (release, _) = Reply::new();
        assert_eq!(table.release(&id(), release), OnRelease::Undo);
        assert_eq!(table.undone(&id(), false).unwrap().len(), 1);
        let (prepare, _) = Reply::new();
        assert_eq!(table.prepare(&id(), prepare), OnPrepare::MakeAgain);
        let (prepared, released) = table.not_made(&id()).unwrap();
        assert_eq!((prepared.len(), released.len()), (1, 0));
        let (release, mut released) = Reply::new();
        assert_eq!(table.release(&id(), release), OnRelease::Nothing, "nothing is known of it");
        released.try_recv().unwrap().unwrap();
    }

    #[test]
    fn what_was_forgotten_meanwhile_is_not_known_again() {
        let mut table = Table::default();
        let (prepare, mut prepared) = Reply::new();
        table.prepare(&id(), prepare);
        table = Table::default();
        assert_eq!(prepared.try_recv().unwrap_err(), TryRecvError::Closed, "its caller hears of the end");
        assert_eq!(table.made(&id(), &made()), OnRelease::Nothing);
        assert!(table.not_made(&id()).is_none() && table.undone(&id(), true).is_none());
    }
}
