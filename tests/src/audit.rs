//! What a node holds, taken before and after: the difference must be empty.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::node::{Node, cgroups};
use crate::{processes, wait};

/// How long things that are on their way out may take to be gone.
const SETTLE: Duration = Duration::from_secs(10);

/// How many more open files a long-lived process may have afterwards: connections that idle out, lazy loading.
const SANDBOXER_FD_SLACK: usize = 2;
/// containerd keeps a few of its own (database, events), opened on first use.
const CONTAINERD_FD_SLACK: usize = 12;

/// Everything a pod could leave behind on a node.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Snapshot {
    /// Kind → what there is of it, by a name that does not change while the thing lives.
    things: BTreeMap<String, Vec<String>>,
    /// Name of a daemon → its pid and what its descriptors point to.
    files: BTreeMap<String, (i32, Vec<String>)>,
}

impl Snapshot {
    /// Looks at the node now.
    pub async fn take(node: &Node) -> Self {
        let mut things = BTreeMap::new();
        things.insert("process".to_owned(), process_names(node));
        things.insert("mount".to_owned(), mounts(node));
        things.insert("link".to_owned(), links(node).await);
        things.insert("tc".to_owned(), traffic_control(node).await);
        things.insert("netns".to_owned(), netns(node));
        things.insert("cgroup".to_owned(), cgroups::list(&node.cgroup_parent()));
        things.insert("file of the sandboxer".to_owned(), files(node));
        things.insert("bundle or stdio of containerd".to_owned(), containerd_leftovers(node));
        things.insert("network lease".to_owned(), leases(node));
        for names in things.values_mut() {
            names.sort();
        }
        let mut files = BTreeMap::new();
        for (name, pid) in [("sandboxer", node.sandboxer_pid()), ("containerd", node.containerd_pid())] {
            if let Some(pid) = pid {
                files.insert(name.to_owned(), (pid, descriptors(pid)));
            }
        }
        Self { things, files }
    }

    /// What `later` has more than `self`; empty when nothing.
    #[must_use]
    pub fn leaked(&self, later: &Self) -> String {
        let mut text = String::new();
        for (kind, now) in &later.things {
            let mut before = self.things.get(kind).cloned().unwrap_or_default();
            for thing in now {
                if let Some(index) = before.iter().position(|old| old == thing) {
                    before.swap_remove(index);
                } else {
                    writeln!(text, "  {kind}: {thing}").expect("write to a string");
                }
            }
        }
        for (name, (pid, now)) in &later.files {
            let Some((old_pid, before)) = self.files.get(name) else { continue };
            let slack = if name == "sandboxer" { SANDBOXER_FD_SLACK } else { CONTAINERD_FD_SLACK };
            if old_pid == pid && now.len() > before.len() + slack {
                let mut extra = now.clone();
                extra.retain(|target| !before.contains(target));
                let (had, has) = (before.len(), now.len());
                writeln!(text, "  open files of {name}: {had} before, {has} after; new: {extra:?}")
                    .expect("write to a string");
            }
        }
        text
    }

    /// Waits until the node holds no more than it did when `self` was taken; panics with the difference.
    pub async fn expect_nothing_left(&self, node: &Node) {
        let mut difference = String::new();
        let clean = wait::until(SETTLE, async || {
            difference = self.leaked(&Self::take(node).await);
            difference.is_empty().then_some(())
        })
        .await;
        assert!(clean.is_some(), "left behind on the node:\n{difference}");
    }
}

/// Daemons aside, every process; a zombie is one too.
fn process_names(node: &Node) -> Vec<String> {
    let daemons = [node.containerd_pid(), node.sandboxer_pid()];
    processes::of_node(node.init())
        .into_iter()
        .filter(|process| !daemons.contains(&Some(process.pid)))
        .filter(|process| process.comm != "nsenter")
        .map(|process| process.describe_for_audit())
        .collect()
}

fn mounts(node: &Node) -> Vec<String> {
    let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", node.init())).expect("read mountinfo");
    let dir = node.dir().display().to_string();
    table
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let target = left.split(' ').nth(4)?;
            let kind = right.split(' ').next()?;
            let ours = target.starts_with(&dir) || target.starts_with("/run") || target.starts_with("/var");
            // The rig mounts it for the first namespace that a test makes by hand.
            (ours && target != "/run/netns").then(|| format!("{kind} on {target}"))
        })
        .collect()
}

async fn links(node: &Node) -> Vec<String> {
    let text = node.run(&["ip", "-o", "link", "show"]).await;
    text.lines().filter_map(|line| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned())).collect()
}

async fn traffic_control(node: &Node) -> Vec<String> {
    let mut all: Vec<String> = lines(&node.run(&["tc", "qdisc", "show"]).await);
    for link in links(node).await {
        // A link may go between the list and this.
        let script = format!("tc filter show dev {link} ingress 2>/dev/null || true");
        all.extend(
            lines(&node.run(&["sh", "-c", &script]).await).into_iter().map(|line| format!("{link}: {line}")),
        );
    }
    all
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.trim_end().to_owned()).filter(|line| !line.is_empty()).collect()
}

fn netns(node: &Node) -> Vec<String> {
    let mut found = names(&node.inside("/run/netns"));
    found.extend(names(&node.dir().join("state/io.containerd.grpc.v1.cri/netns")));
    found
}

fn files(node: &Node) -> Vec<String> {
    let mut found = all_files(&node.run_dir(), &|_| true);
    found.extend(all_files(&node.state_dir(), &|_| true));
    found
}

fn containerd_leftovers(node: &Node) -> Vec<String> {
    let state = node.dir().join("state");
    let mut found = names(&state.join("io.containerd.runtime.v2.task/k8s.io"));
    found.extend(names(&state.join("io.containerd.grpc.v1.cri/containers")));
    found.extend(names(&node.dir().join("root/io.containerd.grpc.v1.cri/containers")));
    found.extend(names(&node.dir().join("root/io.containerd.grpc.v1.cri/sandboxes")));
    found
}

fn leases(node: &Node) -> Vec<String> {
    let mut found = all_files(&node.dir().join("leases"), &|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.is_file() && !name.starts_with("last_reserved_ip") && name != "lock"
    });
    found.extend(all_files(&node.inside("/var/lib/cni/results"), &|_| true));
    found
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}

/// Everything below `folder` that `wanted` picks. Other filesystems (a pod's rootfs) are not entered.
fn all_files(folder: &Path, wanted: &dyn Fn(&Path) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![folder.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            if wanted(&path) {
                found.push(path.display().to_string());
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(path);
            }
        }
    }
    found
}

fn descriptors(pid: i32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .map(|target| target.display().to_string())
        .collect()
}
