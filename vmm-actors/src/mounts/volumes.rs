//! The volumes of a pod: one mount in the share for all containers that ask for the same.
//!
//! To the guest each mount of the share is a file system of its own. Two mounts of one directory would have different
//! inodes there, and a unix socket, a lock, inotify or shared memory of one container would mean nothing to another.
//! So a container that may only read gets the mount of one that may write, and the guest sees to it that it only reads:
//! a guest that has a volume to write to needs no other. One that comes before any that may write has a mount that is
//! read-only here, which is another file system in the guest, and keeps it.
//!
//! `.volumes/<number>` is the mount. `<container>/mounts/<number>` is a link to it, and what keeps it: a volume without
//! a link to it goes. What a volume is a mount of lies in `shared.ids/<number>`, beside the share and not in it: in the
//! names of empty files, because the guest may have filled the pod's directory, where names need no room.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use bulkhead_protocol::SHARE_VOLUMES;

use super::error::MountsError;
use super::share::{backing, blocking, make_directory, mounts_below, unmount_below};
use crate::host::mount::{BindFlags, Mount, Propagation, attribute};
use crate::id::ContainerId;

/// From `<container>/mounts/<number>` to the directory that holds [`SHARE_VOLUMES`]. No container has that name: ids begin
/// with a letter or a digit.
const UP: &str = "../..";

/// A volume, ready to be mounted.
pub(super) struct Volume {
    pub(super) number: u32,
    pub(super) source: PathBuf,
    pub(super) flags: BindFlags,
    pub(super) is_dir: bool,
}

impl Volume {
    /// Makes what it is mounted on.
    pub(super) fn make_point(&self, point: &Path) -> Result<(), MountsError> {
        if self.is_dir {
            return make_directory(point);
        }
        let made = File::create(point).map(drop);
        made.map_err(|source| MountsError::MakeMountPoint { path: point.to_owned(), source })
    }

    /// The same where nothing is mounted below a private volume: then it does not matter how that would be treated.
    pub(super) fn alone(mut self) -> Self {
        if self.flags.propagation == Propagation::Private {
            self.flags.recursive = false;
            self.flags.recursive_read_only = false;
        }
        self
    }

    /// As it would be mounted for a container that may write, if that is all that is different: nothing is below it
    /// that read-only could mean something else for, now or later.
    fn writable_instead(&self) -> Option<BindFlags> {
        let flags = BindFlags { set: self.flags.set & !attribute::RDONLY, ..self.flags };
        let is_plain = !flags.recursive && flags.propagation == Propagation::Private;
        (is_plain && flags != self.flags).then_some(flags)
    }

    /// Whether copies of mounts below it would stay when the host unmounts those, and their directories be busy.
    pub(super) fn is_in_the_way(&self) -> Result<bool, MountsError> {
        if !self.flags.recursive || self.flags.propagation == Propagation::Slave {
            return Ok(false);
        }
        let source = fs::canonicalize(&self.source).unwrap_or_else(|_gone| self.source.clone());
        Ok(mounts_below(&source)?.iter().any(|path| *path != source))
    }
}

/// Where it is written down what each volume is a mount of.
pub(super) fn notes(share: &Path) -> PathBuf {
    share.with_extension("ids")
}

/// How a volume has appeared.
pub(super) struct Attached {
    /// The mount, where a new one was needed; it goes with its guard.
    pub(super) made: Option<Mount>,
    /// The container may only read, and that is the guest's to see to.
    pub(super) is_read_only_in_guest: bool,
}

/// Makes a volume appear for a container.
pub(super) fn attach(
    share: &Path,
    container: &ContainerId,
    volume: &Volume,
) -> Result<Attached, MountsError> {
    let identity = identity(volume, volume.flags)?;
    let shared = match volume.writable_instead() {
        Some(flags) => find(share, &self::identity(volume, flags)?)?,
        None => None,
    };
    let is_read_only_in_guest = shared.is_some();
    let (name, made) = match shared.map_or_else(|| find(share, &identity), |name| Ok(Some(name)))? {
        Some(name) => (name, None),
        None => mount(share, volume, &identity).map(|(name, mount)| (name, Some(mount)))?,
    };
    let links = backing(share).join(container.as_str()).join("mounts");
    make_directory(&links)?;
    let link = links.join(volume.number.to_string());
    symlink(Path::new(UP).join(SHARE_VOLUMES).join(name), &link)
        .map_err(|source| MountsError::MakeMountPoint { path: link, source })?;
    Ok(Attached { made, is_read_only_in_guest })
}

/// Everything that makes a mount of the same path another one. Who may write is part of it: the file server is told, and
/// not the guest.
fn identity(volume: &Volume, flags: BindFlags) -> Result<String, MountsError> {
    let real = fs::canonicalize(&volume.source);
    let found = real.and_then(|real| Ok((fs::metadata(&real)?, real)));
    let (metadata, real) =
        found.map_err(|source| MountsError::MakeMountPoint { path: volume.source.clone(), source })?;
    Ok(format!("{real:?}\n{flags:?}\n{}:{}\n", metadata.dev(), metadata.ino()))
}

