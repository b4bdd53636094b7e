//! Waiting for something outside, with a deadline: nothing here sleeps and hopes.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(20);

static PATIENCE: LazyLock<u32> = LazyLock::new(|| {
    std::env::var("BULKHEAD_TEST_PATIENCE").ok().and_then(|text| text.parse().ok()).unwrap_or(1).max(1)
});

/// How many times longer than elsewhere things may take here: 1, or `BULKHEAD_TEST_PATIENCE` on a slow machine.
#[must_use]
pub fn patience() -> u32 {
    *PATIENCE
}

/// A time limit, longer where patience is asked for.
#[must_use]
pub fn patiently(limit: Duration) -> Duration {
    limit * patience()
}

/// Asks `probe` until it answers, or answers `None` when `limit` has passed, more with [`patience`].
pub async fn until<T>(limit: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let (start, limit) = (Instant::now(), patiently(limit));
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
