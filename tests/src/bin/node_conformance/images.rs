//! The images the suite asks for, under the names it asks for, so that nothing needs to be pulled. What each holds is
//! said by the suite's own image folders; where those take a distribution's packages, these have Debian's busybox.

use std::path::Path;

use bulkhead_tests::conformance::images::{self, Accounts, image};
use bulkhead_tests::image::Image;
use bulkhead_tests::node::Node;

use crate::suite::Suite;

/// Programs that the suite's images have and Debian's busybox has not, as scripts that do what the suite needs of them:
/// of curl's options only how long it waits for an answer,
/// which Debian's wget cannot be told: it crashes.
const SCRIPTS: &[(&str, &str)] = &[
    (
        "usr/bin/curl",
        "#!/bin/busybox sh\nlimit=15\nwhile [ $# -gt 1 ]; do\n    case $1 in\n        --max-time) limit=$2; shift 2 ;;\n\
         --connect-timeout) shift 2 ;;\n        *) shift ;;\n    esac\ndone\n\
         exec /bin/busybox timeout \"$limit\" /bin/busybox wget -q -O - \"$1\"\n",
    ),
    // Debian's nc knows no UDP.
    (
        "usr/bin/nc",
        "#!/bin/bash\n[ \"$1 $3\" = '-w -u' ] || exec /bin/busybox nc \"$@\"\nexec 3<> \"/dev/udp/$4/$5\"\n\
         cat >&3\nexec timeout \"$2\" dd bs=4096 count=1 <&3 2>/dev/null\n",
    ),
    ("bin/ipcs", "#!/bin/busybox sh\n[ \"$1\" = -m ] || exit 1\ncat /proc/sysvipc/shm\n"),
    // The time with milliseconds, once: all that `nmeter -d0 '%3t' | head -n1` reads.
    ("bin/nmeter", "#!/bin/bash\nnow=$EPOCHREALTIME\nprintf '%(%T)T.%.3s\\n' \"${now%.*}\" \"${now#*.}\"\n"),
    ("pause", "#!/bin/busybox sh\nexec /agnhost pause\n"),
];

/// Where the images have bash. Debian's busybox hands no variable on whose name has a hyphen; that of the suite does.
const SHELLS: &[&str] = &["bin/bash", "bin/sh"];

/// The groups are what specs about supplementary groups look for.
const ACCOUNTS: Accounts = Accounts {
    passwd: "root:x:0:0:root:/root:/bin/sh\nuser-defined-in-image:x:1000:1000::/home:/bin/sh\n\
        nobody:x:65534:65534::/:/bin/sh\n",
    group: "root:x:0:\nuser-defined-in-image:x:1000:\n\
        group-defined-in-image:x:50000:user-defined-in-image\nnobody:x:65534:\n",
};

/// The suite's busybox.
pub(crate) const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2";

fn images() -> Vec<Image> {
    let e2e = |name: &str| format!("registry.k8s.io/e2e-test-images/{name}");
    vec![
        image(&e2e("agnhost:2.66.1"), &["/agnhost"], &["pause"], ""),
        image(&e2e("agnhost:2.55"), &["/agnhost"], &["pause"], ""),
        image(BUSYBOX, &[], &["sh"], ""),
        image(&e2e("nginx:1.27.0-2"), &[], &["/usr/sbin/nginx"], ""),
        image(&e2e("nginx:1.28.0-2"), &[], &["/usr/sbin/nginx"], ""),
        image(&e2e("nonewprivs:1.4"), &[], &["nnp"], ""),
        image(&e2e("nonroot:1.5"), &[], &["sh"], "1234"),
        image(&e2e("glibc-dns-testing:2.1.1"), &[], &["sh"], ""),
        image(&e2e("ipc-utils:1.4"), &[], &["sh"], ""),
        image("registry.k8s.io/pause:3.10.2", &["/pause"], &[], ""),
    ]
}

/// Builds them and imports them into the node's containerd.
pub(crate) async fn import(node: &Node, suite: &Suite) {
    let programs = [
        ("agnhost", suite.program("agnhost"), 0o755),
        ("localhost.crt", suite.program("localhost.crt"), 0o644),
        ("localhost.key", suite.program("localhost.key"), 0o644),
        ("usr/local/bin/nnp", suite.program("nonewprivs"), 0o6755),
        ("usr/sbin/nginx", suite.web_server(), 0o755),
    ];
    let bash = suite.bash();
    images::import(node, images(), move |root, busybox| {
        fill_root(root, busybox);
        for shell in SHELLS {
            images::program(root, shell, &bash, 0o755);
        }
        for (path, from, mode) in &programs {
            images::program(root, path, from, *mode);
        }
        std::fs::hard_link(root.join("agnhost"), root.join("agnhost-2")).expect("link agnhost");
    })
    .await;
}

fn fill_root(root: &Path, busybox: &Path) {
    images::fill_root(root, busybox, ACCOUNTS, &["sh"]);
    std::fs::create_dir(root.join("uploads")).expect("make agnhost's folder");
    for (path, text) in SCRIPTS {
        images::script(root, path, text);
    }
}
