//! Where the programs under test and their peers are.

use std::path::{Path, PathBuf};

/// A release line of containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// The newest stable line: every test.
    V24,
    /// The line with long-term support: the main paths.
    V23,
    /// The oldest supported line: the main paths.
    V21,
}

impl Line {
    /// Which line a test that names none gets: `BULKHEAD_TEST_CONTAINERD` (2.4, 2.3 or 2.1), or else the newest.
    #[must_use]
    pub fn of_this_run() -> Self {
        let wanted = std::env::var("BULKHEAD_TEST_CONTAINERD").unwrap_or_default();
        match wanted.as_str() {
            "" | "2.4" => Self::V24,
            "2.3" => Self::V23,
            "2.1" => Self::V21,
            other => panic!("BULKHEAD_TEST_CONTAINERD={other}: it is 2.4, 2.3 or 2.1"),
        }
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::V24 => "containerd-2.4",
            Self::V23 => "containerd-2.3",
            Self::V21 => "containerd-2.1",
        }
    }
}

/// What every node needs, Bulkhead or not.
#[derive(Debug, Clone)]
pub struct Base {
    /// `containerd`.
    pub containerd: PathBuf,
    /// `ctr` of the same build.
    pub ctr: PathBuf,
    /// CNI plugins' directory.
    pub cni: PathBuf,
    /// A static busybox.
    pub busybox: PathBuf,
}

/// What Bulkhead itself needs.
#[derive(Debug, Clone)]
pub struct Product {
    /// Directory of `bulkhead-sandboxer` and `containerd-shim-bulkhead-v2`.
    pub bin: PathBuf,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Guest image.
    pub image: PathBuf,
    /// QEMU.
    pub qemu: PathBuf,
    /// virtiofsd.
    pub virtiofsd: PathBuf,
    /// vhost-device-vsock.
    pub vsock: PathBuf,
}

/// The repository's root.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").to_path_buf()
}

fn from_env(key: &str, default: &str) -> PathBuf {
    let path = std::env::var_os(key).map_or_else(|| PathBuf::from(default), PathBuf::from);
    root().join(path)
}

fn file(what: &str, candidates: &[PathBuf], remedy: &str) -> Result<PathBuf, String> {
    candidates.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        let tried: Vec<String> = candidates.iter().map(|path| path.display().to_string()).collect();
        format!("no {what} at {} ({remedy})", tried.join(" or "))
    })
}

/// Finds `program` below the peers' directory, in a folder whose name starts with `prefix`, newest name first.
fn peer(prefix: &str, program: &str) -> Vec<PathBuf> {
    let peers = from_env("BULKHEAD_PEERS", ".peers");
    let mut folders: Vec<PathBuf> = std::fs::read_dir(&peers)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    folders.sort();
    folders.reverse();
    let mut found: Vec<PathBuf> = Vec::new();
    for folder in folders {
        for sub in ["", "bin", "usr/bin"] {
            found.push(folder.join(sub).join(program));
        }
    }
    for sub in ["", "bin"] {
        found.push(peers.join(sub).join(program));
    }
    found
}

/// Finds containerd, its tools, CNI and busybox.
pub fn base(line: Line) -> Result<Base, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("root is needed: namespaces, mounts, cgroups".into());
    }
    let setup = "run `make setup`";
    let containerd: Vec<PathBuf> =
        peer(line.prefix(), "containerd").into_iter().filter(|path| path.starts_with_line(line)).collect();
    let containerd = file(line.prefix(), &containerd, setup)?;
    file("containerd-shim-runc-v2", &[containerd.with_file_name("containerd-shim-runc-v2")], setup)?;
    let ctr = file("ctr beside containerd", &[containerd.with_file_name("ctr")], setup)?;
    let cni = ["/usr/lib/cni", "/opt/cni/bin"].map(PathBuf::from);
    let cni = cni
        .into_iter()
        .find(|folder| folder.join("bridge").is_file() && folder.join("host-local").is_file())
        .ok_or_else(|| format!("no CNI plugins in /usr/lib/cni or /opt/cni/bin ({setup})"))?;
    let busybox = file("static busybox", &["/bin/busybox".into(), "/usr/bin/busybox".into()], setup)?;
    Ok(Base { containerd, ctr, cni, busybox })
}

trait StartsWithLine {
    fn starts_with_line(&self, line: Line) -> bool;
}

impl StartsWithLine for PathBuf {
    /// The folder's name says the version; a bare `containerd` in the peers' own folder says nothing and is left out.
    fn starts_with_line(&self, line: Line) -> bool {
        self.components().any(|part| part.as_os_str().to_string_lossy().starts_with(line.prefix()))
    }
}

/// Finds the built product, the guest and the helper programs.
pub fn product() -> Result<Product, String> {
    let bin = from_env("BULKHEAD_BIN_DIR", "target/fast");
    let guest = from_env("BULKHEAD_GUEST_DIR", "out");
    let build = "run `make build image setup`";
    for program in ["bulkhead-sandboxer", "containerd-shim-bulkhead-v2"] {
        file(program, &[bin.join(program)], build)?;
    }
    let kernel = file("guest kernel", &[guest.join("vmlinux")], build)?;
    let image = file("guest image", &[guest.join("bulkhead-guest.cpio")], build)?;
    let qemu = file("QEMU", &["/usr/bin/qemu-system-x86_64".into()], build)?;
    let mut candidates = peer("virtiofsd", "virtiofsd");
    candidates.extend(["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"].map(PathBuf::from));
    let virtiofsd = file("virtiofsd", &candidates, build)?;
    let mut candidates = peer("vhost-device-vsock", "vhost-device-vsock");
    candidates.push("/usr/bin/vhost-device-vsock".into());
    let vsock = file("vhost-device-vsock", &candidates, build)?;
    Ok(Product { bin, kernel, image, qemu, virtiofsd, vsock })
}

/// Finds the folder of critest, crictl and ginkgo, the suite's runner.
pub fn cri_tools() -> Result<PathBuf, String> {
    let bin = from_env("BULKHEAD_PEERS", ".peers").join("cri-tools/bin");
    for program in ["critest.test", "crictl", "ginkgo", "suite-helper"] {
        file(program, &[bin.join(program)], "run `make setup`")?;
    }
    Ok(bin)
}

/// The node end-to-end suite's programs.
#[derive(Debug, Clone)]
pub struct KubernetesPrograms {
    /// Folder of the suite, kubelet, ginkgo and the programs of its images.
    pub suite: PathBuf,
    /// Folder of the validation suite, whose web server its images have, too.
    pub cri_tools: PathBuf,
    /// A static bash.
    pub bash: PathBuf,
}

/// Finds the node end-to-end suite.
pub fn kubernetes() -> Result<KubernetesPrograms, String> {
    let cri_tools = cri_tools()?;
    let suite = from_env("BULKHEAD_PEERS", ".peers").join("kubernetes/bin");
    let programs = ["e2e_node.test", "kubelet", "kubectl", "ginkgo", "registry"];
    let of_images = ["agnhost", "nonewprivs", "localhost.crt", "localhost.key"];
    for program in programs.into_iter().chain(of_images) {
        file(program, &[suite.join(program)], "run `tests/peers/build.sh kubernetes`")?;
    }
    let bash = ["/bin/bash-static", "/usr/bin/bash-static"].map(PathBuf::from);
    let bash = file("static bash", &bash, "run `make setup`")?;
    Ok(KubernetesPrograms { suite, cri_tools, bash })
}
