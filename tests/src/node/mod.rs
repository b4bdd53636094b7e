//! A node of its own: containerd, CNI and the sandboxer in a private directory and private namespaces.
//!
//! Pid, mount and network namespace are new, `/run` and `/var/lib` are empty tmpfs, the boot id is the node's own.
//! When the init process of the pid namespace ends, the kernel ends everything else, so that even a killed test
//! run leaves no process, mount or link behind; cgroups and the directory are removed by [`Node`]'s drop.

pub(crate) mod cgroups;
mod containerd;
mod daemon;
mod namespaces;
mod pod_netns;
mod sandboxer;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use daemon::Daemon;
pub use namespaces::BootId;
pub use sandboxer::Settings;

use crate::cri::Cri;
use crate::otlp::Collector;
use crate::peers::{self, Base, Line, Product};
use crate::{image, report};

/// containerd's name for the runtime that is the control: runc.
pub const RUNC: &str = "runc";
/// The runtime under test.
pub const BULKHEAD: &str = "bulkhead";

/// Where the collector of a test listens, in its node's network namespace.
pub const OTLP: &str = "127.0.0.1:4317";

/// How a node is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which containerd.
    pub line: Line,
    /// Without: containerd and runc only.
    pub bulkhead: bool,
    /// Stdio of containers by containerd's streaming service instead of FIFOs.
    pub streaming: bool,
    /// Which runtime a pod gets that names none: [`RUNC`] or [`BULKHEAD`].
    pub default_runtime: &'static str,
    /// Changes to the sandboxer's settings.
    pub settings: Settings,
    /// Profiles beside the default one, each with a socket and a runtime of its own.
    pub profiles: Vec<&'static str>,
    /// Do not start the sandboxer: the test does.
    pub sandboxer_later: bool,
    /// Whether CNI maps host ports (plugin `portmap`, which needs iptables).
    pub host_ports: bool,
    /// Shell commands that a CNI plugin of the test runs in each new pod's network namespace, before any other plugin;
    /// empty: there is no such plugin.
    pub cni_commands: String,
    /// Which boot id the node sees.
    pub boot_id: BootId,
    /// Whether containerd sends traces to [`OTLP`].
    pub containerd_traces: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            line: Line::of_this_run(),
            bulkhead: true,
            streaming: false,
            default_runtime: RUNC,
            settings: Settings::default(),
            profiles: Vec::new(),
            sandboxer_later: false,
            host_ports: false,
            cni_commands: String::new(),
            boot_id: BootId::Own,
            containerd_traces: false,
        }
    }
}

impl Options {
    /// containerd and runc, to judge the harness itself by.
    #[must_use]
    pub fn control() -> Self {
        Self { bulkhead: false, ..Self::default() }
    }

    /// On a containerd of this release line.
    #[must_use]
    pub fn on(line: Line) -> Self {
        Self { line, ..Self::default() }
    }

    /// With `io_type = "streaming"` for the runtime under test.
    #[must_use]
    pub fn streaming() -> Self {
        Self { streaming: true, ..Self::default() }
    }

    /// With a profile beside the default one, whose runtime is `bulkhead-NAME`.
    #[must_use]
    pub fn with_profile(mut self, name: &'static str) -> Self {
        self.profiles.push(name);
        self
    }

    /// With one setting changed; `value` as TOML spells it.
    #[must_use]
    pub fn with(mut self, table: &str, key: &str, value: impl Into<String>) -> Self {
        self.settings.set(table, key, value);
        self
    }
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    name: String,
    dir: PathBuf,
    options: Options,
    base: Base,
    product: Option<Product>,
    namespaces: namespaces::Namespaces,
    containerd: Option<Daemon>,
    sandboxer: Option<Daemon>,
    cri: Cri,
}

impl Node {
    /// Starts a node, or says why this machine cannot.
    pub async fn start(options: Options) -> Result<Self, String> {
        let base = peers::base(options.line)?;
        let product = if options.bulkhead { Some(peers::product()?) } else { None };
        sweep();
        let (name, dir) = private_directory();
        for folder in ["r", "v", "pods", "log", "cni", "leases"] {
            std::fs::create_dir(dir.join(folder)).expect("make a folder of the node");
        }
        cgroups::create(&cgroup_parent(&name));
        let namespaces = namespaces::Namespaces::start(&dir, options.boot_id).await;
        let mut node = Self::new(dir, options, base, product, namespaces);
        node.write_containerd_config();
        if node.options.bulkhead && !node.options.sandboxer_later {
            node.start_sandboxer().await;
        }
        node.start_containerd().await;
        image::import(&node).await;
        Ok(node)
    }

