//! Pods of several profiles on one node, and one that outlives its profile.

use std::collections::BTreeMap;

use bulkhead_config::{ProfileName, Settings};
use vmm_actors::sandbox::CreateSandbox;
use vmm_actors::sandbox::state::Class;
use vmm_actors::testing::FakeDriver;

use crate::node::{Node, cause, sandbox};
use crate::predecessor::{Predecessor, Task};
use crate::restarts::guest;

/// Where containerd would ask for pods of the profile.
const SOCKET: &str = "/run/bulkhead/big.sock";

fn big() -> ProfileName {
    ProfileName::new("big").unwrap()
}

/// The node's settings with a profile of larger VMs.
fn with_big(settings: &Settings) -> Settings {
    let mut profile = settings.clone();
    profile.sandboxer.listen = SOCKET.into();
    profile.vm.memory_mib = 1024.try_into().unwrap();
    profile.vm.vcpus = 2.try_into().unwrap();
    Settings { profiles: BTreeMap::from([(big(), profile)]), ..settings.clone() }
}

#[actix::test]
async fn each_pod_is_made_by_the_profile_of_its_request() {
    let Some(mut node) = Node::new() else { return };
    node.place.settings = with_big(&node.settings);
    let service = node.serve(FakeDriver::default());
    service.create("plain").await.unwrap();
    service.sandboxes.create(CreateSandbox { profile: big(), ..node.request("large") }).await.unwrap();
    for (id, profile, vcpus, memory_mib) in [("plain", "default", 1, 256), ("large", "big", 2, 1024)] {
        service.start(id).await.unwrap();
        let status = service.status(id).await.unwrap();
        assert_eq!(status.profile, profile);
        let launched = service.driver.size(&node.vm_dir(id)).unwrap();
        assert_eq!((launched.vcpus.get(), launched.memory_mib.get()), (vcpus, memory_mib), "{id}");
        assert_eq!(status.size, launched);
    }
    for id in ["plain", "large"] {
        service.stop(id).await;
        service.shutdown(id).await;
    }
    node.assert_nothing_left();
}

#[actix::test]
async fn a_running_pod_outlives_its_profile_and_no_new_one_is_made_by_it() {
    let Some(mut node) = Node::new() else { return };
    let without = node.settings.clone();
    node.place.settings = with_big(&without);
    node.place.profile = big();
    Predecessor::of(&node, Task::Run).kill();
    let guest = guest(&node.record("p").unwrap());

    node.place.settings = without;
    node.place.profile = ProfileName::default();
    let service = node.serve(FakeDriver::default());
    assert_eq!(service.report.adopted, [sandbox("p")]);
    let sockets = BTreeMap::from([(SOCKET.into(), big())]);
    assert_eq!(service.report.controllers, sockets, "containerd goes on to ask there");
    let status = service.status("p").await.unwrap();
    assert_eq!((status.profile.as_str(), status.size.memory_mib.get()), ("big", 1024));

    let request = CreateSandbox { profile: big(), ..node.request("late") };
    let refused = cause(service.sandboxes.create(request).await.unwrap_err());
    assert_eq!(refused.class, Class::Invalid);
    assert!(
        refused.reason.contains("no profile big in the settings any more; add [profile.big]"),
        "{refused:?}"
    );
    service.run("new").await.unwrap();
    assert_eq!(service.status("new").await.unwrap().size.memory_mib.get(), 256);

    for id in ["p", "new"] {
        service.stop(id).await;
        service.shutdown(id).await;
    }
    assert!(guest.calls().contains(&"Shutdown".to_owned()), "{:?}", guest.calls());
    node.assert_nothing_left();
}
