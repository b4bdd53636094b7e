//! Raw block volumes: block devices of the node as devices of a container.

use std::time::Duration;

use bulkhead_tests::cri::{Container, Cri, Pod};
use bulkhead_tests::loop_device::LoopDevice;
use bulkhead_tests::node::Options;
use bulkhead_tests::{report, wait};
use k8s_cri::v1 as api;
use nix::sys::signal::Signal;

use crate::stage::{Stage, VMM, control_run, stage};

/// As kubelet writes it for `volumeMode: Block`, and for the same with `readOnly: true`.
const WRITABLE: &str = "mrw";
const READ_ONLY: &str = "r";

const SIZE: u64 = 4 << 20;

fn device(at: &LoopDevice, container: &str, permissions: &str) -> api::Device {
    api::Device {
        host_path: at.path().display().to_string(),
        container_path: container.to_owned(),
        permissions: permissions.to_owned(),
    }
}

fn config(name: &str, script: &str, devices: Vec<api::Device>) -> api::ContainerConfig {
    api::ContainerConfig { devices, ..Cri::shell(name, script) }
}

fn idle(name: &str, devices: Vec<api::Device>) -> api::ContainerConfig {
    config(name, "sleep 1000", devices)
}

/// A block device of the node, or the end of the test.
macro_rules! disk {
    ($stage:expr, $name:literal, $($option:literal),*) => {
        match LoopDevice::make(&$stage.node.dir().join($name), SIZE, &[$($option),*]) {
            Ok(device) => device,
            Err(why) => return report::skipped(std::thread::current().name().unwrap_or_default(), &why),
        }
    };
}

/// Whether the pod's VM has the device; not asked of a runtime without VMs.
fn expect_in_vm(stage: &Stage, disk: &LoopDevice, wanted: bool) {
    if !control_run() {
        let vmm = stage.the_one(VMM);
        assert_eq!(disk.is_open_in(vmm.pid), wanted, "{} in {}", disk.path().display(), vmm.describe());
    }
}

/// Disks of the guest's kernel, as any container sees them in its /sys; none where it is the node's kernel.
async fn guest_disks(cri: &Cri, container: &Container) -> String {
    if control_run() {
        String::new()
    } else {
        cri.exec(&container.id, "ls /sys/block | grep sd || true").await
    }
}

async fn gone(cri: &Cri, container: &Container) {
    cri.stop(&container.id, 0).await;
    cri.remove(&container.id).await;
}

