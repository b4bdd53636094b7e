//! How much memory a proxy costs: there is one for each pod of the node.

use containerd_shim_protos::api::ExecProcessRequest;
use protobuf::well_known_types::any::Any;

use crate::fake_agent::{Kind, say, say_end};
use crate::rig::{Rig, eventually, read_all, soon, within};

/// Most private memory that the design allows, in KiB.
const PRIVATE_KIB: u64 = 1024;

struct Memory {
    private: u64,
    pss: u64,
    rss: u64,
}

/// /proc/<pid>/smaps_rollup, proc(5), in KiB.
fn memory(pid: u32) -> Memory {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let sum = |names: &[&str]| {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let wanted = lines.filter(|(name, _)| names.contains(name));
        wanted.map(|(_, value)| value.trim().trim_end_matches(" kB").parse::<u64>().unwrap()).sum()
    };
    Memory { private: sum(&["Private_Clean", "Private_Dirty"]), pss: sum(&["Pss"]), rss: sum(&["Rss"]) }
}

#[tokio::test]
async fn an_idle_proxy_is_small() {
    // A second process of the same program: with one alone, its code would count as private.
    let other = Rig::attached().await;
    let rig = Rig::attached().await;
    other.running("c").await;
    let request = rig.running("c").await;
    let out = read_all(&request.stdout);
    let mut guest = rig.agent.stream("c", "", Kind::STDOUT).await;
    say(&mut guest, &vec![b'x'; 1024 * 1024]).await;
    say_end(guest).await;
    soon(out).await.unwrap();
    let Memory { private, pss, rss } = memory(rig.proxy.id());
    eprintln!(
        "shim proxy with one container, after 1 MiB of output: {private} KiB private, {pss} KiB PSS, {rss} KiB RSS"
    );
    if cfg!(debug_assertions) {
        eprintln!("skipped: the limit of {PRIVATE_KIB} KiB holds for optimised builds");
    } else {
        assert!(private <= PRIVATE_KIB, "{private} KiB private, at most {PRIVATE_KIB} KiB are allowed");
    }
}

/// The node has 128 instances of inotify(7) for each user as a rule, and everything here is root's: not one for a pod.
#[tokio::test]
async fn a_proxy_takes_no_inotify_instance() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", rig.proxy.id())).unwrap();
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let names: Vec<_> = links.map(|link| link.display().to_string()).collect();
    assert!(names.iter().any(|name| name.contains("eventpoll")), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("inotify")), "{names:?}");
}

/// The number of open descriptors of a process.
fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[tokio::test]
async fn a_hundred_execs_leave_no_descriptor_open() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    let mut before = 0;
    for round in 0..100 {
        let name = format!("e{round}");
        let [stdin, stdout, stderr] = rig.fifos(&name);
        let spec = Any { value: b"{}".to_vec(), ..Default::default() };
        let request = ExecProcessRequest {
            id: "c".into(),
            exec_id: name.clone(),
            stdin,
            stdout,
            stderr,
            spec: Some(spec).into(),
            ..Default::default()
        };
        soon(rig.task.exec(within(), &request)).await.unwrap();
        rig.start("c", &name).await.unwrap();
        for kind in [Kind::STDOUT, Kind::STDERR] {
            say_end(rig.agent.stream("c", &name, kind).await).await;
        }
        rig.agent.end("c", &name, 0, false);
        soon(rig.wait("c", &name)).await.unwrap().unwrap();
        rig.delete("c", &name).await.unwrap();
        drop(rig.agent.stream("c", &name, Kind::STDIN).await);
        if round == 9 {
            before = open_files(rig.proxy.id());
        }
    }
    let after = || open_files(rig.proxy.id());
    eventually("as many open files as before", || after() <= before).await;
}
