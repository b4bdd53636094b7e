//! Makes the versions of one sandbox's record durable, one after the other, never an older one over a newer one.
//!
//! A save that somebody began runs to its end, whether its future is dropped or not. So the number of the version that
//! is on disk is kept beside the file and looked at where the file is written.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinError;

use super::{Record, RecordError, Store};

/// Number of the version after which nothing is saved: the record is deleted.
const DELETED: u64 = u64::MAX;

/// Saves and deletes the record of one sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    store: Store,
    /// Number of the last version that was asked to be saved.
    asked: Arc<AtomicU64>,
    /// Number of the version on disk. Locked while the disk is written, on threads that may block.
    written: Arc<Mutex<u64>>,
}

impl Recorder {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, asked: Arc::default(), written: Arc::default() }
    }

    /// Makes the record as it is at this call durable, or finds that a later version is.
    pub(crate) fn save(&self, record: &Record) -> impl Future<Output = Result<(), RecordError>> + use<> {
        let version = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let (record, path) = (record.clone(), self.store.path(&record.id));
        let save = self.turn(move |store, written| {
            if *written >= version {
                return Ok(());
            }
            store.save(&record)?;
            *written = version;
            Ok(())
        });
        async move {
            save.await.unwrap_or_else(|panic| {
                Err(RecordError::Write { path, source: std::io::Error::other(panic) })
            })
        }
    }

    /// Deletes the record; saves that are still under way come to nothing.
    pub(crate) fn delete(&self, record: &Record) -> impl Future<Output = Result<(), RecordError>> + use<> {
        let (id, path) = (record.id.clone(), self.store.path(&record.id));
        let delete = self.turn(move |store, written| {
            *written = DELETED;
            store.delete(&id)
        });
        async move {
            delete.await.unwrap_or_else(|panic| {
                Err(RecordError::Delete { path, source: std::io::Error::other(panic) })
            })
        }
    }

    /// Does something with the file while nobody else does. It is begun when the future is first polled.
    fn turn<W>(&self, work: W) -> impl Future<Output = Result<Result<(), RecordError>, JoinError>> + use<W>
    where
        W: FnOnce(&Store, &mut u64) -> Result<(), RecordError> + Send + 'static,
    {
        let (store, written) = (self.store.clone(), Arc::clone(&self.written));
        async move {
            tokio::task::spawn_blocking(move || {
                work(&store, &mut written.lock().unwrap_or_else(PoisonError::into_inner))
            })
            .await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::record::tests::record;
    use crate::sandbox::record::{Found, Phase};

    #[tokio::test]
    async fn an_older_version_is_not_written_over_a_newer_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let recorder = Recorder::new(store.clone());
        let mut record = record("p");
        let older = recorder.save(&record);
        record.phase = Phase::Running;
        recorder.save(&record).await.unwrap();
        older.await.unwrap();
        let Some(Found::Record(found)) = store.load_one(&record.id) else { panic!("no record") };
        assert_eq!(found.phase, Phase::Running);
    }

    #[tokio::test]
    async fn a_deleted_record_does_not_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let recorder = Recorder::new(store.clone());
        let record = record("p");
        let (begun, not_begun) = (recorder.save(&record), recorder.save(&record));
        let begun = tokio::spawn(begun);
        tokio::task::yield_now().await;
        begun.abort();
        recorder.delete(&record).await.unwrap();
        not_begun.await.unwrap();
        assert!(store.load_one(&record.id).is_none());
    }
}
