//! Waiting for something outside, with a deadline: nothing here sleeps and hopes.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(20);

/// Asks `probe` until it answers, or answers `None` when `limit` has passed.
pub async fn until<T>(limit: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return Some(found);
        }
        if start.elapsed() > limit {
            return None;
        }
        tokio::time::sleep(STEP).await;
    }
}

/// As [`until`], and panics naming `what` when the time is over.
pub async fn expect<T>(what: &str, limit: Duration, probe: impl AsyncFnMut() -> Option<T>) -> T {
    match until(limit, probe).await {
        Some(found) => found,
        None => panic!("waited {limit:?} in vain: {what}"),
    }
}
