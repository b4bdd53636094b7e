//! Stand-ins for the programs that a pod needs.

use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Writes an executable shell script into a directory.
///
/// # Errors
/// When it cannot be written.
pub fn write_program(dir: &Path, name: &str, script: &str) -> io::Result<PathBuf> {
    let path = dir.join(name);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o755).open(&path)?;
    io::Write::write_all(&mut file, format!("#!/bin/sh\n{script}\n").as_bytes())?;
    Ok(path)
}

/// A file server that serves nothing.
///
/// # Errors
/// When it cannot be written.
pub fn fake_virtiofsd(dir: &Path) -> io::Result<PathBuf> {
    write_program(dir, "virtiofsd", "exec sleep 3600")
}
