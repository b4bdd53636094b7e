//! Block devices of the host, by number: a container's spec says no more of them.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Number of a block device of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number {
    /// Its driver.
    pub major: u32,
    /// Which of the driver's.
    pub minor: u32,
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A block device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// Its node in `/dev`.
    pub path: PathBuf,
    /// Nobody may write to it, whoever asks.
    pub read_only: bool,
    /// Smallest unit that can be written, in bytes.
    pub logical_block_size: u32,
    /// Smallest unit that can be written without reading first, in bytes.
    pub physical_block_size: u32,
}

/// Why a block device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The kernel knows no such device.
    #[error("the host has no block device {number}: it went away, or is not attached yet")]
    Unknown {
        /// Its number.
        number: Number,
        /// What the kernel says.
        source: io::Error,
    },
    /// The kernel's description of it does not read.
    #[error("{} of block device {number} cannot be read", path.display())]
    Describe {
        /// Its number.
        number: Number,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its node is missing.
    #[error("{} is not there, where block device {number} should be; is /dev managed by the kernel?", path.display())]
    NoNode {
        /// Its number.
        number: Number,
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another device or file has its place.
    #[error("{} is not block device {number} as the kernel says it is", path.display())]
    OtherNode {
        /// Its number.
        number: Number,
        /// What should be it.
        path: PathBuf,
    },
}

impl BlockDevice {
    /// Finds the device of this number.
    ///
    /// # Errors
    /// [`BlockError`]: there is none, or its node in `/dev` is not it.
    pub fn find(number: Number) -> Result<Self, BlockError> {
        let device = Self::described(Path::new("/sys"), Path::new("/dev"), number)?;
        let path = device.path.clone();
        let node = std::fs::metadata(&path).map_err(|source| BlockError::NoNode {
            number,
            path: path.clone(),
            source,
        })?;
        let is_it = node.file_type().is_block_device()
            && rustix::fs::major(node.rdev()) == number.major
            && rustix::fs::minor(node.rdev()) == number.minor;
        if is_it { Ok(device) } else { Err(BlockError::OtherNode { number, path }) }
    }

    /// As the kernel describes it.
    fn described(sys: &Path, dev: &Path, number: Number) -> Result<Self, BlockError> {
        let dir = sys.join("dev/block").join(number.to_string());
        let events = std::fs::read_to_string(dir.join("uevent"))
            .map_err(|source| BlockError::Unknown { number, source })?;
        let named = events.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        let name = named.ok_or_else(|| BlockError::Describe {
            number,
            path: dir.join("uevent"),
            source: io::ErrorKind::InvalidData.into(),
        })?;
        // A partition's queue is its disk's.
        let queue = Some(dir.join("queue")).filter(|queue| queue.is_dir()).unwrap_or(dir.join("../queue"));
        let read = |path: PathBuf| {
            let read = std::fs::read_to_string(&path).and_then(|text| {
                text.trim().parse::<u32>().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
            });
            read.map_err(|source| BlockError::Describe { number, path, source })
        };
        Ok(Self {
            path: dev.join(name),
            read_only: read(dir.join("ro"))? != 0,
            logical_block_size: read(queue.join("logical_block_size"))?,
            physical_block_size: read(queue.join("physical_block_size"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBER: Number = Number { major: 8, minor: 1 };

    fn write(dir: &Path, path: &str, content: &str) {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn described(dir: &Path) -> Result<BlockDevice, BlockError> {
        BlockDevice::described(dir, Path::new("/dev"), NUMBER)
    }

    #[test]
    fn a_partition_has_its_disks_block_sizes() {
        let sys = tempfile::tempdir().unwrap();
        write(sys.path(), "devices/sda/queue/logical_block_size", "512\n");
        write(sys.path(), "devices/sda/queue/physical_block_size", "4096\n");
        write(sys.path(), "devices/sda/sda1/uevent", "MAJOR=8\nMINOR=1\nDEVNAME=sda1\nDEVTYPE=partition\n");
        write(sys.path(), "devices/sda/sda1/ro", "1\n");
        std::fs::create_dir_all(sys.path().join("dev/block")).unwrap();
        std::os::unix::fs::symlink("../../devices/sda/sda1", sys.path().join("dev/block/8:1")).unwrap();
        let device = described(sys.path()).unwrap();
        assert_eq!(device.path, Path::new("/dev/sda1"));
        assert!(device.read_only);
        assert_eq!((device.logical_block_size, device.physical_block_size), (512, 4096));
    }

    #[test]
    fn what_is_missing_is_named() {
        let sys = tempfile::tempdir().unwrap();
        let error = described(sys.path()).unwrap_err();
        assert!(matches!(error, BlockError::Unknown { .. }) && error.to_string().contains("8:1"), "{error}");
        write(sys.path(), "dev/block/8:1/uevent", "MAJOR=8\n");
        let error = described(sys.path()).unwrap_err();
        assert!(error.to_string().contains("8:1/uevent"), "{error}");
        write(sys.path(), "dev/block/8:1/uevent", "DEVNAME=sda1\n");
        let error = described(sys.path()).unwrap_err();
        assert!(error.to_string().contains("8:1/ro"), "{error}");
    }

    #[test]
    fn no_device_has_number_zero() {
        let error = BlockDevice::find(Number { major: 0, minor: 0 }).unwrap_err();
        assert!(matches!(error, BlockError::Unknown { .. }), "{error}");
    }
}
