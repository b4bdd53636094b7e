//! One pod's VM, file server and agent session, with everything they tell.

pub(crate) mod loop_device;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr, Context, Handler};
use bulkhead_config::{Accelerator, Hypervisor, Machine, Settings};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use vmm_actors::agent::{Agent, AgentSilent, Listen};
use vmm_actors::ask::{AskError, ask};
use vmm_actors::id::VmId;
use vmm_actors::runtime_dir::VmDir;
use vmm_actors::virtiofsd::{Spawn, Virtiofsd, VirtiofsdExited, VirtiofsdRecord};
use vmm_actors::vm::{Boot, Booted, Driver, Drivers, LaunchSpec, Nic, Vm, VmError, VmmExited};

/// Tells the reader of the test's output what was not tested, past libtest's capture, which hides what passing
/// tests print. With `BULKHEAD_REQUIRE_PEERS=1` a test that cannot run is a failed one.
pub(crate) fn say_skipped(why: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    writeln!(std::io::stderr().lock(), "skipped: {name}: {why}").unwrap();
    let required = std::env::var_os("BULKHEAD_REQUIRE_PEERS").is_some_and(|value| value == "1");
    assert!(!required, "{name} cannot run here: {why}");
}

/// The same for what nobody has to have: Cloud Hypervisor, and KVM that runs guests.
fn say_absent(why: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    writeln!(std::io::stderr().lock(), "skipped: {name}: {why}").unwrap();
}

/// `CLOUD_HYPERVISOR`, else the one in `PATH`.
fn cloud_hypervisor() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("CLOUD_HYPERVISOR").filter(|named| !named.is_empty()) {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join("cloud-hypervisor")).find(|file| file.is_file())
}

/// A network namespace of the test's own, gone with this value.
pub(crate) struct OwnNetns(std::process::Child);

impl OwnNetns {
    /// None where this user may not make one.
    pub(crate) fn make() -> Option<Self> {
        let mut holder = Command::new("unshare");
        holder.args(["--net", "sh", "-c", "echo; exec sleep 600"]);
        let mut holder = holder.stdout(std::process::Stdio::piped()).spawn().ok()?;
        let mut made = [0];
        let read = std::io::Read::read(holder.stdout.as_mut().unwrap(), &mut made);
        let netns = Self(holder);
        matches!(read, Ok(1)).then_some(netns)
    }

    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }
}

impl Drop for OwnNetns {
    fn drop(&mut self) {
        if self.0.kill().and_then(|()| self.0.wait()).is_err() {
            println!("process {} of the network namespace is left", self.0.id());
        }
    }
}

/// Stands for the sandbox.
pub(crate) struct Parent {
    vmm: UnboundedSender<VmmExited>,
    virtiofsd: UnboundedSender<VirtiofsdExited>,
}

impl Actor for Parent {
    type Context = Context<Self>;
}

impl Handler<VmmExited> for Parent {
    type Result = ();
    fn handle(&mut self, exited: VmmExited, _: &mut Self::Context) {
        println!("told: {exited}");
        self.vmm.send(exited).ok();
    }
}

impl Handler<VirtiofsdExited> for Parent {
    type Result = ();
    fn handle(&mut self, exited: VirtiofsdExited, _: &mut Self::Context) {
        println!("told: {exited}");
        self.virtiofsd.send(exited).ok();
    }
}

impl Handler<AgentSilent> for Parent {
    type Result = ();
    fn handle(&mut self, silent: AgentSilent, _: &mut Self::Context) {
        println!("told: {silent}");
    }
}

/// The rig; its directory goes with it.
pub(crate) struct Rig {
    pub(crate) settings: Settings,
    pub(crate) nics: std::cell::RefCell<Vec<Nic>>,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) dir: VmDir,
    pub(crate) parent: Addr<Parent>,
    pub(crate) vm: Addr<Vm>,
    pub(crate) agent: Addr<Agent>,
    pub(crate) virtiofsd: Addr<Virtiofsd>,
    pub(crate) virtiofsd_record: Option<VirtiofsdRecord>,
    pub(crate) vmm_exited: UnboundedReceiver<VmmExited>,
    pub(crate) virtiofsd_exited: UnboundedReceiver<VirtiofsdExited>,
    _root: Option<Share>,
}

