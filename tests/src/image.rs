//! Images made on the spot from the machine's static busybox: no registry is asked for anything.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::node::Node;
use crate::wait;

/// What the test containers run: busybox with its applets as links.
pub const BUSYBOX: &str = "bulkhead.test/busybox:1";
/// What containerd 2.3 wants to find under the name of its pause image, even where no pause container is made.
pub const PAUSE: &str = "bulkhead.test/pause:1";

const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "sleep", "httpd", "wget", "nc", "ls", "ps", "id", "ip", "mount", "uname",
    "hostname", "kill", "true", "false", "env", "dd", "seq", "head", "tail", "wc", "grep", "mkdir", "rm",
    "touch", "stat", "df", "date", "md5sum", "sync", "ping", "sed", "tr", "yes", "stty", "tty", "test",
    "usleep", "printf", "dmesg", "free",
];

/// Imports both images into the node's containerd and waits until CRI lists them.
pub(crate) async fn import(node: &Node) {
    let folder = node.dir().join("images");
    let (busybox, to) = (node.base().busybox.clone(), folder.clone());
    tokio::task::spawn_blocking(move || {
        archive(&to, "busybox", &busybox, BUSYBOX);
        archive(&to, "pause", &busybox, PAUSE);
    })
    .await
    .expect("the images are built");
    for (archive, name) in [("busybox.tar", BUSYBOX), ("pause.tar", PAUSE)] {
        let output = tokio::process::Command::new(&node.base().ctr)
            .arg("--address")
            .arg(node.containerd_socket())
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(folder.join(archive))
            .output()
            .await
            .expect("run ctr");
        assert!(output.status.success(), "import {name}: {}", String::from_utf8_lossy(&output.stderr));
        let what = format!("CRI lists {name}");
        wait::expect(&what, Duration::from_secs(20), async || node.cri().has_image(name).await.then_some(()))
            .await;
    }
}

/// One OCI archive: a root with busybox, one layer, `sh` as command (`sleep` for the pause image).
fn archive(folder: &Path, kind: &str, busybox: &Path, name: &str) {
    let root = folder.join(format!("{kind}.root"));
    for path in ["bin", "etc", "tmp", "proc", "sys", "dev", "www", "root"] {
        std::fs::create_dir_all(root.join(path)).expect("make the image's root");
    }
    std::fs::copy(busybox, root.join("bin/busybox")).expect("copy busybox");
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).expect("link an applet");
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n")
        .expect("write passwd");
    std::fs::write(root.join("etc/group"), "root:x:0:\nweb:x:1000:\n").expect("write group");
    std::fs::write(root.join("www/index.html"), "hello from the pod\n").expect("write a page");

    let layout = folder.join(format!("{kind}.oci"));
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("make the layout");
    let layer = folder.join(format!("{kind}.layer"));
    tar(&layer, &root, ".");
    let (layer_digest, layer_size) = add_blob(&blobs, &layer);
    let command = if kind == "pause" { r#"["/bin/sleep","2147483647"]"# } else { r#"["/bin/sh"]"# };
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","config":{{"Env":["PATH=/bin"],"Cmd":{command}}},"rootfs":{{"type":"layers","diff_ids":["sha256:{layer_digest}"]}}}}"#,
        go_architecture()
    );
    let (config_digest, config_size) = add_text(&blobs, &config);
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{config_digest}","size":{config_size}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:{layer_digest}","size":{layer_size}}}]}}"#
    );
    let (manifest_digest, manifest_size) = add_text(&blobs, &manifest);
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{manifest_digest}","size":{manifest_size},"annotations":{{"io.containerd.image.name":"{name}"}}}}]}}"#
    );
    std::fs::write(layout.join("index.json"), index).expect("write the index");
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("write the layout");
    tar(&folder.join(format!("{kind}.tar")), &layout, ".");
}

fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn tar(to: &Path, from: &Path, what: &str) {
    let status = Command::new("tar")
        .args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-cf"])
        .arg(to)
        .arg("-C")
        .args([from, Path::new(what)])
        .status()
        .expect("run tar");
    assert!(status.success(), "tar {}: {status}", from.display());
}

fn add_text(blobs: &Path, text: &str) -> (String, u64) {
    let draft = blobs.join("draft");
    std::fs::write(&draft, text).expect("write a blob");
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
