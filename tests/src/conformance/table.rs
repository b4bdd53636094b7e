//! Both runs side by side.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::specs::{Outcome, Spec};
use super::verdict::{Rules, Verdict, judge};

/// Longer reasons are cut: the suite's messages hold whole dumps. The logs have them in full.
const LONGEST_REASON: usize = 220;

/// Where the suite's messages turn from what happened to how it looked in memory.
const DUMPS: [&str; 3] = [" Unexpected error:", " Expected success, but", " { Err:"];

/// One line of the table.
#[derive(Debug)]
struct Row {
    spec: String,
    runc: &'static str,
    bulkhead: &'static str,
    verdict: Verdict,
}

/// The runs, judged spec by spec.
#[derive(Debug)]
pub struct Table(Vec<Row>);

impl Table {
    /// Pairs the specs by name.
    #[must_use]
    pub fn new(rules: &Rules, runc: &[Spec], bulkhead: &[Spec]) -> Self {
        let mut pairs: BTreeMap<&str, (Option<&Outcome>, Option<&Outcome>)> = BTreeMap::new();
        for spec in runc {
            pairs.entry(&spec.name).or_default().0 = Some(&spec.outcome);
        }
        for spec in bulkhead {
            pairs.entry(&spec.name).or_default().1 = Some(&spec.outcome);
        }
        let row = |(spec, (runc, bulkhead)): (&str, (Option<&Outcome>, Option<&Outcome>))| Row {
            verdict: judge(rules, spec, runc, bulkhead),
            spec: spec.to_owned(),
            runc: word(runc),
            bulkhead: word(bulkhead),
        };
        Self(pairs.into_iter().map(row).collect())
    }

    /// How many specs pass with runc and are neither passed nor rightly refused by Bulkhead.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.count(|verdict| matches!(verdict, Verdict::Lost(_)))
    }

    fn count(&self, wanted: impl Fn(&Verdict) -> bool) -> usize {
        self.0.iter().filter(|row| wanted(&row.verdict)).count()
    }

    /// The table, and the sums below it.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = String::from("| spec | runc | bulkhead | reason |\n|---|---|---|---|\n");
        for row in &self.0 {
            let bulkhead = if matches!(row.verdict, Verdict::Refused(_)) { "refused" } else { row.bulkhead };
            let reason = cell(&row.reason());
            writeln!(text, "| {} | {} | {bulkhead} | {reason} |", cell(&row.spec), row.runc)
                .expect("write to a string");
        }
        let kept = self.count(|verdict| *verdict == Verdict::Kept);
        let refused = self.count(|verdict| matches!(verdict, Verdict::Refused(_)));
        let not_judged = self.count(|verdict| matches!(verdict, Verdict::NotJudged(_)));
        write!(
            text,
            "\n{kept} pass with both, {refused} are refused as listed, {} pass with runc only, \
             {not_judged} say nothing here: runc does not pass them, or has no part in them.\n",
            self.lost()
        )
        .expect("write to a string");
        text
    }

    /// One line as libtest ends with, which `make test` adds up.
    #[must_use]
    pub fn result(&self) -> String {
        let lost = self.lost();
        let not_judged = self.count(|verdict| matches!(verdict, Verdict::NotJudged(_)));
        let passed = self.0.len() - lost - not_judged;
        let word = if lost == 0 { "ok" } else { "FAILED" };
        format!("test result: {word}. {passed} passed; {lost} failed; {not_judged} ignored; side by side")
    }
}

impl Row {
    fn reason(&self) -> String {
        let full = match &self.verdict {
            Verdict::Kept => "",
            Verdict::Refused(why) => why,
            Verdict::NotJudged(why) | Verdict::Lost(why) => why.as_str(),
        };
        let ends = DUMPS.iter().filter_map(|dump| full.find(dump));
        let told = &full[..ends.min().unwrap_or(full.len())];
        let short: String = told.chars().take(LONGEST_REASON).collect();
        if short.len() < told.len() { format!("{short}…") } else { short }
    }
}

fn word(outcome: Option<&Outcome>) -> &'static str {
    match outcome {
        Some(Outcome::Passed) => "pass",
        Some(Outcome::Failed(_)) => "fail",
        Some(Outcome::Skipped(_)) => "skip",
        None => "-",
    }
}

/// Text that does not end its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { refusals: &[], not_judged: &[] };

    fn spec(name: &str, outcome: Outcome) -> Spec {
        Spec { name: name.into(), outcome }
    }

    #[test]
    fn runs_stand_side_by_side() {
        let failed = || Outcome::failed("a|b");
        let runc = [spec("one", Outcome::Passed), spec("two", Outcome::Passed), spec("three", failed())];
        let bulkhead = [spec("one", Outcome::Passed), spec("two", failed()), spec("three", failed())];
        let table = Table::new(&RULES, &runc, &bulkhead);
        let text = table.markdown();
        assert!(text.contains("| one | pass | pass |  |\n"), "{text}");
        assert!(text.contains("| two | pass | fail | a\\|b |\n"), "{text}");
        assert!(text.contains("| three | fail | fail | a\\|b |\n"), "{text}");
        assert_eq!(table.lost(), 1);
        assert_eq!(table.result(), "test result: FAILED. 1 passed; 1 failed; 1 ignored; side by side");
    }

    #[test]
    fn a_reason_ends_where_a_dump_begins() {
        let failed = Outcome::failed("no registry Unexpected error: <*errors.errorString | 0x17>");
        let table = Table::new(&RULES, &[spec("one", failed)], &[]);
        assert!(table.markdown().contains("| one | fail | - | no registry |\n"), "{}", table.markdown());
    }

    #[test]
    fn a_long_reason_is_cut() {
        let table = Table::new(&RULES, &[spec("one", Outcome::failed("é".repeat(1000)))], &[]);
        assert!(table.markdown().contains(&format!("{}… |", "é".repeat(LONGEST_REASON))));
    }
}
