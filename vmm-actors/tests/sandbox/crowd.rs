//! Many pods at once.

use std::time::{Duration, Instant};

use futures::future::join_all;
use vmm_actors::sandbox::CreateSandbox;
use vmm_actors::testing::{FakeDriver, Fault};

use crate::node::{Node, OwnNetns, PATIENCE, sandbox};

const PODS: usize = 50;

#[actix::test]
async fn a_stuck_pod_holds_up_none_of_fifty() {
    let Some(node) = Node::new() else { return };
    // Without links, one namespace serves them all.
    let empty = OwnNetns::without_links();
    let service = node.serve(FakeDriver::new(Duration::from_millis(20)).then(Fault::SetupHangs));
    service.create("stuck").await.unwrap();
    let stuck = {
        let sandboxes = service.sandboxes.clone();
        tokio::spawn(async move { sandboxes.start(&sandbox("stuck")).await })
    };
    service.until("stuck", "starting").await;

    let ids: Vec<String> = (0..PODS).map(|number| format!("p{number}")).collect();
    let run = |id: &String| {
        let request = CreateSandbox { netns: empty.path(), ..node.request(id) };
        let (sandboxes, id) = (service.sandboxes.clone(), sandbox(id));
        tokio::spawn(async move {
            sandboxes.create(request).await?;
            sandboxes.start(&id).await
        })
    };
    let running: Vec<_> = ids.iter().map(run).collect();
    let mut slowest = Duration::ZERO;
    while !running.iter().all(tokio::task::JoinHandle::is_finished) {
        let begin = Instant::now();
        assert_eq!(service.status("stuck").await.unwrap().state, "starting");
        service.sandboxes.list().await;
        slowest = slowest.max(begin.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(slowest < PATIENCE, "a Status took {slowest:?}");
    for started in join_all(running).await {
        started.unwrap().unwrap();
    }
    let list = service.sandboxes.list().await;
    assert_eq!(list.iter().filter(|snapshot| snapshot.ready).count(), PODS);
    println!("{PODS} pods came up; the slowest answer to a Status took {slowest:?}");

    join_all(ids.iter().map(|id| service.shutdown(id))).await;
    assert!(!stuck.is_finished());
    service.shutdown("stuck").await;
    stuck.await.unwrap().unwrap_err();
    node.assert_nothing_left();
}
