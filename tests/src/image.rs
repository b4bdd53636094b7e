//! Images made on the spot from the machine's static busybox: no registry is asked for anything.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::node::Node;
use crate::wait;

/// What the test containers run: busybox with its applets as links.
pub const BUSYBOX: &str = "bulkhead.test/busybox:1";
/// What containerd 2.3 wants to find under the name of its pause image, even where no pause container is made.
/// It does not sleep: the validation suite looks for left-over sleeps in the pid namespace it holds.
pub const PAUSE: &str = "bulkhead.test/pause:1";

const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "sleep", "httpd", "wget", "nc", "ls", "ps", "id", "ip", "mount", "uname",
    "hostname", "kill", "true", "false", "env", "dd", "seq", "head", "tail", "wc", "grep", "mkdir", "rm",
    "touch", "stat", "df", "date", "md5sum", "sync", "ping", "sed", "tr", "yes", "stty", "tty", "test",
    "usleep", "printf", "dmesg", "free", "readlink", "ln", "chown", "chmod", "umount", "syslogd", "logger",
    "mv", "cp", "cut", "sort", "mkfifo", "mknod",
];

/// A name for a root file system, and how it is run.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// Full name with tag.
    pub name: String,
    /// What runs by default: `Entrypoint` of the image's configuration when not empty.
    pub entrypoint: Vec<String>,
    /// What runs by default: `Cmd` of the image's configuration when not empty.
    pub command: Vec<String>,
    /// `User` of the image's configuration; empty for none.
    pub user: String,
}

/// Imports both images into the node's containerd and waits until CRI lists them.
pub(crate) async fn import(node: &Node) {
    let folder = node.dir().join("images");
    let (busybox, to) = (node.base().busybox.clone(), folder.clone());
    tokio::task::spawn_blocking(move || {
        let root = to.join("root");
        fill_root(&root, &busybox);
        let run = |name: &str, command: &[&str]| Image {
            name: name.into(),
            command: command.iter().map(|&part| part.into()).collect(),
            ..Image::default()
        };
        let images = [run(BUSYBOX, &["/bin/sh"]), run(PAUSE, &["/bin/tail", "-f", "/dev/null"])];
        archive(&to.join("images.tar"), &root, &images);
    })
    .await
    .expect("the images are built");
    import_archive(node, &folder.join("images.tar"), &[BUSYBOX, PAUSE]).await;
}

/// Imports an archive made by [`archive`] and waits until CRI lists `names`.
pub async fn import_archive(node: &Node, archive: &Path, names: &[&str]) {
    let output = tokio::process::Command::new(&node.base().ctr)
        .arg("--address")
        .arg(node.containerd_socket())
        .args(["--namespace", "k8s.io", "images", "import"])
        .arg(archive)
        .output()
        .await
        .expect("run ctr");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "import {}: {stderr}", archive.display());
    for name in names {
        let what = format!("CRI lists {name}");
        wait::expect(&what, Duration::from_secs(20), async || node.cri().has_image(name).await.then_some(()))
            .await;
    }
}

/// Fills `root` with a busybox, its applets, users and a page to serve.
pub fn fill_root(root: &Path, busybox: &Path) {
    for path in ["bin", "etc", "tmp", "proc", "sys", "dev", "www", "root"] {
        std::fs::create_dir_all(root.join(path)).expect("make the image's root");
    }
    let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(root.join("tmp"), anybody).expect("open /tmp to anybody");
    std::fs::copy(busybox, root.join("bin/busybox")).expect("copy busybox");
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).expect("link an applet");
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n")
        .expect("write passwd");
    std::fs::write(root.join("etc/group"), "root:x:0:\nweb:x:1000:\nextra:x:5000:web\n")
        .expect("write group");
    std::fs::write(root.join("www/index.html"), "hello from the pod\n").expect("write a page");
}

/// Where [`archive`] leaves what it put into the archive `to`.
#[must_use]
pub fn layout(to: &Path) -> PathBuf {
    to.with_extension("oci")
}

/// Writes one OCI archive `to`: all `images` with `root` as their one layer. Files keep their modes and belong to root.
pub fn archive(to: &Path, root: &Path, images: &[Image]) {
    let layout = layout(to);
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("make the layout");
    let layer = to.with_extension("layer");
    tar(&layer, root);
    let (layer_digest, layer_size) = add_blob(&blobs, &layer);
    let manifests: Vec<Value> = images
        .iter()
        .map(|image| {
            let (config_digest, config_size) = add_json(&blobs, &configuration(image, &layer_digest));
            let manifest = json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": format!("sha256:{config_digest}"),
                    "size": config_size,
                },
                "layers": [{
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": format!("sha256:{layer_digest}"),
                    "size": layer_size,
                }],
            });
            let (digest, size) = add_json(&blobs, &manifest);
            json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": format!("sha256:{digest}"),
                "size": size,
                "annotations": {"io.containerd.image.name": image.name},
            })
        })
        .collect();
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    std::fs::write(layout.join("index.json"), index.to_string()).expect("write the index");
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("write the layout");
    tar(to, &layout);
}

/// The name is part of the configuration, so that images that differ in nothing else have ids of their own.
fn configuration(image: &Image, layer_digest: &str) -> Value {
    let mut run = json!({
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "Labels": {"bulkhead.test/name": image.name},
    });
    for (key, words) in [("Entrypoint", &image.entrypoint), ("Cmd", &image.command)] {
        if !words.is_empty() {
            run[key] = json!(words);
        }
    }
    if !image.user.is_empty() {
        run["User"] = json!(image.user);
    }
    json!({
        "architecture": go_architecture(),
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
    })
}

fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn tar(to: &Path, from: &Path) {
    let status = Command::new("tar")
        .args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-cf"])
        .arg(to)
        .arg("-C")
        .args([from, Path::new(".")])
        .status()
        .expect("run tar");
    assert!(status.success(), "tar {}: {status}", from.display());
}

fn add_json(blobs: &Path, value: &Value) -> (String, u64) {
    let draft = blobs.join("draft");
    std::fs::write(&draft, value.to_string()).expect("write a blob");
    let added = add_blob(blobs, &draft);
    std::fs::remove_file(draft).expect("remove the draft");
    added
}

/// Copies a file to its place by digest: (digest in hex, size in bytes).
fn add_blob(blobs: &Path, file: &Path) -> (String, u64) {
    let output = Command::new("sha256sum").arg(file).output().expect("run sha256sum");
    let text = String::from_utf8(output.stdout).expect("sha256sum prints text");
    let digest = text.split_whitespace().next().expect("sha256sum prints a digest").to_owned();
    let to: PathBuf = blobs.join(&digest);
    let size = std::fs::copy(file, to).expect("place a blob");
    (digest, size)
}
