//! Which disks are being attached, and who waits for that.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures::future::{LocalBoxFuture, Shared};

use crate::ask::AskError;
use crate::vm::VmError;

/// What became, or will become, of attaching a disk. Whoever wants the disk waits for the same outcome.
pub(super) type Attachment = Shared<LocalBoxFuture<'static, Result<(), Arc<AskError<VmError>>>>>;

/// The attachments of this process, by the disk's number. A disk that a previous process recorded has none: attaching what
/// is there already is harmless.
#[derive(Default)]
pub(super) struct Attachments(pub(super) BTreeMap<u32, Attachment>);

impl fmt::Debug for Attachments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
