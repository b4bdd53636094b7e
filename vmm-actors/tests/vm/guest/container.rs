//! Containers of a busybox, as the sandboxer hands them to the agent.

use std::os::unix::fs::symlink;

use bulkhead_protocol::SHARE_DIR;
use bulkhead_protocol::agent::stream_header::Kind;
use bulkhead_protocol::agent::{
    ContainerRef, CreateContainerRequest, CreateExecRequest, ProcessRef, SignalRequest, Stdio, WaitResponse,
};
use serde_json::{Value, json};

use super::{Guest, soon, stream};

/// Where the test machine keeps a static busybox (Debian's busybox-static).
const BUSYBOX: &str = "/bin/busybox";

/// The init process of a container, or one of its execs.
pub(crate) fn process(container: &str, exec: &str) -> ProcessRef {
    ProcessRef { container_id: container.into(), exec_id: exec.into(), ..Default::default() }
}

pub(crate) fn of(container: &str) -> ContainerRef {
    ContainerRef { container_id: container.into(), ..Default::default() }
}

/// A process object that runs a shell script.
pub(crate) fn shell(script: &str) -> Value {
    let capabilities = json!(["CAP_KILL", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE"]);
    json!({
        "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/sh", "-c", script],
        "env": ["PATH=/bin", "TERM=xterm"], "apparmorProfile": "cri-containerd.apparmor.d",
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}
    })
}

/// What containerd and the sandboxer make of a plain container.
pub(crate) fn spec(script: &str) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": shell(script),
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}],
            "maskedPaths": ["/proc/kcore", "/proc/acpi"],
            "readonlyPaths": ["/proc/sys", "/proc/irq"],
            "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["swapon"], "action": "SCMP_ACT_ERRNO"}]},
            "resources": {"devices": [{"allow": false, "access": "rwm"}],
                          "memory": {"limit": 67_108_864}, "cpu": {"shares": 512}, "pids": {"limit": 64}}
        }
    })
}

/// All three streams, without a terminal.
pub(crate) fn piped() -> Stdio {
    Stdio { stdin: true, stdout: true, stderr: true, ..Default::default() }
}

pub(crate) fn output_only() -> Stdio {
    Stdio { stdout: true, stderr: true, ..Default::default() }
}

impl Guest {
    /// A root file system with a busybox in the share.
    pub(crate) fn rootfs(&self, container: &str) {
        let root = self.share().join(container).join("rootfs");
        if root.exists() {
            return;
        }
        for dir in ["bin", "proc", "dev", "sys", "etc", "tmp"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        std::fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
        for tool in [
            "sh", "cat", "echo", "sleep", "id", "ls", "hostname", "stty", "dd", "yes", "head", "wc", "ps",
            "grep", "kill", "mount", "readlink", "test", "true", "df", "od", "date", "trap", "nc", "ip",
            "tail",
        ] {
            symlink("busybox", root.join("bin").join(tool)).unwrap();
        }
    }

    pub(crate) fn request(&self, container: &str, spec: &Value, stdio: Stdio) -> CreateContainerRequest {
        CreateContainerRequest {
            container_id: container.into(),
            spec: serde_json::to_vec(spec).unwrap(),
            rootfs: format!("{SHARE_DIR}/{container}/rootfs"),
            stdio: Some(stdio).into(),
            ..Default::default()
        }
    }

    /// Creates and starts a container; its pid.
    pub(crate) async fn run(&self, container: &str, spec: &Value, stdio: Stdio) -> u32 {
        self.rootfs(container);
        let request = self.request(container, spec, stdio);
        let created = self.agent.create_container(soon(), &request).await.unwrap();
        assert!(created.pid > 1);
        let started = self.agent.start(soon(), &process(container, "")).await.unwrap();
        assert_eq!(started.pid, created.pid);
        created.pid
    }

    pub(crate) async fn exec(&self, container: &str, exec: &str, script: &str, stdio: Stdio) {
        let request = CreateExecRequest {
            container_id: container.into(),
            exec_id: exec.into(),
            process: serde_json::to_vec(&shell(script)).unwrap(),
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        self.agent.create_exec(soon(), &request).await.unwrap();
        self.agent.start(soon(), &process(container, exec)).await.unwrap();
    }

    pub(crate) async fn wait(&self, container: &str, exec: &str) -> WaitResponse {
        let ended = self.agent.wait(soon(), &process(container, exec)).await.unwrap();
        assert!(ended.exited_at_nanos > 1_600_000_000_000_000_000, "{ended}");
        ended
    }

    pub(crate) async fn kill(&self, container: &str, exec: &str, signal: u32) {
        let request = SignalRequest {
            container_id: container.into(),
            exec_id: exec.into(),
            signal,
            ..Default::default()
        };
        self.agent.signal(soon(), &request).await.unwrap();
    }

    pub(crate) async fn delete(&self, container: &str, exec: &str) {
        self.agent.delete(soon(), &process(container, exec)).await.unwrap();
    }

    /// Runs a script in a container of its own to its end: status, stdout, stderr.
    pub(crate) async fn once(&self, container: &str, spec: &Value) -> (u32, String, String) {
        self.run(container, spec, output_only()).await;
        let read = async |kind| {
            let stream = stream::open(self, container, "", kind).await;
            String::from_utf8_lossy(&stream::read_all(stream).await).into_owned()
        };
        let (stdout, stderr) = tokio::join!(read(Kind::STDOUT), read(Kind::STDERR));
        let status = self.wait(container, "").await.exit_status;
        self.delete(container, "").await;
        (status, stdout, stderr)
    }

    /// Runs a script in a running container: status and stdout.
    pub(crate) async fn exec_once(&self, container: &str, exec: &str, script: &str) -> (u32, String) {
        self.exec(container, exec, script, output_only()).await;
        let stream = stream::open(self, container, exec, Kind::STDOUT).await;
        let stdout = String::from_utf8_lossy(&stream::read_all(stream).await).into_owned();
        let status = self.wait(container, exec).await.exit_status;
        self.delete(container, exec).await;
        (status, stdout)
    }
}

/// The RPC code of a call that must fail.
pub(crate) fn code<T>(result: ttrpc::Result<T>) -> ttrpc::Code {
    match result {
        Ok(_) => panic!("the call succeeded"),
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        Err(other) => panic!("no status: {other}"),
    }
}
