//! What a difference between the control and Bulkhead means.

use crate::specs::Outcome;

/// What a VM cannot mean. A spec of this list that is refused in these words is as it should be.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The spec's name.
    pub(crate) spec: &'static str,
    /// What the error must say.
    pub(crate) says: &'static str,
    /// Why, for the table.
    pub(crate) why: &'static str,
}

/// Everything that is refused though runc can do it.
pub(crate) const REFUSALS: &[Refusal] = &[
    Refusal {
        spec: "Security Context NamespaceOption runtime should support HostPID",
        says: "hostPID pods cannot run in a VM",
        why: "refused: the host's processes cannot be seen from a VM",
    },
    Refusal {
        spec: "Security Context NamespaceOption runtime should support HostIpc is true",
        says: "hostIPC pods cannot run in a VM",
        why: "refused: the host's shared memory cannot be used from a VM",
    },
    Refusal {
        spec: "Security Context NamespaceOption runtime should support HostNetwork is true",
        says: "hostNetwork pods cannot run in a VM",
        why: "refused: the host's interfaces cannot be used from a VM",
    },
    Refusal {
        spec: "Streaming runtime should support streaming interfaces runtime should support portforward in host network",
        says: "hostNetwork pods cannot run in a VM",
        why: "refused with the host network",
    },
    Refusal {
        spec: "Container Mount Propagation runtime should support mount propagation mount with 'rshared' should \
               support propagation from host to container and vice versa",
        says: "mounts made in a VM cannot reach the host",
        why: "refused: a mount made by the guest's kernel cannot appear on the host",
    },
];

/// How the names of specs begin that no runtime takes part in, and why they are not judged.
const NO_RUNTIMES: (&str, &str) =
    ("Image ", "containerd's image service alone, and a registry, which the node has not");

/// The judgement over one spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Passes with both.
    Kept,
    /// Refused as listed, with the reason.
    Refused(&'static str),
    /// runc does not pass it here, or takes no part in it, so it says nothing about Bulkhead; with the reason.
    NotJudged(String),
    /// runc passes, Bulkhead does not; with what the suite said.
    Lost(String),
}

/// Judges one spec by both outcomes; `None` where a run has no such spec.
pub(crate) fn judge(spec: &str, runc: Option<&Outcome>, bulkhead: Option<&Outcome>) -> Verdict {
    if spec.starts_with(NO_RUNTIMES.0) {
        return Verdict::NotJudged(NO_RUNTIMES.1.into());
    }
    match (runc, bulkhead) {
        (Some(Outcome::Failed(why) | Outcome::Skipped(why)), _) => Verdict::NotJudged(why.clone()),
        // What only Bulkhead's run has is a check of its own.
        (Some(Outcome::Passed) | None, Some(Outcome::Passed)) => Verdict::Kept,
        (Some(Outcome::Passed) | None, None) => Verdict::Lost("did not run".into()),
        (Some(Outcome::Passed) | None, Some(Outcome::Skipped(why))) => Verdict::Lost(why.clone()),
        (Some(Outcome::Passed) | None, Some(Outcome::Failed(why))) => {
            let listed = REFUSALS.iter().find(|one| one.spec == spec && why.contains(one.says));
            listed.map_or_else(|| Verdict::Lost(why.clone()), |refusal| Verdict::Refused(refusal.why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSED: Option<&Outcome> = Some(&Outcome::Passed);

    #[test]
    fn what_runc_passes_must_pass() {
        let failed = Outcome::Failed("no".into());
        let skipped = Outcome::Skipped("left out".into());
        assert_eq!(judge("a", PASSED, PASSED), Verdict::Kept);
        assert_eq!(judge("a", PASSED, Some(&failed)), Verdict::Lost("no".into()));
        assert_eq!(judge("a", PASSED, Some(&skipped)), Verdict::Lost("left out".into()));
        assert_eq!(judge("a", PASSED, None), Verdict::Lost("did not run".into()));
    }

    #[test]
    fn what_runc_does_not_pass_says_nothing() {
        let skipped = Outcome::Skipped("no AppArmor".into());
        assert_eq!(judge("a", Some(&skipped), PASSED), Verdict::NotJudged("no AppArmor".into()));
        assert_eq!(judge("a", Some(&skipped), None), Verdict::NotJudged("no AppArmor".into()));
    }

    #[test]
    fn a_refusal_must_be_listed_and_say_so() {
        let refusal = &REFUSALS[0];
        let clear = Outcome::Failed(format!("rpc error: {} is refused", refusal.says));
        let unclear = Outcome::Failed("rpc error: internal".into());
        assert_eq!(judge(refusal.spec, PASSED, Some(&clear)), Verdict::Refused(refusal.why));
        assert_eq!(judge(refusal.spec, PASSED, Some(&unclear)), Verdict::Lost("rpc error: internal".into()));
        assert!(matches!(judge("another", PASSED, Some(&clear)), Verdict::Lost(_)));
    }

    #[test]
    fn images_are_no_runtimes_business() {
        let failed = Outcome::Failed("unreachable".into());
        assert!(matches!(judge("Image Manager pulls", PASSED, Some(&failed)), Verdict::NotJudged(_)));
    }

    #[test]
    fn a_check_of_bulkheads_own_counts() {
        let failed = Outcome::Failed("a leak".into());
        assert_eq!(judge("audit", None, PASSED), Verdict::Kept);
        assert_eq!(judge("audit", None, Some(&failed)), Verdict::Lost("a leak".into()));
    }
}