fn find(share: &Path, identity: &str) -> Result<Option<String>, MountsError> {
    let mounted = mounts_below(&share.join(SHARE_VOLUMES))?;
    let mut there = noted(share)?.into_iter();
    let same = there
        .find(|(name, note)| note == identity && mounted.contains(&share.join(SHARE_VOLUMES).join(name)));
    Ok(same.map(|(name, _)| name))
}

fn mount(share: &Path, volume: &Volume, identity: &str) -> Result<(String, Mount), MountsError> {
    let last = noted(share)?.iter().filter_map(|(name, _)| name.parse::<u32>().ok()).max();
    let name = last.map_or(0, |last| last.saturating_add(1)).to_string();
    let (points, notes) = (backing(share).join(SHARE_VOLUMES), notes(share));
    make_directory(&points)?;
    let note = notes.join(&name);
    make_directory(&note)?;
    let written = write_note(&note, identity);
    written.map_err(|source| MountsError::MakeMountPoint { path: note, source })?;
    volume.make_point(&points.join(&name))?;
    let mounted = Mount::bind(&volume.source, &share.join(SHARE_VOLUMES).join(&name), volume.flags);
    Ok((name, mounted.map_err(MountsError::Mount)?))
}

/// Volumes that were made and not removed: name and what each is a mount of.
fn noted(share: &Path) -> Result<Vec<(String, String)>, MountsError> {
    let dir = notes(share);
    let failed = |source| MountsError::ReadVolumes { path: dir.clone(), source };
    let mut found = Vec::new();
    for name in names_in(&dir).map_err(failed)? {
        let text = read_note(&dir.join(&name)).map_err(failed)?;
        found.push((name, text));
    }
    Ok(found)
}

/// Bytes of a note in one name: two hexadecimal digits each, and the number of the piece before them.
const PIECE: usize = 100;

/// Writes a note into a directory of its own. One that is not whole is not equal to any, and goes with the unused.
fn write_note(dir: &Path, text: &str) -> io::Result<()> {
    text.as_bytes().chunks(PIECE).enumerate().try_for_each(|(number, piece)| {
        let digits: String = piece.iter().map(|byte| format!("{byte:02x}")).collect();
        File::create(dir.join(format!("{number:04}-{digits}"))).map(drop)
    })
}

/// Reads a note; releases before this one wrote it into a file.
fn read_note(path: &Path) -> io::Result<String> {
    if path.is_file() {
        return fs::read_to_string(path);
    }
    let mut names = names_in(path)?;
    names.sort();
    let digits: String = names.iter().filter_map(|name| name.split('-').nth(1)).collect();
    let pairs = digits.as_bytes().chunks(2).filter_map(|pair| std::str::from_utf8(pair).ok());
    let bytes: Vec<u8> = pairs.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Names in a directory, none where there is no directory.
fn names_in(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read?,
    };
    entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned())).collect()
}

/// Unmounts volumes that no container has any more.
pub(super) async fn release_unused(share: &Path) -> Result<(), MountsError> {
    let owned = share.to_owned();
    for name in blocking(move || unused(&owned)).await? {
        unmount_below(&share.join(SHARE_VOLUMES).join(&name)).await?;
        let (point, note) = (backing(share).join(SHARE_VOLUMES).join(&name), notes(share).join(&name));
        blocking(move || {
            let gone = if point.is_dir() { fs::remove_dir(&point) } else { fs::remove_file(&point) };
            forgive(gone, &point)?;
            let gone = if note.is_dir() { fs::remove_dir_all(&note) } else { fs::remove_file(&note) };
            forgive(gone, &note)
        })
        .await?;
    }
    Ok(())
}

fn forgive(removed: io::Result<()>, path: &Path) -> Result<(), MountsError> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|source| MountsError::RemoveMountPoint { path: path.to_owned(), source }),
    }
}

fn unused(share: &Path) -> Result<Vec<String>, MountsError> {
    let backing = backing(share);
    let failed = |source| MountsError::ReadVolumes { path: backing.clone(), source };
    let mut used = BTreeSet::new();
    for container in names_in(&backing).map_err(failed)? {
        let links = backing.join(container).join("mounts");
        for link in names_in(&links).map_err(failed)? {
            let target = fs::read_link(links.join(link)).unwrap_or_default();
            used.extend(target.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    let all = noted(share)?.into_iter().map(|(name, _)| name);
    Ok(all.filter(|name| !used.contains(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_kept_in_names_and_an_old_one_is_read() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "short", &"/a long path with ünusual letters\n".repeat(40)] {
            let note = dir.path().join(text.len().to_string());
            fs::create_dir(&note).unwrap();
            write_note(&note, text).unwrap();
            assert_eq!(read_note(&note).unwrap(), text);
            let sizes = fs::read_dir(&note).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
            assert_eq!(sizes.sum::<u64>(), 0, "names need no room");
        }
        let old = dir.path().join("old");
        fs::write(&old, "from before").unwrap();
        assert_eq!(read_note(&old).unwrap(), "from before");
    }
}
