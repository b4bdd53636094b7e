//! Which strings are ids.

use crate::{Code, Failure};

/// Longest sandbox id, in bytes. CRI's are 64.
pub const MAX_ID_LENGTH: usize = 128;

/// The string is not usable as the name of one directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "sandbox id {id:?} is not valid: 1 to {MAX_ID_LENGTH} of letters, digits, '_', '.', '-', and not . or .."
)]
pub struct InvalidId {
    /// What came, cut to what a message bears.
    pub id: String,
}

/// Takes a string for an id only if it is exactly one harmless path component.
///
/// # Errors
/// [`InvalidId`] otherwise.
pub fn check_id(id: &str) -> Result<(), InvalidId> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let fits = (1..=MAX_ID_LENGTH).contains(&id.len());
    if fits && id.bytes().all(allowed) && id != "." && id != ".." {
        Ok(())
    } else {
        Err(InvalidId { id: id.chars().take(MAX_ID_LENGTH).collect() })
    }
}

impl From<InvalidId> for Failure {
    fn from(error: InvalidId) -> Self {
        Self::new(Code::InvalidArgument, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_harmless_path_component() {
        let longest = "a".repeat(MAX_ID_LENGTH);
        for good in ["a", "0f", "web_0.x-1", "...", "-", longest.as_str()] {
            assert_eq!(check_id(good), Ok(()), "{good}");
        }
        let too_long = "a".repeat(MAX_ID_LENGTH + 1);
        for bad in ["", ".", "..", "a/b", "../x", "/", "a b", "ü", "a\0", "a\n", too_long.as_str()] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
    }
}
