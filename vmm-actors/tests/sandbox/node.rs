//! One node: directories, programs, a network namespace and a cgroup of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bulkhead_config::{ProfileName, Settings};
use serde::{Deserialize, Serialize};
use vmm_actors::id::{ContainerdNamespace, SandboxId};
use vmm_actors::registry::RecoveryReport;
use vmm_actors::runtime_dir::{PodDir, VmDir};
use vmm_actors::sandbox::record::{Found, Record, Store};
use vmm_actors::sandbox::state::Cause;
use vmm_actors::sandbox::{CreateSandbox, SandboxError, Snapshot, Started};
use vmm_actors::testing::{FakeDriver, fake_shim, fake_virtiofsd};
use vmm_actors::vm::Drivers;
use vmm_actors::{PodSpec, Sandboxes, Telemetry};

/// How long anything may take that takes milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Everything a service and its successor must agree on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) settings: Settings,
    pub(crate) netns: PathBuf,
    /// Of the requests.
    pub(crate) profile: ProfileName,
}

impl Place {
    pub(crate) fn dir(&self, id: &str) -> PodDir {
        PodDir::new(&self.settings.sandboxer.run_dir, &sandbox(id))
    }

    /// The directory of a recorded sandbox's VM.
    pub(crate) fn vm_dir(&self, id: &str) -> VmDir {
        self.record(id).unwrap().vm_dir()
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(&self.settings.sandboxer.state_dir).unwrap()
    }

    pub(crate) fn record(&self, id: &str) -> Option<Record> {
        match self.store().load_one(&sandbox(id))? {
            Found::Record(record) => Some(*record),
            Found::Quarantined { why, .. } => panic!("the record of {id} is broken: {why}"),
        }
    }

    pub(crate) fn request(&self, id: &str) -> CreateSandbox {
        let pod = PodSpec {
            name: id.to_owned(),
            namespace: "default".to_owned(),
            hostname: id.to_owned(),
            ..PodSpec::default()
        };
        CreateSandbox {
            id: sandbox(id),
            containerd_namespace: ContainerdNamespace::new("other").unwrap(),
            profile: self.profile.clone(),
            netns: self.netns.clone(),
            pod,
        }
    }

    /// Begins to serve, with whatever a predecessor left.
    pub(crate) fn serve(&self, driver: FakeDriver) -> Service {
        let driver = Arc::new(driver);
        let (sandboxes, report) = Sandboxes::start_up(
            Arc::new(self.settings.clone()),
            Drivers::only(&(Arc::clone(&driver) as _)),
            Telemetry::new().unwrap(),
        )
        .unwrap();
        Service { sandboxes, driver, report, place: self.clone() }
    }
}

/// The node; all of it goes with this value.
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) root: tempfile::TempDir,
    netns: OwnNetns,
}

impl std::ops::Deref for Node {
    type Target = Place;
    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Node {
    /// A node whose pods have the shim proxy of these tests, without containers.
    pub(crate) fn new() -> Option<Self> {
        Self::with_containers(&[])
    }

    /// A node whose pods' shim proxies say that they hold these containers.
    pub(crate) fn with_containers(containers: &[&str]) -> Option<Self> {
        static NODES: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            println!("skipped: cgroups, mounts and network namespaces need root");
            return None;
        }
        let root = tempfile::tempdir().unwrap();
        let programs = root.path().join("bin");
        std::fs::create_dir(&programs).unwrap();
        let mut settings = Settings::default();
        settings.sandboxer.run_dir = root.path().join("run");
        settings.sandboxer.state_dir = root.path().join("state");
        settings.virtiofsd.path = fake_virtiofsd(&programs).unwrap();
        settings.shim.binary = fake_shim(&programs, "be_a_shim_proxy_when_told_to", containers).unwrap();
        settings.guest.boot_timeout_secs = 10.try_into().unwrap();
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        settings.cgroup.default_parent = format!("/bh-test-{}-{number}", std::process::id());
        for directory in ["s", "vm"] {
            std::fs::create_dir_all(settings.sandboxer.run_dir.join(directory)).unwrap();
        }
        let netns = OwnNetns::with_links();
        Some(Self {
            place: Place { settings, netns: netns.path(), profile: ProfileName::default() },
            root,
            netns,
        })
    }

    /// Takes a program or file of the node away.
    pub(crate) fn hide(&self, path: &Path) -> Hidden {
        let hidden = path.with_extension("hidden");
        std::fs::rename(path, &hidden).unwrap();
        Hidden { path: path.to_owned(), hidden }
    }

    pub(crate) fn in_netns(&self, command: &str) -> String {
        self.netns.run(command)
    }

