//! Whoever calls or goes away while a pod comes up is answered at once, and nothing is left.

use std::time::{Duration, Instant};

use vmm_actors::sandbox::SandboxError;
use vmm_actors::testing::{FakeDriver, Fault};

use crate::node::{Node, Service, cause, sandbox};

/// An answer that waits for nothing but processes being killed, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(8);

type Starting = tokio::task::JoinHandle<Result<vmm_actors::sandbox::Started, SandboxError>>;

/// A pod that hangs while its Start waits.
async fn hanging(node: &Node, fault: Fault) -> (Service, Starting) {
    let service = node.serve(FakeDriver::default().then(fault));
    service.create("p").await.unwrap();
    let sandboxes = service.sandboxes.clone();
    let start = tokio::spawn(async move { sandboxes.start(&sandbox("p")).await });
    service.until("p", "starting").await;
    // So that the fault is reached: what comes before it takes milliseconds.
    tokio::time::sleep(Duration::from_millis(100)).await;
    (service, start)
}

/// A pod of which Create and then Start were called so long ago.
async fn under_way(node: &Node, service: &Service, since: Duration) -> Starting {
    let (sandboxes, request) = (service.sandboxes.clone(), node.request("p"));
    let running = tokio::spawn(async move {
        sandboxes.create(request).await?;
        sandboxes.start(&sandbox("p")).await
    });
    tokio::time::sleep(since).await;
    running
}

async fn at_once<T>(what: &str, work: impl Future<Output = T>) -> T {
    let begin = Instant::now();
    let result = work.await;
    assert!(begin.elapsed() < AT_ONCE, "{what} took {:?}", begin.elapsed());
    result
}

const WHERE_IT_HANGS: [Fault; 3] = [Fault::LaunchHangs, Fault::NeverAnnounces, Fault::SetupHangs];

#[actix::test]
async fn stop_ends_a_start_under_way_wherever_it_is() {
    for fault in WHERE_IT_HANGS {
        let Some(node) = Node::new() else { return };
        let (service, start) = hanging(&node, fault).await;
        at_once("Status", service.status("p")).await.unwrap();
        at_once("Stop", service.stop("p")).await;
        let cause = cause(start.await.unwrap().unwrap_err());
        assert_eq!(cause.reason, "it was stopped while it started");
        assert!(matches!(service.status("p").await, Err(SandboxError::NotFound(_))));
        node.assert_nothing_left();
        service.run("p").await.unwrap();
        service.shutdown("p").await;
        node.assert_nothing_left();
    }
}

#[actix::test]
async fn shutdown_ends_a_start_under_way_wherever_it_is() {
    for fault in WHERE_IT_HANGS {
        let Some(node) = Node::new() else { return };
        let (service, start) = hanging(&node, fault).await;
        at_once("Shutdown", service.shutdown("p")).await;
        cause(start.await.unwrap().unwrap_err());
        node.assert_nothing_left();
    }
}

#[actix::test]
async fn a_start_whose_caller_went_away_is_undone() {
    for fault in WHERE_IT_HANGS {
        let Some(node) = Node::new() else { return };
        let (service, start) = hanging(&node, fault).await;
        start.abort();
        at_once("Abandon", service.sandboxes.abandon(&sandbox("p"))).await;
        service.until_gone("p").await;
        node.assert_nothing_left();
    }
}

#[actix::test]
async fn whenever_the_caller_goes_away_nothing_is_left() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::new(Duration::from_millis(10)));
    for millis in 0..40 {
        let running = under_way(&node, &service, Duration::from_millis(millis * 2)).await;
        running.abort();
        // As the controller does: it may have come up at the same moment.
        service.sandboxes.abandon(&sandbox("p")).await;
        service.sandboxes.orphan(&sandbox("p")).await;
        service.until_gone("p").await;
        node.assert_nothing_left();
    }
}

#[actix::test]
async fn whenever_shutdown_comes_nothing_is_left() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::new(Duration::from_millis(10)));
    for millis in 0..40 {
        let running = under_way(&node, &service, Duration::from_millis(millis * 2)).await;
        at_once("Shutdown", service.shutdown("p")).await;
        // A Create may have come after the Shutdown; a Start cannot.
        drop(running.await.unwrap());
        service.shutdown("p").await;
        node.assert_nothing_left();
    }
}

#[actix::test]
async fn a_sandbox_that_nobody_starts_is_undone() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    service.create("p").await.unwrap();
    service.until("p", "created").await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(4 * 60)).await;
    tokio::time::resume();
    assert_eq!(service.status("p").await.unwrap().state, "created", "containerd may still pull an image");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(2 * 60)).await;
    tokio::time::resume();
    service.until_gone("p").await;
    node.assert_nothing_left();
}
