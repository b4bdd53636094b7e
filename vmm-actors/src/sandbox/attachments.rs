//! Which disks are being plugged in, and who waits for that.

use std::collections::BTreeMap;
use std::fmt;

use futures::future::{LocalBoxFuture, Shared};

use super::error::Blame;

/// What became, or will become, of plugging a disk in. Whoever wants the disk waits for the same outcome.
pub(super) type Plug = Shared<LocalBoxFuture<'static, Result<(), NotPlugged>>>;

/// Why a disk is not plugged in. Can be told to more than one.
#[derive(Debug, Clone)]
pub(super) struct NotPlugged {
    pub(super) blame: Blame,
    pub(super) reason: String,
}

/// The plugs of this process, by the disk's number. A disk that a previous process recorded has none: plugging in what
/// is there already is harmless.
#[derive(Default)]
pub(super) struct Plugs(pub(super) BTreeMap<u32, Plug>);

impl fmt::Debug for Plugs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
