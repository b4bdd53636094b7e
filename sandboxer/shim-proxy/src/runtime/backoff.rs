//! Pauses between attempts that double up to a limit.

use std::time::Duration;

/// The pauses between the attempts at one thing.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses from `first` to `longest`, each twice as long as the one before.
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The next pause.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause
    }

    /// Whether the next pause is the first one: nothing has failed yet.
    pub(crate) fn is_fresh(&self) -> bool {
        self.next == self.first
    }

    /// Whether the next pause is the longest one: it has failed for some time.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.next == self.longest
    }

    /// An attempt has succeeded: the next pause is the first one again.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_again_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(50));
        assert!(backoff.is_fresh());
        let pauses: Vec<_> = (0..4).map(|_| backoff.pause().as_millis()).collect();
        assert_eq!(pauses, [20, 40, 50, 50]);
        assert!(backoff.is_exhausted() && !backoff.is_fresh());
        backoff.reset();
        assert_eq!(backoff.pause().as_millis(), 20);
    }
}
