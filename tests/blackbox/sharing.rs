//! A volume that several containers of a pod have.

use bulkhead_tests::cri::{Container, Cri, mount};
use bulkhead_tests::node::Options;

use crate::stage::{Stage, stage};
use crate::volumes::{expect_soon, fails, folder, read_only, sleeper};

/// Unix sockets are how many a side car is spoken to. `at` is the same file in both.
async fn a_socket_works_between(cri: &Cri, server: (&Container, &str), client: (&Container, &str)) {
    let ((server, at), (client, there)) = (server, client);
    cri.exec(&server.id, &format!("ln -sf {at} /dev/log && syslogd -O /tmp/heard")).await;
    cri.exec(&client.id, &format!("test -S {there} && ln -sf {there} /dev/log && logger hello-there")).await;
    expect_soon(cri, server, "grep -o hello-there /tmp/heard", "hello-there\n").await;
    cri.exec(&client.id, "rm /dev/log").await;
    cri.exec(
        &server.id,
        "kill $(ps -o pid,args | sed -n 's/^ *\\([0-9]*\\) syslogd.*$/\\1/p'); rm -f /tmp/heard",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_the_same_for_every_container_of_the_pod() {
    let stage = stage!(Stage::any(Options::default()));
    let cri = stage.cri();
    let volume = folder(&stage, "shared");
    let pod = cri.run_pod("sharing").await;
    // Who only reads comes first: what it may is no limit for the others.
    let early = cri.start(&pod, sleeper("early", vec![read_only(&volume, "/in")])).await;
    let one = cri.start(&pod, sleeper("one", vec![mount(&volume, "/data")])).await;
    let two = cri.start(&pod, sleeper("two", vec![mount(&volume, "/other/place")])).await;
    let reader = cri.start(&pod, sleeper("reader", vec![read_only(&volume, "/in")])).await;

    cri.exec(&one.id, "echo first > /data/file").await;
    assert_eq!(
        cri.exec(&two.id, "cat /other/place/file && echo second >> /other/place/file").await,
        "first\n"
    );
    assert_eq!(cri.exec(&one.id, "cat /data/file && mv /data/file /data/moved").await, "first\nsecond\n");
    for container in [&early, &reader] {
        expect_soon(cri, container, "cat /in/moved; ls /in", "first\nsecond\nmoved\n").await;
        let error = fails(cri, container, "echo x >> /in/moved").await;
        assert!(error.contains("Read-only"), "{error}");
    }
    assert_eq!(std::fs::read_to_string(volume.join("moved")).unwrap(), "first\nsecond\n");
    a_socket_works_between(cri, (&one, "/data/log"), (&two, "/other/place/log")).await;
    // Who came after one that may write has the same mount, and reads only.
    a_socket_works_between(cri, (&one, "/data/log2"), (&reader, "/in/log2")).await;
    // It stays when one of them goes, and is the same for one that comes back.
    cri.stop(&one.id, 0).await;
    cri.remove(&one.id).await;
    let one = cri.start(&pod, sleeper("again", vec![mount(&volume, "/data")])).await;
    assert_eq!(cri.exec(&one.id, "cat /data/moved").await, "first\nsecond\n");
    a_socket_works_between(cri, (&two, "/other/place/log3"), (&one, "/data/log3")).await;
    stage.end(&pod).await;
}
