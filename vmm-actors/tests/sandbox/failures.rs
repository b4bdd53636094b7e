//! Every step of coming up, failed: the caller hears which, nothing is left, and the same pod comes up afterwards.

use std::time::{Duration, Instant};

use vmm_actors::sandbox::CreateSandbox;
use vmm_actors::sandbox::state::{Cause, Class};
use vmm_actors::testing::{FakeDriver, Fault, write_program};

use crate::node::{Node, PATIENCE, Service, cause};

/// Tries to bring the pod up and says why it did not; by then nothing may be left.
async fn fails(node: &Node, service: &Service, request: CreateSandbox) -> Cause {
    let id = request.id.clone();
    let failed = match service.sandboxes.create(request).await {
        Ok(()) => service.sandboxes.start(&id).await.map(|_| ()),
        failed => failed,
    };
    let cause = cause(failed.unwrap_err());
    assert!(service.status("p").await.is_err(), "it is forgotten when its failure is told");
    node.assert_nothing_left();
    cause
}

/// The same pod comes up when nothing is wrong with it.
async fn comes_up(node: &Node, service: &Service) {
    service.run("p").await.unwrap();
    service.shutdown("p").await;
    node.assert_nothing_left();
}

async fn fails_then_comes_up(node: &Node, driver: FakeDriver) -> Cause {
    let service = node.serve(driver);
    let cause = fails(node, &service, node.request("p")).await;
    comes_up(node, &service).await;
    cause
}

fn says(cause: &Cause, class: Class, parts: &[&str]) {
    assert_eq!(cause.class, class, "{cause:?}");
    for part in parts {
        assert!(cause.reason.contains(part), "{part:?} is not in {:?}", cause.reason);
    }
}

#[actix::test]
async fn a_record_that_cannot_be_written_is_told_before_anything_is_made() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    let hidden = node.hide(&node.settings.sandboxer.state_dir.join("sandboxes"));
    let cause = fails(&node, &service, node.request("p")).await;
    says(&cause, Class::Exhausted, &["cannot record the sandbox", "p.json", "No such file"]);
    assert!(service.driver.launched().is_empty());
    hidden.show();
    comes_up(&node, &service).await;
}

fn shell(command: &str) {
    let status = std::process::Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

#[actix::test]
async fn a_full_or_read_only_disk_for_records_is_told_before_anything_is_made() {
    let spoilt = [
        // As much as goes onto it, whatever is left of the last block.
        ("dd if=/dev/zero of=$0/filler bs=512 2>/dev/null; true", "rm $0/filler", "No space left"),
        ("mount -o remount,ro $0", "mount -o remount,rw $0", "Read-only file system"),
    ];
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    let disk = node.settings.sandboxer.state_dir.join("sandboxes");
    let on_disk = |command: &str| shell(&command.replace("$0", &disk.display().to_string()));
    on_disk("mount -t tmpfs -o size=16k bulkhead-test $0");
    for (spoil, mend, says) in spoilt {
        on_disk(spoil);
        let cause = cause(service.create("p").await.unwrap_err());
        self::says(&cause, Class::Exhausted, &["cannot record the sandbox", "full or read-only", says]);
        assert!(node.record("p").is_none() && service.status("p").await.is_err());
        on_disk(mend);
        service.run("p").await.unwrap();
        // What has happened is told, whether it can be written down or not.
        on_disk(spoil);
        service.stop("p").await;
        assert_eq!(service.status("p").await.unwrap().state, "stopped");
        on_disk(mend);
        service.shutdown("p").await;
        assert!(node.record("p").is_none(), "{says}");
    }
    on_disk("umount $0");
    assert_eq!(service.driver.launched().len(), spoilt.len(), "a VM was started without a record");
    node.assert_nothing_left();
}

#[actix::test]
async fn a_running_record_that_cannot_be_written_undoes_the_start() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    service.create("p").await.unwrap();
    service.until("p", "created").await;
    let hidden = node.hide(&node.settings.sandboxer.state_dir.join("sandboxes"));
    let cause = cause(service.start("p").await.unwrap_err());
    says(&cause, Class::Exhausted, &["cannot write", "p.json"]);
    hidden.show();
    // Its intent was out of reach when it was to be deleted: a successor finds that there is nothing to undo.
    node.store().delete(&crate::node::sandbox("p")).unwrap();
    node.assert_nothing_left();
    comes_up(&node, &service).await;
}

