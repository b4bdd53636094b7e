//! The Sandbox Controller: translate, send, translate.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bulkhead_config::ProfileName;
use containerd_sandbox::{
    Create, Exit, Failure, Metric, Platform, Sandboxer, Started, State, Status, Step, Update,
};
use opentelemetry::trace::SpanContext;
use serde_json::json;
use vmm_actors::id::{ContainerdNamespace, SandboxId};
use vmm_actors::sandbox::CreateSandbox;
use vmm_actors::sandbox::Snapshot;
use vmm_actors::{PodSpec, Sandboxes};

use crate::caller_limits;
use crate::pod_config::{PodConfigError, pod_spec};
use crate::status::{bad_pod, bad_update, failure, invalid};
use crate::{metrics, traces, update};

/// Version of the Task API that the shim proxies serve.
const TASK_API_VERSION: u32 = 3;

/// What a pod without DNS settings of its own resolves by.
const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";

/// Key of the JSON that `crictl inspectp` shows.
const INFO: &str = "info";

/// How long it is kept for a Start: longer than the actors keep a sandbox that nobody starts.
const START_WINDOW: Duration = Duration::from_secs(10 * 60);

type Labels = BTreeMap<String, String>;

/// What Create leaves for Start.
#[derive(Debug)]
struct Created {
    at: Instant,
    labels: Labels,
    call: SpanContext,
}

/// Answers containerd on one socket. Those of all sockets serve all sandboxes; each makes new ones by its own profile.
#[derive(Debug)]
pub(crate) struct Controller {
    sandboxes: Sandboxes,
    profile: ProfileName,
    /// Sandboxes between Create and Start. Their labels: containerd 2.3 replaces its own by what Start answers. Shared by
    /// all sockets.
    created: Arc<Mutex<HashMap<SandboxId, Created>>>,
}

impl Controller {
    /// A controller of these sandboxes that makes new ones by the default profile.
    pub(crate) fn new(sandboxes: Sandboxes) -> Self {
        Self { sandboxes, profile: ProfileName::default(), created: Arc::default() }
    }

    /// The same controller with another profile.
    pub(crate) fn of_profile(&self, profile: ProfileName) -> Self {
        Self { sandboxes: self.sandboxes.clone(), profile, created: Arc::clone(&self.created) }
    }

    fn created(&self) -> MutexGuard<'_, HashMap<SandboxId, Created>> {
        // A panic cannot leave half of one: every use is one insertion or removals.
        self.created.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, id: SandboxId, labels: Labels) {
        let mut kept = self.created();
        kept.retain(|_, created| created.at.elapsed() < START_WINDOW);
        kept.insert(id, Created { at: Instant::now(), labels, call: traces::reference() });
    }
}

#[async_trait]
impl Sandboxer for Controller {
    async fn create(&self, request: Create) -> Result<(), Failure> {
        let id = sandbox_id("create", &request.id)?;
        let labels = request.labels.clone();
        let create = create_sandbox(id.clone(), self.profile.clone(), request)?;
        self.sandboxes.create(create).await.map_err(|error| failure("create", &error))?;
        self.keep(id, labels);
        Ok(())
    }

    async fn start(&self, id: &str) -> Result<Started, Failure> {
        let id = sandbox_id("start", id)?;
        let created = self.created().remove(&id);
        let (labels, create) = created.map(|created| (created.labels, created.call)).unzip();
        // Most of what it waits for was begun by Create, and is in its trace.
        create.into_iter().for_each(traces::follows);
        let started = self.sandboxes.start(&id).await.map_err(|error| failure("start", &error))?;
        Ok(Started {
            pid: started.pid,
            created_at: started.created_at,
            address: started.address,
            version: TASK_API_VERSION,
            labels: labels.unwrap_or_default(),
        })
    }

    async fn abandoned(&self, id: &str, step: Step) {
        let Ok(id) = sandbox_id("abandon", id) else { return };
        self.created().remove(&id);
        self.sandboxes.abandon(&id).await;
        if step == Step::Start {
            // It may have come up at the same moment. containerd takes it for failed all the same.
            self.sandboxes.orphan(&id).await;
        }
    }

    async fn platform(&self, _id: &str) -> Result<Platform, Failure> {
        Ok(Platform::linux())
    }

