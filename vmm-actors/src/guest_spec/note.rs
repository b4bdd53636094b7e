//! What became of those parts of a spec that mean things of the host.

use std::fmt;
use std::path::PathBuf;

/// Something of the spec that means a thing of the host, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A bind mount of a kernel file system shows the guest's, not the host's.
    FromGuest {
        /// The path, the same on both sides.
        source: PathBuf,
    },
    /// A setting that only makes sense on the host was left out.
    LeftOut {
        /// Name of the setting, as the OCI spec spells it.
        setting: &'static str,
        /// Its value, where a short text can say it.
        value: String,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FromGuest { source } => write!(out, "{} is the guest's, not the host's", source.display()),
            Self::LeftOut { setting, value } => write!(out, "{setting} left out ({value})"),
        }
    }
}
