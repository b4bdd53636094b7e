//! Mounts, devices, cgroups and limits of a container.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use bulkhead_tests::cri::{Container, Cri, mount};
use bulkhead_tests::image::{self, Image};
use k8s_cri::v1 as api;

use crate::security::privileged_pod;
use crate::stage::{Stage, stage};

/// An image as distributions make them: its /etc/resolv.conf leads to a file that only a running system has.
const LINKS: &str = "bulkhead.test/links:1";

pub(super) fn privileged(mut config: api::ContainerConfig) -> api::ContainerConfig {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    config
}

/// Of VMs alone: the control's containers have this machine's cgroup version, and only version 2 forbids processes in a
/// cgroup that hands controllers down.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_makes_cgroups_of_its_own_can_be_entered_measured_changed_and_stopped() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let pod = cri.try_run_pod(privileged_pod(cri, "cgroups")).await.unwrap();
    // As systemd and dockerd do.
    let script = "cd /sys/fs/cgroup && mkdir init && for p in $(cat cgroup.procs); do echo $p > init/cgroup.procs; done; \
        echo +memory +pids > cgroup.subtree_control && echo moved && exec sleep 1000";
    let container = cri.start(&pod, privileged(Cri::shell("nested", script))).await;
    bulkhead_tests::wait::expect("the move", Duration::from_secs(20), async || {
        (container.log().stdout == "moved\n").then_some(())
    })
    .await;
    assert_eq!(cri.exec(&container.id, "cat /proc/self/cgroup").await, "0::/init\n");
    assert_eq!(cri.exec(&container.id, "cat /proc/1/cgroup").await, "0::/init\n");
    let stats = api::ContainerStatsRequest { container_id: container.id.clone() };
    let stats = cri.runtime().container_stats(stats).await.unwrap().into_inner().stats.unwrap();
    let memory = stats.memory.unwrap().working_set_bytes.unwrap().value;
    assert!(memory > 0, "what is in the cgroups below counts");
    let update = api::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(api::LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() }),
        ..Default::default()
    };
    cri.runtime().update_container_resources(update).await.unwrap();
    assert_eq!(cri.exec(&container.id, "cat /sys/fs/cgroup/memory.max").await, format!("{}\n", 64 << 20));
    cri.stop(&container.id, 0).await;
    assert_eq!(cri.wait_exit(&container.id).await.exit_code, 137);
    stage.end(&pod).await;
}

/// An image whose root has links on the way to what is mounted, and to its working directory.
async fn import_links(stage: &Stage) {
    let dir = stage.node.dir().join("links");
    let root = dir.join("root");
    image::fill_root(&root, &stage.node.base().busybox);
    std::fs::create_dir(root.join("var")).unwrap();
    symlink("/run/systemd/resolve/stub-resolv.conf", root.join("etc/resolv.conf")).unwrap();
    symlink("../nowhere", root.join("var/run2")).unwrap();
    symlink("/data", root.join("into-volume")).unwrap();
    let image = Image { name: LINKS.into(), command: vec!["/bin/sh".into()], ..Image::default() };
    image::archive(&dir.join("links.tar"), &root, &[image]);
    image::import_archive(&stage.node, &dir.join("links.tar"), &[LINKS]).await;
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn links_on_the_way_to_mounts_and_working_directory_stay_in_the_root() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    import_links(&stage).await;
    let volume = tempfile::tempdir().unwrap();
    std::fs::write(volume.path().join("file"), "in the volume\n").unwrap();
    let mut config = cri.pod_config("links");
    config.dns_config = Some(api::DnsConfig { servers: vec!["10.1.2.3".into()], ..Default::default() });
    let pod = cri.try_run_pod(config).await.unwrap();
    let script = "pwd -P; cat /etc/resolv.conf /nowhere/volume/file /var/run2/volume/file; sleep 1000";
    let mut config = Cri::shell("links", script);
    config.image = Some(api::ImageSpec { image: LINKS.into(), ..Default::default() });
    config.working_dir = "/into-volume/made".into();
    config.mounts = vec![mount(volume.path(), "/data"), mount(volume.path(), "/var/run2/volume")];
    let container = cri.start(&pod, config).await;
    let expected = "/data/made\nnameserver 10.1.2.3\nin the volume\nin the volume\n";
    bulkhead_tests::wait::expect("the container's output", Duration::from_secs(20), async || {
        let log = container.log();
        assert_eq!(log.stderr, "");
        (log.stdout == expected).then_some(())
    })
    .await;
    assert!(volume.path().join("made").is_dir(), "the working directory is the volume's");
    assert!(!stage.node.inside("/nowhere").exists() && !stage.node.inside("/run/systemd/resolve").exists());
    cri.exec(&container.id, "test -L /etc/resolv.conf && test -L /var/run2").await;
    stage.end(&pod).await;
}

