//! The files that a VM boots from.

use std::fs::File;
use std::io;
use std::path::Path;

/// Whether this is a regular file that can be read: a driver says so early and by the setting's name, its VMM would say it late
/// and in its own words.
///
/// # Errors
/// What the host says; [`io::ErrorKind::InvalidInput`] for what is no regular file.
pub(super) fn readable(path: &Path) -> io::Result<()> {
    if File::open(path)?.metadata()?.is_file() { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}
