//! What a VM's processes leave in files: the guest's console, and the last words of one that ended.

use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;

use super::{EndCause, VmmExited};
use crate::host::process::last_lines;
use crate::host::process::supervised::{Ended, EndedBy};
use crate::runtime_dir::VmDir;

/// Lines of an output file that go into an error.
const LINES: usize = 12;
/// Bytes of an output file that are looked at for them.
const BYTES: u64 = 8 * 1024;
/// Largest console file, in bytes. A guest prints what it likes; emptied in time, the file never fills the pod's
/// directory ([`crate::runtime_dir::LIMIT`]), and so keeps the newest lines.
const CONSOLE_LIMIT: u64 = 1024 * 1024;

/// The end of a VM, with the last words of the process at fault.
pub(super) fn exited(ended: Ended, dir: &VmDir) -> VmmExited {
    let (cause, output) = match ended.by {
        EndedBy::Request => (EndCause::Asked, dir.vmm_output()),
        EndedBy::Main => (EndCause::VmmEnded, dir.vmm_output()),
        EndedBy::Helper(exit) => (EndCause::VsockHelperEnded(exit), dir.vsock_output()),
    };
    VmmExited {
        exit: ended.exit,
        cause,
        last_words: last_lines(&output, LINES, BYTES),
        console_tail: last_lines(&dir.console(), LINES, BYTES),
    }
}

/// Empties a console file that has grown too large. A VMM that appends goes on at the beginning; another leaves a hole
/// there, which takes no room.
pub(super) fn bound_console(dir: &VmDir) {
    let path = dir.console();
    let too_large =
        std::fs::metadata(&path).is_ok_and(|file| file.blocks().saturating_mul(512) > CONSOLE_LIMIT);
    if !too_large {
        return;
    }
    let emptied = OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(0));
    let dir = dir.path().display();
    match emptied {
        Ok(()) => tracing::warn!(%dir, "the guest floods its console, the file was emptied"),
        Err(error) => tracing::warn!(%dir, %error, "cannot empty the console file"),
    }
}
