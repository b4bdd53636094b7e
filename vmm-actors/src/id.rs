//! Names of sandboxes and containers, checked once at the edge.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest id, in bytes: containerd's own limit for identifiers is 76, CRI's are 64 hex digits.
pub const MAX_LENGTH: usize = 76;

/// The id of a sandbox: safe as a file name and as part of a cgroup name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

/// The id of a container: as safe as [`SandboxId`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

/// containerd's namespace of a sandbox. containerd keeps what belongs to different ones apart; CRI has one for all of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerdNamespace(String);

impl Default for ContainerdNamespace {
    /// That of CRI.
    fn default() -> Self {
        Self("k8s.io".to_owned())
    }
}

/// A string is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no valid id: 1 to {MAX_LENGTH} letters, digits, '_', '.' or '-', beginning with a letter or a digit"
)]
pub struct InvalidId(String);

fn check(id: &str) -> Result<(), InvalidId> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let starts_well = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if starts_well && id.len() <= MAX_LENGTH && id.bytes().all(allowed) {
        return Ok(());
    }
    Err(InvalidId(id.chars().take(MAX_LENGTH + 1).collect()))
}

macro_rules! id_type {
    ($name:ident) => {
        impl $name {
            /// Takes a string as an id.
            ///
            /// # Errors
            /// [`InvalidId`] when it could mean anything else than one file name.
            pub fn new(id: impl Into<String>) -> Result<Self, InvalidId> {
                let id = id.into();
                check(&id)?;
                Ok(Self(id))
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(id: String) -> Result<Self, InvalidId> {
                Self::new(id)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// The id of a VM: 12 hexadecimal digits, random. A VM can exist before the pod that it will serve.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmId(String);

impl VmId {
    /// An id that no other VM of this node has.
    ///
    /// # Errors
    /// What the kernel's random number generator says.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 6];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }
}

id_type!(VmId);
id_type!(SandboxId);
id_type!(ContainerId);
id_type!(ContainerdNamespace);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_leave_its_directory_is_no_id() {
        for bad in ["", ".", "..", "a/b", "/", "../x", "a b", "-x", ".hidden", "é", &"x".repeat(77)] {
            assert!(SandboxId::new(bad).is_err(), "{bad:?} was taken");
        }
        for good in ["a", "0123456789abcdef", "pod_1.x-y", &"f".repeat(64)] {
            assert_eq!(SandboxId::new(good).unwrap().as_str(), good);
        }
    }
}
