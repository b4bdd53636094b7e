//! What a difference between the control and Bulkhead means.

use super::specs::Outcome;

/// What a VM cannot mean. A spec of this list that is refused in these words is as it should be.
#[derive(Debug)]
pub struct Refusal {
    /// The spec's name.
    pub spec: &'static str,
    /// What the error must say.
    pub says: &'static str,
    /// Why, for the table.
    pub why: &'static str,
}

/// Specs that say nothing about a runtime.
#[derive(Debug)]
pub struct NotARuntimes {
    /// How their names begin.
    pub begin: &'static str,
    /// Why they are not judged.
    pub why: &'static str,
}

/// What a suite's specs are judged by.
#[derive(Debug)]
pub struct Rules {
    /// Everything that is refused though runc can do it.
    pub refusals: &'static [Refusal],
    /// What no runtime takes part in.
    pub not_judged: &'static [NotARuntimes],
}

/// The judgement over one spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
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
#[must_use]
pub fn judge(rules: &Rules, spec: &str, runc: Option<&Outcome>, bulkhead: Option<&Outcome>) -> Verdict {
    if let Some(group) = rules.not_judged.iter().find(|group| spec.starts_with(group.begin)) {
        return Verdict::NotJudged(group.why.into());
    }
    match (runc, bulkhead) {
        (Some(Outcome::Failed(why)), _) => Verdict::NotJudged(why.told()),
        (Some(Outcome::Skipped(why)), _) => Verdict::NotJudged(why.clone()),
        // What only Bulkhead's run has is a check of its own.
        (Some(Outcome::Passed) | None, Some(Outcome::Passed)) => Verdict::Kept,
        (Some(Outcome::Passed) | None, None) => Verdict::Lost("did not run".into()),
        (Some(Outcome::Passed) | None, Some(Outcome::Skipped(why))) => Verdict::Lost(why.clone()),
        (Some(Outcome::Passed) | None, Some(Outcome::Failed(why))) => {
            let listed = rules.refusals.iter().find(|one| one.spec == spec && why.says(one.says));
            listed.map_or_else(|| Verdict::Lost(why.told()), |refusal| Verdict::Refused(refusal.why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        refusals: &[Refusal { spec: "HostPID", says: "hostPID pods cannot run", why: "refused" }],
        not_judged: &[NotARuntimes { begin: "Image ", why: "containerd's" }],
    };
    const PASSED: Option<&Outcome> = Some(&Outcome::Passed);

    #[test]
    fn what_runc_passes_must_pass() {
        let failed = Outcome::failed("no");
        let skipped = Outcome::Skipped("left out".into());
        assert_eq!(judge(&RULES, "a", PASSED, PASSED), Verdict::Kept);
        assert_eq!(judge(&RULES, "a", PASSED, Some(&failed)), Verdict::Lost("no".into()));
        assert_eq!(judge(&RULES, "a", PASSED, Some(&skipped)), Verdict::Lost("left out".into()));
        assert_eq!(judge(&RULES, "a", PASSED, None), Verdict::Lost("did not run".into()));
    }

    #[test]
    fn what_runc_does_not_pass_says_nothing() {
        let skipped = Outcome::Skipped("no AppArmor".into());
        assert_eq!(judge(&RULES, "a", Some(&skipped), PASSED), Verdict::NotJudged("no AppArmor".into()));
        assert_eq!(judge(&RULES, "a", Some(&skipped), None), Verdict::NotJudged("no AppArmor".into()));
    }

    #[test]
    fn a_refusal_must_be_listed_and_say_so() {
        let refusal = &RULES.refusals[0];
        let clear = Outcome::failed(format!("rpc error: {} is refused", refusal.says));
        let unclear = Outcome::failed("rpc error: internal");
        assert_eq!(judge(&RULES, refusal.spec, PASSED, Some(&clear)), Verdict::Refused(refusal.why));
        assert_eq!(
            judge(&RULES, refusal.spec, PASSED, Some(&unclear)),
            Verdict::Lost("rpc error: internal".into())
        );
        assert!(matches!(judge(&RULES, "another", PASSED, Some(&clear)), Verdict::Lost(_)));
    }

    #[test]
    fn images_are_no_runtimes_business() {
        let failed = Outcome::failed("unreachable");
        assert!(matches!(judge(&RULES, "Image Manager pulls", PASSED, Some(&failed)), Verdict::NotJudged(_)));
    }

    #[test]
    fn a_check_of_bulkheads_own_counts() {
        let failed = Outcome::failed("a leak");
        assert_eq!(judge(&RULES, "audit", None, PASSED), Verdict::Kept);
        assert_eq!(judge(&RULES, "audit", None, Some(&failed)), Verdict::Lost("a leak".into()));
    }
}
