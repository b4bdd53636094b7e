//! Work that runs to its end whether or not anybody still waits for it.
//!
//! ttrpc drops a handler's future when its connection or deadline ends. Whatever changes something is therefore a
//! task of its own, and handlers only wait for its result; a repeated request waits for the same one.

use std::future::Future;

use tokio::sync::watch;

use crate::error::TaskError;

/// One piece of work under way, or its result. Clones wait for the same.
#[derive(Debug)]
pub(crate) struct Flight<T>(watch::Receiver<Option<Result<T, TaskError>>>);

impl<T> Clone for Flight<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Clone + Send + Sync + 'static> Flight<T> {
    /// Starts the work.
    pub(crate) fn launch<F>(work: F) -> Self
    where
        F: Future<Output = Result<T, TaskError>> + Send + 'static,
    {
        let (tell, hear) = watch::channel(None);
        tokio::spawn(async move {
            let result = work.await;
            tell.send_replace(Some(result));
        });
        Self(hear)
    }

    /// Waits for the result.
    ///
    /// # Errors
    /// What the work ended with; [`TaskError::Crashed`] if it panicked.
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
        let (tell, hear) = tokio::sync::oneshot::channel();
        let flight = Flight::launch(async move { hear.await.map_err(|_closed| TaskError::Crashed) });
        let first = tokio::time::timeout(Duration::from_secs(1), flight.clone().join()).await;
        assert!(first.is_err(), "nothing to hear yet");
        tell.send(7).unwrap();
        assert_eq!(flight.join().await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_no_hang() {
        let flight: Flight<()> = Flight::launch(async { panic!("on purpose") });
        assert!(matches!(flight.join().await, Err(TaskError::Crashed)));
    }
}
