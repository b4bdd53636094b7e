//! The steps of coming up that Bulkhead itself counted, from the verbose Status.

use std::time::Duration;

use crate::controller::Controller;
use crate::cri::Pod;
use crate::node::Node;

/// One step of a pod's Create.
#[derive(Debug)]
pub struct Step {
    /// As the sandboxer calls it.
    pub name: String,
    /// Since Create began.
    pub begin: Duration,
    /// From its begin to its end.
    pub took: Duration,
}

/// The pod's steps, asked of the sandboxer: containerd's own PodSandboxStatus leaves out what it does not know.
pub async fn of(node: &Node, pod: &Pod) -> Vec<Step> {
    let status = Controller::new(&node.controller_socket())
        .status(&pod.id)
        .await
        .unwrap_or_else(|status| panic!("status: {status:?}"));
    let info = status.info.get("info").expect("a verbose status has an info");
    let info: serde_json::Value = serde_json::from_str(info).expect("the info is JSON");
    let steps = info["bulkhead"]["steps"].as_array().unwrap_or_else(|| panic!("no steps in {info}")).clone();
    let micros = |step: &serde_json::Value, key: &str| {
        Duration::from_micros(step[key].as_u64().unwrap_or_else(|| panic!("no {key} in {step}")))
    };
    steps
        .iter()
        .map(|step| Step {
            name: step["step"].as_str().expect("a step has a name").to_owned(),
            begin: micros(step, "begin_micros"),
            took: micros(step, "micros"),
        })
        .collect()
}
