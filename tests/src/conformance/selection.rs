//! Which specs run, from the command line.

/// Which specs run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Every spec that the program chooses from the suite.
    Whole,
    /// A sub-set that is run often.
    Quick,
    /// Those whose name matches.
    Focus(String),
}

impl Selection {
    /// From the command line of `program`; the error is the usage.
    pub fn parse(program: &str, arguments: &[String]) -> Result<Self, String> {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match words.as_slice() {
            [] => Ok(Self::Whole),
            ["--quick"] => Ok(Self::Quick),
            ["--focus", regex] => Ok(Self::Focus((*regex).to_owned())),
            _ => Err(format!("usage: {program} [--quick | --focus REGEX]")),
        }
    }

    /// The expression that names of specs must match; `quick` is that of the sub-set.
    #[must_use]
    pub fn focus<'a>(&'a self, quick: &'a str) -> Option<&'a str> {
        match self {
            Self::Whole => None,
            Self::Quick => Some(quick),
            Self::Focus(regex) => Some(regex),
        }
    }

    /// Whether a check that is no spec of the suite runs: always, but where other specs were asked for.
    #[must_use]
    pub fn selects_check(&self, name: &str) -> bool {
        match self {
            Self::Whole | Self::Quick => true,
            Self::Focus(words) => name.contains(words.as_str()),
        }
    }

    /// In words.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Whole => "every spec".into(),
            Self::Quick => "the quick sub-set".into(),
            Self::Focus(regex) => format!("specs that match {regex:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_runs_unless_others_are_asked_for() {
        assert!(Selection::Whole.selects_check("one") && Selection::Quick.selects_check("one"));
        assert!(Selection::Focus("on".into()).selects_check("one"));
        assert!(!Selection::Focus("two".into()).selects_check("one"));
    }

    #[test]
    fn the_command_line_selects() {
        let parse = |words: &[&str]| {
            Selection::parse("suite", &words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(parse(&[]), Ok(Selection::Whole));
        assert_eq!(parse(&["--quick"]), Ok(Selection::Quick));
        assert_eq!(parse(&["--focus", "OOM"]), Ok(Selection::Focus("OOM".into())));
        let usage = Err("usage: suite [--quick | --focus REGEX]".to_owned());
        assert_eq!(parse(&["--focus"]), usage);
        assert_eq!(parse(&["--all"]), usage);
    }
}
