//! A cluster of one node to work with by kubectl: the suite's API server and a kubelet, without any spec. No scheduler
//! runs, so pods name their node.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use bulkhead_tests::node::{Daemon, Node};
use bulkhead_tests::wait;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::machine;
use crate::suite::{NAME, Suite};

/// Nobody else reaches the API server: it listens inside the node's network namespace.
const TOKEN: &str = "bulkhead-test";

/// How long API server and kubelet may take to come up, and kubectl to wait for something.
const LIMIT: Duration = Duration::from_secs(180);

/// The running cluster.
pub(crate) struct Cluster<'a> {
    node: &'a Node,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    kubelet: Daemon,
    services: Daemon,
}

impl<'a> Cluster<'a> {
    /// Starts API server and kubelet and waits until the node is ready. Their logs go to `name` in the results' folder.
    pub(crate) async fn start(node: &'a Node, suite: &Suite, name: &str) -> Self {
        let logs = suite.logs(name);
        std::fs::create_dir_all(&logs).expect("make the folder of the cluster's logs");
        let folder = machine::working_folder(node);
        let program = folder.join(machine::SUITE).display().to_string();
        let arguments = suite.arguments(node, &logs);
        let start = async |mode: &str| {
            let token = format!("--bearer-token={TOKEN}");
            let mut line = vec![program.as_str(), mode, &token];
            line.extend(arguments.iter().map(String::as_str));
            let log = logs.join(format!("{}.log", mode.trim_matches('-')));
            node.start_daemon(&folder, &log, &machine::path(node), &line).await
        };
        let mut services = start("--run-services-mode").await;
        ready("the API server answers", &mut services, async || {
            node.connect(([127, 0, 0, 1], 6443).into(), Duration::from_secs(1)).ok().map(drop)
        })
        .await;
        let mut kubelet = start("--run-kubelet-mode").await;
        // kubelet's own; the suite has written it before it started kubelet.
        let kubeconfig = folder.join("kubeconfig");
        ready("kubelet is started", &mut kubelet, async || kubeconfig.exists().then_some(())).await;
        let cluster = Self { node, kubectl: suite.program("kubectl"), kubeconfig, kubelet, services };
        let condition = "{.status.conditions[?(@.type==\"Ready\")].status}";
        wait::expect("the node is ready", LIMIT, async || {
            let found = cluster.get(&["node", NAME, &format!("--output=jsonpath={condition}")]).await;
            (found.as_deref() == Ok("True")).then_some(())
        })
        .await;
        cluster
    }

    /// Runs kubectl with this as its input; its output, or what it complained of.
    pub(crate) async fn kubectl(&self, input: &str, args: &[&str]) -> Result<String, String> {
        let mut command = self.node.enter();
        command.arg(&self.kubectl).arg(format!("--kubeconfig={}", self.kubeconfig.display()));
        command.arg(format!("--cache-dir={}", self.node.dir().join("kubectl").display())).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let input = input.to_owned();
        let output = tokio::task::spawn_blocking(move || -> std::io::Result<Output> {
            let mut child = command.spawn()?;
            child.stdin.take().expect("kubectl's stdin is piped").write_all(input.as_bytes())?;
            child.wait_with_output()
        })
        .await
        .expect("kubectl is waited for")
        .expect("run kubectl");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            return Ok(text(&output.stdout));
        }
        Err(format!("kubectl {}: {} {}", args.join(" "), text(&output.stdout), text(&output.stderr)))
    }

    /// `kubectl get`.
    pub(crate) async fn get(&self, args: &[&str]) -> Result<String, String> {
        self.kubectl("", &[&["get"], args].concat()).await
    }

    /// An object as the API server has it.
    pub(crate) async fn object(&self, kind: &str, name: &str) -> Result<Value, String> {
        let text = self.get(&[kind, name, "--output=json"]).await?;
        serde_json::from_str(&text).map_err(|error| format!("{kind} {name} as JSON: {error}"))
    }

    /// Ends kubelet and API server.
    pub(crate) async fn stop(self) {
        self.kubelet.end(Signal::SIGTERM).await;
        self.services.end(Signal::SIGTERM).await;
    }
}

/// Waits for something that a daemon is to bring about, and panics when the daemon ends instead.
async fn ready(what: &str, daemon: &mut Daemon, mut probe: impl AsyncFnMut() -> Option<()>) {
    let log = daemon.log().display().to_string();
    wait::expect(what, LIMIT, async || {
        assert!(daemon.ended().is_none(), "{what}: the suite's program ended, its log is {log}");
        probe().await
    })
    .await;
}
