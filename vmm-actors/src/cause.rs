//! Why a sandbox came to its end.

use bulkhead_protocol::KILLED_STATUS;
use serde::{Deserialize, Serialize};

/// Why a sandbox came to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Whose doing it was.
    pub class: Class,
    /// For a person: what ended, and its last words.
    pub reason: String,
}

/// Whose doing the end of a sandbox was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Somebody asked for it.
    Asked,
    /// The request or the settings named something that cannot be used.
    Invalid,
    /// The host lacks something.
    Exhausted,
    /// Something did not answer in time.
    TimedOut,
    /// The VM, or something it cannot live without, is gone or broken.
    Lost,
}

impl Class {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::Asked, Self::Invalid, Self::Exhausted, Self::TimedOut, Self::Lost];

    /// As a label of a metric.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Invalid => "invalid",
            Self::Exhausted => "exhausted",
            Self::TimedOut => "timed_out",
            Self::Lost => "lost",
        }
    }
}

impl Cause {
    /// Somebody asked for the end.
    #[must_use]
    pub fn asked(reason: &str) -> Self {
        Self { class: Class::Asked, reason: reason.to_owned() }
    }

    /// The VM, or something it cannot live without, is gone.
    #[must_use]
    pub fn lost(reason: impl Into<String>) -> Self {
        Self { class: Class::Lost, reason: reason.into() }
    }

    /// What Wait answers: 0 when somebody asked for the end, else 137 as for a process that was killed.
    #[must_use]
    pub fn exit_status(&self) -> u32 {
        match self.class {
            Class::Asked => 0,
            Class::Invalid | Class::Exhausted | Class::TimedOut | Class::Lost => KILLED_STATUS,
        }
    }
}
