//! Work that runs to its end whether or not anybody still waits for it.
//!
//! ttrpc drops the future of a handler when its connection closes or its deadline passes. Whatever changes something is
//! therefore a task of its own, and handlers only wait for its result. A repeated request waits for the same task.

use std::future::Future;

use tokio::sync::watch;

use crate::error::TaskError;

/// A running task, or its result. Clones wait for the same task.
#[derive(Debug)]
pub(crate) struct SharedTask<T>(watch::Receiver<Option<Result<T, TaskError>>>);

impl<T> Clone for SharedTask<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Clone + Send + Sync + 'static> SharedTask<T> {
    /// Starts the work.
    pub(crate) fn spawn<F>(work: F) -> Self
    where
        F: Future<Output = Result<T, TaskError>> + Send + 'static,
    {
        let (sender, receiver) = watch::channel(None);
        tokio::spawn(async move {
            let result = work.await;
            sender.send_replace(Some(result));
        });
        Self(receiver)
    }

    /// Waits for the result.
    ///
    /// # Errors
    /// The error of the work; [`TaskError::Crashed`] if it panicked.
    pub(crate) async fn join(mut self) -> Result<T, TaskError> {
        match self.0.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Err(TaskError::Crashed)),
            Err(_closed) => Err(TaskError::Crashed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_survives_its_waiter_and_a_second_waiter_joins_it() {
        let (finish, finished) = tokio::sync::oneshot::channel();
        let task = SharedTask::spawn(async move { finished.await.map_err(|_closed| TaskError::Crashed) });
        let first = tokio::time::timeout(Duration::from_secs(1), task.clone().join()).await;
        assert!(first.is_err(), "there is no result yet");
        finish.send(7).unwrap();
        assert_eq!(task.join().await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_panic_in_the_work_is_an_error_for_its_waiters() {
        let task: SharedTask<()> = SharedTask::spawn(async { panic!("on purpose") });
        assert!(matches!(task.join().await, Err(TaskError::Crashed)));
    }
}
