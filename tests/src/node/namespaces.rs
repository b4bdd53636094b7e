//! The namespaces a node lives in, held by the init process of its pid namespace.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;

use crate::processes;

/// Init of the node. Ends when its stdin ends, that is, when the test run ends for whatever reason.
const INIT: &str = r#"
set -e
mount --make-rshared /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/netns
mount -t tmpfs -o mode=755 tmpfs /var/lib
if [ "$2" = own ]; then
    cat /proc/sys/kernel/random/uuid > "$1/boot_id"
    mount --bind "$1/boot_id" /proc/sys/kernel/random/boot_id
fi
ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward
if [ -d /proc/sys/net/ipv6 ]; then
    echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
    echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
fi
ip link add bh0 type bridge
ip link set bh0 up
echo ready
while read -r _; do :; done
"#;

/// Which boot id a node sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BootId {
    /// One of its own, so that it can "reboot" while the machine runs on.
    #[default]
    Own,
    /// The machine's, which really reboots.
    Machine,
}

#[derive(Debug)]
pub(crate) struct Namespaces {
    unshare: Child,
    init: i32,
}

impl Namespaces {
    pub(crate) async fn start(dir: &Path, boot_id: BootId) -> Self {
        let log = std::fs::File::create(dir.join("log/init.log")).expect("make the init's log");
        let mut unshare = Command::new("unshare")
            .args([
                "--mount",
                "--net",
                "--pid",
                "--fork",
                "--kill-child",
                "--propagation",
                "slave",
                "--mount-proc",
            ])
            .args(["bash", "-c", INIT, "bulkhead-test-node"])
            .arg(dir)
            .arg(match boot_id {
                BootId::Own => "own",
                BootId::Machine => "machine",
            })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("run unshare");
        let stdout = unshare.stdout.take().expect("unshare's stdout is piped");
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).expect("read from the node's init");
            line
        });
        let line = line.await.expect("the reader does not panic");
        if line.trim() != "ready" {
            crate::report::tail(&dir.join("log/init.log"), 20);
            panic!("the node's namespaces could not be made");
        }
        let parent = i32::try_from(unshare.id()).expect("a pid is an i32");
        let init = *processes::children(parent).first().expect("unshare has one child, the init");
        Self { unshare, init }
    }

    pub(crate) const fn init(&self) -> i32 {
        self.init
    }

    /// The start of a command line that runs what follows inside.
    pub(crate) fn enter(&self) -> Command {
        self.enter_in(Path::new("/"))
    }

    /// The same, with `folder` as working directory.
    pub(crate) fn enter_in(&self, folder: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.init)).args(["--mount", "--net", "--pid"]);
        // Looked up inside: what it is outside has no path in there.
        command.arg(format!("--wdns={}", folder.display())).arg("--");
        command
    }

    pub(crate) async fn run(&self, args: &[&str]) -> String {
        let mut command = self.enter();
        command.args(args).stdin(Stdio::null());
        let output = tokio::process::Command::from(command).output().await.expect("run nsenter");
        assert!(
            output.status.success(),
            "{args:?} in the node: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A thread of its own enters the network namespace and ends; the socket stays where it was made.
    pub(crate) fn connect(&self, address: SocketAddr, limit: Duration) -> std::io::Result<TcpStream> {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.init))?;
        std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            TcpStream::connect_timeout(&address, limit)
        })
        .join()
        .expect("the connecting thread does not panic")
    }

    /// The same for a listener.
    pub(crate) fn listen(&self, address: &'static str) -> std::io::Result<TcpListener> {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.init))?;
        std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            TcpListener::bind(address)
        })
        .join()
        .expect("the listening thread does not panic")
    }

    /// Kills init, and with it everything inside. Returns when all of it is gone.
    pub(crate) fn end(&mut self) {
        if self.unshare.try_wait().expect("look after unshare").is_some() {
            return;
        }
        processes::signal(self.init, Signal::SIGKILL);
        self.unshare.wait().expect("wait for unshare");
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        self.end();
    }
}
