//! The images the suite asks for, under the names it asks for, so that nothing needs to be pulled.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use bulkhead_tests::image::{self, Image};
use bulkhead_tests::node::Node;

use crate::suite::Suite;

/// Busybox links that the suite's busybox has and Debian's has not, as scripts that do what the suite needs of them.
const SCRIPTS: &[(&str, &str)] = &[
    (
        "bin/pgrep",
        "#!/bin/busybox sh\nfound=1\nfor process in /proc/[0-9]*; do\n    \
         read -r name <\"$process/comm\" 2>/dev/null || continue\n    \
         case $name in *\"$1\"*) echo \"${process##*/}\"; found=0 ;; esac\ndone\nexit $found\n",
    ),
    ("bin/ipcs", "#!/bin/busybox sh\n[ \"$1\" = -m ] || exit 1\ncat /proc/sysvipc/shm\n"),
];

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/:/bin/sh\n\
    default-user:x:1000:1000::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n";
/// default-user belongs to a group of the image.
const GROUP: &str = "root:x:0:\nwww-data:x:33:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n\
    nobody:x:65534:\n";

fn images() -> Vec<Image> {
    let image = |name: &str, entrypoint: &[&str], command: &[&str], user: &str| Image {
        name: name.into(),
        entrypoint: entrypoint.iter().map(|&part| part.into()).collect(),
        command: command.iter().map(|&part| part.into()).collect(),
        user: user.into(),
    };
    let e2e = |name: &str| format!("registry.k8s.io/e2e-test-images/{name}");
    let own = |name: &str| format!("gcr.io/k8s-staging-cri-tools/{name}:latest");
    let (nginx, httpd) = ("/usr/sbin/nginx", "/usr/local/apache2/bin/httpd");
    vec![
        image(&e2e("busybox:1.29-2"), &[], &["sh"], ""),
        image(&e2e("nginx:1.14-2"), &[], &[nginx], ""),
        image(&e2e("httpd:2.4.39-4"), &[], &[httpd], ""),
        image(&e2e("nonewprivs:1.3"), &["/usr/bin/nnp"], &[], ""),
        image(&own("hostnet-nginx-amd64"), &[], &[nginx, "12003"], ""),
        image(&own("test-image-predefined-group"), &[], &["sh"], "1000"),
    ]
}

/// Builds them and imports them into the node's containerd.
pub(crate) async fn import(node: &Node, suite: &Suite) {
    let folder = node.dir().join("suite");
    let (busybox, helper, to) = (node.base().busybox.clone(), suite.helper(), folder.clone());
    let archive = folder.join("images.tar");
    let images = images();
    let names: Vec<String> = images.iter().map(|image| image.name.clone()).collect();
    let target = archive.clone();
    tokio::task::spawn_blocking(move || {
        let root = to.join("root");
        fill_root(&root, &busybox, &helper);
        image::archive(&target, &root, &images);
    })
    .await
    .expect("the images are built");
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    image::import_archive(node, &archive, &names).await;
}

fn fill_root(root: &Path, busybox: &Path, helper: &Path) {
    for path in [
        "bin",
        "etc",
        "tmp",
        "proc",
        "sys",
        "dev",
        "root",
        "mnt",
        "var/run",
        "usr/sbin",
        "usr/bin",
        "usr/local/apache2/bin",
    ] {
        std::fs::create_dir_all(root.join(path)).expect("make the images' root");
    }
    set_mode(&root.join("tmp"), 0o1777);
    let program = root.join("bin/busybox");
    std::fs::copy(busybox, &program).expect("copy busybox");
    let list = Command::new(busybox).arg("--list").output().expect("ask busybox for its applets");
    let own = |applet: &&str| !["busybox", "sh"].contains(applet);
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(own) {
        // Hard links, as in the suite's own image: masking one file must not mask them all.
        std::fs::hard_link(&program, root.join("bin").join(applet)).expect("link an applet");
    }
    for (path, text) in SCRIPTS {
        std::fs::write(root.join(path), text).expect("write a script");
        set_mode(&root.join(path), 0o755);
    }
    std::fs::copy(helper, root.join("usr/sbin/nginx")).expect("copy the helper");
    for name in ["usr/local/apache2/bin/httpd", "bin/sh"] {
        std::fs::hard_link(root.join("usr/sbin/nginx"), root.join(name)).expect("link the helper");
    }
    std::fs::copy(helper, root.join("usr/bin/nnp")).expect("copy the helper");
    set_mode(&root.join("usr/bin/nnp"), 0o4755);
    std::fs::write(root.join("etc/passwd"), PASSWD).expect("write passwd");
    std::fs::write(root.join("etc/group"), GROUP).expect("write group");
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set a mode");
}