#[actix::test]
async fn a_directory_that_cannot_be_made_is_named() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    let pods = node.settings.sandboxer.run_dir.join("s");
    let hidden = node.hide(&pods);
    std::fs::write(&pods, "in the way").unwrap();
    let cause = fails(&node, &service, node.request("p")).await;
    says(&cause, Class::Lost, &["cannot make the pod's directory", "/s/p"]);
    std::fs::remove_file(&pods).unwrap();
    hidden.show();
    comes_up(&node, &service).await;
}

#[actix::test]
async fn a_missing_network_namespace_is_named() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    let request = CreateSandbox { netns: "/nonexistent/netns".into(), ..node.request("p") };
    let cause = fails(&node, &service, request).await;
    says(&cause, Class::Invalid, &["cannot connect the pod's network", "/nonexistent/netns"]);
    comes_up(&node, &service).await;
}

#[actix::test]
async fn a_file_that_is_no_network_namespace_is_named() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    let request = CreateSandbox { netns: node.settings.shim.binary.clone(), ..node.request("p") };
    let cause = fails(&node, &service, request).await;
    says(&cause, Class::Invalid, &["cannot connect the pod's network", "bin/shim"]);
    comes_up(&node, &service).await;
}

#[actix::test]
async fn a_cgroup_parent_that_leaves_the_tree_is_refused() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    let mut request = node.request("p");
    request.pod.cgroup_parent = "/../../etc".to_owned();
    let cause = fails(&node, &service, request).await;
    says(&cause, Class::Invalid, &["/../../etc", "no cgroup path"]);
    comes_up(&node, &service).await;
}

#[actix::test]
async fn a_limit_that_the_kernel_refuses_is_named() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    let mut request = node.request("p");
    request.pod.resources.cpuset_cpus = "4095".to_owned();
    let cause = fails(&node, &service, request).await;
    says(&cause, Class::Lost, &["cannot make the pod's cgroup", "4095"]);
    comes_up(&node, &service).await;
}

#[actix::test]
async fn a_missing_virtiofsd_is_named_with_its_setting() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    let hidden = node.hide(&node.settings.virtiofsd.path);
    let cause = fails(&node, &service, node.request("p")).await;
    says(&cause, Class::Invalid, &["cannot start virtiofsd", "[virtiofsd] path", "bin/virtiofsd"]);
    hidden.show();
    comes_up(&node, &service).await;
}

#[actix::test]
async fn a_missing_shim_proxy_is_named_with_its_setting() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default());
    let hidden = node.hide(&node.settings.shim.binary);
    let cause = fails(&node, &service, node.request("p")).await;
    says(&cause, Class::Invalid, &["cannot start the shim proxy", "[shim] binary", "bin/shim"]);
    hidden.show();
    comes_up(&node, &service).await;
}

#[actix::test]
async fn a_virtiofsd_that_ends_at_once_has_its_last_words_told() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::new(Duration::from_millis(300)));
    let hidden = node.hide(&node.settings.virtiofsd.path);
    write_program(&node.root.path().join("bin"), "virtiofsd", "echo no such share; exit 9").unwrap();
    let cause = fails(&node, &service, node.request("p")).await;
    says(&cause, Class::Lost, &["virtiofsd ended unexpectedly", "exit code 9", "no such share"]);
    hidden.show();
    comes_up(&node, &service).await;
}