    /// The node in `dir` after a power cut: what lay on its `/run` is gone, and it boots.
    pub async fn boot_again(dir: &Path, options: Options) -> Result<Self, String> {
        let base = peers::base(options.line)?;
        let product = if options.bulkhead { Some(peers::product()?) } else { None };
        cgroups::create(&cgroup_parent(&name_of(dir)));
        empty_volatile(dir);
        let namespaces = namespaces::Namespaces::start(dir, options.boot_id).await;
        let mut node = Self::new(dir.to_owned(), options, base, product, namespaces);
        node.write_containerd_config();
        node.start_daemons().await;
        Ok(node)
    }

    fn new(
        dir: PathBuf,
        options: Options,
        base: Base,
        product: Option<Product>,
        namespaces: namespaces::Namespaces,
    ) -> Self {
        let name = name_of(&dir);
        let handler = if options.bulkhead { BULKHEAD } else { RUNC };
        let cri = Cri::new(&dir, handler, &cgroup_parent(&name));
        Self { name, dir, options, base, product, namespaces, containerd: None, sandboxer: None, cri }
    }

    /// A client for the caller's own runtime: the connections of one belong to the runtime that made them.
    pub fn renew_client(&mut self) {
        let handler = if self.options.bulkhead { BULKHEAD } else { RUNC };
        self.cri = Cri::new(&self.dir, handler, &cgroup_parent(&self.name));
    }

