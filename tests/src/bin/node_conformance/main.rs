//! `make node-conformance`: Kubernetes' own node end-to-end suite, a real kubelet with a real API server, against stock
//! containerd, once with runc as control and once with Bulkhead, side by side.
//!
//! The exit code is 1 when a spec that passes with runc does not pass with Bulkhead, unless it is one of the refusals
//! of [`specs::RULES`] and was refused in the words listed there.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a judge: a step that fails ends it by saying so"
)]

mod cluster;
mod images;
mod machine;
mod runtime_class;
mod specs;
mod suite;

use std::process::ExitCode;
use std::time::Instant;

use bulkhead_tests::audit::Snapshot;
use bulkhead_tests::conformance::selection::Selection;
use bulkhead_tests::conformance::{audit, cannot, conclude};
use bulkhead_tests::node::{BULKHEAD, Node, Options, RUNC};
use bulkhead_tests::slots;

use suite::Suite;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let selection = match Selection::parse("node_conformance", &arguments) {
        Ok(selection) => selection,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    let suite = match Suite::find(selection) {
        Ok(suite) => suite,
        Err(why) => return cannot(&why),
    };
    println!("Kubernetes' node end-to-end suite {}, {}\n", suite.version(), suite.selection());
    let quiet = Options::default().with("sandboxer", "log_level", "\"info\"");
    let mut own = Vec::new();
    if suite.selects(runtime_class::NAME) {
        match runtime_class::check(&suite).await {
            Ok(specs) => own.extend(specs),
            Err(why) => return cannot(&why),
        }
    }
    let mut runs = Vec::new();
    for (handler, options) in [(RUNC, Options::control()), (BULKHEAD, quiet)] {
        let options = Options { host_ports: true, default_runtime: handler, ..options };
        let node = match Node::start(options).await {
            Ok(node) => node,
            Err(why) => return cannot(&why),
        };
        images::import(&node, &suite).await;
        let _registry = machine::prepare(&node, &suite).await;
        let before = Snapshot::take(&node).await;
        let (start, at_once) = (Instant::now(), slots::count());
        let mut specs = suite.run(&node, handler, at_once).await;
        println!("{handler}: {} specs, {at_once} at a time, in {} s", specs.len(), start.elapsed().as_secs());
        machine::remove_pods(&node).await;
        if handler == BULKHEAD {
            specs.push(audit(&node, &before, &machine::not_ours(&node)).await);
            specs.append(&mut own);
        }
        suite.keep_logs(&node, handler);
        runs.push(specs);
    }
    let [runc, bulkhead] = runs.as_slice() else { unreachable!("two runs") };
    conclude(&specs::RULES, runc, bulkhead, suite.folder())
}
