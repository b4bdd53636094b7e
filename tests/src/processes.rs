//! The processes of a node: everything in its pid namespace, zombies included.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A process as `/proc` shows it from outside the node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Pid on this machine.
    pub pid: i32,
    /// Pid inside the node.
    pub node_pid: i32,
    /// Parent's pid on this machine.
    pub parent: i32,
    /// State letter of proc(5): R, S, D, Z, …
    pub state: char,
    /// Short name.
    pub comm: String,
    /// Arguments; empty for a zombie.
    pub args: Vec<String>,
}

impl Process {
    /// One line for a person.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut line = self.args.join(" ");
        if line.is_empty() {
            line.clone_from(&self.comm);
        }
        line.truncate(160);
        format!("pid {} ({} in the node, state {}): {line}", self.pid, self.node_pid, self.state)
    }

    /// As [`Process::describe`], but a process keeps its line while its state letter changes.
    #[must_use]
    pub fn describe_for_audit(&self) -> String {
        let state = if self.state == 'Z' { "zombie" } else { "alive" };
        let parent = read(self.parent).map(|parent| parent.comm).unwrap_or_default();
        let mut line = self.args.join(" ");
        if line.is_empty() {
            line.clone_from(&self.comm);
        }
        line.truncate(200);
        format!("pid {} ({state}, child of {parent:?}): {line}", self.pid)
    }

    /// File name of the program it runs, by its first argument.
    #[must_use]
    pub fn program(&self) -> &str {
        self.args.first().map_or(&self.comm, |arg| arg.rsplit('/').next().unwrap_or(arg))
    }
}

/// The pid namespace `pid` lives in.
#[must_use]
pub fn pid_namespace(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

/// Every process in the pid namespace of `init`, `init` itself left out.
#[must_use]
pub fn of_node(init: i32) -> Vec<Process> {
    let Some(namespace) = pid_namespace(init) else { return Vec::new() };
    let tree = descendants_by_namespace(&namespace);
    tree.into_iter().filter(|process| process.pid != init).collect()
}

/// A zombie's namespace link cannot be read, so one counts by its parent.
fn descendants_by_namespace(namespace: &Path) -> Vec<Process> {
    let all: Vec<Process> = std::fs::read_dir("/proc")
        .expect("read /proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
        .filter_map(read)
        .collect();
    let inside: BTreeSet<i32> = all
        .iter()
        .filter(|process| pid_namespace(process.pid).as_deref() == Some(namespace))
        .map(|process| process.pid)
        .collect();
    all.into_iter()
        .filter(|process| {
            inside.contains(&process.pid) || (process.state == 'Z' && inside.contains(&process.parent))
        })
        .collect()
}

/// Reads one process; `None` when it is gone.
#[must_use]
pub fn read(pid: i32) -> Option<Process> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    let args = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let args = args
        .split(|byte| *byte == 0)
        .filter(|arg| !arg.is_empty())
        .map(|arg| String::from_utf8_lossy(arg).into_owned())
        .collect();
    Some(Process {
        pid,
        node_pid: field("NSpid")?.split_whitespace().last()?.parse().ok()?,
        parent: field("PPid")?.parse().ok()?,
        state: field("State")?.chars().next()?,
        comm: field("Name")?.to_owned(),
        args,
    })
}

/// The children of `pid`.
#[must_use]
pub fn children(pid: i32) -> Vec<i32> {
    std::fs::read_dir("/proc")
        .expect("read /proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
        .filter_map(read)
        .filter(|process| process.parent == pid)
        .map(|process| process.pid)
        .collect()
}

/// Sends a signal; a process that is already gone is fine.
pub fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(errno) => panic!("kill -{signal} {pid}: {errno}"),
    }
}
