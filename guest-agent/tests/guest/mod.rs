//! A real guest under QEMU, with virtiofsd and vhost-device-vsock: what the sandboxer does, in small.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test harness")]

pub(crate) mod container;
pub(crate) mod stream;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use bulkhead_protocol::agent::{Announce, SetupRequest};
use bulkhead_protocol::{AGENT_PORT, ANNOUNCE_PORT, SHARE_TAG, agent_ttrpc::AgentClient, frame, version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context;

/// Longest boot that is no failure: emulation on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// Machine types the product supports.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Machine {
    Microvm,
    Q35,
}

/// What a guest is made of. `None`, said aloud, when the machine lacks a part.
pub(crate) struct Parts {
    kernel: PathBuf,
    image: PathBuf,
    virtiofsd: PathBuf,
    vsock: PathBuf,
}

impl Parts {
    /// `None` after saying aloud why there is nothing to test with.
    pub(crate) fn find() -> Option<Self> {
        match Self::look() {
            Ok(parts) => Some(parts),
            Err(why) => {
                assert!(std::env::var_os("BULKHEAD_REQUIRE_PEERS").is_none(), "{why}");
                // Past libtest, which keeps what a passing test prints to itself.
                std::io::stderr().write_all(format!("skipped: {why}\n").as_bytes()).unwrap();
                None
            }
        }
    }

    fn look() -> Result<Self, String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let file = |variable: &str, default: &str, name: &str| {
            let folder = std::env::var_os(variable).map_or_else(|| PathBuf::from(default), PathBuf::from);
            let path = root.join(folder).join(name);
            let missing = || format!("{} is missing (make image, or set {variable})", path.display());
            path.is_file().then(|| path.clone()).ok_or_else(missing)
        };
        if !Path::new("/usr/bin/qemu-system-x86_64").exists() {
            return Err("qemu-system-x86_64 is not installed".into());
        }
        if !rustix::process::geteuid().is_root() {
            return Err("virtiofsd needs root".into());
        }
        Ok(Self {
            kernel: file("BULKHEAD_GUEST_DIR", "out", "vmlinux")?,
            image: file("BULKHEAD_GUEST_DIR", "out", "bulkhead-guest.cpio")?,
            virtiofsd: file("BULKHEAD_PEERS", ".peers", "bin/virtiofsd")?,
            vsock: file("BULKHEAD_PEERS", ".peers", "bin/vhost-device-vsock")?,
        })
    }
}

/// A running guest; ends with the value, whatever happens.
pub(crate) struct Guest {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) announce: Announce,
    pub(crate) agent: AgentClient,
    children: Vec<(&'static str, Child)>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        for (name, child) in self.children.iter_mut().rev() {
            if let Ok(None) = child.try_wait() {
                child.kill().unwrap_or_else(|error| println!("kill {name}: {error}"));
            }
            child.wait().map(drop).unwrap_or_else(|error| println!("wait for {name}: {error}"));
        }
        if std::thread::panicking() || std::env::var_os("BULKHEAD_TEST_CONSOLE").is_some() {
            println!("--- console ---\n{}", self.console());
            for name in ["virtiofsd", "vsock", "qemu"] {
                let text = std::fs::read(self.dir.path().join(format!("{name}.stderr"))).unwrap_or_default();
                println!("--- {name} ---\n{}", String::from_utf8_lossy(&text));
            }
        }
    }
}