#[actix::test]
async fn a_shim_proxy_that_ends_at_once_has_its_last_words_told() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::new(Duration::from_millis(300)));
    let hidden = node.hide(&node.settings.shim.binary);
    write_program(&node.root.path().join("bin"), "shim", "echo oh no; exit 4").unwrap();
    let cause = fails(&node, &service, node.request("p")).await;
    says(&cause, Class::Lost, &["the shim proxy ended unexpectedly", "exit code 4", "oh no"]);
    hidden.show();
    comes_up(&node, &service).await;
}

#[actix::test]
async fn a_vmm_that_cannot_be_launched_is_told() {
    let Some(node) = Node::new() else { return };
    let cause = fails_then_comes_up(&node, FakeDriver::default().then(Fault::LaunchFails)).await;
    says(&cause, Class::Invalid, &["cannot boot the VM", "launch what is to fail"]);
}

#[actix::test]
async fn a_vmm_that_ends_at_once_has_its_last_words_told() {
    let Some(node) = Node::new() else { return };
    let fault = Fault::VmmExits("no such machine type".to_owned());
    let cause = fails_then_comes_up(&node, FakeDriver::default().then(fault)).await;
    says(&cause, Class::Lost, &["the VMM ended", "exit code 3", "no such machine type"]);
}

#[actix::test]
async fn a_silent_guest_is_given_up_in_time_with_its_console() {
    let Some(mut node) = Node::new() else { return };
    node.place.settings.guest.boot_timeout_secs = 1.try_into().unwrap();
    let service = node.serve(FakeDriver::default().then(Fault::NeverAnnounces));
    service.create("p").await.unwrap();
    std::fs::write(node.vm_dir("p").console(), "Kernel panic - not syncing: no init\n").unwrap();
    let begin = Instant::now();
    let cause = cause(service.start("p").await.unwrap_err());
    assert!(begin.elapsed() < PATIENCE, "took {:?}", begin.elapsed());
    says(&cause, Class::TimedOut, &["the guest did not come up", "within 1s", "Kernel panic"]);
    node.assert_nothing_left();
    comes_up(&node, &service).await;
}

#[actix::test]
async fn an_agent_of_another_release_is_refused() {
    let Some(node) = Node::new() else { return };
    let cause = fails_then_comes_up(&node, FakeDriver::default().then(Fault::ForeignAgent)).await;
    says(&cause, Class::Lost, &["the guest did not come up", "use the guest image of this release"]);
}

#[actix::test]
async fn an_announcement_that_is_none_is_refused() {
    let Some(node) = Node::new() else { return };
    let cause = fails_then_comes_up(&node, FakeDriver::default().then(Fault::AnnouncesGarbage)).await;
    says(&cause, Class::Lost, &["the guest did not come up", "no valid announcement"]);
}

#[actix::test]
async fn a_guest_that_cannot_become_the_pod_says_why() {
    let Some(node) = Node::new() else { return };
    let cause = fails_then_comes_up(&node, FakeDriver::default().then(Fault::SetupFails)).await;
    says(&cause, Class::Lost, &["the guest cannot become the pod", "told to fail"]);
}

#[actix::test]
async fn a_failure_before_start_is_released_at_once_and_told_to_the_start() {
    let Some(node) = Node::new() else { return };
    let service = node.serve(FakeDriver::default().then(Fault::SetupFails));
    service.create("p").await.unwrap();
    let failed = service.until("p", "failed").await;
    assert!(!failed.ready && failed.reason.unwrap().contains("told to fail"));
    let begin = Instant::now();
    while node.dir("p").path().exists() {
        assert!(begin.elapsed() < PATIENCE, "nothing is released before the start");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let cause = cause(service.start("p").await.unwrap_err());
    says(&cause, Class::Lost, &["told to fail"]);
    node.assert_nothing_left();
    comes_up(&node, &service).await;
}
