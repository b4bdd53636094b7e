//! Requests and answers, free of the wire.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use prost_types::Any;

/// Make a sandbox known and get ready to start it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Create {
    /// Id of the sandbox.
    pub id: String,
    /// containerd's namespace of the caller (`k8s.io` for CRI); empty: none named.
    pub namespace: String,
    /// Process at the other end of the connection (`SO_PEERCRED`), that is containerd; `None` when the kernel does not say.
    pub caller_pid: Option<i32>,
    /// From CRI a `runtime.v1.PodSandboxConfig`. Its type is not checked here.
    pub options: Option<Any>,
    /// The pod's network namespace with CNI's links in it. `None`: the host's is meant.
    pub netns_path: Option<PathBuf>,
    /// Name of the runtime (`io.containerd.….v2`).
    pub runtime: String,
    /// When containerd made its record; `None` when it does not know.
    pub created_at: Option<SystemTime>,
    /// Labels of containerd's record. containerd 2.3 and later replaces them by [`Started::labels`].
    pub labels: BTreeMap<String, String>,
    /// Blobs by name; from CRI `metadata`, JSON with the pod's addresses and the CNI result.
    pub extensions: BTreeMap<String, Any>,
}

/// What Start answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Process that stands for the sandbox on the host.
    pub pid: u32,
    /// When the sandbox was made.
    pub created_at: SystemTime,
    /// Where the Task API is, as `ttrpc+unix:///absolute/path`. It must accept connections already.
    pub address: String,
    /// Version of the Task API there.
    pub version: u32,
    /// Labels that containerd keeps with its record of the sandbox.
    pub labels: BTreeMap<String, String>,
}

/// What the sandbox's containers run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// In Go's spelling: `amd64`, `arm64`.
    pub architecture: String,
    /// Variant of the architecture; empty: none.
    pub variant: String,
}

impl Platform {
    /// Linux on the architecture this was built for.
    #[must_use]
    pub fn linux() -> Self {
        // Go's names for Rust's, where they differ (https://go.dev/doc/install/source#environment).
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: String::new() }
    }
}

/// How a sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// As a shell says it: 0 to 255, 128 + n after signal n.
    pub status: u32,
    /// When.
    pub at: SystemTime,
}

/// Whether a sandbox can take containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Ready,
    /// It does not run (yet, or any more).
    NotReady,
}

impl State {
    /// The string CRI compares with; any other counts as not ready.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "SANDBOX_READY",
            Self::NotReady => "SANDBOX_NOTREADY",
        }
    }
}

/// What Status answers. containerd takes pid, address and version from here after a restart of its own: they are
/// needed as much as in [`Started`].
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Process that stands for the sandbox on the host; 0: none.
    pub pid: u32,
    /// Whether it can take containers.
    pub state: State,
    /// For people (`crictl inspectp`), by key; `info` holds JSON.
    pub info: BTreeMap<String, String>,
    /// When the sandbox was made.
    pub created_at: Option<SystemTime>,
    /// When it ended; `None`: not yet.
    pub exited_at: Option<SystemTime>,
    /// Where the Task API is, as in [`Started::address`].
    pub address: String,
    /// Version of the Task API there.
    pub version: u32,
}

/// What Metrics answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// When it was measured.
    pub at: SystemTime,
    /// `io.containerd.cgroups.v2.Metrics` (or `v1`), without a prefix in its type URL.
    pub data: Any,
}

/// Change a sandbox.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Update {
    /// Id of the sandbox.
    pub id: String,
    /// Which parts of the record changed; CRI sends `extensions`.
    pub fields: Vec<String>,
    /// Blobs by name; CRI sends `updated-resources`.
    pub extensions: BTreeMap<String, Any>,
}

/// The calls after whose failure containerd calls nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Create.
    Create,
    /// Start.
    Start,
}
