use super::layout::Layout;
use super::record::plan_in;
use super::*;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use actix::Actor;
use tempfile::TempDir;

use crate::ask::ask;
use crate::host::process::{CgroupProcs, Exit, OwnedProcess, Spawn};
use crate::id::SandboxId;

/// A record of this test's own below a parent of its own, removed at the end whatever happens.
struct TestPod(CgroupRecord);

impl TestPod {
    fn new(layout: &Layout, name: &str) -> Self {
        let parent = format!("/bulkhead-test-{}-{name}", std::process::id());
        let id = SandboxId::new(name).unwrap();
        Self(plan_in(layout, "", &parent, &id).unwrap())
    }
}

impl Drop for TestPod {
    fn drop(&mut self) {
        let paths = self.0.directories.iter().chain(self.0.parents.iter().rev());
        for path in paths {
            drop(fs::remove_dir(path));
        }
    }
}

fn sleeper(dir: &TempDir, script: &str, cgroup: &CgroupProcs) -> OwnedProcess {
    OwnedProcess::spawn(Spawn {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        output: dir.path().join("out"),
        fds: Vec::new(),
        cgroup: Some(cgroup.clone()),
        env: Vec::new(),
    })
    .unwrap()
}

/// The layouts that this machine has for real, v2 without controllers included.
fn real_layouts() -> Vec<Layout> {
    let unified = Path::new("/sys/fs/cgroup/unified");
    let mut layouts = vec![Layout::detect().unwrap()];
    if unified.join("cgroup.procs").exists() {
        layouts.push(Layout::V2(unified.into()));
    } else {
        println!("skipped: cgroup v2 beside v1: not mounted at {}", unified.display());
    }
    layouts
}

