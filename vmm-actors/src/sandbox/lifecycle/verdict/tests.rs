use super::*;
use crate::PodSpec;
use crate::id::{ContainerdNamespace, SandboxId};
use crate::sandbox::CreateSandbox;
use crate::sandbox::record::Nanos;

const ALIVE: Reality =
    Reality { same_boot: true, vmm: true, vsock_helper: true, virtiofsd: true, shim: true };

fn record(phase: Phase) -> Record {
    let id = SandboxId::new("pod").unwrap();
    let request = CreateSandbox {
        id,
        profile: bulkhead_config::ProfileName::default(),
        containerd_namespace: ContainerdNamespace::default(),
        netns: "/run/netns/none".into(),
        pod: PodSpec::default(),
    };
    Record { phase, ..Record::intend(request, &bulkhead_config::Settings::default()).unwrap() }
}

#[test]
fn only_a_whole_running_sandbox_of_this_boot_is_adopted() {
    let running = record(Phase::Running);
    assert_eq!(judge(&running, ALIVE), Verdict::Adopt);
    let missing_one = [
        Reality { same_boot: false, ..ALIVE },
        Reality { vmm: false, ..ALIVE },
        Reality { vsock_helper: false, ..ALIVE },
        Reality { virtiofsd: false, ..ALIVE },
        Reality { shim: false, ..ALIVE },
    ];
    for reality in missing_one {
        let verdict = judge(&running, reality);
        assert!(matches!(&verdict, Verdict::Lost(cause) if cause.exit_status() == 137), "{verdict:?}");
    }
}

#[test]
fn what_had_not_started_is_undone_and_what_was_stopped_stays_stopped() {
    assert!(matches!(judge(&record(Phase::Starting), ALIVE), Verdict::Undo(_)));
    let cause = Cause::asked("stopped");
    let stopped = Phase::Stopped { cause: cause.clone(), at: Nanos(7) };
    assert_eq!(judge(&record(stopped), Reality { same_boot: false, ..ALIVE }), Verdict::KeepStopped(cause));
}
