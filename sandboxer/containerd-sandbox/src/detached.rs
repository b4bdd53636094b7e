//! Calls that run to their end whatever becomes of their client, and panics as answers.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;

use futures::FutureExt;
use tokio::sync::oneshot;
use tracing::Instrument;

use crate::{Code, Failure};

/// Runs a call, with a panic in it as its failure.
pub(crate) async fn contained<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    // The state behind the call is the implementation's business: actors lose the one that panicked, and nothing else.
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| {
        let text = panic_text(panic.as_ref());
        tracing::error!(panic = text, "a call panicked");
        Err(Failure::new(Code::Internal, format!("the sandboxer met a bug: {text}")))
    })
}

/// Runs a call in a task of its own and waits for it.
pub(crate) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    let ended = || Err(Failure::new(Code::Unavailable, "the sandboxer is ending"));
    tokio::spawn(contained(work).in_current_span())
        .await
        .unwrap_or_else(|_cancelled_with_the_runtime| ended())
}

/// Like [`detached`], and runs `undo` if the caller of this function is dropped before it has the answer.
///
/// `work` is polled before `undo` begins, so that the two reach whoever serves them in this order. `undo` does not
/// run after a failure: a failed call has undone itself.
pub(crate) async fn undone_if_unheard<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    undo: impl Future<Output = ()> + Send + 'static,
) -> Result<T, Failure> {
    let (answer, answered) = oneshot::channel();
    let (heard, hearing) = oneshot::channel::<()>();
    let driven = async move {
        let mut work = pin!(contained(work));
        let mut hearing = hearing;
        tokio::select! {
            biased;
            result = &mut work => {
                let succeeded = result.is_ok();
                let unheard = answer.send(result).is_err() || hearing.await.is_err();
                if succeeded && unheard {
                    contained_undo(undo).await;
                }
            }
            Err(_) = &mut hearing => {
                contained_undo(undo).await;
                let late = work.await;
                tracing::debug!(result = ?late.err(), "a call ended after its client had left");
            }
        }
    };
    tokio::spawn(driven.in_current_span());
    let result = answered.await.unwrap_or_else(|_cancelled_with_the_runtime| {
        Err(Failure::new(Code::Unavailable, "the sandboxer is ending"))
    });
    // Refused only when the task is gone, and then nobody asks any more.
    heard.send(()).unwrap_or_default();
    result
}

async fn contained_undo(undo: impl Future<Output = ()>) {
    if let Err(panic) = AssertUnwindSafe(undo).catch_unwind().await {
        tracing::error!(panic = panic_text(panic.as_ref()), "undoing an abandoned call panicked");
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    fn counter() -> (Arc<AtomicUsize>, impl Future<Output = ()> + Send + 'static) {
        let count = Arc::new(AtomicUsize::new(0));
        let counting = Arc::clone(&count);
        (count, async move {
            counting.fetch_add(1, Ordering::SeqCst);
        })
    }

    #[tokio::test]
    async fn an_answer_that_was_heard_stands() {
        let (undone, undo) = counter();
        assert_eq!(undone_if_unheard(async { Ok(7) }, undo).await, Ok(7));
        settle().await;
        assert_eq!(undone.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn an_answer_that_was_ready_but_never_taken_is_undone() {
        let (undone, undo) = counter();
        let mut call = Box::pin(undone_if_unheard(async { Ok(7) }, undo));
        assert!(futures::poll!(&mut call).is_pending(), "the task has not run yet");
        settle().await;
        drop(call);
        settle().await;
        assert_eq!(undone.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_failure_that_nobody_heard_needs_no_undoing() {
        let (undone, undo) = counter();
        let failing = async { Err::<(), _>(Failure::new(Code::Internal, "no")) };
        let mut call = Box::pin(undone_if_unheard(failing, undo));
        assert!(futures::poll!(&mut call).is_pending());
        settle().await;
        drop(call);
        settle().await;
        assert_eq!(undone.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_call_dropped_before_it_began_is_begun_and_undone() {
        let (undone, undo) = counter();
        let (begun, begin) = counter();
        let work = async move {
            begin.await;
            std::future::pending::<()>().await;
            Ok(())
        };
        let mut call = Box::pin(undone_if_unheard(work, undo));
        assert!(futures::poll!(&mut call).is_pending());
        drop(call);
        settle().await;
        assert_eq!((begun.load(Ordering::SeqCst), undone.load(Ordering::SeqCst)), (1, 1));
    }
}