#[tokio::test]
async fn a_pod_is_made_filled_counted_and_removed() {
    for layout in real_layouts() {
        let pod = TestPod::new(&layout, "whole");
        let limits = Limits {
            cpu_period: Some(50_000),
            cpu_quota: Some(100_000),
            cpu_shares: Some(512),
            memory: Some(256 << 20),
            ..Limits::default()
        };
        let procs = create(&pod.0, &limits).unwrap();
        let dir = TempDir::new().unwrap();
        let start = Instant::now();
        let process =
            sleeper(&dir, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exec sleep 60", &procs);
        println!("{} hierarchies: spawned in {:?}", pod.0.directories.len(), start.elapsed());
        let pid = process.identity().pid;
        for directory in &pod.0.directories {
            let inside = fs::read_to_string(directory.join("cgroup.procs")).unwrap();
            assert_eq!(inside.trim(), pid.to_string(), "{}", directory.display());
        }
        assert_eq!(find_pids(&pod.0), [pid]);
        let counted = loop {
            let counted = stats(&pod.0).unwrap();
            if counted.cpu_usage_nanos > 0 || start.elapsed() > Duration::from_secs(3) {
                break counted;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        if let Layout::V1(_) = layout {
            assert!(counted.cpu_usage_nanos > 0, "{counted:?}");
            assert!(
                counted.memory_usage > 0 && counted.memory_working_set <= counted.memory_usage,
                "{counted:?}"
            );
            assert_eq!((counted.memory_limit, counted.pids), (256 << 20, 1), "{counted:?}");
            assert_limit(&pod.0, "cpu.cfs_quota_us", "100000");
            assert_limit(&pod.0, "cpu.cfs_period_us", "50000");
            assert_limit(&pod.0, "cpu.shares", "512");
            let other = Limits { cpu_quota: Some(-1), memory: Some(300 << 20), ..Limits::default() };
            update(&pod.0, &other).unwrap();
            assert_limit(&pod.0, "cpu.cfs_quota_us", "-1");
            assert_limit(&pod.0, "memory.limit_in_bytes", &(300 << 20).to_string());
        }
        delete(&pod.0).await.unwrap();
        assert_eq!(process.wait().await, Exit::Signal(9));
        for path in pod.0.directories.iter().chain(&pod.0.parents) {
            assert!(!path.exists(), "{} is left", path.display());
        }
        assert!(find_pids(&pod.0).is_empty());
        assert!(stats(&pod.0).is_err());
        delete(&pod.0).await.unwrap();
    }
}

fn assert_limit(record: &CgroupRecord, file: &str, value: &str) {
    let path = record.directories.iter().map(|dir| dir.join(file)).find(|path| path.exists());
    let Some(path) = path else { return println!("skipped: {file}: this kernel has no such file") };
    assert_eq!(fs::read_to_string(&path).unwrap().trim(), value, "{}", path.display());
}

#[tokio::test]
async fn everything_below_is_killed_and_a_neighbour_is_not() {
    for layout in real_layouts() {
        let (pod, other) = (TestPod::new(&layout, "below"), TestPod::new(&layout, "below-other"));
        let procs = create(&pod.0, &Limits::default()).unwrap();
        let other_procs = create(&other.0, &Limits::default()).unwrap();
        let dir = TempDir::new().unwrap();
        let neighbour = sleeper(&dir, "exec sleep 60", &other_procs);
        // Forks, ignores what can be ignored, and leaves the session. It does not wait for the others: it could end by
        // itself when they are killed first.
        let process =
            sleeper(&dir, "trap '' TERM HUP; setsid sleep 61 & setsid sleep 62 & exec sleep 63", &procs);
        let start = Instant::now();
        while find_pids(&pod.0).len() < 3 {
            assert!(start.elapsed() < Duration::from_secs(5), "the children never came");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // Something made a cgroup below ours and moved into it.
        for directory in &pod.0.directories {
            if fs::create_dir(directory.join("deeper")).is_ok() && !directory.join("cpuset.cpus").exists() {
                fs::write(directory.join("deeper/cgroup.procs"), process.identity().pid.to_string()).unwrap();
            }
        }
        delete(&pod.0).await.unwrap();
        assert_eq!(process.wait().await, Exit::Signal(9));
        assert!(pod.0.directories.iter().all(|directory| !directory.exists()));
        assert_eq!(neighbour.ended(), None);
        drop(neighbour);
        delete(&other.0).await.unwrap();
    }
}

#[tokio::test]
async fn a_default_parent_goes_with_its_last_pod() {
    let layout = Layout::detect().unwrap();
    let first = TestPod::new(&layout, "parent");
    let second = {
        let parent = format!("/bulkhead-test-{}-parent", std::process::id());
        TestPod(plan_in(&layout, "", &parent, &SandboxId::new("second").unwrap()).unwrap())
    };
    create(&first.0, &Limits::default()).unwrap();
    create(&second.0, &Limits::default()).unwrap();
    delete(&first.0).await.unwrap();
    assert!(second.0.directories.iter().all(|directory| directory.exists()));
    delete(&second.0).await.unwrap();
    assert!(second.0.parents.iter().all(|parent| !parent.exists()));
}

#[tokio::test]
async fn a_failed_creation_leaves_nothing() {
    let layout = Layout::detect().unwrap();
    let pod = TestPod::new(&layout, "failed");
    // No kernel takes this.
    let limits = Limits { cpuset_cpus: "no list".into(), cpu_shares: Some(3), ..Limits::default() };
    match create(&pod.0, &limits) {
        Ok(_) => {
            println!("skipped: this machine has no cpuset controller");
            delete(&pod.0).await.unwrap();
        }
        Err(error) => assert!(error.to_string().contains("CPUs to no list"), "{error}"),
    }
    assert!(pod.0.directories.iter().chain(&pod.0.parents).all(|path| !path.exists()));
}

#[tokio::test]
async fn a_running_process_is_placed_and_pid_0_is_not() {
    let layout = Layout::detect().unwrap();
    let pod = TestPod::new(&layout, "placed");
    create(&pod.0, &Limits::default()).unwrap();
    let dir = TempDir::new().unwrap();
    let process = sleeper(&dir, "exec sleep 60", &CgroupProcs::default());
    place(&pod.0, process.identity().pid).unwrap();
    assert_eq!(find_pids(&pod.0), [process.identity().pid]);
    assert!(matches!(place(&pod.0, 0).unwrap_err(), CgroupError::PlaceProcess { pid: 0, .. }));
    drop(process);
    delete(&pod.0).await.unwrap();
}

#[actix::test]
async fn the_actor_answers() {
    let pod = TestPod::new(&Layout::detect().unwrap(), "actor");
    let record = pod.0.clone();
    let cgroup = Cgroup::new(record.clone()).start();
    let limits = Limits::default();
    let procs = ask(&cgroup, Create { limits: limits.clone(), needed_bytes: 1 }).await.unwrap();
    assert_eq!(procs.files().len(), record.directories.len());
    // Again, as after a crash between effect and answer.
    ask(&cgroup, Create { limits: limits.clone(), needed_bytes: 1 }).await.unwrap();
    let dir = TempDir::new().unwrap();
    let process = sleeper(&dir, "exec sleep 60", &procs);
    ask(&cgroup, Update { limits, needed_bytes: 1, planned_bytes: None }).await.unwrap();
    ask(&cgroup, Stats).await.unwrap();
    ask(&cgroup, Delete).await.unwrap();
    assert_eq!(process.wait().await, Exit::Signal(9));
}

/// A directory that looks like cgroup v2 with every controller, for kernels that do not have it so.
fn fake_v2(directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    for (file, content) in [
        ("cgroup.controllers", "cpuset cpu io memory pids\n"),
        ("cgroup.subtree_control", ""),
        ("cpu.max", "max 100000\n"),
        ("cpu.weight", "100\n"),
        ("cpu.stat", "usage_usec 1234\nuser_usec 1000\nsystem_usec 234\n"),
        ("memory.max", "max\n"),
        ("memory.swap.max", "max\n"),
        ("memory.current", "5000\n"),
        ("memory.stat", "anon 1\ninactive_file 2000\npgfault 70\npgmajfault 4\n"),
        ("pids.current", "7\n"),
        ("cpuset.cpus", "\n"),
        ("hugetlb.2MB.max", "max\n"),
        ("memory.high", "max\n"),
    ] {
        fs::write(directory.join(file), content).unwrap();
    }
}

#[test]
fn v2_files_get_the_limits_and_give_the_figures() {
    let dir = TempDir::new().unwrap();
    let pod = dir.path().join("kubepods/bulkhead-x");
    fake_v2(&pod);
    let record = CgroupRecord { directories: vec![pod.clone()], ..CgroupRecord::default() };
    let limits = Limits {
        cpu_period: Some(50_000),
        cpu_quota: Some(75_000),
        cpu_shares: Some(1024),
        memory: Some(1 << 20),
        memory_and_swap: Some(3 << 20),
        cpuset_cpus: "0-1".into(),
        ..Limits::default()
    };
    update(&record, &limits).unwrap();
    let read = |file: &str| fs::read_to_string(pod.join(file)).unwrap().trim().to_owned();
    assert_eq!(read("cpu.max"), "75000 50000");
    assert_eq!(read("cpu.weight"), "39");
    assert_eq!(read("memory.max"), (1 << 20).to_string());
    assert_eq!(read("memory.swap.max"), (2 << 20).to_string());
    assert_eq!(read("cpuset.cpus"), "0-1");
    update(&record, &Limits { cpu_quota: Some(-1), memory: Some(-1), ..Limits::default() }).unwrap();
    assert_eq!((read("cpu.max"), read("memory.max")), ("max 50000".into(), "max".into()));
    assert_eq!(
        stats(&record).unwrap(),
        PodStats {
            cpu_usage_nanos: 1_234_000,
            memory_usage: 5000,
            memory_working_set: 3000,
            memory_limit: u64::MAX,
            minor_faults: 66,
            major_faults: 4,
            pids: 7,
        }
    );
}

#[test]
fn v2_controllers_are_passed_on_from_the_root_down() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("root");
    let parent = root.join("kubepods");
    let pod = parent.join("bulkhead-x");
    for directory in [&root, &parent, &pod] {
        fake_v2(directory);
    }
    fs::write(pod.join("cgroup.controllers"), "cpu\n").unwrap();
    fs::write(root.join("cgroup.subtree_control"), "cpu memory pids io cpuset\n").unwrap();
    let record = CgroupRecord { directories: vec![pod], ..CgroupRecord::default() };
    create(&record, &Limits::default()).unwrap();
    // The root has passed everything on already; a plain file keeps what was written last.
    assert_eq!(
        fs::read_to_string(root.join("cgroup.subtree_control")).unwrap(),
        "cpu memory pids io cpuset\n"
    );
    assert_eq!(fs::read_to_string(parent.join("cgroup.subtree_control")).unwrap(), "+cpuset");
}

#[test]
fn v2_takes_huge_pages_and_raw_files_of_controllers_only() {
    let dir = TempDir::new().unwrap();
    let pod = dir.path().join("kubepods/bulkhead-x");
    fake_v2(&pod);
    let record = CgroupRecord { directories: vec![pod.clone()], ..CgroupRecord::default() };
    let hugepages =
        [("2MB", 4 << 20), ("1GB", 1 << 30), ("../../x", 1)].map(|(size, bytes)| (size.into(), bytes));
    let unified = |key: &str| [(key.to_owned(), "123".to_owned())].into();
    let limits = Limits { hugepages: hugepages.into(), unified: unified("memory.high"), ..Limits::default() };
    update(&record, &limits).unwrap();
    let read = |file: &str| fs::read_to_string(pod.join(file)).unwrap();
    assert_eq!((read("hugetlb.2MB.max"), read("memory.high")), ((4 << 20).to_string(), "123".to_owned()));
    assert!(!pod.join("hugetlb.1GB.max").exists(), "a size that the kernel has not");
    for key in ["cgroup.procs", "../kubepods/x", "..", "memory", "memory.max", "memory.none", ""] {
        let limits = Limits { unified: unified(key), ..Limits::default() };
        let error = update(&record, &limits).unwrap_err();
        assert!(matches!(&error, CgroupError::Unified { .. }) && error.is_refusal(), "{key}: {error}");
    }
}

#[test]
fn v1_takes_huge_pages_and_no_raw_files() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("hugetlb.2MB.limit_in_bytes"), "0").unwrap();
    let record = CgroupRecord { directories: vec![dir.path().to_owned()], ..CgroupRecord::default() };
    let limits = Limits { hugepages: [("2MB".into(), 5)].into(), ..Limits::default() };
    update(&record, &limits).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("hugetlb.2MB.limit_in_bytes")).unwrap(), "5");
    let limits = Limits { unified: [("memory.high".into(), "1".into())].into(), ..Limits::default() };
    let error = update(&record, &limits).unwrap_err();
    assert!(error.to_string().contains("cgroup v1"), "{error}");
}