    /// The node's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `run_dir` of the sandboxer.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("r")
    }

    /// `state_dir` of the sandboxer.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("v")
    }

    /// Directory of one pod below the sandboxer's `run_dir`, by a path that works out here.
    #[must_use]
    pub fn pod_dir(&self, sandbox: &str) -> PathBuf {
        self.inside(&self.run_dir().join("s").join(sandbox).display().to_string())
    }

    /// Directory of the VM of one pod below the sandboxer's `run_dir`, by a path that works out here: it is a mount that
    /// only the node's own processes see.
    ///
    /// # Panics
    /// When the pod has no VM.
    #[must_use]
    pub fn vm_dir(&self, sandbox: &str) -> PathBuf {
        let is_owned =
            |dir: &PathBuf| std::fs::read_to_string(dir.join("owner")).is_ok_and(|id| id == sandbox);
        self.vm_dirs().into_iter().find(is_owned).unwrap_or_else(|| panic!("{sandbox} has no VM"))
    }

    /// The same directory, as the node's own processes name it.
    ///
    /// # Panics
    /// When the pod has no VM.
    #[must_use]
    pub fn vm_dir_inside(&self, sandbox: &str) -> PathBuf {
        let dir = self.vm_dir(sandbox);
        self.run_dir().join("vm").join(dir.file_name().expect("a VM's directory has a name"))
    }

    fn vm_dirs(&self) -> Vec<PathBuf> {
        let all = std::fs::read_dir(self.inside(&self.run_dir().join("vm").display().to_string()));
        all.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    }

    /// The CRI client.
    #[must_use]
    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    /// containerd's gRPC socket.
    #[must_use]
    pub fn containerd_socket(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    /// The sandboxer's Controller socket.
    #[must_use]
    pub fn controller_socket(&self) -> PathBuf {
        self.run_dir().join("sandboxer.sock")
    }

    /// The Controller socket of a profile beside the default one.
    #[must_use]
    pub fn profile_socket(&self, name: &str) -> PathBuf {
        self.run_dir().join(format!("{name}.sock"))
    }

    /// Init process of the node's pid namespace, as pid on this machine.
    #[must_use]
    pub fn init(&self) -> i32 {
        self.namespaces.init()
    }

    /// `ctr` and containerd of this node's line.
    #[must_use]
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// The product under test; panics on a control node.
    #[must_use]
    pub fn product(&self) -> &Product {
        self.product.as_ref().expect("this node runs without Bulkhead")
    }

    /// Has the sandboxer and its pods come from another build from its next start.
    pub fn set_product(&mut self, product: Product) {
        self.product = Some(product);
    }

    /// Parent of every cgroup of this node, with a leading slash.
    #[must_use]
    pub fn cgroup_parent(&self) -> String {
        cgroup_parent(&self.name)
    }

    /// containerd's pid on this machine while it runs.
    #[must_use]
    pub fn containerd_pid(&self) -> Option<i32> {
        self.containerd.as_ref().and_then(Daemon::pid)
    }

    /// The sandboxer's pid on this machine while it runs.
    #[must_use]
    pub fn sandboxer_pid(&self) -> Option<i32> {
        self.sandboxer.as_ref().and_then(Daemon::pid)
    }

    /// A file of the node as its own processes see it, for what lies on its private `/run` and `/var/lib`.
    #[must_use]
    pub fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init()))
    }

    /// Runs a command inside the node's namespaces and returns its stdout; panics when it fails.
    pub async fn run(&self, args: &[&str]) -> String {
        self.namespaces.run(args).await
    }

    /// The start of a command line that runs what follows inside the node's namespaces.
    #[must_use]
    pub fn enter(&self) -> std::process::Command {
        self.namespaces.enter()
    }

    /// Starts a program that runs on inside the node's namespaces: in `folder`, with `path` as `PATH`.
    pub async fn start_daemon(&self, folder: &Path, log: &Path, path: &str, args: &[&str]) -> Daemon {
        Daemon::start_in(&self.namespaces, folder, log, &[("PATH", path)], args).await
    }

    /// A TCP connection out of the node's network namespace.
    pub fn connect(
        &self,
        address: std::net::SocketAddr,
        limit: Duration,
    ) -> std::io::Result<std::net::TcpStream> {
        self.namespaces.connect(address, limit)
    }

    /// A collector of traces on [`OTLP`] in the node's network namespace.
    pub fn collect_traces(&self) -> std::io::Result<Collector> {
        Ok(Collector::on(self.namespaces.listen(OTLP)?))
    }

    /// HTTP GET of `http://address/path` out of the node's network namespace; the body.
    pub async fn http_get(&self, address: std::net::SocketAddr, path: &str, limit: Duration) -> String {
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        let start = Instant::now();
        crate::wait::expect(&format!("HTTP answer of {address}{path}"), limit, async || {
            let left = limit.saturating_sub(start.elapsed()).max(Duration::from_millis(100));
            let mut stream = self.connect(address, left).ok()?;
            let request = request.clone();
            tokio::task::spawn_blocking(move || {
                use std::io::{Read, Write};
                stream.set_read_timeout(Some(left)).ok()?;
                stream.write_all(request.as_bytes()).ok()?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).ok()?;
                let (head, body) = answer.split_once("\r\n\r\n")?;
                head.starts_with("HTTP/1.0 200")
                    .then(|| body.to_owned())
                    .or_else(|| head.starts_with("HTTP/1.1 200").then(|| body.to_owned()))
            })
            .await
            .ok()?
        })
        .await
    }

    /// Everything ends at once as in a power cut: processes, mounts, links, `/run`. Then a new boot: sandboxer and
    /// containerd come up again on what was on disk, under a new boot id.
    pub async fn reboot(&mut self) {
        self.sandboxer = None;
        self.containerd = None;
        self.namespaces.end();
        cgroups::remove(&self.cgroup_parent());
        cgroups::create(&self.cgroup_parent());
        empty_volatile(&self.dir);
        self.namespaces = namespaces::Namespaces::start(&self.dir, self.options.boot_id).await;
        self.start_daemons().await;
    }

    async fn start_daemons(&mut self) {
        if self.options.bulkhead {
            self.start_sandboxer().await;
        }
        self.start_containerd().await;
    }

    fn print_logs(&self) {
        eprintln!("==== node {} failed, its logs:", self.dir.display());
        report::tail(&self.dir.join("log/containerd.log"), 60);
        report::tail(&self.dir.join("log/sandboxer.log"), 120);
        let pods = std::fs::read_dir(self.inside(&self.run_dir().join("s").display().to_string()));
        let mut directories = self.vm_dirs();
        directories.extend(pods.into_iter().flatten().flatten().map(|entry| entry.path()));
        for directory in directories {
            for file in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                let name = file.file_name().to_string_lossy().into_owned();
                if name == "console.log" || name.ends_with(".stderr") {
                    report::tail(&file.path(), 60);
                }
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        self.namespaces.end();
        self.sandboxer = None;
        self.containerd = None;
        cgroups::remove(&self.cgroup_parent());
        let keep = std::env::var_os("BULKHEAD_KEEP_NODES").is_some() && std::thread::panicking();
        if keep {
            eprintln!("kept: {}", self.dir.display());
        } else if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            report::aloud(&format!("cannot remove {}: {error}\n", self.dir.display()));
        }
    }
}

