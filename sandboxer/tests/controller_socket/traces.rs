//! Traces of the calls, as a collector gets them.

use std::collections::BTreeSet;
use std::os::unix::net::UnixListener;
use std::path::Path;

use bulkhead_tests::otlp::{Collector, Span};
use bulkhead_tests::wait;
use tonic::Request;

use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

fn service(endpoint: &Path) -> Service {
    Service::start_with(&format!("[traces]\nendpoint = \"unix://{}\"\n", endpoint.display()))
}

fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("bh").tempdir_in("/tmp").unwrap()
}

/// A call as containerd makes it within a trace, which is kept (`01`) or not (`00`).
fn traced<T>(message: T, flags: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{CALLER}-{flags}").parse().unwrap());
    request
}

/// Ends the service, which sends what there is to the collector: a task of this test's runtime.
async fn end(service: &mut Service) {
    service.signal(Signal::SIGTERM);
    let ended = wait::expect("the service ends", LONG, async || service.process.try_wait().unwrap()).await;
    assert_eq!(ended.code(), Some(0), "{}", service.log());
}

fn expect_below_caller(span: &Span) {
    assert_eq!((span.trace.as_str(), span.parent.as_str()), (TRACE, CALLER), "{span:?}");
    assert!(span.is_server, "{span:?}");
    assert_eq!(span.attribute("rpc.system"), "grpc", "{span:?}");
    assert_eq!(span.attribute("rpc.service"), "containerd.services.sandbox.v1.Controller", "{span:?}");
}

#[tokio::test]
async fn a_call_is_seen_below_its_caller_with_its_outcome() {
    let dir = directory();
    let collector = Collector::on_socket(&dir.path().join("otel.sock"));
    let mut service = service(&dir.path().join("otel.sock"));
    let mut client = service.client().await;
    let sandbox_id = || "unseen".to_owned();
    let status = || ControllerStatusRequest { sandbox_id: sandbox_id(), ..Default::default() };
    client.status(traced(status(), "00")).await.unwrap_err();
    let wait = ControllerWaitRequest { sandbox_id: sandbox_id(), ..Default::default() };
    client.wait(traced(wait, "01")).await.unwrap_err();
    let sandbox_id = || "seen".to_owned();
    let stop = ControllerStopRequest { sandbox_id: sandbox_id(), ..Default::default() };
    client.stop(traced(stop, "01")).await.unwrap();
    let start = ControllerStartRequest { sandbox_id: sandbox_id(), ..Default::default() };
    client.start(traced(start, "01")).await.unwrap_err();
    client.create(traced(create("seen", None, "/proc/self/ns/net"), "01")).await.unwrap_err();
    let alone = ControllerShutdownRequest { sandbox_id: sandbox_id(), ..Default::default() };
    client.shutdown(alone).await.unwrap();

    end(&mut service).await;
    let spans = collector.spans();
    assert_eq!(spans.len(), 4, "{spans:#?}");
    let the_one =
        |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{spans:#?}"));
    let stop = the_one("sandbox.Stop");
    expect_below_caller(stop);
    assert_eq!(stop.attribute("rpc.method"), "Stop");
    assert_eq!((stop.attribute("rpc.grpc.status_code"), &stop.error), ("0", &None));
    let start = the_one("sandbox.Start");
    expect_below_caller(start);
    assert_eq!(
        (start.attribute("rpc.grpc.status_code"), &start.error),
        ("5", &None),
        "not found is an everyday answer"
    );
    let create = the_one("sandbox.Create");
    expect_below_caller(create);
    assert_eq!(create.attribute("rpc.grpc.status_code"), "3");
    assert!(create.error.as_ref().unwrap().contains("Create carries no options"), "{create:?}");
    let alone = the_one("sandbox.Shutdown");
    assert!(alone.parent.is_empty() && alone.trace != TRACE, "{alone:?}");
    for span in &spans {
        assert_eq!(span.attribute("sandbox.id"), "seen");
        assert_eq!(span.service(), "bulkhead-sandboxer");
        assert_eq!(span.resource["service.version"], env!("CARGO_PKG_VERSION"));
        assert!(!span.resource["host.name"].is_empty() && span.begin <= span.end, "{span:?}");
    }
    assert!(!service.log().contains("sandbox.Stop"), "traces are not for the log: {}", service.log());
}

#[tokio::test]
async fn a_pod_that_does_not_start_shows_the_step_that_failed() {
    let dir = directory();
    let collector = Collector::on_socket(&dir.path().join("otel.sock"));
    let mut service = service(&dir.path().join("otel.sock"));
    // The first step has no place for its record, and nothing of the pod is made.
    let records = service.dir.path().join("state/sandboxes");
    std::fs::remove_dir(&records).unwrap();
    std::fs::write(&records, "").unwrap();
    let mut client = service.client().await;
    let answer = client.create(traced(create("p", plain_pod(), "/proc/self/ns/net"), "01")).await;
    assert_eq!(refused(answer).code(), Code::ResourceExhausted);
    end(&mut service).await;

    let create = collector.expect("Create", |span| span.name == "sandbox.Create").await;
    expect_below_caller(&create);
    assert_eq!(create.attribute("rpc.grpc.status_code"), "8");
    assert_eq!((create.attribute("sandbox.id"), create.attribute("k8s.pod.name")), ("p", "web"));
    assert!(create.error.as_ref().unwrap().contains("cannot record the sandbox"), "{create:?}");
    let steps = collector.children(&create);
    let names: BTreeSet<&str> = steps.keys().map(String::as_str).collect();
    assert_eq!(names, BTreeSet::from(["record the intent", "release the sandbox"]), "{steps:#?}");
    let failed = &steps["record the intent"];
    assert!(failed.error.as_ref().unwrap().contains("state/sandboxes"), "{failed:?}");
    let release = &steps["release the sandbox"];
    assert_eq!((&release.error, release.attribute("sandbox.id")), (&None, "p"));
    assert!(release.end <= create.end, "Create answers when nothing is left");
    let parts = collector.children(release);
    for part in ["the VM", "virtiofsd", "mounts", "network", "the shim proxy", "cgroup", "directory"] {
        assert!(parts.contains_key(part), "{part}: {parts:#?}");
    }
}

#[tokio::test]
async fn a_collector_that_is_away_or_hangs_costs_one_warning() {
    let dir = directory();
    let (away, hangs) = (dir.path().join("away.sock"), dir.path().join("hangs.sock"));
    // Connections wait in its backlog, and nobody answers them.
    let _listener = UnixListener::bind(&hangs).unwrap();
    for endpoint in [away, hangs] {
        let mut service = service(&endpoint);
        let mut client = service.client().await;
        let stop = || ControllerStopRequest { sandbox_id: "p".into(), ..Default::default() };
        let warnings = |service: &Service| service.log().matches("traces are lost").count();
        let deadline = Instant::now() + LONG;
        while warnings(&service) == 0 {
            assert!(Instant::now() < deadline, "{endpoint:?}: {}", service.log());
            client.stop(stop()).await.unwrap();
            tokio::task::yield_now().await;
        }
        client.stop(stop()).await.unwrap();
        end(&mut service).await;
        assert_eq!(warnings(&service), 1, "{}", service.log());
    }
}
