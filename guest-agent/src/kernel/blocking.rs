//! Work that may block in the kernel: it must not run on the runtime's one thread.

/// Runs `work` on another thread and waits for its result. A panic in it continues in the caller.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // The pool does not abort work, so this is a panic.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
