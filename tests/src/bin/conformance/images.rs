//! The images the suite asks for, under the names it asks for, so that nothing needs to be pulled.

use std::path::Path;

use bulkhead_tests::conformance::images::{self, Accounts, image};
use bulkhead_tests::image::Image;
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
    let helper = suite.helper();
    images::import(node, images(), move |root, busybox| fill_root(root, busybox, &helper)).await;
}

fn fill_root(root: &Path, busybox: &Path, helper: &Path) {
    images::fill_root(root, busybox, Accounts { passwd: PASSWD, group: GROUP }, &["sh"]);
    for (path, text) in SCRIPTS {
        images::script(root, path, text);
    }
    images::program(root, "usr/sbin/nginx", helper, 0o755);
    std::fs::create_dir_all(root.join("usr/local/apache2/bin")).expect("make httpd's folder");
    for name in ["usr/local/apache2/bin/httpd", "bin/sh"] {
        std::fs::hard_link(root.join("usr/sbin/nginx"), root.join(name)).expect("link the helper");
    }
    images::program(root, "usr/bin/nnp", helper, 0o4755);
}
