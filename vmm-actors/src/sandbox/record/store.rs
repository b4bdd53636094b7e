//! The file that a record lives in.
//!
//! `<state_dir>/sandboxes/<id>.json`: one header line (magic, version, length and CRC-32 of the body), then the body.
//! Written to a temporary file, fsynced, renamed, directory fsynced: a reader sees the old record or the new one.
//! A record that does not read is moved to `quarantine/`, never deleted.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Nanos, Record};
use crate::id::SandboxId;
use crate::record_part::RecordError;

/// First word of the header line.
const MAGIC: &str = "bulkhead-sandbox";
/// Newest version of the body that this build reads and the one it writes.
const VERSION: u32 = 1;
/// Largest record that is read, in bytes.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    magic: String,
    version: u32,
    length: u64,
    crc32: u32,
}

/// Why a record's file is no record.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// It could not be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It is too large to be one.
    #[error("it has {0} bytes, a record has at most {MAX_BYTES}")]
    TooLarge(u64),
    /// Its header line is missing or no header.
    #[error("its header line is damaged")]
    Header,
    /// A newer release wrote it.
    #[error("it has version {0}, this build reads up to {VERSION}")]
    Version(u32),
    /// Its body is shorter than the header says, or other bytes.
    #[error("its body is cut or damaged (checksum mismatch)")]
    Checksum,
    /// Its body is whole but no record.
    #[error("its body is no record")]
    Body(#[source] serde_json::Error),
    /// It names another sandbox than its file does.
    #[error("it is the record of sandbox {0}")]
    WrongName(SandboxId),
}

/// A file of the state directory.
#[derive(Debug)]
pub enum Found {
    /// A record.
    Record(Box<Record>),
    /// Something that should have been one; it now lies in the quarantine.
    Quarantined {
        /// The sandbox its name speaks of.
        id: Option<SandboxId>,
        /// Where it lies now.
        path: PathBuf,
        /// Why.
        why: Broken,
    },
}

/// The directory of all records.
#[derive(Debug, Clone)]
pub struct Store {
    pub(super) sandboxes: PathBuf,
    quarantine: PathBuf,
}

impl Store {
    /// Opens (and makes) the directory.
    ///
    /// # Errors
    /// [`RecordError::OpenDirectory`] naming the directory.
    pub fn open(state_dir: &Path) -> Result<Self, RecordError> {
        let store = Self { sandboxes: state_dir.join("sandboxes"), quarantine: state_dir.join("quarantine") };
        for path in [&store.sandboxes, &store.quarantine] {
            fs::create_dir_all(path)
                .map_err(|source| RecordError::OpenDirectory { path: path.clone(), source })?;
        }
        Ok(store)
    }

    /// Where the record of `id` lies.
    #[must_use]
    pub fn path(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes.join(format!("{id}.json"))
    }

    /// Makes a record durable. Blocks for the disk.
    ///
    /// # Errors
    /// [`RecordError::Encode`] and [`RecordError::Write`]; the old record, if any, is then still there.
    pub fn save(&self, record: &Record) -> Result<(), RecordError> {
        let path = self.path(&record.id);
        let encode = |source| RecordError::Encode { id: record.id.clone(), source };
        let body = serde_json::to_vec(record).map_err(encode)?;
        let header = Header {
            magic: MAGIC.to_owned(),
            version: VERSION,
            length: body.len() as u64,
            crc32: crc32fast::hash(&body),
        };
        let mut bytes = serde_json::to_vec(&header).map_err(encode)?;
        bytes.push(b'\n');
        bytes.extend_from_slice(&body);
        let temporary = self.sandboxes.join(format!("{}.new", record.id));
        replace(&temporary, &path, &bytes, &self.sandboxes)
            .map_err(|source| RecordError::Write { path, source })
    }

    /// Deletes a record. One that is not there is fine. Blocks for the disk.
    ///
    /// # Errors
    /// [`RecordError::Delete`].
    pub fn delete(&self, id: &SandboxId) -> Result<(), RecordError> {
        let path = self.path(id);
        let deleted = match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.and_then(|()| sync_directory(&self.sandboxes)),
        };
        deleted.map_err(|source| RecordError::Delete { path, source })
    }

    /// Reads every record; what is none goes to the quarantine.
    ///
    /// # Errors
    /// [`RecordError::OpenDirectory`] when the directory cannot be listed.
    pub fn load_all(&self) -> Result<Vec<Found>, RecordError> {
        let list = |source| RecordError::OpenDirectory { path: self.sandboxes.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.sandboxes).map_err(list)? {
            let path = entry.map_err(list)?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => found.push(self.load(&path)),
                // A write that a crash cut short: the record it was to replace is still whole.
                Some("new") => drop(fs::remove_file(&path)),
                Some(_) | None => {
                    tracing::warn!(path = %path.display(), "a stray file in the state directory")
                }
            }
        }
        Ok(found)
    }

    /// Reads one record; `None` when there is none.
    #[must_use]
    pub fn load_one(&self, id: &SandboxId) -> Option<Found> {
        let path = self.path(id);
        path.exists().then(|| self.load(&path))
    }

    fn load(&self, path: &Path) -> Found {
        let id = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| SandboxId::new(stem).ok());
        let why = match read(path) {
            Ok(record) if Some(&record.id) == id.as_ref() => return Found::Record(Box::new(record)),
            Ok(record) => Broken::WrongName(record.id),
            Err(why) => why,
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let target = self.quarantine.join(format!("{name}.{}", Nanos::now().0));
        let path = match fs::rename(path, &target) {
            Ok(()) => target,
            Err(_stays) => path.to_owned(),
        };
        Found::Quarantined { id, path, why }
    }
}

fn replace(temporary: &Path, path: &Path, bytes: &[u8], directory: &Path) -> io::Result<()> {
    let mut file = fs::File::create(temporary)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let replaced = written.and_then(|()| fs::rename(temporary, path));
    if replaced.is_err() {
        drop(fs::remove_file(temporary));
    }
    replaced.and_then(|()| sync_directory(directory))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

fn read(path: &Path) -> Result<Record, Broken> {
    let length = fs::metadata(path).map_err(Broken::Read)?.len();
    if length > MAX_BYTES {
        return Err(Broken::TooLarge(length));
    }
    let bytes = fs::read(path).map_err(Broken::Read)?;
    let (header, body) = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .and_then(|end| Some((bytes.get(..end)?, bytes.get(end + 1..)?)))
        .ok_or(Broken::Header)?;
    let header: Header = serde_json::from_slice(header).ok().ok_or(Broken::Header)?;
    if header.magic != MAGIC {
        return Err(Broken::Header);
    }
    if header.version > VERSION {
        return Err(Broken::Version(header.version));
    }
    if header.length != body.len() as u64 || header.crc32 != crc32fast::hash(body) {
        return Err(Broken::Checksum);
    }
    serde_json::from_slice(body).map_err(Broken::Body)
}

#[cfg(test)]
pub(in crate::sandbox) mod tests;