/// What is left of a rig without its actors.
pub(crate) struct Remains {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) dir: VmDir,
    pub(crate) parent: Addr<Parent>,
    pub(crate) vmm_exited: UnboundedReceiver<VmmExited>,
    pub(crate) virtiofsd_exited: UnboundedReceiver<VirtiofsdExited>,
    _root: Option<Share>,
}

/// The rig's directory, with the share mounted in it.
struct Share {
    root: tempfile::TempDir,
    shared: PathBuf,
    mounted: bool,
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.mounted && !run("umount", &[self.shared.as_os_str()]) {
            println!("{} is still mounted below {}", self.shared.display(), self.root.path().display());
        }
    }
}

fn run(program: &str, args: &[&std::ffi::OsStr]) -> bool {
    Command::new(program).args(args).status().is_ok_and(|status| status.success())
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn from_env(name: &str, otherwise: &str) -> PathBuf {
    // Relative to the workspace, in which the test does not run.
    workspace().join(std::env::var_os(name).map_or_else(|| PathBuf::from(otherwise), PathBuf::from))
}

/// Settings that name what this machine has, or what is missing.
fn settings(machine: Machine) -> Result<Settings, String> {
    let guest = from_env("BULKHEAD_GUEST_DIR", "out");
    let peers = from_env("BULKHEAD_PEERS", ".peers").join("bin");
    let mut settings = Settings::default();
    settings.guest.kernel = guest.join("vmlinux");
    settings.guest.image = guest.join("bulkhead-guest.cpio");
    settings.qemu.vsock_path = peers.join("vhost-device-vsock");
    settings.virtiofsd.path = peers.join("virtiofsd");
    settings.qemu.machine = machine;
    // What is measured and proved is the same on every machine.
    settings.qemu.accelerator = Accelerator::Tcg;
    let needed = [
        &settings.guest.kernel,
        &settings.guest.image,
        &settings.qemu.vsock_path,
        &settings.virtiofsd.path,
        &settings.qemu.path,
    ];
    let missing = needed.into_iter().find(|path| !path.exists()).cloned();
    match missing {
        Some(missing) => Err(format!("{} is missing", missing.display())),
        None => Ok(settings),
    }
}

impl Rig {
    /// A rig that has not booted; none where something is missing.
    pub(crate) fn new(machine: Machine) -> Option<Self> {
        Self::with(machine, |_| {})
    }

    /// The same with other settings.
    pub(crate) fn with(machine: Machine, change: impl FnOnce(&mut Settings)) -> Option<Self> {
        let mut settings = match settings(machine) {
            Ok(settings) => settings,
            Err(missing) => {
                say_skipped(&missing);
                return None;
            }
        };
        change(&mut settings);
        let root = tempfile::Builder::new().prefix("bhrig").tempdir().unwrap();
        // Unique on the machine, so that a process is known as ours by its arguments.
        let dir = VmDir::new(root.path(), &VmId::random().unwrap());
        std::fs::create_dir_all(dir.shared()).unwrap();
        let shared = dir.shared();
        let mounted = run("mount", &["-t".as_ref(), "tmpfs".as_ref(), "rig".as_ref(), shared.as_os_str()])
            && run("mount", &["--make-shared".as_ref(), shared.as_os_str()]);
        let root = Some(Share { root, shared, mounted });
        let ((vmm, vmm_exited), (daemon, virtiofsd_exited)) = (unbounded_channel(), unbounded_channel());
        let parent = Parent { vmm, virtiofsd: daemon }.start();
        let driver = Drivers::new(&settings).get(settings.vm.hypervisor);
        let boot_timeout = Duration::from_secs(settings.guest.boot_timeout_secs.get().into());
        Some(Self {
            vm: Vm::new(driver.clone(), parent.clone().recipient()).start(),
            agent: Agent::new(dir.clone(), boot_timeout, parent.clone().recipient()).start(),
            virtiofsd: Virtiofsd::new(dir.clone(), settings.virtiofsd.clone(), parent.clone().recipient())
                .start(),
            virtiofsd_record: None,
            settings,
            nics: std::cell::RefCell::default(),
            driver,
            dir,
            parent,
            vmm_exited,
            virtiofsd_exited,
            _root: root,
        })
    }

    /// A rig with Cloud Hypervisor; none where it or KVM is missing, which is said.
    pub(crate) async fn on_cloud_hypervisor(change: impl FnOnce(&mut Settings)) -> Option<Self> {
        let Some(program) = cloud_hypervisor() else {
            say_absent("no cloud-hypervisor binary");
            return None;
        };
        let rig = Self::with(Machine::default(), |settings| {
            settings.vm.hypervisor = Hypervisor::CloudHypervisor;
            settings.cloud_hypervisor.path = program;
            settings.sandboxer.run_dir = std::env::temp_dir();
            change(settings);
        })?;
        if let Err(error) = rig.driver.probe().await {
            say_absent(&format!("no usable KVM: {error}"));
            return None;
        }
        Some(rig)
    }

    /// Starts everything, as a sandbox does.
    pub(crate) async fn boot(&mut self) -> Booted {
        let daemon = ask(&self.virtiofsd, Spawn { cgroup: None }).await.unwrap();
        self.virtiofsd_record = Some(daemon);
        self.try_boot().await.unwrap()
    }

    /// Starts the VM alone.
    pub(crate) async fn try_boot(&self) -> Result<Booted, VmError> {
        ask(&self.agent, Listen).await.unwrap();
        let mut spec = Box::new(LaunchSpec::new(self.dir.clone(), &self.settings));
        spec.nics = self.nics.take();
        ask(&self.vm, Boot { spec }).await.map_err(|error| match error {
            AskError::Failed(error) => error,
            unanswered @ (AskError::Busy(_) | AskError::Gone(_)) => panic!("{unanswered}"),
        })
    }

    /// Ends the actors and with them whatever was not kept.
    pub(crate) async fn drop_actors(self) -> Remains {
        let Self { driver, dir, parent, vm, agent, virtiofsd, vmm_exited, virtiofsd_exited, _root, .. } =
            self;
        drop((vm, agent, virtiofsd));
        // The actors end when they are next scheduled.
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Remains { driver, dir, parent, vmm_exited, virtiofsd_exited, _root }
    }

    pub(crate) fn running(&self) -> Vec<(u32, String)> {
        running(&self.dir)
    }

    pub(crate) fn assert_nothing_runs(&self) {
        assert_nothing_runs(&self.dir);
    }

    /// Kills one process of the rig by its program's name; of two the one that was started by us.
    pub(crate) fn kill(&self, program: &str) {
        let running = self.running();
        let (pid, _) = running.iter().find(|(_, name)| name.ends_with(program)).unwrap();
        assert!(run("kill", &["-9".as_ref(), pid.to_string().as_ref()]));
    }

    pub(crate) fn may_mount(&self) -> bool {
        self._root.as_ref().is_some_and(|share| share.mounted)
    }

    /// Mounts a tmpfs with one file below the share.
    pub(crate) fn mount_below_share(&self, name: &str, file: &str) {
        let target = self.dir.shared().join(name);
        std::fs::create_dir(&target).unwrap();
        assert!(run("mount", &["-t".as_ref(), "tmpfs".as_ref(), "late".as_ref(), target.as_os_str()]));
        std::fs::write(target.join(file), "").unwrap();
    }

    pub(crate) fn unmount_below_share(&self, name: &str) {
        assert!(run("umount", &[self.dir.shared().join(name).as_os_str()]));
    }

    /// Looks for a file through the root of every virtiofsd of the rig: the one in its own namespace has the share
    /// as its root.
    pub(crate) fn file_server_sees(&self, file: &str) -> bool {
        let daemons = self.running().into_iter().filter(|(_, name)| name.ends_with("virtiofsd"));
        daemons
            .map(|(pid, _)| PathBuf::from(format!("/proc/{pid}/root")).join(file))
            .any(|path| path.exists())
    }
}

impl Remains {
    pub(crate) fn running(&self) -> Vec<(u32, String)> {
        running(&self.dir)
    }

    pub(crate) fn assert_nothing_runs(&self) {
        assert_nothing_runs(&self.dir);
    }
}

/// Processes with the rig's directory or name among their arguments, by age.
fn running(dir: &VmDir) -> Vec<(u32, String)> {
    let mark = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut pids: Vec<u32> = pids.collect();
    pids.sort_unstable();
    let describe = |pid: u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        let program = line.split('\0').next()?.to_owned();
        line.contains(&mark).then_some((pid, program))
    };
    pids.into_iter().filter_map(describe).collect()
}

fn assert_nothing_runs(dir: &VmDir) {
    let left = running(dir);
    assert!(left.is_empty(), "still running: {left:?}");
}
