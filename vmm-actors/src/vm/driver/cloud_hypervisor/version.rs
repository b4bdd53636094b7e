//! Which Cloud Hypervisor this is.

use std::io;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::error::{CloudHypervisorError, PATH_SETTING};

/// The first release whose API this driver knows.
const OLDEST: u32 = 50;
/// How long the program may take to tell.
const WITHIN: Duration = Duration::from_secs(10);

/// Asks the program for its version, and refuses one that is too old.
///
/// # Errors
/// [`CloudHypervisorError::Ask`], [`CloudHypervisorError::Version`].
pub(super) async fn of_program(path: &Path) -> Result<(), CloudHypervisorError> {
    let mut ask = Command::new(path);
    ask.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let late = |_elapsed| Err(io::ErrorKind::TimedOut.into());
    let answer = timeout(WITHIN, ask.output()).await.unwrap_or_else(late);
    let Output { stdout, .. } = answer.map_err(|source| CloudHypervisorError::Ask {
        setting: PATH_SETTING,
        path: path.to_owned(),
        source,
    })?;
    require(String::from_utf8_lossy(&stdout).lines().next().unwrap_or_default())
}

/// Refuses a version that is too old: `cloud-hypervisor v53.0-246-gae44c2971`, `v50.0`, or `52.0.0` in an answer of the API.
///
/// # Errors
/// [`CloudHypervisorError::Version`].
pub(super) fn require(said: &str) -> Result<(), CloudHypervisorError> {
    match major(said) {
        Some(major) if major >= OLDEST => Ok(()),
        Some(_) | None => Err(CloudHypervisorError::Version {
            setting: PATH_SETTING,
            said: said.to_owned(),
            oldest: OLDEST,
        }),
    }
}

fn major(said: &str) -> Option<u32> {
    let version = said.strip_prefix("cloud-hypervisor ").unwrap_or(said);
    version.trim_start_matches('v').split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_the_program_and_its_api_write_them() {
        assert_eq!(major("cloud-hypervisor v53.0-246-gae44c2971"), Some(53));
        assert_eq!(major("v50.2"), Some(50));
        assert_eq!(major("52.0.0"), Some(52));
        assert_eq!(major("QEMU emulator version 7.2.22"), None);
    }

    #[test]
    fn an_old_version_and_another_program_are_refused_by_what_they_say() {
        assert!(require("cloud-hypervisor v50.0").is_ok());
        for said in ["cloud-hypervisor v49.0.0", "", "another-vmm v60"] {
            let refused = require(said).unwrap_err().to_string();
            assert!(refused.contains(&format!("{said:?}")) && refused.contains("50 or newer"), "{refused}");
            assert!(refused.contains("[cloud_hypervisor] path"), "{refused}");
        }
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let error = of_program(Path::new("/nonexistent/vmm")).await.unwrap_err().to_string();
        assert!(error.contains("/nonexistent/vmm") && error.contains(PATH_SETTING), "{error}");
    }
}
