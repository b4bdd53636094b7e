//! Whether KVM runs a guest here, found out by running one.
//!
//! `/dev/kvm` that opens proves little: inside of some virtual machines it runs nothing of use. So a tiny VM boots
//! the configured kernel without a root: it prints its banner, finds nothing to run, and panics.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::host::process::{OwnedProcess, Spawn, cpu_time_with_children};

/// How much CPU time the trial may take. Its length says little on a host that has other things to do, as one that has
/// just booted: a guest on a broken KVM spins, one that is kept waiting does not.
#[derive(Debug, Clone, Copy)]
pub(super) struct CpuBudget {
    /// Until the kernel says its first words.
    banner: Duration,
    /// From there to its end.
    end: Duration,
    /// How many times as long as its CPU time it may take: beyond that the host is too busy, or the guest sleeps for ever, and
    /// it shows nothing.
    busy: u32,
}

impl CpuBudget {
    /// Where the other choice is to emulate. On hardware it takes a tenth and half a second.
    pub(super) const SHORT: Self =
        Self { banner: Duration::from_secs(3), end: Duration::from_secs(7), busy: 5 };
    /// Where the other choice is no pod at all: KVM may be nested, and slow.
    pub(super) const LONG: Self =
        Self { banner: Duration::from_secs(30), end: Duration::from_secs(60), busy: 5 };

    /// The same for a trial that may keep others waiting less long.
    pub(super) const fn busy(self, busy: u32) -> Self {
        Self { busy, ..self }
    }

    /// The CPU time, once the kernel has spoken or not.
    fn limit(self, spoke: bool) -> Duration {
        if spoke { self.banner.saturating_add(self.end) } else { self.banner }
    }
}

/// How often such a trial is repeated: the next pod's VMM asks again.
const TRIALS: u8 = 3;
/// How often the trial is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Ends the trial should this process be killed meanwhile: a guest on a broken KVM may spin for ever.
const WATCHDOG: &str = "/usr/bin/timeout";
/// First words of the banner of every Linux kernel, and of its end.
const BANNER: &str = "Linux version";
const PANIC: &str = "Kernel panic";
/// Number of the console's descriptor in the trial's VMM.
const CONSOLE_FD: i32 = 3;
/// Where the guest's console has to go.
pub(super) const CONSOLE: &str = "/proc/self/fd/3";

/// A VMM that boots a kernel on KVM for a trial.
#[derive(Debug)]
pub(super) struct TrialVmm {
    /// What the trial's files are called.
    pub(super) name: &'static str,
    pub(super) program: PathBuf,
    /// Its arguments; the guest's console goes to [`CONSOLE`].
    pub(super) args: Vec<OsString>,
    pub(super) panic: OnPanic,
    /// As much of a file is looked at, in bytes: the banner is the first thing that a kernel prints, its panic the last.
    pub(super) output_limit: u64,
}

/// What a VMM does when the guest of its trial panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnPanic {
    /// It ends.
    Ends,
    /// It goes on: the guest's console says that the guest is done.
    GoesOn,
}

/// The trial and its outcome, the same for the life of the service once a trial has shown something.
#[derive(Debug)]
pub(super) struct KvmTrial {
    vmm: TrialVmm,
    /// Nobody else can write here.
    run_dir: PathBuf,
    budget: CpuBudget,
    /// Held while a trial is made.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    outcome: Option<Result<(), String>>,
    trials: u8,
}

/// Why KVM was not seen to run a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
enum NotShown {
    /// It does not.
    Broken(String),
    /// The trial showed nothing.
    Unclear(String),
}

impl Known {
    /// Takes in what a trial showed, and says what to go by until the next.
    fn learn(&mut self, shown: Result<(), NotShown>) -> Result<(), String> {
        self.trials = self.trials.saturating_add(1);
        let (outcome, again) = match shown {
            Ok(()) => (Ok(()), false),
            Err(NotShown::Broken(reason)) => (Err(reason), false),
            Err(NotShown::Unclear(reason)) => (Err(reason), self.trials < TRIALS),
        };
        match &outcome {
            Ok(()) => tracing::info!("kvm runs guests"),
            Err(reason) => tracing::warn!(reason, again, "kvm does not run guests here"),
        }
        self.outcome = Some(outcome.clone()).filter(|_| !again);
        outcome
    }
}

impl KvmTrial {
    pub(super) fn new(vmm: TrialVmm, run_dir: PathBuf, budget: CpuBudget) -> Self {
        Self { vmm, run_dir, budget, known: Mutex::default() }
    }

