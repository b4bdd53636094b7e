//! What is wrong with a setting, before it is known where in the file it stands.

use std::path::Path;

/// A value that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) wrong: String,
    pub(crate) right: String,
}

/// A key, the program that it names, and what to do where the host has none.
pub(crate) type Program<'a> = (&'static str, &'a Path, &'static str);

/// Collects findings about keys.
#[derive(Debug, Default)]
pub(crate) struct Findings(pub(crate) Vec<Finding>);

impl Findings {
    pub(crate) fn add(
        &mut self,
        key: &str,
        value: String,
        wrong: impl Into<String>,
        right: impl Into<String>,
    ) {
        self.0.push(Finding { key: key.to_owned(), value, wrong: wrong.into(), right: right.into() });
    }

    pub(crate) fn unless(&mut self, good: bool, key: &str, value: String, (wrong, right): (&str, &str)) {
        if !good {
            self.add(key, value, wrong, right);
        }
    }
}

/// A path as TOML spells it.
pub(crate) fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}
