//! The VM without us: the command line of a running pod's VMM and helpers, replayed in a directory of its own with a
//! tap of its own, timed from the VMM's start to the agent's announcement.
//!
//! Descriptors that a pod's VMM inherits become paths and names; nothing else changes.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use bulkhead_tests::node::Node;
use bulkhead_tests::{processes, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

/// Port of the agent's announcement.
const ANNOUNCE_PORT: u32 = 1023;
/// A VM that has not announced itself by then never will.
const LIMIT: Duration = Duration::from_secs(120);

/// How a pod's VM was started.
#[derive(Debug)]
pub(crate) struct Recipe {
    vm_dir: String,
    vmm: Vec<String>,
    virtiofsd: Vec<String>,
    vsock: Vec<String>,
}

impl Recipe {
    /// Reads it from the processes of a running pod.
    pub(crate) fn read(node: &Node, sandbox: &str) -> Self {
        let all = processes::of_node(node.init());
        let of = |program: &str| {
            let found = all.iter().find(|process| process.program() == program);
            found.unwrap_or_else(|| panic!("no {program} runs for the pod")).args.clone()
        };
        Self {
            vm_dir: node.vm_dir_inside(sandbox).display().to_string(),
            vmm: of("qemu-system-x86_64"),
            virtiofsd: of("virtiofsd"),
            vsock: of("vhost-device-vsock"),
        }
    }

    /// Boots once; from the VMM's start to the announcement.
    pub(crate) async fn boot(&self, node: &Node) -> Duration {
        let dir = node.dir().join("bare");
        std::fs::create_dir_all(dir.join("shared")).expect("make the bare VM's directory");
        node.run(&["sh", "-c", "ip tuntap add dev bare0 mode tap && ip link set bare0 mtu 1450 up"]).await;
        let mut helpers = Vec::new();
        helpers.push(spawn(node, &self.at(&self.virtiofsd, &dir, virtiofsd_argument)));
        helpers.push(spawn(node, &self.at(&self.vsock, &dir, |argument, _| argument)));
        for socket in ["virtiofs.sock", &self.vsock_socket()] {
            wait::expect(socket, LIMIT, async || dir.join(socket).exists().then_some(())).await;
        }
        let announcement =
            UnixListener::bind(dir.join(format!("vsock.sock_{ANNOUNCE_PORT}"))).expect("listen");
        let socket = self.vsock_socket();
        let vmm = self.at(&self.vmm, &dir, |argument, dir| vmm_argument(argument, dir, &socket));
        let took = self.time(node, &vmm, &announcement).await;
        for helper in &mut helpers {
            helper.kill().await.expect("end a helper");
        }
        end_all(node, &dir).await;
        node.run(&["ip", "link", "delete", "bare0"]).await;
        std::fs::remove_dir_all(&dir).expect("remove the bare VM's directory");
        took
    }

    /// File name of the vsock helper's vhost-user socket, from its own arguments.
    fn vsock_socket(&self) -> String {
        let joined = self.vsock.join(",");
        let path =
            joined.split(',').find_map(|part| part.strip_prefix("socket=")).expect("the helper has a socket");
        Path::new(path).file_name().expect("a socket has a name").to_string_lossy().into_owned()
    }

    fn at(&self, args: &[String], dir: &Path, change: impl Fn(String, &Path) -> String) -> Vec<String> {
        args.iter().map(|arg| change(arg.replace(&self.vm_dir, &dir.display().to_string()), dir)).collect()
    }

    /// The VMM waits at a line on stdin inside the node, so that entering its namespaces is not counted.
    async fn time(&self, node: &Node, vmm: &[String], announcement: &UnixListener) -> Duration {
        let mut gate =
            vec!["sh".to_owned(), "-c".into(), "echo ready; read -r _; exec \"$@\"".into(), "gate".into()];
        gate.extend(vmm.iter().cloned());
        let mut child =
            command(node, &gate).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run the VMM");
        let (mut stdin, mut stdout) =
            (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let mut ready = [0; 6];
        stdout.read_exact(&mut ready).await.expect("the VMM's shell is ready");
        let start = Instant::now();
        stdin.write_all(b"\n").await.expect("open the gate");
        let announced = async {
            let (mut stream, _) = announcement.accept().await.expect("accept the announcement");
            let mut byte = [0];
            stream.read_exact(&mut byte).await.expect("read the announcement");
            start.elapsed()
        };
        let took = tokio::time::timeout(LIMIT, announced).await;
        child.kill().await.expect("end the VMM");
        took.expect("the bare VM announces itself")
    }
}

fn vmm_argument(argument: String, dir: &Path, vsock: &str) -> String {
    let dir = dir.display();
    let inherited = argument.split(',').any(|part| part.starts_with("fd="));
    if !inherited {
        return argument;
    }
    let parts = argument.split(',').map(|part| match part.strip_prefix("fd=") {
        None => part.to_owned(),
        Some(_) if argument.starts_with("tap,") => "ifname=bare0,script=no,downscript=no".to_owned(),
        Some(_) if argument.contains("id=vsock") => format!("path={dir}/{vsock}"),
        Some(_) => format!("path={dir}/api.sock"),
    });
    parts.collect::<Vec<_>>().join(",")
}

fn virtiofsd_argument(argument: String, dir: &Path) -> String {
    if argument.starts_with("--fd=") {
        return format!("--socket-path={}/virtiofs.sock", dir.display());
    }
    argument
}

fn command(node: &Node, args: &[String]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new("nsenter");
    command
        .arg(format!("--target={}", node.init()))
        .args(["--mount", "--net", "--pid", "--wd=/", "--"])
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn spawn(node: &Node, args: &[String]) -> tokio::process::Child {
    command(node, args).stdout(Stdio::null()).spawn().expect("run a helper")
}

/// Killing `nsenter` does not kill what it waits for.
async fn end_all(node: &Node, dir: &Path) {
    let marker: PathBuf = dir.to_path_buf();
    let ours = || {
        let marker = marker.display().to_string();
        let all = processes::of_node(node.init());
        all.into_iter()
            .filter(move |one| one.args.iter().any(|arg| arg.contains(&marker)))
            .collect::<Vec<_>>()
    };
    for process in ours() {
        processes::signal(process.pid, nix::sys::signal::Signal::SIGKILL);
    }
    wait::expect("the bare VM's processes are gone", LIMIT, async || ours().is_empty().then_some(())).await;
}
