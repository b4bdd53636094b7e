//! How much memory a proxy costs: there is one for each pod of the node.

use crate::fake_agent::{Kind, say, say_end};
use crate::rig::{Rig, read_all, soon};

/// The aim of the design, in KiB.
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