    /// Ends the namespace, as a node does that loses its pod's.
    pub(crate) fn end_netns(&mut self) {
        self.netns.end();
    }

    pub(crate) fn quarantined(&self) -> usize {
        let list = std::fs::read_dir(self.settings.sandboxer.state_dir.join("quarantine"));
        list.map_or(0, Iterator::count)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A test that failed left what it was to find gone.
        self.sweep();
    }
}

/// Something that is not where it should be.
pub(crate) struct Hidden {
    path: PathBuf,
    hidden: PathBuf,
}

impl Hidden {
    pub(crate) fn show(self) {
        std::fs::rename(self.hidden, self.path).unwrap();
    }
}

/// A network namespace that lives as long as a process in it.
pub(crate) struct OwnNetns(std::process::Child);

impl OwnNetns {
    /// With the two ends of one cable in it, eth0 and eth1.
    fn with_links() -> Self {
        Self::make(
            "ip link add eth0 type veth peer name eth1 && ip link set eth0 up && ip link set eth1 up && \
             ip address add 10.7.0.2/24 dev eth0",
        )
    }

    pub(crate) fn without_links() -> Self {
        Self::make("true")
    }

    fn make(set_up: &str) -> Self {
        let script = format!("{set_up} && echo made && exec sleep 600");
        let mut holder = Command::new("unshare");
        holder.args(["--net", "sh", "-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut holder = holder.spawn().unwrap();
        let mut made = [0; 5];
        let read = std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut made);
        let netns = Self(holder);
        read.expect("a network namespace with its links");
        netns
    }

    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }

    fn run(&self, command: &str) -> String {
        let mut enter = Command::new("nsenter");
        enter.arg(format!("--net={}", self.path().display())).args(command.split_whitespace());
        let output = enter.output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn end(&mut self) {
        if self.0.kill().and_then(|()| self.0.wait()).is_err() {
            println!("process {} of the network namespace is left", self.0.id());
        }
    }
}

impl Drop for OwnNetns {
    fn drop(&mut self) {
        self.end();
    }
}

/// A service on the node.
pub(crate) struct Service {
    pub(crate) sandboxes: Sandboxes,
    pub(crate) driver: Arc<FakeDriver>,
    pub(crate) report: RecoveryReport,
    place: Place,
}

impl Service {
    pub(crate) async fn create(&self, id: &str) -> Result<(), SandboxError> {
        self.sandboxes.create(self.place.request(id)).await
    }

    pub(crate) async fn start(&self, id: &str) -> Result<Started, SandboxError> {
        self.sandboxes.start(&sandbox(id)).await
    }

    pub(crate) async fn status(&self, id: &str) -> Result<Snapshot, SandboxError> {
        self.sandboxes.status(&sandbox(id)).await
    }

    /// Creates and starts.
    pub(crate) async fn run(&self, id: &str) -> Result<Started, SandboxError> {
        self.create(id).await?;
        self.start(id).await
    }

    pub(crate) async fn stop(&self, id: &str) {
        self.sandboxes.stop(&sandbox(id)).await.unwrap();
    }

    pub(crate) async fn shutdown(&self, id: &str) {
        self.sandboxes.shutdown(&sandbox(id)).await.unwrap();
    }

    /// What the guest of this pod was asked.
    pub(crate) fn calls(&self, id: &str) -> Vec<String> {
        self.driver.calls(id)
    }

    /// Waits for a state by its name.
    pub(crate) async fn until(&self, id: &str, state: &str) -> Snapshot {
        let begin = Instant::now();
        loop {
            let snapshot = self.status(id).await.unwrap();
            if snapshot.state == state {
                return snapshot;
            }
            assert!(begin.elapsed() < PATIENCE, "{id} is {} and not {state}", snapshot.state);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until nobody knows the sandbox.
    pub(crate) async fn until_gone(&self, id: &str) {
        let begin = Instant::now();
        while let Ok(snapshot) = self.status(id).await {
            assert!(begin.elapsed() < PATIENCE, "{id} is still {}: {:?}", snapshot.state, snapshot.reason);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

pub(crate) fn sandbox(id: &str) -> SandboxId {
    SandboxId::new(id).unwrap()
}

/// Why something ended.
pub(crate) fn cause(error: SandboxError) -> Cause {
    let SandboxError::Ended { cause, .. } = error else { panic!("not ended: {error}") };
    cause
}

/// Kills a process by the identity that was recorded of it.
pub(crate) fn kill(pid: u32) {
    signal(pid, rustix::process::Signal::KILL);
}

pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}
