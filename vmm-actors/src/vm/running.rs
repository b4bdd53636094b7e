//! The processes of a VM while they run.

use std::fs::OpenOptions;
use std::time::Duration;

use super::{EndCause, VmError, VmRecord, VmmExited};
use crate::host::process::{Exit, OwnedProcess, ProcessIdentity, last_lines};

/// How long a VMM may take to end by SIGTERM.
const TERM_GRACE: Duration = Duration::from_secs(2);
/// Lines of an output file that go into an error.
const LINES: usize = 12;
/// Bytes of an output file that are looked at for them.
const BYTES: u64 = 8 * 1024;
/// Largest console file, in bytes. A guest prints what it likes; emptied in time, the file never fills the pod's
/// directory ([`crate::runtime_dir::LIMIT`]), and so keeps the newest lines.
const CONSOLE_LIMIT: u64 = 1024 * 1024;

/// The processes of one VM. Dropping it ends them, unless they are kept.
#[derive(Debug)]
pub(super) struct Running {
    vmm: OwnedProcess,
    helper: Option<OwnedProcess>,
    record: VmRecord,
}

impl Running {
    pub(super) fn new(vmm: OwnedProcess, helper: Option<OwnedProcess>, record: VmRecord) -> Self {
        Self { vmm, helper, record }
    }

    /// Takes over a recorded VM. `None` when it is not whole any more; what was left of it has been ended.
    pub(super) fn adopt(record: VmRecord) -> Result<Option<Self>, VmError> {
        let vmm = adopt(&record.vmm)?;
        let helper = record.vsock_helper.as_ref().map(adopt).transpose()?;
        match (vmm, helper) {
            (Some(vmm), None) => Ok(Some(Self::new(vmm, None, record))),
            (Some(vmm), Some(Some(helper))) => Ok(Some(Self::new(vmm, Some(helper), record))),
            (vmm, helper) => {
                let left =
                    vmm.into_iter().chain(helper.flatten()).map(|p| p.identity().pid).collect::<Vec<_>>();
                tracing::warn!(
                    ?left,
                    "a recorded VM is not whole any more, what is left of it has been ended"
                );
                Ok(None)
            }
        }
    }

    pub(super) fn record(&self) -> &VmRecord {
        &self.record
    }

    pub(super) fn keep(&self) {
        self.vmm.keep();
        if let Some(helper) = &self.helper {
            helper.keep();
        }
    }

    /// Waits until one of the processes ends, ends the others, and says how it was.
    pub(super) async fn watch(&self) -> VmmExited {
        let (exit, cause, output) = match &self.helper {
            None => (self.vmm.wait().await, EndCause::VmmEnded, self.record.dir.vmm_output()),
            Some(helper) => tokio::select! {
                biased;
                exit = self.vmm.wait() => {
                    helper.end(Duration::ZERO).await;
                    (exit, EndCause::VmmEnded, self.record.dir.vmm_output())
                }
                ended = helper.wait() => {
                    let exit = self.vmm.end(Duration::ZERO).await;
                    (exit, EndCause::VsockHelperEnded(ended), self.record.dir.vsock_output())
                }
            },
        };
        VmmExited {
            exit,
            cause,
            last_words: last_lines(&output, LINES, BYTES),
            console_tail: last_lines(&self.record.dir.console(), LINES, BYTES),
        }
    }

    /// Ends the VMM; [`watch`](Self::watch) does the rest. Its guest has `grace` to end it first.
    pub(super) async fn end(&self, grace: Duration) {
        if !grace.is_zero() && tokio::time::timeout(grace, self.vmm.wait()).await.is_ok() {
            return;
        }
        let term_grace = if grace.is_zero() { Duration::ZERO } else { TERM_GRACE };
        self.vmm.end(term_grace).await;
    }

    /// Empties a console file that has grown too large. The VMM appends, so that it goes on at the beginning.
    pub(super) fn bound_console(&self) {
        let path = self.record.dir.console();
        let too_large = std::fs::metadata(&path).is_ok_and(|file| file.len() > CONSOLE_LIMIT);
        if !too_large {
            return;
        }
        let emptied = OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(0));
        let dir = self.record.dir.path().display();
        match emptied {
            Ok(()) => tracing::warn!(%dir, "the guest floods its console, the file was emptied"),
            Err(error) => tracing::warn!(%dir, %error, "cannot empty the console file"),
        }
    }
}

fn adopt(identity: &ProcessIdentity) -> Result<Option<OwnedProcess>, VmError> {
    OwnedProcess::adopt(identity).map_err(|source| VmError::Adopt { pid: identity.pid, source })
}

/// The answer for a VM that never ran.
pub(super) const NEVER_RAN: Exit = Exit::Unknown;
