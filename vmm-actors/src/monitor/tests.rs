use std::fs;
use std::path::Path;
use std::time::Duration;

use actix::{Actor, Context, Handler};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::*;
use crate::ask::tell;
use crate::cgroup::{self, Bound, CgroupRecord, Limits};
use crate::host::process::{Exit, OwnedProcess, Spawn};
use crate::id::SandboxId;

struct Parent(UnboundedSender<Oom>, UnboundedSender<Pressure>);

impl Actor for Parent {
    type Context = Context<Self>;
}

impl Handler<Oom> for Parent {
    type Result = ();
    fn handle(&mut self, oom: Oom, _: &mut Self::Context) {
        self.0.send(oom).unwrap();
    }
}

impl Handler<Pressure> for Parent {
    type Result = ();
    fn handle(&mut self, pressure: Pressure, _: &mut Self::Context) {
        self.1.send(pressure).unwrap();
    }
}

fn parent() -> (actix::Addr<Parent>, UnboundedReceiver<Oom>, UnboundedReceiver<Pressure>) {
    let ((oom, ooms), (pressure, pressures)) = (unbounded_channel(), unbounded_channel());
    (Parent(oom, pressure).start(), ooms, pressures)
}

/// A record whose only directory has these files.
fn fake(dir: &TempDir, files: &[(&str, &str)]) -> CgroupRecord {
    let directory = dir.path().join("kubepods/pod1/bulkhead-x");
    fs::create_dir_all(&directory).unwrap();
    for (name, text) in files {
        fs::write(directory.join(name), text).unwrap();
    }
    CgroupRecord { directories: vec![directory], ..CgroupRecord::default() }
}

#[test]
fn the_smallest_limit_that_was_reached_is_named() {
    let dir = TempDir::new().unwrap();
    let events = "low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\n";
    let own =
        [("memory.events", events), ("memory.events.local", "max 9\noom 0\n"), ("memory.max", "1048576\n")];
    let record = fake(&dir, &own);
    assert_eq!(
        oom_kills(&record),
        Some(OomKills { count: 1, bound: None }),
        "at its own limit, page cache went"
    );
    let pod = dir.path().join("kubepods/pod1");
    fs::write(pod.join("memory.max"), "314572800\n").unwrap();
    fs::write(pod.join("memory.events.local"), "max 3\noom 2\n").unwrap();
    let kills = oom_kills(&record).unwrap();
    assert_eq!(kills.bound, Some(Bound { cgroup: pod.clone(), limit_bytes: 300 << 20 }));
    let text = kills.to_string();
    let begin =
        format!("killed by the host's OOM killer: the memory limit of 300 MiB on {} was", pod.display());
    assert!(text.starts_with(&begin) && text.contains("overhead"), "{text}");
    fs::write(record.directories[0].join("memory.events"), "oom_kill 0\n").unwrap();
    assert_eq!(oom_kills(&record), None);
}

#[test]
fn a_v1_limit_of_nothing_is_none() {
    let dir = TempDir::new().unwrap();
    let control = "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n";
    let files = [
        ("memory.oom_control", control),
        ("memory.failcnt", "9\n"),
        ("memory.limit_in_bytes", "9223372036854771712\n"),
    ];
    let record = fake(&dir, &files);
    let kills = oom_kills(&record).unwrap();
    assert_eq!(kills, OomKills { count: 2, bound: None });
    assert!(kills.to_string().contains("the host had no memory left"), "{kills}");
    fs::write(record.directories[0].join("memory.limit_in_bytes"), "4096\n").unwrap();
    assert_eq!(oom_kills(&record).unwrap().bound.unwrap().limit_bytes, 4096);
}

#[test]
fn a_host_without_the_controller_says_nothing() {
    let dir = TempDir::new().unwrap();
    assert_eq!(oom_kills(&fake(&dir, &[])), None);
    let gone = CgroupRecord { directories: vec!["/nonexistent/x".into()], ..CgroupRecord::default() };
    assert_eq!(oom_kills(&gone), None);
}

