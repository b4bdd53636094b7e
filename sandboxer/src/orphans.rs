//! Sandboxes that run although containerd no longer knows them: found by asking its sandbox store, ended after a grace
//! period. containerd forgets a sandbox without a word when its own part of RunPodSandbox fails after Start.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::path::Path;
use std::time::{Duration, Instant};

use containerd_client::services::v1::ListNamespacesRequest;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::sandbox::StoreListRequest;
use containerd_client::services::v1::sandbox::store_client::StoreClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use vmm_actors::Sandboxes;
use vmm_actors::id::SandboxId;

/// Pause between two looks, at least.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// How long containerd may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Since when each running sandbox has been unknown to containerd.
#[derive(Debug, Default)]
struct Unknown(HashMap<String, Instant>);

impl Unknown {
    /// Takes one look and says who has been unknown for all of `grace`. Who is known again starts anew.
    fn look(
        &mut self,
        running: &[String],
        known: &HashSet<String>,
        now: Instant,
        grace: Duration,
    ) -> Vec<String> {
        let before = std::mem::take(&mut self.0);
        let unknown = running.iter().filter(|id| !known.contains(*id));
        self.0 = unknown.map(|id| (id.clone(), before.get(id).copied().unwrap_or(now))).collect();
        let overdue = self.0.iter().filter(|(_, since)| now.duration_since(**since) >= grace);
        let mut overdue: Vec<String> = overdue.map(|(id, _)| id.clone()).collect();
        overdue.sort();
        overdue
    }
}

/// Ends orphans until it is dropped. While containerd does not answer, nobody is an orphan.
pub(crate) async fn watch(sandboxes: Sandboxes, containerd: &Path, grace: Duration) -> Infallible {
    let address = format!("unix://{}", containerd.display());
    let channel = match Endpoint::from_shared(address) {
        Ok(endpoint) => endpoint.timeout(ANSWER_TIMEOUT).connect_lazy(),
        Err(error) => {
            tracing::warn!(%error, path = %containerd.display(), "no orphans are looked for: this is no address");
            return std::future::pending().await;
        }
    };
    let mut unknown = Unknown::default();
    loop {
        tokio::time::sleep(grace.max(SHORTEST_PAUSE)).await;
        // Asked before containerd is: what is made in between is in its store by then.
        let running = running(&sandboxes).await;
        let overdue = match known_ids(&channel).await {
            Ok(_) if running.is_empty() => continue,
            Ok(known) => unknown.look(&running, &known, Instant::now(), grace),
            Err(status) => {
                tracing::debug!(%status, "containerd does not say which sandboxes it knows");
                unknown = Unknown::default();
                continue;
            }
        };
        for id in overdue.into_iter().filter_map(|id| SandboxId::new(id).ok()) {
            tracing::warn!(sandbox = %id, "containerd no longer knows this sandbox; ending it");
            sandboxes.orphan(&id).await;
        }
    }
}

async fn running(sandboxes: &Sandboxes) -> Vec<String> {
    let all = sandboxes.list().await;
    all.into_iter().filter(|sandbox| sandbox.ready).map(|sandbox| sandbox.id).collect()
}

/// Every sandbox of every namespace of containerd.
async fn known_ids(channel: &Channel) -> Result<HashSet<String>, Status> {
    let namespaces = NamespacesClient::new(channel.clone()).list(ListNamespacesRequest::default()).await?;
    let mut known = HashSet::new();
    for namespace in namespaces.into_inner().namespaces {
        let mut request = Request::new(StoreListRequest::default());
        let Ok(name) = namespace.name.parse() else { continue };
        request.metadata_mut().insert("containerd-namespace", name);
        let listed = StoreClient::new(channel.clone()).list(request).await?.into_inner().list;
        known.extend(listed.into_iter().map(|sandbox| sandbox.sandbox_id));
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(60);

    fn ids(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    fn set(known: &[&str]) -> HashSet<String> {
        ids(known).into_iter().collect()
    }

    #[test]
    fn who_is_unknown_for_the_whole_grace_is_an_orphan() {
        let mut unknown = Unknown::default();
        let start = Instant::now();
        let running = ids(&["a", "b"]);
        assert_eq!(unknown.look(&running, &set(&["a"]), start, GRACE), ids(&[]));
        assert_eq!(unknown.look(&running, &set(&["a"]), start + GRACE / 2, GRACE), ids(&[]));
        assert_eq!(unknown.look(&running, &set(&["a"]), start + GRACE, GRACE), ids(&["b"]));
        assert_eq!(unknown.look(&ids(&["a"]), &set(&["a"]), start + GRACE, GRACE), ids(&[]));
    }

    #[test]
    fn who_is_seen_in_between_starts_anew() {
        let mut unknown = Unknown::default();
        let start = Instant::now();
        let running = ids(&["a"]);
        assert_eq!(unknown.look(&running, &set(&[]), start, GRACE), ids(&[]));
        assert_eq!(unknown.look(&running, &set(&["a"]), start + GRACE / 2, GRACE), ids(&[]));
        assert_eq!(unknown.look(&running, &set(&[]), start + GRACE, GRACE), ids(&[]));
        assert_eq!(unknown.look(&running, &set(&[]), start + GRACE * 2, GRACE), ids(&["a"]));
    }
}
