//! Whether KVM runs a guest here, found out by running one.
//!
//! `/dev/kvm` that opens proves little: inside of some virtual machines it runs nothing of use. So a tiny VM boots
//! the configured kernel without a root: it prints its banner, finds nothing to run, panics and ends its VMM.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::OnceCell;

use crate::host::process::{OwnedProcess, Spawn};

/// How long the trial may take. On hardware it takes half a second.
const TRIAL_WITHIN: Duration = Duration::from_secs(8);
/// First words of the banner of every Linux kernel.
const BANNER: &str = "Linux version";
/// What the trial's directory begins with.
const TRIAL_DIR: &str = "bulkhead-kvm-trial";

/// The trial and its outcome, the same for the life of the service.
#[derive(Debug)]
pub(super) struct KvmTrial {
    qemu: PathBuf,
    kernel: PathBuf,
    outcome: OnceCell<Result<(), String>>,
}

impl KvmTrial {
    pub(super) fn new(qemu: PathBuf, kernel: PathBuf) -> Self {
        Self { qemu, kernel, outcome: OnceCell::new() }
    }

    /// Whether a guest runs, or why not. The first caller makes the trial, others wait for it.
    pub(super) async fn outcome(&self) -> Result<(), &str> {
        let outcome = self.outcome.get_or_init(|| async {
            let outcome = self.run().await;
            match &outcome {
                Ok(()) => tracing::info!("kvm runs guests"),
                Err(reason) => {
                    tracing::warn!(reason, "kvm does not run guests here; they are emulated, which is slow")
                }
            }
            outcome
        });
        outcome.await.as_ref().copied().map_err(String::as_str)
    }

    async fn run(&self) -> Result<(), String> {
        let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
        device.map_err(|error| format!("/dev/kvm: {error}"))?;
        let dir = std::env::temp_dir().join(format!("{TRIAL_DIR}-{}", std::process::id()));
        std::fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let outcome = self.try_in(&dir).await;
        if let Err(error) = std::fs::remove_dir_all(&dir) {
            tracing::warn!(%error, dir = %dir.display(), "cannot remove the trial's directory");
        }
        outcome
    }

    async fn try_in(&self, dir: &Path) -> Result<(), String> {
        let (output, console) = (dir.join("qemu"), dir.join("console"));
        let start = Spawn {
            program: self.qemu.clone(),
            args: trial_args(&self.kernel, &console),
            output: output.clone(),
            fds: Vec::new(),
            cgroup: None,
            env: Vec::new(),
        };
        let vmm = OwnedProcess::spawn(start).map_err(|error| format!("the trial did not start: {error}"))?;
        let ended = tokio::time::timeout(TRIAL_WITHIN, vmm.wait()).await;
        drop(vmm);
        let printed = std::fs::read(&console).unwrap_or_default();
        judge(
            ended.is_ok(),
            &String::from_utf8_lossy(&printed),
            &std::fs::read_to_string(&output).unwrap_or_default(),
        )
    }
}

/// What the trial shows. A kernel that came as far as its panic has had working timers, too.
fn judge(ended: bool, console: &str, output: &str) -> Result<(), String> {
    match (console.contains(BANNER), ended) {
        (true, true) => Ok(()),
        (true, false) => Err(format!("a trial guest hung within {TRIAL_WITHIN:?}")),
        (false, _) => {
            let word = output.lines().last().unwrap_or("it printed nothing");
            Err(format!("a trial guest did not boot within {TRIAL_WITHIN:?}: {word}"))
        }
    }
}

fn trial_args(kernel: &Path, console: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> =
        ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"].map(Into::into).into();
    args.extend(["-machine", "microvm,accel=kvm", "-cpu", "host", "-m", "128M", "-serial"].map(Into::into));
    let mut file = OsString::from("file:");
    file.push(console);
    args.extend([file, "-kernel".into(), kernel.into()]);
    args.extend(["-append", "console=ttyS0 earlyprintk=serial panic=-1 reboot=t"].map(Into::into));
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_guest_that_printed_and_ended_counts() {
        let banner = "[    0.000000] Linux version 6.1\nKernel panic";
        assert_eq!(judge(true, banner, ""), Ok(()));
        assert!(judge(false, banner, "").unwrap_err().contains("hung"));
        assert!(judge(true, "", "a\nno such device").unwrap_err().contains("no such device"));
        assert!(judge(false, "", "").unwrap_err().contains("printed nothing"));
    }

    #[tokio::test]
    async fn the_trial_is_made_once_and_tells_why_it_failed() {
        let trial = KvmTrial::new("/nonexistent/qemu".into(), "/nonexistent/vmlinux".into());
        let first = trial.outcome().await.unwrap_err().to_owned();
        assert!(first.contains("/dev/kvm") || first.contains("/nonexistent/qemu"), "{first}");
        assert_eq!(trial.outcome().await, Err(first.as_str()));
    }
}
