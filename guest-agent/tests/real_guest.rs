//! The agent as it is: in a real guest, spoken to over vsock as sandboxer and shim proxy do.
//!
//! Needs root, QEMU, virtiofsd, vhost-device-vsock and the guest image; says `skipped: why` without.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[allow(dead_code, reason = "streams are used once containers run")]
mod guest;

use bulkhead_protocol::agent::{PingRequest, ShutdownRequest};
use guest::{Guest, Machine, Parts, setup, soon};

#[tokio::test]
async fn it_boots_becomes_a_pod_and_ends() {
    let Some(parts) = Parts::find() else { return };
    for machine in [Machine::Microvm, Machine::Q35] {
        let mut guest = Guest::pod(machine, &parts).await;
        // Again, as after a lost answer.
        guest.agent.setup(soon(), &setup()).await.unwrap();
        let mut other = setup();
        other.hostname = "web-1".into();
        let refused = guest.agent.setup(soon(), &other).await.unwrap_err();
        assert!(refused.to_string().contains("pod-1"), "{refused}");

        let before = setup().host_time_nanos;
        let ping = guest.agent.ping(soon(), &PingRequest::new()).await.unwrap();
        let off = (ping.guest_time_nanos - before).abs();
        assert!(off < 2_000_000_000, "the guest's clock is {off} ns off");

        drop(guest.agent.shutdown(soon(), &ShutdownRequest::new()).await);
        guest.ended().await;
    }
}
