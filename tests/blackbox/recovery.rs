//! What the service finds when it starts: nothing at all, or sandboxes of which some are broken.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bulkhead_tests::cri::{Cri, Pod};
use bulkhead_tests::node::Options;
use bulkhead_tests::{processes, wait};
use nix::sys::signal::Signal;

use crate::stage::{Stage, stage};

const SOON: Duration = Duration::from_secs(60);
/// How many times as long as with sound sandboxes only the service may take until it answers. Where broken ones were
/// waited for, it was a hundred times.
const TIMES: u32 = 20;

/// Ends the service, lets `meanwhile` happen, and says how long the next one took until it answered.
async fn restarted(stage: &mut Stage, meanwhile: impl FnOnce(&Stage)) -> Duration {
    stage.node.stop_sandboxer(Signal::SIGKILL).await;
    meanwhile(stage);
    let begin = Instant::now();
    stage.node.start_sandboxer().await;
    begin.elapsed()
}

fn record(stage: &Stage, pod: &Pod) -> PathBuf {
    stage.node.state_dir().join("sandboxes").join(format!("{}.json", pod.id))
}

/// Failures that users of other sandboxed runtimes have reported (the table in `main.rs`).
mod reported {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn kuasar_49_a_first_start_makes_the_directories_it_needs() {
        let mut stage = stage!(Stage::vm(Options { sandboxer_later: true, ..Options::default() }));
        for dir in [stage.node.run_dir(), stage.node.state_dir()] {
            std::fs::remove_dir(dir).unwrap();
        }
        stage.node.start_sandboxer().await;
        stage.look_again().await;
        let pod = stage.cri().run_pod("first").await;
        stage.end(&pod).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn kuasar_49_broken_sandboxes_hold_up_neither_the_service_nor_a_sound_one() {
        let mut stage = stage!(Stage::vm(Options::default()));
        let (sound, dead, torn) = (
            stage.cri().run_pod("sound").await,
            stage.cri().run_pod("dead").await,
            stage.cri().run_pod("torn").await,
        );
        let main = stage.cri().start(&sound, Cri::shell("main", "sleep 1000")).await;
        let before = restarted(&mut stage, |_| {}).await;
        // vhost-device-vsock 0.3.0 panics when the process that dials the guest is killed before the guest has answered, and the
        // service dials when it takes over (docs/compatibility.md, "Known faults of helpers").
        wait::expect("the service has reached the three guests again", SOON, async || {
            let log = stage.node.sandboxer_log();
            (log.matches("connected to the guest again").count() >= 3).then_some(())
        })
        .await;
        let unowned = stage.vmm_of(&torn).pid;
        let after = restarted(&mut stage, |stage| {
            processes::signal(stage.vmm_of(&dead).pid, Signal::SIGKILL);
            let record = record(stage, &torn);
            let whole = std::fs::read(&record).unwrap();
            std::fs::write(&record, &whole[..whole.len() / 2]).unwrap();
        })
        .await;
        eprintln!("it answered after {before:?}, and with broken sandboxes after {after:?}");
        assert!(after < before * TIMES, "{before:?} became {after:?}");

        let cri = stage.cri();
        wait::expect("the sound pod is ready", SOON, async || {
            cri.pod_status(&sound.id).await.ok().filter(|status| status.status.as_ref().unwrap().state == 0)
        })
        .await;
        assert_eq!(cri.exec(&main.id, "echo well").await, "well\n");
        let next = cri.run_pod("next").await;
        for broken in [&dead, &torn] {
            cri.expect_not_ready(&broken.id).await;
        }
        wait::expect("the VM without a record is ended", SOON, async || {
            processes::read(unowned).is_none_or(|process| process.state == 'Z').then_some(())
        })
        .await;
        let quarantine = stage.node.state_dir().join("quarantine");
        assert_eq!(std::fs::read_dir(&quarantine).unwrap().count(), 1, "a record that does not read is kept");
        for pod in [&dead, &torn, &next] {
            cri.end_pod(pod).await;
        }
        // For whoever wants to know what was in it.
        std::fs::remove_dir_all(quarantine).unwrap();
        stage.end(&sound).await;
    }
}
