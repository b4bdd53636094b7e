//! Work that may block in the kernel, beside the runtime's one thread.

/// Runs it on a thread of its own and waits for the result. A panic in it goes on in the caller.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // The pool ends no work that has begun, so this is a panic.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