fn device(path: &str) -> api::Device {
    api::Device { container_path: path.into(), host_path: path.into(), permissions: "rwm".into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn tun_and_fuse_are_the_guests_own() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.try_run_pod(privileged_pod(cri, "devices")).await.unwrap();
    let open = "exec 3<>/dev/net/tun && echo tun; exec 4<>/dev/fuse && echo fuse";
    let mut asking = Cri::shell("asking", "sleep 1000");
    asking.devices = vec![device("/dev/net/tun"), device("/dev/fuse")];
    let asking = cri.start(&pod, asking).await;
    assert_eq!(cri.exec(&asking.id, open).await, "tun\nfuse\n", "an ordinary container that asks");
    let mighty = cri.start(&pod, privileged(Cri::shell("mighty", "sleep 1000"))).await;
    assert_eq!(cri.exec(&mighty.id, open).await, "tun\nfuse\n", "a privileged container");
    let plain = cri.start(&pod, Cri::shell("plain", "sleep 1000")).await;
    let (code, out, _) = cri.try_exec(&plain.id, &["/bin/sh", "-c", open]).await.unwrap();
    assert!(code != 0 && out.is_empty(), "nobody else has them: {out}");
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_mount_targets_and_mounts_over_mounts_hold() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let dir = tempfile::tempdir().unwrap();
    let volume = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("name"), name).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        path
    };
    let odd = ["a blank", "a:colon", "a,comma", "a\\backslash", "a\"quote'", "a\nnewline", "täglich"];
    let mut config = Cri::shell("odd", "sleep 1000");
    for (number, name) in odd.iter().enumerate() {
        config.mounts.push(mount(&volume(&format!("v{number}")), &format!("/m/{name}")));
    }
    let (first, second, outer, inner) = (volume("first"), volume("second"), volume("outer"), volume("inner"));
    std::fs::create_dir(outer.join("inner")).unwrap();
    config.mounts.push(mount(&first, "/twice"));
    config.mounts.push(mount(&second, "/twice"));
    config.mounts.push(api::Mount { readonly: true, ..mount(&outer, "/outer") });
    config.mounts.push(mount(&inner, "/outer/inner"));
    let pod = cri.run_pod("odd").await;
    let container = cri.start(&pod, config).await;
    for (number, name) in odd.iter().enumerate() {
        let path = format!("/m/{name}/name");
        let answer = cri.try_exec(&container.id, &["/bin/cat", &path]).await.unwrap();
        assert_eq!(answer, (0, format!("v{number}"), String::new()), "{name:?}");
    }
    assert_eq!(cri.exec(&container.id, "cat /twice/name").await, "second");
    let write = "touch /outer/x 2>/dev/null || echo read-only; touch /outer/inner/x && echo writable";
    assert_eq!(cri.exec(&container.id, write).await, "read-only\nwritable\n");
    assert!(inner.join("x").exists() && !outer.join("x").exists());
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_memory_and_no_huge_pages_run_or_say_why() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("small").await;
    for mebibytes in [4, 8, 16] {
        let name = format!("m{mebibytes}");
        let mut config = Cri::shell(&name, "echo runs; exec sleep 1000");
        let resources = config.linux.as_mut().unwrap().resources.get_or_insert_default();
        resources.memory_limit_in_bytes = mebibytes << 20;
        // As kubelet sends them.
        for size in ["2MB", "1GB"] {
            resources.hugepage_limits.push(api::HugepageLimit { page_size: size.into(), limit: 0 });
        }
        let said = match cri.try_create(&pod, config).await {
            Err(status) => status.message().to_owned(),
            Ok(container) => match cri.try_start(&container.id).await {
                Err(status) => status.message().to_owned(),
                Ok(()) => {
                    bulkhead_tests::wait::expect("the container runs", Duration::from_secs(20), async || {
                        (container.log().stdout == "runs\n").then_some(())
                    })
                    .await;
                    "memory is enough".to_owned()
                }
            },
        };
        assert!(said.contains("memory"), "{mebibytes} MiB: {said}");
    }
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_an_upper_layer_of_an_overlay_with_user_attributes() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let volume = tempfile::tempdir().unwrap();
    let pod = cri.try_run_pod(privileged_pod(cri, "layers")).await.unwrap();
    let mut config = privileged(Cri::shell("layers", "sleep 1000"));
    config.mounts = vec![mount(volume.path(), "/v")];
    let container = cri.start(&pod, config).await;
    expect_layers(cri, &container, ",userxattr").await;
    stage.end(&pod).await;
}

/// An overlay whose upper layer is in `/v` works, with whiteouts, opaque directories and renames.
pub(super) async fn expect_layers(cri: &Cri, container: &Container, option: &str) {
    let script = format!(
        "set -e; cd /v; mkdir -p lower/dir upper work merged; echo old > lower/gone; echo old > lower/changed
        echo old > lower/dir/inner; ln -s changed lower/link
        mount -t overlay layers -o lowerdir=lower,upperdir=upper,workdir=work{option} merged
        cd merged; rm gone; echo new > changed; rm -r dir; mkdir dir; echo new > dir/fresh; mv link moved
        ls; ls dir; cat changed dir/fresh moved; cd ..; umount merged; cat lower/gone lower/changed lower/dir/inner"
    );
    let shown = cri.exec(&container.id, &script).await;
    assert_eq!(shown, "changed\ndir\nmoved\nfresh\nnew\nnew\nnew\nold\nold\nold\n");
}
