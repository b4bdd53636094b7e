//! Whether anything of any pod is left on a node.

use std::fs;
use std::path::{Path, PathBuf};

use crate::node::Node;

impl Node {
    /// Nothing of any pod is left: no process, cgroup, mount, tap, redirect, file or record.
    pub(crate) fn assert_nothing_left(&self) {
        let mut left = self.left_on_host();
        left.extend(self.left_in_netns());
        assert!(left.is_empty(), "left on the node:\n{}", left.join("\n"));
    }

    /// The same for a node whose network namespace is gone.
    pub(crate) fn assert_nothing_left_on_host(&self) {
        let left = self.left_on_host();
        assert!(left.is_empty(), "left on the node:\n{}", left.join("\n"));
    }

    fn left_on_host(&self) -> Vec<String> {
        let sandboxer = &self.settings.sandboxer;
        let mut left = Vec::new();
        left.extend(self.processes().into_iter().map(|pid| format!("process {pid}: {}", command_line(pid))));
        left.extend(self.cgroups().into_iter().map(|path| format!("cgroup {}", path.display())));
        left.extend(self.mounts().into_iter().map(|path| format!("mount {}", path.display())));
        let run_dir = &sandboxer.run_dir;
        for directory in [run_dir.join("s"), run_dir.join("vm"), sandboxer.state_dir.join("sandboxes")] {
            left.extend(entries(&directory).into_iter().map(|path| format!("file {}", path.display())));
        }
        left
    }

    fn left_in_netns(&self) -> Vec<String> {
        let links = self.in_netns("ip -o link");
        let taps = links.lines().filter(|line| line.contains("_bh"));
        let qdiscs = self.in_netns("tc qdisc show");
        let redirects = qdiscs.lines().filter(|line| line.contains("ingress"));
        taps.chain(redirects).map(str::to_owned).collect()
    }

    /// Every process that prints into a directory of this node: all processes of pods do.
    fn processes(&self) -> Vec<u32> {
        let pids = entries(Path::new("/proc"))
            .into_iter()
            .filter_map(|path| path.file_name()?.to_str()?.parse().ok());
        let of_pod = |pid: &u32| {
            let output = fs::read_link(format!("/proc/{pid}/fd/1"));
            output.is_ok_and(|path| path.starts_with(self.root.path()))
        };
        pids.filter(of_pod).collect()
    }

    /// The node's cgroup in every hierarchy, and what is below it; the deepest last.
    fn cgroups(&self) -> Vec<PathBuf> {
        let parent = self.settings.cgroup.default_parent.trim_start_matches('/');
        let root = Path::new("/sys/fs/cgroup");
        let mut found = vec![root.join(parent)];
        found.extend(entries(root).into_iter().map(|hierarchy| hierarchy.join(parent)));
        found.retain(|path| path.is_dir());
        let mut next = 0;
        while next < found.len() {
            let below: Vec<PathBuf> =
                entries(&found[next]).into_iter().filter(|path| path.is_dir()).collect();
            found.extend(below);
            next += 1;
        }
        found
    }

    /// What is mounted below the node's directory, the last one last.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        points.filter(|point| point.starts_with(self.root.path())).collect()
    }

    /// Takes away by force what a failed test left.
    pub(crate) fn sweep(&self) {
        for pid in self.processes() {
            println!("sweeping process {pid}: {}", command_line(pid));
            let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
        }
        for mount in self.mounts().into_iter().rev() {
            println!("sweeping mount {}", mount.display());
            rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH).ok();
        }
        for cgroup in self.cgroups().into_iter().rev() {
            println!("sweeping cgroup {}", cgroup.display());
            // A killed process leaves its cgroup a moment later.
            let removed = || fs::remove_dir(&cgroup).is_ok() || !cgroup.exists();
            (0..2000).find(|_| {
                std::iter::repeat_n((), 50).any(|()| removed()) || {
                    std::thread::yield_now();
                    false
                }
            });
        }
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn command_line(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ")
}
