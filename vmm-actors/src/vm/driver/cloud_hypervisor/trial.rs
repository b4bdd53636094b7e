//! Whether KVM runs a guest here, found out by running one: `/dev/kvm` that opens proves little. A tiny VM boots the
//! configured kernel without a root, prints its banner, finds nothing to run, and panics.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::host::process::{OwnedProcess, Spawn, cpu_time_with_children};

/// How much CPU time the trial may take until the kernel says its first words, and to its end: the other choice is no pod at
/// all, and KVM may be nested, and slow. On hardware it takes a tenth and half a second.
const BANNER_LIMIT: Duration = Duration::from_secs(30);
const CPU_LIMIT: Duration = Duration::from_secs(90);
/// How many times as long as its CPU time it may take: beyond that the host is too busy, or the guest sleeps for ever.
const BUSY: u32 = 3;
/// How often the trial is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Ends the trial should this process be killed meanwhile.
const WATCHDOG: &str = "/usr/bin/timeout";
/// First words of the banner of every Linux kernel, and of its end. One that came as far has had working timers, too.
const BANNER: &str = "Linux version";
const END: &str = "Kernel panic";
/// What the trial's files are called.
const TRIAL: &str = "bulkhead-cloud-hypervisor-trial";
/// Number of the console's descriptor in the trial's VMM.
const CONSOLE_FD: i32 = 3;
/// As much of a file is looked at, in bytes.
const OUTPUT_LIMIT: u64 = 256 * 1024;

/// The trial and its outcome: once a guest has run, the same for the life of the service.
#[derive(Debug)]
pub(super) struct KvmTrial {
    vmm: PathBuf,
    kernel: PathBuf,
    /// Nobody else can write here.
    run_dir: PathBuf,
    /// Held while a trial is made.
    known: Mutex<Option<Result<(), String>>>,
}

impl KvmTrial {
    pub(super) fn new(vmm: PathBuf, kernel: PathBuf, run_dir: PathBuf) -> Self {
        Self { vmm, kernel, run_dir, known: Mutex::default() }
    }

    /// Whether a guest runs, or why not. The first caller makes the trial, others wait for it.
    pub(super) async fn outcome(&self) -> Result<(), String> {
        let mut known = self.known.lock().await;
        if let Some(outcome) = &*known {
            return outcome.clone();
        }
        let outcome = self.run().await;
        match &outcome {
            Ok(()) => tracing::info!("kvm runs guests"),
            Err(reason) => tracing::warn!(reason, "kvm does not run guests here"),
        }
        known.insert(outcome).clone()
    }

    async fn run(&self) -> Result<(), String> {
        let device = File::options().read(true).write(true).open("/dev/kvm");
        device.map_err(|error| format!("/dev/kvm: {error}"))?;
        self.trial().await
    }

    /// Nothing of it has a name for longer than the start takes, so that nothing is left whatever becomes of us.
    async fn trial(&self) -> Result<(), String> {
        let made = |error: io::Error| format!("no file for a trial guest: {error}");
        let console = memfd_create(TRIAL, MemfdFlags::CLOEXEC).map_err(|error| made(error.into()))?;
        let mut console = File::from(console);
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
        let end = watch(&vmm, &mut console).await;
        drop(vmm);
        let output = printed.map(|mut file| read(&mut file)).unwrap_or_default();
        judge(end, &read(&mut console), &output)
    }

    fn args(&self) -> Vec<OsString> {
        let limit = CPU_LIMIT.saturating_mul(BUSY).as_secs().to_string();
        let mut args: Vec<OsString> = vec!["--signal=KILL".into(), limit.into(), (&self.vmm).into()];
        args.extend(["--memory", "size=128M", "--console", "off", "--serial"].map(Into::into));
        args.extend([format!("file=/proc/self/fd/{CONSOLE_FD}").into(), "--kernel".into()]);
        // The banner is a notice; what comes after it would be an exit of the VM for each character.
        let cmdline = "console=ttyS0 loglevel=6 earlyprintk=serial panic=0";
        args.extend([(&self.kernel).into(), "--cmdline".into(), cmdline.into()]);
        args
    }
}

/// How a trial came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Its guest came to its own.
    Guest,
    /// Its VMM ended.
    Vmm,
    /// It had the CPU time, or the time, that it may take.
    Over,
}

async fn watch(vmm: &OwnedProcess, console: &mut File) -> End {
    let (started, pid) = (Instant::now(), vmm.identity().pid);
    loop {
        if tokio::time::timeout(LOOK, vmm.wait()).await.is_ok() {
            return End::Vmm;
        }
        let printed = read(console);
        if printed.contains(END) {
            return End::Guest;
        }
        let limit = limit(&printed);
        let cpu = cpu_time_with_children(pid).unwrap_or(started.elapsed());
        if cpu >= limit || started.elapsed() >= limit.saturating_mul(BUSY) {
            return End::Over;
        }
    }
}

/// The CPU time, once the kernel has spoken or not.
fn limit(console: &str) -> Duration {
    if console.contains(BANNER) { CPU_LIMIT } else { BANNER_LIMIT }
}

/// What a file holds, or nothing.
fn read(file: &mut File) -> String {
    let mut bytes = Vec::new();
    let read = file.rewind().and_then(|()| file.take(OUTPUT_LIMIT).read_to_end(&mut bytes));
    read.map(|_| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn judge(end: End, console: &str, output: &str) -> Result<(), String> {
    match end {
        End::Guest => Ok(()),
        End::Vmm => {
            let word = output.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it printed nothing");
            Err(format!("the trial's VMM ended at once: {word}"))
        }
        End::Over => {
            let spoke = console.contains(BANNER);
            let did = if spoke { "began to boot, but did not finish" } else { "did not say a word" };
            Err(format!("a trial guest {did} in {:?} of CPU time", limit(console)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_guest_that_came_to_its_end_counts() {
        assert_eq!(judge(End::Guest, "", ""), Ok(()));
        let ended = judge(End::Vmm, "", "Error: no KVM\n\n").unwrap_err();
        assert_eq!(ended, "the trial's VMM ended at once: Error: no KVM");
        assert!(judge(End::Over, "", "").unwrap_err().contains("did not say a word"));
        assert!(judge(End::Over, "Linux version 6.1", "").unwrap_err().contains("did not finish"));
    }

    #[tokio::test]
    async fn the_trial_is_made_once_and_tells_why_it_failed() {
        let [vmm, kernel] = ["/nonexistent/vmm", "/nonexistent/vmlinux"].map(Into::into);
        let trial = KvmTrial::new(vmm, kernel, std::env::temp_dir());
        let first = trial.outcome().await.unwrap_err();
        assert!(first.contains("/dev/kvm") || first.contains("/nonexistent/vmm"), "{first}");
        assert_eq!(trial.outcome().await, Err(first));
    }
}
