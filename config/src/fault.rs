//! What can be wrong with a settings file, said so that it can be put right.

use std::fmt;
use std::path::PathBuf;

/// One thing wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Line in the file, from 1. `None`: the key is not in the file and has its default, or the file as a whole.
    pub line: Option<usize>,
    /// Dotted key, for example `vm.vcpus`. Empty: the file as a whole.
    pub key: String,
    /// The value, as TOML spells it. Empty: there is none to show.
    pub value: String,
    /// What is wrong with it.
    pub wrong: String,
    /// What would be right. Empty when `wrong` says it all.
    pub right: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(out, "{}", self.key)?;
            if !self.value.is_empty() {
                write!(out, " = {}", self.value)?;
            }
            write!(out, "{}: ", if self.line.is_none() { " (the default)" } else { "" })?;
        }
        write!(out, "{}", self.wrong)?;
        if self.right.is_empty() { Ok(()) } else { write!(out, "; {}", self.right) }
    }
}

/// Everything wrong with one settings file, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults {
    /// The file.
    pub file: PathBuf,
    /// At least one.
    pub faults: Vec<Fault>,
}

impl fmt::Display for Faults {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(out, "{separator}{}:", self.file.display())?;
            if let Some(line) = fault.line {
                write!(out, "{line}:")?;
            }
            write!(out, " {fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
