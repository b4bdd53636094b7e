//! Shared memory: the pod's, unless a container brings a volume of its own.

use bulkhead_tests::cri::{Cri, mount};

use crate::stage::{Stage, stage};

#[tokio::test(flavor = "multi_thread")]
async fn containers_share_the_pods_shm_but_for_one_that_mounts_its_own() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let volume = stage.node.dir().join("own-shm");
    std::fs::create_dir(&volume).unwrap();
    let pod = cri.run_pod("shm").await;
    let one = cri.start(&pod, Cri::shell("one", "sleep 1000")).await;
    let two = cri.start(&pod, Cri::shell("two", "sleep 1000")).await;
    let mut config = Cri::shell("own", "sleep 1000");
    config.mounts = vec![mount(&volume, "/dev/shm")];
    let own = cri.start(&pod, config).await;

    cri.exec(&one.id, "echo of the pod > /dev/shm/word").await;
    assert_eq!(cri.exec(&two.id, "cat /dev/shm/word").await, "of the pod\n");
    assert_eq!(cri.exec(&own.id, "ls /dev/shm; echo of the volume > /dev/shm/word").await, "");
    assert_eq!(std::fs::read_to_string(volume.join("word")).unwrap(), "of the volume\n");
    assert_eq!(
        cri.exec(&two.id, "cat /dev/shm/word; grep -c ' /dev/shm ' /proc/mounts").await,
        "of the pod\n1\n"
    );
    stage.end(&pod).await;
}
