//! `make conformance`: the official CRI validation suite against stock containerd, once with runc as control and once
//! with Bulkhead, side by side.
//!
//! The exit code is 1 when a spec that passes with runc does not pass with Bulkhead, unless it is one of the refusals
//! of [`rules::RULES`] and was refused in the words listed there.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a judge: a step that fails ends it by saying so"
)]

mod images;
mod rules;
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
    let selection = match Selection::parse("conformance", &arguments) {
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
    println!("CRI validation suite {}, {}\n", suite.version(), suite.selection());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let quiet = Options::default().with("sandboxer", "log_level", "\"info\"");
    let mut runs = Vec::new();
    for (handler, options, at_once) in [(RUNC, Options::control(), cores), (BULKHEAD, quiet, slots::count())]
    {
        let node = match Node::start(Options { host_ports: true, ..options }).await {
            Ok(node) => node,
            Err(why) => return cannot(&why),
        };
        images::import(&node, &suite).await;
        let before = Snapshot::take(&node).await;
        let start = Instant::now();
        let mut specs = suite.run(&node, handler, at_once).await;
        println!("{handler}: {} specs, {at_once} at a time, in {} s", specs.len(), start.elapsed().as_secs());
        if handler == BULKHEAD {
            // A spec that fails half-way leaves mounts of its own in its scratch folder.
            let scratch = suite::scratch(&node).display().to_string();
            specs.push(audit(&node, &before, &[scratch]).await);
        }
        runs.push(specs);
    }
    let [runc, bulkhead] = runs.as_slice() else { unreachable!("two runs") };
    conclude(&rules::RULES, runc, bulkhead, suite.folder())
}