/// A pod's cgroup of this machine, gone at the end of the test.
struct RealPod(CgroupRecord);

impl RealPod {
    fn new(name: &str, memory: i64) -> Option<(Self, crate::host::process::CgroupProcs)> {
        let id = SandboxId::new(name).unwrap();
        let parent = format!("/bulkhead-test-{}-{name}", std::process::id());
        let record = cgroup::plan("", &parent, &id).unwrap();
        let limits = Limits { memory: Some(memory), memory_and_swap: Some(memory), ..Limits::default() };
        match cgroup::create(&record, &limits) {
            Ok(procs) if tally::memory_directory(&record).is_some() => Some((Self(record), procs)),
            outcome => {
                println!("skipped: no cgroup with a memory controller can be made here: {:?}", outcome.err());
                None
            }
        }
    }
}

impl Drop for RealPod {
    fn drop(&mut self) {
        for path in self.0.directories.iter().chain(self.0.parents.iter().rev()) {
            drop(fs::remove_dir(path));
        }
    }
}

/// A process that wants 256 MiB at once.
fn eater(dir: &TempDir, cgroup: &crate::host::process::CgroupProcs) -> OwnedProcess {
    OwnedProcess::spawn(Spawn {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), "exec dd if=/dev/zero of=/dev/null bs=256M count=1".into()],
        output: dir.path().join("out"),
        fds: Vec::new(),
        cgroup: Some(cgroup.clone()),
        env: Vec::new(),
    })
    .unwrap()
}

#[actix::test]
async fn a_kill_by_the_host_is_told_and_explained() {
    let Some((pod, procs)) = RealPod::new("eater", 16 << 20) else { return };
    let dir = TempDir::new().unwrap();
    let (parent, mut ooms, mut pressures) = parent();
    let monitor = Monitor::new(pod.0.clone(), parent.clone().recipient(), parent.clone().recipient()).start();
    tell(&monitor, Watch).unwrap();
    assert_eq!(oom_kills(&pod.0), None);
    // The monitor takes one message after the other, and has taken this one when it has taken the next.
    monitor.send(Watch).await.unwrap();

    assert_eq!(eater(&dir, &procs).wait().await, Exit::Signal(9));
    let kills = oom_kills(&pod.0).expect("the count is there when the process is not");
    let Bound { cgroup, limit_bytes } = kills.bound.clone().unwrap();
    assert_eq!((kills.count, limit_bytes), (1, 16 << 20));
    assert!(pod.0.directories.contains(&cgroup), "{}", cgroup.display());
    assert_eq!(ooms.recv().await.unwrap(), Oom(kills));
    if tally::is_v2(tally::memory_directory(&pod.0).unwrap()) {
        println!("skipped: on cgroup v2 pressure is time lost, and this was too quick to lose any");
    } else {
        assert_eq!(pressures.recv().await, Some(Pressure), "the kernel was at its wits' end");
    }

    assert_eq!(eater(&dir, &procs).wait().await, Exit::Signal(9));
    assert_eq!(ooms.recv().await.unwrap().0.count, 2, "the second is told once and by its number");
    drop(monitor);
    tokio::task::yield_now().await;
    assert_eq!(eater(&dir, &procs).wait().await, Exit::Signal(9));
    let more = tokio::time::timeout(Duration::from_millis(50), ooms.recv()).await;
    assert!(more.is_err(), "told after its end: {more:?}");
}

#[actix::test]
async fn the_end_of_the_cgroup_is_no_kill() {
    let Some((pod, _procs)) = RealPod::new("gone", 16 << 20) else { return };
    let (parent, mut ooms, mut pressures) = parent();
    let monitor = Monitor::new(pod.0.clone(), parent.clone().recipient(), parent.clone().recipient()).start();
    monitor.send(Watch).await.unwrap();
    cgroup::delete(&pod.0).await.unwrap();
    assert!(!Path::new(&pod.0.directories[0]).exists());
    let more = tokio::time::timeout(Duration::from_millis(50), ooms.recv()).await;
    assert!(more.is_err() && pressures.try_recv().is_err(), "{more:?}");
}