/// Makes a pod's cgroup as kubelet does, in every hierarchy.
pub fn make_cgroup(group: &str) {
    cgroups::create(group);
}

/// Moves a process into a cgroup, in every hierarchy.
///
/// # Panics
/// If it cannot be moved.
pub fn move_to_cgroup(group: &str, pid: i32) {
    cgroups::enter(group, pid);
}

/// What a file of a cgroup says, in whichever hierarchy has it.
#[must_use]
pub fn cgroup_file(group: &str, file: &str) -> Option<String> {
    cgroups::read(group, file)
}

/// Whether a cgroup is there, in any hierarchy.
#[must_use]
pub fn cgroup_exists(group: &str) -> bool {
    !cgroups::list(group).is_empty()
}

/// The processes in a cgroup and below it, in any hierarchy.
#[must_use]
pub fn cgroup_processes(group: &str) -> Vec<i32> {
    let lists = cgroups::list(group).into_iter().map(|path| Path::new(&path).join("cgroup.procs"));
    let texts: Vec<String> = lists.filter_map(|list| std::fs::read_to_string(list).ok()).collect();
    texts.iter().flat_map(|text| text.lines()).filter_map(|line| line.parse().ok()).collect()
}

/// Removes a cgroup in every hierarchy, which must be empty.
///
/// # Panics
/// If it cannot be removed.
pub fn remove_cgroup(group: &str) {
    cgroups::remove_empty(group).unwrap_or_else(|error| panic!("{error}"));
}

/// Removes containerd's cgroup for pods that name no parent, unless somebody is in it.
pub fn remove_default_cgroup() {
    // In use, or gone already: both are well.
    drop(cgroups::remove_empty("/k8s.io"));
}

/// What a real node has on its `/run`.
fn empty_volatile(dir: &Path) {
    for volatile in ["r", "state"] {
        let folder = dir.join(volatile);
        std::fs::remove_dir_all(&folder).expect("empty a volatile folder");
        std::fs::create_dir(&folder).expect("make a volatile folder");
    }
}

fn name_of(dir: &Path) -> String {
    dir.file_name().expect("a node has a directory").to_string_lossy().into_owned()
}

fn cgroup_parent(name: &str) -> String {
    format!("/{name}")
}

/// Where nodes have their directories: `BULKHEAD_NODES`, or else `/tmp`. No overlay: containerd's snapshots are ones.
fn home() -> PathBuf {
    std::env::var_os("BULKHEAD_NODES").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from)
}

/// A short name: unix socket paths below end at 107 bytes.
fn private_directory() -> (String, PathBuf) {
    loop {
        let mut random = [0_u8; 3];
        let mut source = std::fs::File::open("/dev/urandom").expect("open /dev/urandom");
        std::io::Read::read_exact(&mut source, &mut random).expect("read /dev/urandom");
        let name = format!("bh-{:02x}{:02x}{:02x}", random[0], random[1], random[2]);
        let dir = home().join(&name);
        if std::fs::create_dir(&dir).is_ok() {
            std::fs::write(dir.join("owner"), std::process::id().to_string()).expect("name the owner");
            return (name, dir);
        }
    }
}

/// Removes the directories and cgroups of nodes whose test run was killed. Their processes are gone already.
fn sweep() {
    for entry in std::fs::read_dir(home()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("bh-") {
            continue;
        }
        let Ok(owner) = std::fs::read_to_string(entry.path().join("owner")) else { continue };
        let alive = Path::new("/proc").join(owner.trim()).exists();
        if owner.trim().is_empty() || alive {
            continue;
        }
        cgroups::remove(&cgroup_parent(&name));
        if let Err(error) = std::fs::remove_dir_all(entry.path()) {
            report::aloud(&format!("cannot remove stale {}: {error}\n", entry.path().display()));
        }
    }
}
