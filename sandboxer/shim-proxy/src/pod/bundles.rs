//! Sees bundles go: a bundle removed without Delete is containerd's way of giving a container up (fact 6).
//!
//! No inotify(7): a user has few instances of it, and there is a proxy for each pod (decision 11).
//! As long as a connection speaks for a container, its bundle stays ([`crate::pod::callers`]).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;
use tracing::info;

use super::Pod;
use super::process::Container;
use super::remove::give_up;

/// Pauses between looks at the bundles of containers that nobody speaks for, first and longest: as a rule the bundle
/// goes at once, or containerd is being restarted.
const LOOKS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

impl Pod {
    /// Gives up whatever containerd has given up, for ever.
    pub(crate) async fn watch_bundles(self: Arc<Self>) {
        let mut departures = self.callers.departures();
        let mut pause = LOOKS.0;
        loop {
            let departure = departures.changed();
            let heard = if self.looks_after_any() {
                timeout(pause, departure).await
            } else {
                // Nothing to look at: everybody is in good hands.
                Ok(departure.await)
            };
            pause = match heard {
                Ok(Ok(())) => LOOKS.0,
                Ok(Err(_closed)) => return,
                Err(_elapsed) => (pause * 2).min(LOOKS.1),
            };
            self.check_bundles();
        }
    }

    /// Whether there is a container that nobody speaks for, and that is not on its way out.
    fn looks_after_any(&self) -> bool {
        self.containers().iter().any(|container| {
            !container.given_up.load(Ordering::Relaxed) && !self.callers.speak_for(&container.id)
        })
    }

    fn check_bundles(self: &Arc<Self>) {
        for container in self.containers() {
            if is_gone(&container) && !container.given_up.swap(true, Ordering::Relaxed) {
                info!(container = container.id, "its bundle is gone: containerd has given it up");
                tokio::spawn(give_up(self.clone(), container));
            }
        }
    }
}

fn is_gone(container: &Container) -> bool {
    let seen = std::fs::symlink_metadata(Path::new(&container.bundle));
    seen.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}