    /// Whether a guest runs, or why not. The first caller makes the trial, others wait for it.
    pub(super) async fn outcome(&self) -> Result<(), String> {
        let mut known = self.known.lock().await;
        match &known.outcome {
            Some(outcome) => outcome.clone(),
            None => {
                let shown = self.run().await;
                known.learn(shown)
            }
        }
    }

    async fn run(&self) -> Result<(), NotShown> {
        let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
        device.map_err(|error| NotShown::Broken(format!("/dev/kvm: {error}")))?;
        self.trial().await
    }

    /// Nothing of it has a name for longer than the start takes, so that nothing is left whatever becomes of us.
    async fn trial(&self) -> Result<(), NotShown> {
        let made = |error: io::Error| NotShown::Broken(format!("no file for a trial guest: {error}"));
        let mut console =
            File::from(memfd_create(self.vmm.name, MemfdFlags::CLOEXEC).map_err(|error| made(error.into()))?);
        let output = self.run_dir.join(self.vmm.name);
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
        let vmm = vmm.map_err(|error| NotShown::Broken(format!("the trial did not start: {error}")))?;
        let end = self.watch(&vmm, &mut console).await;
        drop(vmm);
        let output = printed.map(|mut file| self.read(&mut file)).unwrap_or_default();
        judge(end, &self.read(&mut console), &output, self.budget)
    }

    /// Until the trial ends or has taken what it may.
    async fn watch(&self, vmm: &OwnedProcess, console: &mut File) -> End {
        let (started, pid) = (Instant::now(), vmm.identity().pid);
        loop {
            if tokio::time::timeout(LOOK, vmm.wait()).await.is_ok() {
                return if self.vmm.panic == OnPanic::Ends { End::Itself } else { End::Early };
            }
            let printed = self.read(console);
            if self.vmm.panic == OnPanic::GoesOn && printed.contains(PANIC) {
                return End::Panicked;
            }
            let limit = self.budget.limit(printed.contains(BANNER));
            let busy = self.budget.busy;
            if let Some(end) = over(cpu_time_with_children(pid).ok(), started.elapsed(), limit, busy) {
                return end;
            }
        }
    }

    fn args(&self) -> Vec<OsString> {
        let limit = self.budget.limit(true).saturating_mul(self.budget.busy).as_secs().to_string();
        let mut args: Vec<OsString> = vec!["--signal=KILL".into(), limit.into(), (&self.vmm.program).into()];
        args.extend(self.vmm.args.iter().cloned());
        args
    }

    /// What a file holds, or nothing.
    fn read(&self, file: &mut File) -> String {
        let mut bytes = Vec::new();
        let read = file.rewind().and_then(|()| file.take(self.vmm.output_limit).read_to_end(&mut bytes));
        read.map(|_| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }
}

/// How a trial came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Its VMM ended, as it does when the guest panics.
    Itself,
    /// Its VMM ended, which it does not when the guest panics.
    Early,
    /// Its guest panicked, and the VMM goes on.
    Panicked,
    /// It had the CPU time that it may take.
    Used,
    /// It had less, but its time is over: what it used, and in how long.
    Starved { cpu: Duration, time: Duration },
}

/// Whether a trial that has run for `time` has taken enough. Where its CPU time is not known, its length has to do.
fn over(cpu: Option<Duration>, time: Duration, limit: Duration, busy: u32) -> Option<End> {
    let cpu = cpu.unwrap_or(time);
    if cpu >= limit {
        Some(End::Used)
    } else {
        (time >= limit.saturating_mul(busy)).then_some(End::Starved { cpu, time })
    }
}