impl Guest {
    /// Boots and waits for the announcement.
    pub(crate) async fn boot(machine: Machine, parts: &Parts) -> Self {
        let dir = tempfile::Builder::new().prefix("bulkhead-guest-").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("shared")).unwrap();
        let listener = UnixListener::bind(dir.path().join(format!("vsock.sock_{ANNOUNCE_PORT}"))).unwrap();
        let mut children = vec![
            ("virtiofsd", spawn(dir.path(), "virtiofsd", virtiofsd(parts))),
            ("vsock", spawn(dir.path(), "vsock", vsock(parts))),
        ];
        for socket in ["virtiofs.sock", "vhost.sock"] {
            until(|| dir.path().join(socket).exists(), socket).await;
        }
        let started = Instant::now();
        children.push(("qemu", spawn(dir.path(), "qemu", qemu(machine, parts))));
        let mut guest = Self { agent: unconnected(), dir, announce: Announce::new(), children };
        let accepted =
            tokio::time::timeout(BOOT_LIMIT, listener.accept()).await.expect("the guest announces");
        let (mut stream, _) = accepted.unwrap();
        guest.announce = frame::read_message(&mut stream).await.expect("an announcement");
        println!(
            "{machine:?}: announced after {:?}, {} ms by the guest's clock",
            started.elapsed(),
            guest.announce.boot_nanos / 1_000_000
        );
        guest.agent = AgentClient::new(Client::new(Socket::new(guest.connect(AGENT_PORT).await)));
        let hello = guest.agent.hello(soon(), &version::agent_hello("test")).await.unwrap();
        assert_eq!(hello.version, version::MAX_VERSION);
        guest
    }

    /// Boots and makes it a pod with a share and the host's time.
    pub(crate) async fn pod(machine: Machine, parts: &Parts) -> Self {
        let guest = Self::boot(machine, parts).await;
        let started = Instant::now();
        guest.agent.setup(soon(), &setup()).await.unwrap();
        println!("set up after {:?}", started.elapsed());
        guest
    }

    /// A connection to a vsock port of the guest.
    pub(crate) async fn connect(&self, port: u32) -> UnixStream {
        let mut stream = UnixStream::connect(self.dir.path().join("vsock.sock")).await.unwrap();
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\n") {
            answer.push(stream.read_u8().await.expect("the guest listens"));
        }
        assert!(answer.starts_with(b"OK "), "{}", String::from_utf8_lossy(&answer));
        stream
    }

    pub(crate) fn console(&self) -> String {
        let text = std::fs::read(self.dir.path().join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until the VMM has ended by itself.
    pub(crate) async fn ended(&mut self) {
        let (_, vmm) = self.children.last_mut().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while vmm.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the VM does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn share(&self) -> PathBuf {
        self.dir.path().join("shared")
    }
}

/// A deadline that only a hang misses.
pub(crate) fn soon() -> context::Context {
    context::with_duration(Duration::from_secs(60))
}

pub(crate) fn setup() -> SetupRequest {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    SetupRequest {
        sandbox_id: "pod-1".into(),
        hostname: "web-0".into(),
        resolv_conf: "nameserver 10.96.0.10\n".into(),
        host_time_nanos: i64::try_from(now.as_nanos()).unwrap(),
        share_tag: SHARE_TAG.into(),
        ..Default::default()
    }
}

pub(crate) async fn until(condition: impl Fn() -> bool, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "no {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn unconnected() -> AgentClient {
    let (end, _) = tokio::io::duplex(1);
    AgentClient::new(Client::new(Socket::new(end)))
}

fn spawn(dir: &Path, name: &str, mut command: Command) -> Child {
    let log = File::create(dir.join(format!("{name}.stderr"))).unwrap();
    command.current_dir(dir).stdin(std::process::Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("start {name}: {error}"))
}

fn virtiofsd(parts: &Parts) -> Command {
    let mut command = Command::new(&parts.virtiofsd);
    command.args(["--socket-path=virtiofs.sock", "--shared-dir=shared", "--announce-submounts"]);
    command.args(["--sandbox=none", "--cache=auto", "--inode-file-handles=never"]);
    command
}

fn vsock(parts: &Parts) -> Command {
    let mut command = Command::new(&parts.vsock);
    command.args(["--guest-cid=3", "--socket=vhost.sock", "--uds-path=vsock.sock"]);
    command
}

/// An emulated guest sees the host's time stamp counter, and a microvm has no clock to measure it with.
fn tsc_khz() -> u32 {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let line = cpus.lines().find(|line| line.starts_with("cpu MHz")).expect("an x86 host");
    let (mhz, khz) = line.rsplit(' ').next().unwrap().split_once('.').unwrap();
    mhz.parse::<u32>().unwrap() * 1000 + khz.parse::<u32>().unwrap()
}

fn qemu(machine: Machine, parts: &Parts) -> Command {
    let mut command = Command::new("/usr/bin/qemu-system-x86_64");
    let (machine, suffix) = match machine {
        Machine::Microvm => {
            ("microvm,accel=tcg,acpi=on,rtc=on,auto-kernel-cmdline=off,memory-backend=ram", "device")
        }
        Machine::Q35 => {
            ("q35,accel=tcg,smbus=off,sata=off,usb=off,i8042=off,vmport=off,memory-backend=ram", "pci")
        }
    };
    let level = std::env::var("BULKHEAD_TEST_LOG").unwrap_or_else(|_| "info".into());
    let append = format!(
        "console=ttyS0 quiet reboot=t panic=-1 no_timer_check tsc_early_khz={} bulkhead.log={level}",
        tsc_khz()
    );
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    if suffix == "device" {
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
    }
    command.args(["-M", machine, "-cpu", "max", "-smp", "1", "-m", "256"]);
    command.args(["-object", "memory-backend-memfd,id=ram,size=256M,share=on"]);
    command.arg("-kernel").arg(&parts.kernel).arg("-initrd").arg(&parts.image).args(["-append", &append]);
    command.args(["-serial", "file:console.log"]);
    command.args(["-chardev", "socket,id=vsock,path=vhost.sock"]);
    command.args(["-device", &format!("vhost-user-vsock-{suffix},chardev=vsock")]);
    command.args(["-chardev", "socket,id=fs,path=virtiofs.sock"]);
    command.args(["-device", &format!("vhost-user-fs-{suffix},chardev=fs,tag={SHARE_TAG}")]);
    command.args(["-netdev", "hubport,id=net0,hubid=0"]);
    command.args(["-device", &format!("virtio-net-{suffix},netdev=net0,mac=02:00:00:00:00:01")]);
    command
}