    async fn stop(&self, id: &str, _timeout: Option<Duration>) -> Result<(), Failure> {
        let id = sandbox_id("stop", id)?;
        self.sandboxes.stop(&id).await.map_err(|error| failure("stop", &error))
    }

    async fn wait(&self, id: &str) -> Result<Exit, Failure> {
        let id = sandbox_id("wait", id)?;
        let exited = self.sandboxes.wait(&id).await.map_err(|error| failure("wait", &error))?;
        Ok(Exit { status: exited.status, at: exited.at })
    }

    async fn status(&self, id: &str, verbose: bool) -> Result<Status, Failure> {
        let id = sandbox_id("status", id)?;
        let snapshot = self.sandboxes.status(&id).await.map_err(|error| failure("status", &error))?;
        Ok(status(snapshot, verbose))
    }

    async fn shutdown(&self, id: &str) -> Result<(), Failure> {
        let id = sandbox_id("shutdown", id)?;
        self.created().remove(&id);
        self.sandboxes.shutdown(&id).await.map_err(|error| failure("shutdown", &error))
    }

    async fn metrics(&self, id: &str) -> Result<Metric, Failure> {
        let id = sandbox_id("metrics", id)?;
        let figures = self.sandboxes.metrics(&id).await.map_err(|error| failure("metrics", &error))?;
        Ok(Metric { at: SystemTime::now(), data: metrics::encode(figures.cgroup, figures.network) })
    }

    async fn update(&self, request: Update) -> Result<(), Failure> {
        let id = sandbox_id("update", &request.id)?;
        let new =
            update::pod_resources(&request.extensions).map_err(|error| bad_update(id.as_str(), &error))?;
        let updated = self.sandboxes.update(&id, new.resources, new.overhead).await;
        updated.map_err(|error| failure("update", &error))
    }
}

fn sandbox_id(call: &'static str, id: &str) -> Result<SandboxId, Failure> {
    SandboxId::new(id).map_err(|error| invalid(call, error.to_string()))
}

fn create_sandbox(id: SandboxId, profile: ProfileName, request: Create) -> Result<CreateSandbox, Failure> {
    let bad = |error: PodConfigError| bad_pod(id.as_str(), &error);
    // Without the file a pod that wants the host's DNS has none, as everything else on this host.
    let host_resolv_conf = fs::read_to_string(HOST_RESOLV_CONF).unwrap_or_default();
    let mut pod: PodSpec = pod_spec(request.options, &host_resolv_conf).map_err(bad)?;
    traces::name_pod(&pod);
    pod.inherited_limits = caller_limits::read(request.caller_pid);
    let netns = request.netns_path.ok_or(PodConfigError::HostNetwork).map_err(bad)?;
    check_netns(&id, &netns)?;
    let containerd_namespace = containerd_namespace(request.namespace)?;
    Ok(CreateSandbox { id, containerd_namespace, profile, netns, pod })
}

/// containerd always names it; for who does not it is CRI's.
fn containerd_namespace(named: String) -> Result<ContainerdNamespace, Failure> {
    if named.is_empty() {
        return Ok(ContainerdNamespace::default());
    }
    let bad = |error| invalid("create", format!("containerd's namespace: {error}"));
    ContainerdNamespace::new(named).map_err(bad)
}

fn check_netns(id: &SandboxId, netns: &Path) -> Result<(), Failure> {
    if netns.is_absolute() && netns.exists() {
        return Ok(());
    }
    let netns = netns.display();
    let remedy = "containerd makes it, and CNI its links, before Create";
    Err(invalid("create", format!("sandbox {id}: there is no network namespace {netns:?}; {remedy}")))
}

fn status(snapshot: Snapshot, verbose: bool) -> Status {
    let state = if snapshot.ready { State::Ready } else { State::NotReady };
    let info = if verbose { BTreeMap::from([(INFO.to_owned(), info(&snapshot))]) } else { BTreeMap::new() };
    Status {
        pid: snapshot.pid,
        state,
        info,
        created_at: Some(snapshot.created_at),
        exited_at: snapshot.exited_at,
        address: snapshot.address,
        version: TASK_API_VERSION,
    }
}

/// The keys beside ours are those crictl and containerd read (containerd, `internal/cri/types/sandbox_info.go`).
fn info(snapshot: &Snapshot) -> String {
    json!({ "pid": snapshot.pid, "processStatus": snapshot.state, "bulkhead": snapshot }).to_string()
}