async fn writes_reach_the_device_and_it_goes_with_its_container(options: Options) {
    let stage = stage!(Stage::any(options));
    let disk = disk!(stage, "disk",);
    let cri = stage.cri();
    let pod = cri.run_pod("block").await;
    let other = cri.start(&pod, idle("other", Vec::new())).await;
    for round in ["first", "second"] {
        let devices = vec![device(&disk, "/dev/xvda", WRITABLE)];
        let container = cri.start(&pod, idle(round, devices)).await;
        expect_in_vm(&stage, &disk, true);
        assert_eq!(cri.exec(&container.id, "blockdev --getsize64 /dev/xvda").await, format!("{SIZE}\n"));
        let script =
            format!("echo {round} in the pod | dd of=/dev/xvda bs=512 seek=8 conv=fsync 2>/dev/null");
        cri.exec(&container.id, &script).await;
        assert!(disk.content()[8 * 512..].starts_with(format!("{round} in the pod\n").as_bytes()), "{round}");
        gone(cri, &container).await;
        expect_in_vm(&stage, &disk, false);
        assert_eq!(guest_disks(cri, &other).await, "");
    }
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_volume_takes_what_a_pod_writes_and_goes_with_its_container() {
    writes_reach_the_device_and_it_goes_with_its_container(Options::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_volume_works_on_a_machine_with_pci() {
    let options = Options::default().with("qemu", "machine", "\"q35\"");
    writes_reach_the_device_and_it_goes_with_its_container(options).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_block_volume_cannot_be_written() {
    let stage = stage!(Stage::shared());
    let disk = disk!(stage, "disk",);
    let cri = stage.cri();
    let pod = cri.run_pod("reader").await;
    let devices = vec![device(&disk, "/dev/xvda", READ_ONLY)];
    let reader = cri.start(&pod, idle("reader", devices)).await;
    assert_eq!(cri.exec(&reader.id, "head -c 4 /dev/xvda | od -An -tx1").await.trim(), "00 00 00 00");
    crate::volumes::fails(cri, &reader, "echo x > /dev/xvda").await;
    if !control_run() {
        assert_eq!(
            cri.exec(&reader.id, "cat /sys/block/sd*/ro").await,
            "1\n",
            "not even the guest's kernel can"
        );
    }
    assert!(disk.content().iter().all(|byte| *byte == 0));
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_containers_share_a_block_volume() {
    let stage = stage!(Stage::shared());
    let disk = disk!(stage, "disk",);
    let cri = stage.cri();
    let pod = cri.run_pod("sharing").await;
    let one = cri.start(&pod, idle("one", vec![device(&disk, "/dev/xvda", WRITABLE)])).await;
    // Kubernetes allows any path.
    let two = cri.start(&pod, idle("two", vec![device(&disk, "/mnt/volume1", WRITABLE)])).await;
    cri.exec(&one.id, "echo hello > /dev/xvda").await;
    assert_eq!(cri.exec(&two.id, "test -b /mnt/volume1 && head -n 1 /mnt/volume1").await, "hello\n");
    if !control_run() {
        assert_eq!(guest_disks(cri, &two).await.lines().count(), 1, "one disk for both");
    }
    gone(cri, &one).await;
    expect_in_vm(&stage, &disk, true);
    cri.exec(&two.id, "echo still > /mnt/volume1").await;
    gone(cri, &two).await;
    expect_in_vm(&stage, &disk, false);
    assert!(disk.settled().starts_with(b"still\n"), "written without fsync");
    stage.end(&pod).await;
}

/// As without VMs: which pods may have a volume is for Kubernetes to say.
#[tokio::test(flavor = "multi_thread")]
async fn two_pods_have_one_block_volume() {
    let stage = stage!(Stage::shared());
    let disk = disk!(stage, "disk",);
    let cri = stage.cri();
    let (here, there) = (cri.run_pod("here").await, cri.run_pod("there").await);
    let devices = || vec![device(&disk, "/dev/xvda", WRITABLE)];
    let one = cri.start(&here, idle("one", devices())).await;
    let two = cri.start(&there, idle("two", devices())).await;
    for (writer, reader, word) in [(&one, &two, "first"), (&two, &one, "second")] {
        cri.exec(&writer.id, &format!("echo {word} | dd of=/dev/xvda conv=fsync 2>/dev/null")).await;
        assert_eq!(cri.exec(&reader.id, "head -n 1 /dev/xvda").await, format!("{word}\n"));
    }
    // What was not synced is written when the pod is stopped.
    cri.exec(&one.id, "echo last > /dev/xvda").await;
    cri.end_pod(&here).await;
    assert!(disk.settled().starts_with(b"last\n"));
    assert_eq!(cri.exec(&two.id, "head -n 1 /dev/xvda").await, "last\n");
    stage.end(&there).await;
}

async fn refused(cri: &Cri, pod: &Pod, config: api::ContainerConfig, says: &[&str]) {
    let error = match cri.try_create(pod, config).await {
        Err(status) => status.message().to_owned(),
        Ok(container) => {
            let status = cri.try_start(&container.id).await.expect_err("it starts").message().to_owned();
            cri.remove(&container.id).await;
            status
        }
    };
    assert!(says.iter().all(|part| error.contains(part)), "{says:?} in {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_with_a_block_volume_leaves_none() {
    let stage = stage!(Stage::shared_vm());
    let disk = disk!(stage, "disk",);
    let cri = stage.cri();
    let pod = cri.run_pod("failing").await;
    let log = api::Device {
        host_path: "/dev/kmsg".into(),
        container_path: "/dev/kmsg".into(),
        permissions: "rwm".into(),
    };
    let char_device = idle("char", vec![device(&disk, "/dev/xvda", WRITABLE), log.clone()]);
    refused(cri, &pod, char_device, &["/dev/kmsg (c 1:11)", "only block devices"]).await;
    for path in [stage.node.dir().join("disk"), stage.node.dir().join("not-there")] {
        let host_path = path.display().to_string();
        let says = host_path.clone();
        let file = api::Device { host_path, ..log.clone() };
        refused(cri, &pod, idle("file", vec![file]), &[&says]).await;
    }
    let mut missing = idle("missing", vec![device(&disk, "/dev/xvda", WRITABLE)]);
    missing.command = vec!["/no/such/program".into()];
    refused(cri, &pod, missing, &["/no/such/program"]).await;
    expect_in_vm(&stage, &disk, false);
    let container = cri.start(&pod, idle("fine", vec![device(&disk, "/dev/xvda", WRITABLE)])).await;
    assert_eq!(guest_disks(cri, &container).await.lines().count(), 1);
    gone(cri, &container).await;
    stage.end(&pod).await;
}

/// The node's own disks are none of a privileged container's, the one that it asks for is.
#[tokio::test(flavor = "multi_thread")]
async fn a_privileged_container_has_the_block_volume_that_it_asks_for_and_no_other() {
    let stage = stage!(Stage::shared_vm());
    let disk = disk!(stage, "disk",);
    let cri = stage.cri();
    let mut pod = cri.pod_config("privileged");
    pod.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let pod = cri.try_run_pod(pod).await.unwrap();
    let privileged = |mut config: api::ContainerConfig| {
        config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
        config
    };
    let plain = cri.start(&pod, privileged(idle("plain", Vec::new()))).await;
    expect_in_vm(&stage, &disk, false);
    assert_eq!(guest_disks(cri, &plain).await, "");
    let devices = vec![device(&disk, "/dev/xvda", WRITABLE)];
    let asking = cri.start(&pod, privileged(idle("asking", devices))).await;
    assert_eq!(guest_disks(cri, &asking).await.lines().count(), 1);
    cri.exec(&asking.id, "mkdir /m && mke2fs -q /dev/xvda && mount -t ext4 /dev/xvda /m && echo x > /m/file")
        .await;
    // It goes with its file system still mounted, and what was written is there.
    gone(cri, &asking).await;
    expect_in_vm(&stage, &disk, false);
    let reader =
        cri.start(&pod, privileged(idle("reader", vec![device(&disk, "/dev/xvda", WRITABLE)]))).await;
    assert_eq!(cri.exec(&reader.id, "mkdir /m && mount -t ext4 /dev/xvda /m && cat /m/file").await, "x\n");
    stage.end(&pod).await;
}

/// Failures that users of other sandboxed runtimes have reported (the table in `main.rs`).
mod reported {
    use super::*;

    /// An init container that formats or fills a volume need not call fsync: its end is enough.
    #[tokio::test(flavor = "multi_thread")]
    async fn kata_12689_an_app_container_finds_what_its_init_container_wrote() {
        let stage = stage!(Stage::shared());
        let disk = disk!(stage, "disk", "--sector-size", "4096");
        let cri = stage.cri();
        let pod = cri.run_pod("init").await;
        let script = "yes from-init | dd of=/dev/xvda bs=4096 count=256 iflag=fullblock 2>/dev/null";
        let devices = || vec![device(&disk, "/dev/xvda", WRITABLE)];
        let init = cri.start(&pod, config("init", script, devices())).await;
        assert_eq!(cri.wait_exit(&init.id).await.exit_code, 0);
        // Stopped, as kubelet leaves it, and not removed.
        expect_in_vm(&stage, &disk, false);
        assert!(disk.settled()[..1 << 20].chunks(10).all(|line| b"from-init\n".starts_with(line)));
        let app = cri.start(&pod, idle("app", devices())).await;
        let sum = "dd if=/dev/xvda bs=4096 count=256 2>/dev/null | uniq -c | sed 's/^ *//'";
        assert_eq!(cri.exec(&app.id, sum).await, "104857 from-init\n1 from-i\n");
        if !control_run() {
            let size = cri.exec(&app.id, "cat /sys/block/sd*/queue/logical_block_size").await;
            assert_eq!(size, "4096\n", "as on the node");
        }
        gone(cri, &app).await;
        expect_in_vm(&stage, &disk, false);
        stage.end(&pod).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn kuasar_49_a_restarted_service_unplugs_what_its_predecessor_plugged_in() {
        let mut stage = stage!(Stage::vm(Options::default()));
        let disk = disk!(stage, "disk",);
        let pod = stage.cri().run_pod("restart").await;
        let devices = || vec![device(&disk, "/dev/xvda", WRITABLE)];
        let one = stage.cri().start(&pod, idle("one", devices())).await;
        stage.node.stop_sandboxer(Signal::SIGKILL).await;
        stage.cri().exec(&one.id, "echo alone | dd of=/dev/xvda conv=fsync 2>/dev/null").await;
        assert!(disk.content().starts_with(b"alone\n"));
        stage.node.start_sandboxer().await;
        let cri = stage.cri();
        // containerd dials a sandboxer that was away again after up to 3 s.
        let reached = wait::expect("containerd reaches the sandboxer", Duration::from_secs(10), async || {
            cri.pod_status(&pod.id).await.ok()
        });
        reached.await;
        let two = cri.start(&pod, idle("two", devices())).await;
        assert_eq!(
            guest_disks(cri, &two).await.lines().count(),
            1,
            "the disk is known, and not plugged in again"
        );
        gone(cri, &one).await;
        assert_eq!(cri.exec(&two.id, "head -n 1 /dev/xvda").await, "alone\n");
        expect_in_vm(&stage, &disk, true);
        gone(cri, &two).await;
        expect_in_vm(&stage, &disk, false);
        stage.end(&pod).await;
    }
}
