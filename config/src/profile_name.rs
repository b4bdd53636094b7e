//! What a profile can be called.

use std::fmt;

use serde::{Deserialize, Serialize};

/// containerd's runtime of the default profile, as shipped (`config/containerd/bulkhead.toml`).
const RUNTIME: &str = "bulkhead";
/// Name of the default profile.
const DEFAULT: &str = "default";
/// Longest label of DNS (RFC 1123), in bytes. Kubernetes takes the `handler` of a RuntimeClass for one, and so the
/// runtime of a profile has to be one.
const MAX_LABEL: usize = 63;
/// Longest name of a profile, in bytes.
const MAX_NAME: usize = MAX_LABEL - RUNTIME.len() - "-".len();

/// Name of a profile: a label of DNS, short enough that the runtime made of it is one as well.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProfileName(String);

/// A text that cannot name a profile beside the default one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidProfileName {
    /// What is wrong with it.
    pub(crate) wrong: &'static str,
    /// What would be right.
    pub(crate) right: String,
}

impl fmt::Display for InvalidProfileName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}; {}", self.wrong, self.right)
    }
}

impl std::error::Error for InvalidProfileName {}

impl ProfileName {
    /// Takes a text as the name of a profile beside the default one.
    ///
    /// # Errors
    /// [`InvalidProfileName`] if no containerd runtime can be named after it, or it is the default profile's.
    pub fn new(name: &str) -> Result<Self, InvalidProfileName> {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let at_the_ends = !name.starts_with('-') && !name.ends_with('-');
        let is_label = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(inner) && at_the_ends;
        if !is_label {
            let wrong = "no name for a profile, after which a runtime of containerd is named";
            let right = format!("1 to {MAX_NAME} of a-z, 0-9 and -, with no - at the ends");
            return Err(InvalidProfileName { wrong, right });
        }
        if name == DEFAULT {
            let wrong = "the default profile is the top level of the file";
            let right = "set it in the tables there, or take another name".to_owned();
            return Err(InvalidProfileName { wrong, right });
        }
        Ok(Self(name.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Name of the profile's runtime in containerd's configuration, of its proxy plugin and of its RuntimeClass:
    /// `bulkhead` for the default profile, `bulkhead-NAME` for any other.
    #[must_use]
    pub fn runtime(&self) -> String {
        if self.0 == DEFAULT { RUNTIME.to_owned() } else { format!("{RUNTIME}-{}", self.0) }
    }
}

impl Default for ProfileName {
    /// That of the top level of the settings.
    fn default() -> Self {
        Self(DEFAULT.to_owned())
    }
}

impl fmt::Display for ProfileName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}
