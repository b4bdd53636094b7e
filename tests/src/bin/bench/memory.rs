//! Resident memory of the sandboxer and of one shim proxy with 0, 1, 5 and 10 pods.

use bulkhead_tests::node::Node;
use bulkhead_tests::processes;

use super::figures::{Figures, median};

const SHIM: &str = "containerd-shim-bulkhead-v2";

pub(crate) async fn measure(node: &Node, figures: &mut Figures) {
    let mut pods = Vec::new();
    for wanted in [0, 1, 5, 10] {
        while pods.len() < wanted {
            pods.push(node.cri().run_pod("memory").await);
        }
        let (pss, private) = rollup(node.sandboxer_pid().expect("the sandboxer runs"));
        figures.set(format!("sandboxer with {wanted} pods: PSS"), pss, "KiB");
        figures.set(format!("sandboxer with {wanted} pods: private"), private, "KiB");
        let shims: Vec<(f64, f64)> = processes::of_node(node.init())
            .iter()
            .filter(|process| process.program() == SHIM)
            .map(|process| rollup(process.pid))
            .collect();
        if !shims.is_empty() {
            let pss: Vec<f64> = shims.iter().map(|(pss, _)| *pss).collect();
            let private: Vec<f64> = shims.iter().map(|(_, private)| *private).collect();
            figures.set(format!("shim proxy with {wanted} pods: PSS"), median(&pss), "KiB");
            figures.set(format!("shim proxy with {wanted} pods: private"), median(&private), "KiB");
        }
    }
    for pod in pods {
        node.cri().end_pod(&pod).await;
    }
}

/// PSS and private memory in KiB, by `smaps_rollup` (proc(5)).
fn rollup(pid: i32) -> (f64, f64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("read smaps_rollup");
    let field = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
    };
    (field("Pss"), field("Private_Clean") + field("Private_Dirty"))
}
