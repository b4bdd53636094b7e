//! Volumes in memory: an `emptyDir` with `medium: Memory` is a tmpfs for the pod's containers, as kubelet describes it.

use std::path::{Path, PathBuf};

use bulkhead_tests::cri::{Container, mount};
use k8s_cri::v1 as api;

use super::files::{expect_layers, privileged};
use crate::security::privileged_pod;
use crate::stage::{Stage, control_run, stage};
use crate::volumes::{expect_soon, fails, folder, read_only, sleeper};

/// A tmpfs of the node where kubelet has a pod's volumes.
async fn tmpfs(stage: &Stage, pod: &Path, volume: &str, options: &str) -> PathBuf {
    let at = folder(stage, pod.join("volumes").join(volume).to_str().unwrap());
    let name = at.display().to_string();
    stage.node.run(&["mount", "-t", "tmpfs", "-o", options, "tmpfs", &name]).await;
    at
}

/// One container writes, one reads, one has a part of it; a Secret beside it is the node's.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_in_memory_is_a_tmpfs_that_the_pods_containers_share() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let config = cri.pod_config("memory");
    let uid = config.metadata.as_ref().unwrap().uid.clone();
    let dir = Path::new("pods").join(uid);
    let volume = tmpfs(&stage, &dir, "kubernetes.io~empty-dir/cache", "size=4m,mode=2770,gid=2000").await;
    let secret = tmpfs(&stage, &dir, "kubernetes.io~secret/token", "size=1m,mode=755").await;
    // As kubelet prepares a subPath: made in the volume, mounted elsewhere.
    let part = folder(&stage, dir.join("volume-subpaths/cache/part/0").to_str().unwrap());
    let (inner, at) = (volume.join("deep/part").display().to_string(), part.display().to_string());
    stage.node.run(&["sh", "-c", &format!("mkdir -p -m 2770 {inner} && chgrp 2000 {inner}")]).await;
    stage.node.run(&["mount", "--bind", &inner, &at]).await;
    stage.node.run(&["sh", "-c", &format!("echo old > {}/token", secret.display())]).await;

    let pod = cri.try_run_pod(config).await.unwrap();
    let both = || vec![mount(&volume, "/cache"), read_only(&secret, "/token")];
    let of_group = |name: &str, mounts| {
        let mut container = sleeper(name, mounts);
        let security = container.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.run_as_user = Some(api::Int64Value { value: 1000 });
        security.run_as_group = Some(api::Int64Value { value: 1000 });
        security.supplemental_groups = vec![2000];
        container
    };
    let writer = cri.start(&pod, of_group("writer", both())).await;
    let look = "stat -f -c %t /cache; stat -c '%a %u:%g' /cache; df -k /cache | awk 'NR == 2 { print $2 }'";
    let printed = cri.exec(&writer.id, look).await;
    assert_eq!(printed, "1021994\n2770 0:2000\n4096\n", "tmpfs by its magic number, as kubelet made it");
    cri.exec(&writer.id, "echo written > /cache/file && ln -s /etc /cache/link").await;

    // Others of the pod have the same: inodes, sockets and locks with it.
    let reader = cri.start(&pod, sleeper("reader", vec![read_only(&volume, "/mnt")])).await;
    assert_eq!(cri.exec(&reader.id, "cat /mnt/file; stat -c %g /mnt/file").await, "written\n2000\n");
    let inode =
        async |container: &Container, path| cri.exec(&container.id, &format!("stat -c %i {path}")).await;
    assert_eq!(inode(&writer, "/cache/file").await, inode(&reader, "/mnt/file").await);
    let error = fails(cri, &reader, "touch /mnt/x").await;
    assert!(error.contains("Read-only"), "{error}");
    let sub = cri.start(&pod, of_group("sub", vec![mount(&part, "/part")])).await;
    assert_eq!(cri.exec(&sub.id, "stat -c '%a %g' /part && echo sub > /part/file").await, "2770 2000\n");
    assert_eq!(cri.exec(&reader.id, "cat /mnt/deep/part/file").await, "sub\n");

    // It has its size, keeps what is in it when a container is made anew, and a Secret still changes under way.
    let full = fails(cri, &writer, "dd if=/dev/zero of=/cache/big bs=1M count=8").await;
    assert!(full.contains("No space left"), "{full}");
    cri.exec(&writer.id, "rm /cache/big").await;
    cri.remove(&writer.id).await;
    let writer = cri.start(&pod, of_group("writer", both())).await;
    assert_eq!(cri.exec(&writer.id, "cat /cache/file").await, "written\n");
    assert_eq!(cri.exec(&writer.id, "cat /token/token").await, "old\n");
    stage.node.run(&["sh", "-c", &format!("echo new > {}/token", secret.display())]).await;
    expect_soon(cri, &writer, "cat /token/token", "new\n").await;
    if !control_run() {
        let held = stage.node.run(&["ls", &volume.display().to_string()]).await;
        assert_eq!(held, "deep\n", "the node has nothing of what the pod wrote");
    }
    cri.end_pod(&pod).await;
    for at in [&part, &volume, &secret] {
        stage.node.run(&["umount", &at.display().to_string()]).await;
    }
    stage.expect_clean().await;
}

/// What one container puts into a volume does not decide what of the guest another one gets. And such a volume is what
/// docker, buildkit and k3s in a pod can have their layers in.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_in_memory_takes_layers_and_its_links_lead_nowhere_else() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let config = privileged_pod(cri, "links");
    let dir = Path::new("pods").join(&config.metadata.as_ref().unwrap().uid);
    let volume = tmpfs(&stage, &dir, "kubernetes.io~empty-dir/cache", "size=1m").await;
    let inner = volume.join("part").display().to_string();
    stage.node.run(&["mkdir", &inner]).await;
    let pod = cri.try_run_pod(config).await.unwrap();
    let writer = cri.start(&pod, sleeper("writer", vec![mount(&volume, "/cache")])).await;
    cri.exec(&writer.id, "ln -s /etc /cache/part").await;
    let part = || sleeper("other", vec![mount(&volume.join("part"), "/part")]);
    let other = cri.create(&pod, part()).await;
    let refused = cri.try_start(&other.id).await.unwrap_err();
    assert!(refused.message().contains("the volume in memory \"cache\""), "{refused:?}");
    cri.remove(&other.id).await;
    cri.exec(&writer.id, "rm /cache/part && mkdir /cache/part && echo mine > /cache/part/file").await;
    let other = cri.start(&pod, part()).await;
    assert_eq!(cri.exec(&other.id, "cat /part/file").await, "mine\n");
    let layers = privileged(sleeper("layers", vec![mount(&volume, "/v")]));
    let layers = cri.start(&pod, layers).await;
    expect_layers(cri, &layers, "").await;
    cri.end_pod(&pod).await;
    stage.node.run(&["umount", &volume.display().to_string()]).await;
    stage.expect_clean().await;
}
