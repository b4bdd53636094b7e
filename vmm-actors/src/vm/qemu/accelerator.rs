//! Whether KVM runs a guest here, found out by running one.
//!
//! `/dev/kvm` that opens proves little: inside of some virtual machines it runs nothing of use. So a tiny VM boots
//! the configured kernel without a root: it prints its banner, finds nothing to run, panics and ends its VMM.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use tokio::sync::OnceCell;

use crate::host::process::{OwnedProcess, Spawn};

/// How long the trial may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Until the kernel says its first words.
    banner: Duration,
    /// From there to its end.
    end: Duration,
}

impl Patience {
    /// Where the other choice is to emulate. On hardware it takes a tenth and half a second.
    pub(super) const SHORT: Self = Self { banner: Duration::from_secs(3), end: Duration::from_secs(7) };
    /// Where the other choice is no pod at all: KVM may be nested, and slow.
    pub(super) const LONG: Self = Self { banner: Duration::from_secs(30), end: Duration::from_secs(60) };
}

/// Ends the trial should this process be killed meanwhile: a guest on a broken KVM may spin for ever.
const WATCHDOG: &str = "/usr/bin/timeout";
/// First words of the banner of every Linux kernel.
const BANNER: &str = "Linux version";
/// What the trial's files are called.
const TRIAL: &str = "bulkhead-kvm-trial";
/// Number of the console's descriptor in the trial's VMM.
const CONSOLE_FD: i32 = 3;
/// As much of a file is looked at, in bytes: the banner is the first thing that a kernel prints.
const OUTPUT_LIMIT: u64 = 64 * 1024;

/// The trial and its outcome, the same for the life of the service.
#[derive(Debug)]
pub(super) struct KvmTrial {
    qemu: PathBuf,
    kernel: PathBuf,
    /// Nobody else can write here.
    run_dir: PathBuf,
    patience: Patience,
    outcome: OnceCell<Result<(), String>>,
}

impl KvmTrial {
    pub(super) fn new(qemu: PathBuf, kernel: PathBuf, run_dir: PathBuf, patience: Patience) -> Self {
        Self { qemu, kernel, run_dir, patience, outcome: OnceCell::new() }
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
        self.trial().await
    }

    /// Nothing of it has a name for longer than the start takes, so that nothing is left whatever becomes of us.
    async fn trial(&self) -> Result<(), String> {
        let made = |error: io::Error| format!("no file for a trial guest: {error}");
        let mut console =
            File::from(memfd_create(TRIAL, MemfdFlags::CLOEXEC).map_err(|error| made(error.into()))?);
        let output = self.run_dir.join(TRIAL);
        let start = Spawn {
            program: WATCHDOG.into(),
            args: self.args(),
            output: output.clone(),
            fds: vec![(console.try_clone().map_err(made)?.into(), CONSOLE_FD)],
            cgroup: None,
            env: Vec::new(),
        };
        let vmm = OwnedProcess::spawn(start);
        let printed = File::open(&output);
        if let Err(error) = std::fs::remove_file(&output) {
            tracing::warn!(%error, path = %output.display(), "cannot remove the trial's output file");
        }
        let vmm = vmm.map_err(|error| format!("the trial did not start: {error}"))?;
        let mut ended = tokio::time::timeout(self.patience.banner, vmm.wait()).await.is_ok();
        if !ended && read(&mut console).contains(BANNER) {
            ended = tokio::time::timeout(self.patience.end, vmm.wait()).await.is_ok();
        }
        drop(vmm);
        let output = printed.map(|mut file| read(&mut file)).unwrap_or_default();
        judge(ended, &read(&mut console), &output, self.patience)
    }

    fn args(&self) -> Vec<OsString> {
        let limit = self.patience.banner.saturating_add(self.patience.end).as_secs().to_string();
        let mut args: Vec<OsString> = vec!["--signal=KILL".into(), limit.into(), (&self.qemu).into()];
        args.extend(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"].map(Into::into));
        args.extend(
            ["-machine", "microvm,accel=kvm", "-cpu", "host", "-m", "128M", "-serial"].map(Into::into),
        );
        args.extend([format!("file:/proc/self/fd/{CONSOLE_FD}").into(), "-kernel".into()]);
        args.extend([(&self.kernel).into(), "-append".into()]);
        // The banner is a notice; what comes after it would be an exit of the VM for each character.
        args.push("console=ttyS0 loglevel=6 earlyprintk=serial panic=-1 reboot=t".into());
        args
    }
}

/// What a file holds, or nothing.
fn read(file: &mut File) -> String {
    let mut bytes = Vec::new();
    let read = file.rewind().and_then(|()| file.take(OUTPUT_LIMIT).read_to_end(&mut bytes));
    read.map(|_| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// What the trial shows. A kernel that came as far as its panic has had working timers, too.
fn judge(ended: bool, console: &str, output: &str, patience: Patience) -> Result<(), String> {
    match (console.contains(BANNER), ended) {
        (true, true) => Ok(()),
        (true, false) => Err(format!("a trial guest began to boot, but hung for {:?}", patience.end)),
        (false, true) => {
            let word = output.lines().last().unwrap_or("it printed nothing");
            Err(format!("the trial's VMM ended at once: {word}"))
        }
        (false, false) => Err(format!("a trial guest did not say a word within {:?}", patience.banner)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_guest_that_printed_and_ended_counts() {
        let banner = "[    0.000000] Linux version 6.1\nKernel panic";
        let judge = |ended, console, output| judge(ended, console, output, Patience::SHORT);
        assert_eq!(judge(true, banner, ""), Ok(()));
        assert!(judge(false, banner, "").unwrap_err().contains("hung"));
        assert!(judge(true, "", "a\nno such device").unwrap_err().contains("no such device"));
        assert!(judge(true, "", "").unwrap_err().contains("printed nothing"));
        assert!(judge(false, "", "").unwrap_err().contains("not say a word"));
    }

    #[tokio::test]
    async fn the_trial_is_made_once_and_tells_why_it_failed() {
        let [qemu, kernel] = ["/nonexistent/qemu", "/nonexistent/vmlinux"].map(Into::into);
        let trial = KvmTrial::new(qemu, kernel, std::env::temp_dir(), Patience::SHORT);
        let first = trial.outcome().await.unwrap_err().to_owned();
        assert!(first.contains("/dev/kvm") || first.contains("/nonexistent/qemu"), "{first}");
        assert_eq!(trial.outcome().await, Err(first.as_str()));
    }
}
