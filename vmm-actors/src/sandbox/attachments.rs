//! Which disks are being attached, and who waits for that.

use std::collections::BTreeMap;
use std::fmt;

use futures::future::{LocalBoxFuture, Shared};

use super::error::Blame;

/// What became, or will become, of attaching a disk. Whoever wants the disk waits for the same outcome.
pub(super) type Attachment = Shared<LocalBoxFuture<'static, Result<(), NotAttached>>>;

/// Why a disk is not attached. Can be told to more than one.
#[derive(Debug, Clone)]
pub(super) struct NotAttached {
    pub(super) blame: Blame,
    pub(super) reason: String,
}

/// The attachments of this process, by the disk's number. A disk that a previous process recorded has none: attaching what
/// is there already is harmless.
#[derive(Default)]
pub(super) struct Attachments(pub(super) BTreeMap<u32, Attachment>);

impl fmt::Debug for Attachments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
