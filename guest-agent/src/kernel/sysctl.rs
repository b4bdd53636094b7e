//! Kernel parameters by their dotted names, sysctl(8).

use std::io;
use std::path::PathBuf;

/// A sysctl that could not be set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SysctlError {
    #[error("{name:?} is no sysctl name")]
    BadName { name: String },
    #[error("set sysctl {name} to {value:?}")]
    Write { name: String, value: String, source: io::Error },
}

/// Sets a sysctl.
pub(crate) fn set(name: &str, value: &str) -> Result<(), SysctlError> {
    let path = path(name).ok_or_else(|| SysctlError::BadName { name: name.to_owned() })?;
    std::fs::write(path, value).map_err(|source| SysctlError::Write {
        name: name.to_owned(),
        value: value.to_owned(),
        source,
    })
}

/// Dots separate the parts of a name and a slash stands for a dot within a part (interfaces such as eth0.100), or the
/// other way round when a slash comes first: the rule of sysctl(8).
fn path(name: &str) -> Option<PathBuf> {
    let slashes = match name.find(['.', '/']) {
        Some(at) => name.get(at..)?.starts_with('/'),
        None => true,
    };
    let relative: String = if slashes {
        name.to_owned()
    } else {
        let swap = |c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        };
        name.chars().map(swap).collect()
    };
    let safe = !relative.is_empty()
        && relative.split('/').all(|part| !part.is_empty() && part != ".." && part != ".");
    safe.then(|| PathBuf::from("/proc/sys").join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_and_slashes_are_exchanged() {
        let of = |name| path(name).map(|path| path.to_string_lossy().into_owned());
        assert_eq!(of("net.ipv4.ip_forward").as_deref(), Some("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(of("net/ipv4/conf/eth0.100/mtu").as_deref(), Some("/proc/sys/net/ipv4/conf/eth0.100/mtu"));
        assert_eq!(of("net.ipv4.conf.eth0/100.mtu").as_deref(), Some("/proc/sys/net/ipv4/conf/eth0.100/mtu"));
    }

    #[test]
    fn a_name_cannot_leave_proc_sys() {
        for name in ["", "..", "net/../../etc/passwd", "/etc/passwd", "net..x", "net.ipv4."] {
            assert!(path(name).is_none(), "{name}");
        }
    }
}
