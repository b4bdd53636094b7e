//! A runtime upgrade: pods that an earlier version started live on under this one. `.ci/upgrade REVISION` builds that
//! version and runs these tests.

use std::path::PathBuf;

use bulkhead_tests::cri::Cri;
use bulkhead_tests::node::Options;
use bulkhead_tests::peers::Product;
use nix::sys::signal::Signal;

use crate::restarts::Counting;
use crate::stage::{Stage, VMM, stage};

/// The programs and the guest of the earlier version, with the peers of this one.
fn earlier(now: &Product) -> Product {
    let of = |key: &str| PathBuf::from(std::env::var_os(key).unwrap_or_else(|| panic!("{key} is not set")));
    let guest = of("BULKHEAD_EARLIER_GUEST_DIR");
    Product {
        bin: of("BULKHEAD_EARLIER_BIN_DIR"),
        kernel: guest.join("vmlinux"),
        image: guest.join("bulkhead-guest.cpio"),
        ..now.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a build of an earlier version: .ci/upgrade REVISION"]
async fn pods_of_an_earlier_version_live_on_and_new_ones_start() {
    let mut stage = stage!(Stage::vm(Options::default()));
    let now = stage.node.product().clone();

    stage.node.stop_sandboxer(Signal::SIGTERM).await;
    stage.node.set_product(earlier(&now));
    stage.node.start_sandboxer().await;
    let counting = Counting::start(&stage).await;
    let stopped = stage.cri().run_pod("stopped").await;
    stage.cri().stop_pod(&stopped).await;
    let vmm = stage.the_one(VMM);

    stage.node.stop_sandboxer(Signal::SIGTERM).await;
    counting.expect_more(10).await;
    stage.node.set_product(now);
    stage.node.start_sandboxer().await;
    assert_eq!(stage.the_one(VMM).pid, vmm.pid);
    counting.expect_well(&stage).await;
    assert!(!stage.cri().pod_ready(&stopped.id).await);
    stage.cri().remove_pod(&stopped).await;

    let new = stage.cri().run_pod("new").await;
    let container = stage.cri().start(&new, Cri::shell("new", "sleep 1000")).await;
    assert_eq!(stage.cri().exec(&container.id, "echo new").await, "new\n");
    stage.cri().end_pod(&new).await;
    counting.end(&stage).await;
}