/// What the trial shows. A kernel that came as far as its panic has had working timers, too.
fn judge(end: End, console: &str, output: &str, budget: CpuBudget) -> Result<(), NotShown> {
    let spoke = console.contains(BANNER);
    let did = if spoke { "began to boot, but did not finish" } else { "did not say a word" };
    match end {
        End::Panicked => Ok(()),
        End::Itself if spoke => Ok(()),
        End::Itself | End::Early => {
            let word = output.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it printed nothing");
            Err(NotShown::Broken(format!("the trial's VMM ended at once: {word}")))
        }
        End::Used => {
            Err(NotShown::Broken(format!("a trial guest {did} in {:?} of CPU time", budget.limit(spoke))))
        }
        End::Starved { cpu, time } => Err(NotShown::Unclear(format!(
            "a trial guest {did} within {} s, of which it had a CPU for {:.1} s: the host is busy, or the guest hangs",
            time.as_secs(),
            cpu.as_secs_f32()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn only_a_guest_that_printed_and_ended_counts() {
        let banner = "[    0.000000] Linux version 6.1\nKernel panic";
        let broken = |end, console, output| match judge(end, console, output, CpuBudget::SHORT) {
            Err(NotShown::Broken(reason)) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(judge(End::Itself, banner, "", CpuBudget::SHORT), Ok(()));
        assert!(broken(End::Used, banner, "").contains("began to boot, but did not finish in 10s"));
        assert!(broken(End::Itself, "", "a\nno such device").contains("no such device"));
        assert!(broken(End::Itself, "", "").contains("printed nothing"));
        assert!(broken(End::Used, "", "").contains("did not say a word in 3s of CPU time"));
    }

    #[test]
    fn of_a_vmm_that_goes_on_only_a_guest_that_panicked_counts() {
        assert_eq!(judge(End::Panicked, "", "", CpuBudget::LONG), Ok(()));
        let broken = |reason: &str| Err(NotShown::Broken(reason.to_owned()));
        assert_eq!(
            judge(End::Early, "Linux version 6.1", "Error: no KVM\n\n", CpuBudget::LONG),
            broken("the trial's VMM ended at once: Error: no KVM")
        );
        let Err(NotShown::Broken(silent)) = judge(End::Used, "", "", CpuBudget::LONG) else { panic!() };
        assert!(silent.contains("did not say a word"));
        let Err(NotShown::Broken(begun)) = judge(End::Used, "Linux version 6.1", "", CpuBudget::LONG) else {
            panic!()
        };
        assert!(begun.contains("did not finish"));
    }

    #[test]
    fn a_guest_that_was_kept_waiting_shows_nothing() {
        let limit = 3 * SECOND;
        assert_eq!(over(Some(SECOND), 14 * SECOND, limit, 5), None, "the host is busy");
        let starved = End::Starved { cpu: SECOND, time: 15 * SECOND };
        assert_eq!(over(Some(SECOND), 15 * SECOND, limit, 5), Some(starved));
        assert_eq!(over(Some(3 * SECOND), 3 * SECOND, limit, 5), Some(End::Used), "it spins");
        assert_eq!(over(None, 2 * SECOND, limit, 5), None);
        assert_eq!(over(None, 3 * SECOND, limit, 5), Some(End::Used));
        let Err(NotShown::Unclear(reason)) = judge(starved, "", "", CpuBudget::SHORT) else {
            panic!("it is known")
        };
        assert_eq!(
            reason,
            "a trial guest did not say a word within 15 s, of which it had a CPU for 1.0 s: the host is busy, or the \
             guest hangs"
        );
    }

    #[test]
    fn what_showed_nothing_is_tried_again_a_few_times() {
        let unclear = || Err(NotShown::Unclear("busy".to_owned()));
        let mut known = Known::default();
        assert!(known.learn(unclear()).is_err());
        assert_eq!(known.outcome, None);
        assert_eq!(known.learn(Ok(())), Ok(()));
        assert_eq!(known.outcome, Some(Ok(())));
        let mut known = Known::default();
        for trial in 1..=TRIALS {
            assert!(known.learn(unclear()).is_err());
            assert_eq!(known.outcome.is_some(), trial == TRIALS);
        }
        let mut known = Known::default();
        assert!(known.learn(Err(NotShown::Broken("no".to_owned()))).is_err());
        assert_eq!(known.outcome, Some(Err("no".to_owned())));
    }

    #[tokio::test]
    async fn the_trial_is_made_once_and_tells_why_it_failed() {
        for panic in [OnPanic::Ends, OnPanic::GoesOn] {
            let vmm = TrialVmm {
                name: "bulkhead-trial-of-a-test",
                program: "/nonexistent/vmm".into(),
                args: Vec::new(),
                panic,
                output_limit: 1024,
            };
            let trial = KvmTrial::new(vmm, std::env::temp_dir(), CpuBudget::SHORT);
            let first = trial.outcome().await.unwrap_err();
            assert!(first.contains("/dev/kvm") || first.contains("/nonexistent/vmm"), "{first}");
            assert_eq!(trial.outcome().await, Err(first));
            assert_eq!(trial.known.lock().await.trials, 1);
        }
    }
}
