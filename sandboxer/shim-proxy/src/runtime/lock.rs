//! Locks that a panic elsewhere cannot poison for good: one thread runs everything, and no lock is held across an
//! await.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes the lock, also after a panic.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
